package vddk_test

import (
	"bytes"
	"context"
	"errors"
	"io"
	"os"
	"path/filepath"
	"strings"
	"sync"
	"sync/atomic"
	"testing"
	"time"

	"lifeboat/disk"
	"lifeboat/disk/disktest"
	"lifeboat/vddk"
)

func TestRefusals(t *testing.T) {
	t.Parallel()
	raw := rawFile(t, random(1))
	for name, c := range map[string]struct {
		settings []string
		want     error
		text     string
	}{
		"credentials":    {[]string{"password", "another"}, vddk.ErrCredentials, "password is wrong"},
		"thumbprint":     {[]string{"thumbprint", "CC:DD"}, nil, "thumbprint"},
		"no such VM":     {[]string{"vm", "moref=vm-1"}, nil, "error 4"},
		"snapshot gone":  {[]string{"snapshot", "snapshot-1"}, nil, "error 4"},
		"licence":        {[]string{"connect_error", "16064"}, nil, "Global.DisableMethods"},
		"port 902":       {[]string{"open_error", "14009"}, nil, "port 902"},
		"name unknown":   {[]string{"open_error", "14008"}, nil, "resolve"},
		"access":         {[]string{"open_error", "13"}, nil, "DiskRandomRead"},
		"chain":          {[]string{"open_error", "16008"}, nil, "chain"},
		"no memory":      {[]string{"open_error", "2"}, vddk.ErrBusy, "error 2"},
		"not that mode":  {[]string{"usable", "hotadd"}, nil, "error 1"},
		"does not start": {[]string{"init_error", "16053"}, nil, "InitEx"},
		"crash":          {[]string{"crash_connect", "1"}, vddk.ErrCrashed, "SIGSEGV"},
	} {
		t.Run(name, func(t *testing.T) {
			t.Parallel()
			f := install(t)
			req := libraryRequest(t, f, raw)
			set(t, f, c.settings...)
			src, err := vddk.Open(t.Context(), req, vddk.Options{Transport: vddk.NBDSSL})
			if err == nil {
				src.Close()
				t.Fatal("it opens")
			}
			if c.want != nil && !errors.Is(err, c.want) {
				t.Errorf("error %v, want one that matches %v", err, c.want)
			}
			if !strings.Contains(err.Error(), c.text) || strings.Contains(err.Error(), "s3cret") {
				t.Errorf("error %v, want one with %q and without the password", err, c.text)
			}
		})
	}
}

// TestMethodsStayEnabled: not being able to keep vMotion away is no reason not
// to back up.
func TestPrepareForAccessIsRefused(t *testing.T) {
	f := install(t)
	want := random(1)
	req := libraryRequest(t, f, rawFile(t, want))
	set(t, f, "prepare_error", "16064")
	disktest.Equal(t, open(t, req, vddk.Options{}), want)
}

func TestAllocationCannotBeAsked(t *testing.T) {
	f := install(t)
	want := random(1)
	req := libraryRequest(t, f, rawFile(t, want))
	set(t, f, "no_blocks", "1")
	src := open(t, req, vddk.Options{})
	for ext, err := range src.Extents(t.Context(), disk.Whole(src)) {
		if err != nil || ext.Hole {
			t.Fatalf("extent %+v, %v", ext, err)
		}
	}
	disktest.Equal(t, src, want)
}

func TestNFCLimit(t *testing.T) {
	t.Parallel()
	f := install(t)
	req := libraryRequest(t, f, rawFile(t, random(1)))
	set(t, f, "nfc_limit", "2")
	one, two := open(t, req, vddk.Options{}), open(t, req, vddk.Options{})
	if _, err := vddk.Open(t.Context(), req, vddk.Options{}); !errors.Is(err, vddk.ErrBusy) {
		t.Fatalf("a third connection: %v", err)
	}
	if err := one.Close(); err != nil {
		t.Fatal(err)
	}
	disktest.Equal(t, open(t, req, vddk.Options{}), two)
}

