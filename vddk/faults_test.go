package vddk_test

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"io"
	"io/fs"
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
		})
	}
}

func TestBadSectorSpoilsOnlyItself(t *testing.T) {
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

// TestFolderIsTakenUpAgain: requests that break off and fail are made again,
// and no byte is lost or doubled.
func TestFolderIsTakenUpAgain(t *testing.T) {
	want := disktest.Random(7, imageSize, 1)
	req, store := folderRequest(t, want)
	var mu sync.Mutex
	calls := 0
	store.fail = func(_ string, _ int64, p []byte) (int, error) {
		mu.Lock()
		defer mu.Unlock()
		if calls++; calls%3 == 0 {
			return len(p) / 2, io.ErrUnexpectedEOF
		}
		if calls%7 == 0 {
			return 0, fmt.Errorf("Get: %w", io.EOF) // the server closed the connection
		}
		return len(p), nil
	}
	disktest.Equal(t, open(t, req, vddk.Options{}), want)
}

func TestFolderGivesUp(t *testing.T) {
	for name, c := range map[string]struct {
		fail error
		lost bool
	}{
		"gone": {fmt.Errorf("HTTP 404: %w", fs.ErrNotExist), false},
		"down": {errors.New("connection refused"), true},
	} {
		t.Run(name, func(t *testing.T) {
			t.Parallel()
			req, store := folderRequest(t, random(8))
			src := open(t, req, vddk.Options{Timeout: time.Second})
			calls := 0
			store.fail = func(string, int64, []byte) (int, error) { calls++; return 0, c.fail }
			_, err := src.ReadAt(make([]byte, 1000), 0)
			if !errors.Is(err, c.fail) || errors.Is(err, vddk.ErrLost) != c.lost {
				t.Errorf("error %v", err)
			}
			if many := calls > 1; many != c.lost {
				t.Errorf("asked %d times", calls)
			}
		})
	}
}

func TestFolderHangs(t *testing.T) {
	req, store := folderRequest(t, random(8))
	src := open(t, req, vddk.Options{Timeout: 10 * time.Millisecond})
	release := make(chan struct{})
	defer close(release)
	store.fail = func(string, int64, []byte) (int, error) {
		select {
		case <-release:
		case <-time.After(30 * time.Millisecond):
		}
		return 0, errors.New("too late")
	}
	if _, err := src.ReadAt(make([]byte, 1000), 0); !errors.Is(err, vddk.ErrHung) || !errors.Is(err, vddk.ErrLost) {
		t.Errorf("a server that hangs: %v", err)
	}
}

// TestFolderRefusesWhatItCannotRead: a delta and a file that is too short are
// no disks.
func TestFolderRefusesWhatItCannotRead(t *testing.T) {
	want := random(9)
	for name, change := range map[string]func(text string) string{
		"delta":  func(s string) string { return strings.Replace(s, "parentCID=ffffffff", "parentCID=12345678", 1) },
		"sparse": func(s string) string { return strings.Replace(s, "VMFS \"", "SESPARSE \"", 1) },
		"path":   func(s string) string { return strings.Replace(s, "VMFS \"", "VMFS \"../", 1) },
		"longer": func(s string) string {
			return strings.Replace(s, fmt.Sprintf("RW %d ", imageSize/512), fmt.Sprintf("RW %d ", imageSize/512+1), 1)
		},
		"nonsense": func(string) string { return "<html>login</html>" },
	} {
		t.Run(name, func(t *testing.T) {
			req, store := folderRequest(t, want)
			text, err := os.ReadFile(store.file(diskPath))
			if err != nil {
				t.Fatal(err)
			}
			changed := change(string(text))
			if changed == string(text) {
				t.Fatalf("the test changes nothing in\n%s", text)
			}
			if err := os.WriteFile(store.file(diskPath), []byte(changed), 0o600); err != nil {
				t.Fatal(err)
			}
			if src, err := vddk.Open(t.Context(), req, vddk.Options{}); err == nil {
				src.Close()
				t.Error("it opens")
			}
		})
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

// TestSmallReadsAreFew: who parses a file system over /folder does not make a
// request for each sector, and one who reads on is read ahead of.
func TestSmallReadsAreFew(t *testing.T) {
	want := disktest.Random(15, imageSize, 1)
	req, store := folderRequest(t, want)
	var mu sync.Mutex
	calls := 0
	store.fail = func(string, int64, []byte) (int, error) {
		mu.Lock()
		defer mu.Unlock()
		calls++
		return 0, nil
	}
	src := open(t, req, vddk.Options{})
	p, q := make([]byte, 700), make([]byte, 700)
	for off := int64(0); off < 2<<20; off += 700 {
		if _, err := src.ReadAt(p, off); err != nil {
			t.Fatal(err)
		}
		if want.ReadAt(q, off); !bytes.Equal(p, q) {
			t.Fatalf("wrong bytes at %d", off)
		}
	}
	mu.Lock()
	defer mu.Unlock()
	if most := 2<<20>>16 + 8; calls > most {
		t.Errorf("%d requests for 2 MiB, at most %d are needed", calls, most)
	}
}

func TestFolderFileShrinks(t *testing.T) {
	req, store := folderRequest(t, disktest.Random(16, imageSize, 1))
	src := open(t, req, vddk.Options{})
	if err := os.Truncate(store.file("disk ü-flat.vmdk"), 2<<20); err != nil {
		t.Fatal(err)
	}
	if n, err := src.ReadAt(make([]byte, 3<<20), 0); n != 0 || !errors.Is(err, disk.ErrChanged) {
		t.Errorf("a read over the end of a file that shrank = %d, %v", n, err)
	}
}
