package store

import (
	"context"
	"errors"
	"testing"
	"time"

	"lifeboat/store/backend"
	"lifeboat/store/backend/backendtest"
	"lifeboat/store/backend/s3"
	"lifeboat/store/backend/s3/s3test"
)

// careless is a backend that cannot keep two writers apart, and says so.
type careless struct {
	backend.Backend
	probes int
}

func (c *careless) Create(ctx context.Context, name string, _ backend.Mode) (backend.Writer, error) {
	return c.Backend.Create(ctx, name, backend.Replace)
}

func (c *careless) ProbeExclusive(context.Context) (bool, error) {
	c.probes++
	return false, nil
}

// wantOneWriter: on b, in which there is a repository, a second writer is
// refused while the first one is alive, with the reason, and not longer.
func wantOneWriter(t *testing.T, b backend.Backend) {
	t.Helper()
	ctx := t.Context()
	all := &actors{}
	open := func(name string) *Repository {
		r, err := Open(ctx, b, testPassword, Options{Logger: quiet(), Processes: actor{all, name}, Lease: 4 * time.Second})
		if err != nil {
			t.Fatal(err)
		}
		t.Cleanup(func() { r.Close() })
		return r
	}
	first, second := open("first"), open("second")
	in, err := first.NewIngest(ctx, IngestOptions{})
	if err != nil {
		t.Fatal(err)
	}
	if _, err := second.NewIngest(ctx, IngestOptions{}); !errors.Is(err, ErrNotExclusive) || !errors.Is(err, ErrBusy) {
		t.Errorf("a second writer: %v, want ErrNotExclusive", err)
	}
	if _, err := second.Prune(ctx, PruneOptions{}); !errors.Is(err, ErrNotExclusive) {
		t.Errorf("a prune beside a writer: %v, want ErrNotExclusive", err)
	}
	if err := in.Close(); err != nil {
		t.Fatal(err)
	}
	src := randomDisk(1, 1<<20)
	p := backup(t, second, "vm", nil, src, nil)
	wantDisk(t, first, p, 0, src)
}

func TestOneWriterWhereExclusiveDoesNotHold(t *testing.T) {
	b := &careless{Backend: backendtest.NewMemory()}
	if err := Init(t.Context(), b, testPassword, cheap); err != nil {
		t.Fatal(err)
	}
	wantOneWriter(t, b)
	if b.probes != 2 {
		t.Errorf("%d probes of two processes", b.probes)
	}
}

// TestOneWriterOnWeakS3 is the same over a server that ignores If-None-Match.
func TestOneWriterOnWeakS3(t *testing.T) {
	weak := s3test.RunWeak(t, "weak")
	b, err := s3.Open(t.Context(), s3test.URL(weak.Endpoint, "weak", "p"), s3.Options{Keys: s3.Keys{Access: "a", Secret: "s"}})
	if err != nil {
		t.Fatal(err)
	}
	defer b.Close()
	if err := Init(t.Context(), b, testPassword, cheap); err != nil {
		t.Fatal(err)
	}
	if err := Init(t.Context(), b, testPassword, cheap); !errors.Is(err, ErrExists) {
		t.Errorf("a second init: %v, want ErrExists", err)
	}
	wantOneWriter(t, b)
}
