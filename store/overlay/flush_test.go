package overlay

import (
	"bytes"
	"errors"
	"io/fs"
	"testing"

	"lifeboat/internal/vfs"
)

func flushed(t *testing.T, ov *Overlay) error {
	t.Helper()
	done := make(chan error, 1)
	ov.FlushAsync(func(err error) { done <- err })
	return <-done
}

// TestFlushOutlivesTheProcess writes without a sync and opens the overlay a
// second time while the first still has everything open: what a process finds
// whose predecessor was killed.
func TestFlushOutlivesTheProcess(t *testing.T) {
	o := testOptions(vfs.OS())
	o.Dir = t.TempDir() + "/overlay"
	first := mustOpen(t, o)
	defer first.Close()
	want := bytes.Repeat([]byte("acknowledged"), 1000)
	for _, off := range []int64{0, 100_000, 100_512} {
		if _, err := first.WriteAt(want, off); err != nil {
			t.Fatal(err)
		}
		if err := flushed(t, first); err != nil {
			t.Fatal(err)
		}
	}
	if err := flushed(t, first); err != nil {
		t.Fatalf("with nothing to do: %v", err)
	}
	second := mustOpen(t, o)
	defer second.Close()
	got := make([]byte, len(want))
	for _, off := range []int64{0, 100_512} {
		if _, err := second.ReadAt(got, off); err != nil || !bytes.Equal(got, want) {
			t.Errorf("at %d: the write is lost (%v)", off, err)
		}
	}
}

func TestFlushAfterClose(t *testing.T) {
	o := testOptions(vfs.OS())
	o.Dir = t.TempDir() + "/overlay"
	ov := mustOpen(t, o)
	if err := ov.Close(); err != nil {
		t.Fatal(err)
	}
	if err := flushed(t, ov); !errors.Is(err, fs.ErrClosed) {
		t.Errorf("flush of a closed overlay: %v", err)
	}
}