// readUntilItFails reads the whole disk again and again, from several
// goroutines, until a read fails. All that comes before has to be right.
func readUntilItFails(t *testing.T, src vddk.Source, want disk.Image) error {
	t.Helper()
	failures := make(chan error)
	var once sync.Once
	var wg sync.WaitGroup
	var stop atomic.Bool
	for first := range int64(4) {
		wg.Go(func() {
			a, b := make([]byte, 100<<10), make([]byte, 100<<10)
			for off := first * 100 << 10; !stop.Load(); off = (off + 400<<10) % want.Size() {
				n, err := src.ReadAt(a, off)
				if err != nil && !errors.Is(err, io.EOF) {
					if n != 0 {
						t.Errorf("%d bytes come with an error", n)
					}
					stop.Store(true)
					once.Do(func() { failures <- err })
					return
				}
				if m, _ := want.ReadAt(b, off); m != n || !bytes.Equal(a[:n], b[:n]) {
					t.Errorf("wrong bytes at %d", off)
					stop.Store(true)
					once.Do(func() { failures <- errors.New("wrong bytes") })
					return
				}
			}
		})
	}
	err := <-failures
	wg.Wait()
	return err
}

func TestLossWhileReading(t *testing.T) {
	t.Parallel()
	want := random(5)
	raw := rawFile(t, want)
	for name, c := range map[string]struct {
		settings []string
		timeout  time.Duration
		want     error
		text     string
	}{
		"connection": {[]string{"lose_after", "30"}, 0, vddk.ErrLost, "connection to the host broke"},
		"crash":      {[]string{"crash_after", "30"}, 0, vddk.ErrCrashed, "egmentation"},
		"hung":       {[]string{"hang_after", "30"}, 300 * time.Millisecond, vddk.ErrHung, "no answer"},
	} {
		t.Run(name, func(t *testing.T) {
			t.Parallel()
			f := install(t)
			req := libraryRequest(t, f, raw)
			req.Files = &datastore{dir: t.TempDir()} // a lower rung, never to be used
			set(t, f, c.settings...)
			src, err := vddk.Open(t.Context(), req, vddk.Options{Timeout: c.timeout})
			if err != nil {
				t.Fatal(err)
			}
			err = readUntilItFails(t, src, want)
			if !errors.Is(err, c.want) || !errors.Is(err, vddk.ErrLost) || !strings.Contains(err.Error(), c.text) {
				t.Errorf("error %v, want one that matches %v and says %q", err, c.want, c.text)
			}
			set(t, f, "lose_after", "")
			if _, err := src.ReadAt(make([]byte, 512), 0); !errors.Is(err, vddk.ErrLost) {
				t.Errorf("what is lost is back: %v", err)
			}
			if err := src.Close(); err != nil {
				t.Errorf("Close: %v", err)
			}
			// A helper that could not close the disk is cleaned up after.
			cleaned, err := f.Cleanups()
			if want := name != "connection"; err != nil || (len(cleaned) == 1) != want {
				t.Errorf("cleaned up: %q, %v", cleaned, err)
			}
		})
	}
}

func TestBadSectorSpoilsOnlyItself(t *testing.T) {
	t.Parallel()
	f := install(t)
	want := disktest.Random(6, imageSize, 1)
	req := libraryRequest(t, f, rawFile(t, want))
	set(t, f, "bad_sector", "4096") // at 2 MiB
	src := open(t, req, vddk.Options{})
	p := make([]byte, 3<<20)
	if n, err := src.ReadAt(p, 0); n != 0 || err == nil || errors.Is(err, vddk.ErrLost) {
		t.Errorf("a read over a bad sector = %d, %v", n, err)
	}
	q := make([]byte, 1<<20)
	if _, err := src.ReadAt(p[:1<<20], 1<<20); err != nil {
		t.Errorf("a read beside it: %v", err)
	}
	if want.ReadAt(q, 1<<20); !bytes.Equal(p[:1<<20], q) {
		t.Error("wrong bytes beside it")
	}
}

func TestOpeningHangs(t *testing.T) {
	t.Parallel()
	f := install(t)
	req := libraryRequest(t, f, rawFile(t, random(1)))
	set(t, f, "hang_connect", "1")
	if _, err := vddk.Open(t.Context(), req, vddk.Options{OpenTimeout: 300 * time.Millisecond}); !errors.Is(err, vddk.ErrHung) {
		t.Errorf("a server that hangs: %v", err)
	}
	ctx, cancel := context.WithCancel(t.Context())
	time.AfterFunc(100*time.Millisecond, cancel)
	if _, err := vddk.Open(ctx, req, vddk.Options{}); !errors.Is(err, context.Canceled) {
		t.Errorf("cancelled while opening: %v", err)
	}
}

func TestCancelEndsReads(t *testing.T) {
	t.Parallel()
	f := install(t)
	req := libraryRequest(t, f, rawFile(t, random(1)))
	set(t, f, "delay_us", "20000", "threads", "1")
	ctx, cancel := context.WithCancel(t.Context())
	src, err := vddk.Open(ctx, req, vddk.Options{})
	if err != nil {
		t.Fatal(err)
	}
	time.AfterFunc(100*time.Millisecond, cancel)
	if err := readUntilItFails(t, src, random(1)); !errors.Is(err, context.Canceled) {
		t.Errorf("a cancelled read: %v", err)
	}
	if err := src.Close(); err != nil {
		t.Errorf("Close: %v", err)
	}
}

func TestProbeAndCleanup(t *testing.T) {
	t.Parallel()
	f := install(t)
	info, err := vddk.Probe(t.Context(), f.Library())
	if err != nil || info.Version != "8.0.9" || strings.Join(info.Modes, ":") != "file:san:hotadd:nbdssl:nbd" {
		t.Errorf("probe: %+v, %v", info, err)
	}
	if _, err := vddk.Probe(t.Context(), vddk.Library{Dir: t.TempDir()}); !errors.Is(err, vddk.ErrUnavailable) {
		t.Errorf("probe where there is none: %v", err)
	}
	req := libraryRequest(t, f, rawFile(t, random(1)))
	if err := vddk.Cleanup(t.Context(), req, vddk.Options{}); err != nil {
		t.Errorf("cleanup: %v", err)
	}
	set(t, f, "remaining", "2")
	if err := vddk.Cleanup(t.Context(), req, vddk.Options{}); err == nil || !strings.Contains(err.Error(), "2 disks stay attached") {
		t.Errorf("cleanup that leaves something: %v", err)
	}
	req.Library = vddk.Library{Dir: t.TempDir()}
	if err := vddk.Cleanup(t.Context(), req, vddk.Options{}); err != nil {
		t.Errorf("cleanup without the library: %v", err)
	}
}

func TestBrokenLibrary(t *testing.T) {
	f := install(t)
	lib := f.Library()
	lib.Dir = t.TempDir()
	if err := os.WriteFile(filepath.Join(lib.Dir, "libvixDiskLib.so.7.0.0"), []byte("not ELF"), 0o700); err != nil {
		t.Fatal(err)
	}
	if _, err := vddk.Probe(t.Context(), lib); err == nil || errors.Is(err, vddk.ErrUnavailable) || !strings.Contains(err.Error(), "load") {
		t.Errorf("a library that is none: %v", err)
	}
}

// limiter counts.
type limiter struct{ bytes, calls atomic.Int64 }

func (l *limiter) Wait(ctx context.Context, n int64) error {
	l.calls.Add(1)
	l.bytes.Add(n)
	return ctx.Err()
}

func TestLimiterSeesEveryByte(t *testing.T) {
	want := disktest.Random(10, imageSize, 1)
	req, _ := folderRequest(t, want)
	var l limiter
	src := open(t, req, vddk.Options{Limiter: &l})
	p := make([]byte, imageSize)
	if _, err := src.ReadAt(p, 0); err != nil {
		t.Fatal(err)
	}
	if l.bytes.Load() != imageSize || l.calls.Load() != 6 {
		t.Errorf("%d bytes in %d calls", l.bytes.Load(), l.calls.Load())
	}
}
