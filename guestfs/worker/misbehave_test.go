package worker_test

import (
	"context"
	"errors"
	"fmt"
	"iter"
	"log/slog"
	"math"
	"net"
	"os"
	"os/exec"
	"strings"
	"sync"
	"sync/atomic"
	"syscall"
	"testing"
	"time"

	"golang.org/x/sys/unix"

	"lifeboat/disk"
	"lifeboat/guestfs"
	"lifeboat/guestfs/guestfstest"
	"lifeboat/guestfs/worker"
)

// bad is a reader of a file system that an attacker has taken over. What it does
// is in the name that is looked up.
type bad struct{ img disk.Image }

func misbehave(_ context.Context, img disk.Image, _ ...disk.Image) (guestfs.FS, error) {
	if deed := deedOf(img); deed != "" {
		_, err := (&bad{img}).Lookup(context.Background(), 1, deed)
		return nil, err
	}
	return &bad{img}, nil
}

func (b *bad) Root() guestfs.Inode { return 1 }

func (b *bad) Stat(context.Context, guestfs.Inode) (*guestfs.Attr, error) {
	return &guestfs.Attr{Inode: 1, Mode: guestfs.TypeDir}, nil
}

func (b *bad) ReadDir(context.Context, guestfs.Inode, uint64) iter.Seq2[guestfs.Dirent, error] {
	return func(yield func(guestfs.Dirent, error) bool) {
		for yield(guestfs.Dirent{Name: "again", Inode: 2, Cookie: 7}, nil) {
			continue
		}
	}
}

func (b *bad) Open(ctx context.Context, _ guestfs.Inode) (disk.Image, error) {
	return disk.Assemble(ctx, 1<<40, func(int64) (disk.Piece, error) {
		return disk.Piece{Offset: 0, Length: 1 << 40, From: b.img, At: 1 << 50}, nil
	}), nil
}

// sink keeps what a deed made, so that no compiler leaves it out.
var sink sync.Map

func (b *bad) Lookup(_ context.Context, _ guestfs.Inode, deed string) (guestfs.Dirent, error) {
	switch deed {
	case "panic":
		var list []int
		return guestfs.Dirent{Inode: guestfs.Inode(list[len(deed)])}, nil
	case "spin":
		for i := 0; ; i++ {
			if i == math.MaxInt {
				i = 0
			}
		}
	case "lock":
		select {}
	case "eat":
		for i := 0; ; i++ {
			p := make([]byte, 1<<20)
			for j := range p {
				p[j] = byte(i)
			}
			sink.Store(i, p)
		}
	case "recurse":
		return guestfs.Dirent{Inode: guestfs.Inode(recurse(1))}, nil
	case "exit":
		os.Exit(0)
	case "fine":
		return guestfs.Dirent{Inode: 2, Name: "fine"}, nil
	case "escape":
		return guestfs.Dirent{}, escape()
	}
	return guestfs.Dirent{}, errors.New("no such deed")
}

func recurse(n int) int {
	if n == 0 {
		return 0
	}
	return recurse(n+1) + 1
}

// escape tries what an attacker would, and tells what succeeded.
func escape() error {
	var done []error
	tried := func(what string, err error) {
		if err == nil {
			done = append(done, errors.New(what))
		}
	}
	for _, name := range []string{"/", "/etc/passwd", "/proc/self/mem", "/dev/null", "."} {
		_, err := os.Open(name)
		tried("open "+name, err)
	}
	_, err := os.Create("/tmp/escaped")
	tried("create", err)
	_, err = net.Dial("tcp", "127.0.0.1:22")
	tried("connect", err)
	_, err = unix.Socket(unix.AF_UNIX, unix.SOCK_STREAM, 0)
	tried("socket", err)
	tried("exec", exec.Command("/proc/self/exe").Run())
	tried("execve", syscall.Exec("/proc/self/exe", nil, nil))
	_, _, errno := syscall.RawSyscall(unix.SYS_CLONE, uintptr(unix.SIGCHLD), 0, 0)
	tried("fork", errnoError(errno))
	tried("signal", unix.Kill(-1, 0))
	tried("ptrace", unix.PtraceAttach(1))
	_, err = unix.Mmap(-1, 0, 4096, unix.PROT_READ|unix.PROT_EXEC, unix.MAP_PRIVATE|unix.MAP_ANON)
	tried("memory to run", err)
	tried("setuid", syscall.Setuid(0))
	tried("unshare", unix.Unshare(unix.CLONE_NEWUSER))
	tried("mount", unix.Mount("none", "/", "tmpfs", 0, ""))
	if unix.Getuid() == 0 {
		done = append(done, errors.New("is root"))
	}
	if len(done) == 0 {
		return errors.New("nothing succeeded")
	}
	return fmt.Errorf("ESCAPED: %w", errors.Join(done...))
}

func errnoError(errno syscall.Errno) error {
	if errno == 0 {
		return nil
	}
	return errno
}

func TestNothingSucceeds(t *testing.T) {
	s := start(t, worker.Options{}, pretender(t, ""))
	_, err := guestfs.Lookup(t.Context(), volume(t, s, 0), 1, "escape")
	if err == nil || err.Error() != "nothing succeeded" {
		t.Errorf("%v (%v)", err, s.Confinement())
	}
	c := s.Confinement()
	if !c.Seccomp || c.Memory == 0 && !raceDetector {
		t.Errorf("confinement: %v", c)
	}
	if os.Getuid() == 0 && (c.User != "nobody" || c.Root != "empty" || len(c.Namespaces) == 0) {
		t.Errorf("started by root, confinement: %v", c)
	}
}

// limited is the memory that a worker gets. The race detector needs more than
// there is a limit for; then what eats memory is not tested.
func limited(t *testing.T, deed string) int64 {
	t.Helper()
	if !raceDetector {
		return 128 << 20
	}
	if deed == "eat" || deed == "recurse" {
		t.Skip("the race detector does not work with a limit of memory")
	}
	return -1
}

// TestFailure: whatever a reader does, it costs the request, the next one is
// answered, and in the end there is an end.
func TestFailure(t *testing.T) {
	for deed, reason := range map[string]string{
		"panic":   "index out of range",
		"spin":    "did not answer within",
		"lock":    "did not answer within",
		"eat":     "it died",
		"recurse": "it died",
		"exit":    "it ended",
	} {
		t.Run(deed, func(t *testing.T) {
			t.Parallel()
			memory := limited(t, deed)
			timeout := 8 * time.Second
			if strings.Contains(reason, "did not answer") {
				timeout = 400 * time.Millisecond
			}
			s := start(t, worker.Options{Timeout: timeout, Memory: memory, Restarts: 1}, pretender(t, ""), pretender(t, ""))
			fsys := volume(t, s, 1)
			for round := range 2 {
				if e, err := guestfs.Lookup(t.Context(), fsys, 1, "fine"); err != nil || e.Name != "fine" {
					t.Fatalf("round %d: %v", round, err)
				}
				_, err := guestfs.Lookup(t.Context(), fsys, 1, deed)
				var failure *worker.FailureError
				if !errors.Is(err, worker.ErrWorker) || !errors.As(err, &failure) || failure.Final {
					t.Fatalf("round %d: %v", round, err)
				}
				if !strings.Contains(failure.Reason, reason) {
					t.Errorf("round %d: the reason is %q, want %q", round, failure.Reason, reason)
				}
			}
			_, err := guestfs.Lookup(t.Context(), fsys, 1, "fine")
			var failure *worker.FailureError
			if !errors.As(err, &failure) || !failure.Final {
				t.Errorf("after the last restart: %v", err)
			}
		})
	}
}

// TestFailureAtOnce: a guest that takes the worker over before it has said
// anything is an error, not a hang.
func TestFailureAtOnce(t *testing.T) {
	for _, deed := range []string{"panic", "spin", "eat"} {
		t.Run(deed, func(t *testing.T) {
			t.Parallel()
			opts := worker.Options{Timeout: 300 * time.Millisecond, Memory: limited(t, deed), Logger: slog.New(slog.DiscardHandler)}
			if _, err := worker.Start(t.Context(), []disk.Image{pretender(t, deed)}, opts); !errors.Is(err, worker.ErrWorker) {
				t.Errorf("%v", err)
			}
		})
	}
}

// TestLies: what a worker says that cannot be is found out.
func TestLies(t *testing.T) {
	s := start(t, worker.Options{}, pretender(t, ""))
	fsys := volume(t, s, 0)
	img, err := fsys.Open(t.Context(), 2)
	if err == nil {
		_, err = img.ReadAt(make([]byte, 10), 5)
	}
	if err == nil {
		t.Error("a file that lies outside of all disks was read")
	}
	ctx, cancel := context.WithCancel(t.Context())
	defer cancel()
	n := 0
	for _, err := range fsys.ReadDir(ctx, 1, 0) {
		if err != nil {
			break
		}
		if n++; n == 10_000 {
			cancel() // a listing without end ends when nobody wants more of it
		}
	}
	if n < 10_000 || n > 20_000 {
		t.Errorf("%d entries of a listing without end", n)
	}
}

// slowDisk answers when it is told to.
type slowDisk struct {
	disk.Image
	slow chan struct{} // closed: at once
}

func (d *slowDisk) ReadAt(p []byte, off int64) (int, error) {
	<-d.slow
	return d.Image.ReadAt(p, off)
}

// TestSlowDisk: waiting for a disk is no hang of the worker.
func TestSlowDisk(t *testing.T) {
	d := &slowDisk{pretender(t, ""), make(chan struct{})}
	timeout := 300 * time.Millisecond
	if raceDetector { // with it, a process takes a second to start
		timeout = 2 * time.Second
	}
	release := time.AfterFunc(6*timeout, func() { close(d.slow) })
	defer release.Stop()
	start(t, worker.Options{Timeout: timeout}, d)
}

// TestCancel: a caller who goes away does not wait, and ends nothing but his
// own request.
func TestCancel(t *testing.T) {
	s := start(t, worker.Options{Restarts: -1}, pretender(t, ""))
	fsys := volume(t, s, 0)
	ctx, cancel := context.WithCancel(t.Context())
	done := make(chan error)
	go func() {
		_, err := guestfs.Lookup(ctx, fsys, 1, "lock")
		done <- err
	}()
	cancel()
	if err := <-done; !errors.Is(err, context.Canceled) {
		t.Errorf("%v", err)
	}
	if _, err := guestfs.Lookup(t.Context(), fsys, 1, "fine"); err != nil {
		t.Errorf("the next request: %v", err)
	}
	if err := s.Close(); err != nil {
		t.Error(err)
	}
	if _, err := guestfs.Lookup(t.Context(), fsys, 1, "fine"); !errors.Is(err, os.ErrClosed) {
		t.Errorf("after Close: %v", err)
	}
}

// TestDiskError: an error of a disk is the request's, with its kind.
func TestDiskError(t *testing.T) {
	guestfstest.NeedMount(t, "ext4", "mke2fs")
	file := guestfstest.NewImage(t, 8<<20)
	guestfstest.Run(t, "mke2fs", "-q", "-F", file)
	d := &failingDisk{Image: image(t, file)}
	s := start(t, worker.Options{}, d)
	d.fail.Store(true)
	if _, err := volume(t, s, 0).Stat(t.Context(), 1500); err == nil || !strings.Contains(err.Error(), "the disk is gone") {
		t.Errorf("%v", err)
	}
}

type failingDisk struct {
	disk.Image
	fail atomic.Bool
}

func (d *failingDisk) ReadAt(p []byte, off int64) (int, error) {
	if d.fail.Load() {
		return 0, errors.New("the disk is gone")
	}
	return d.Image.ReadAt(p, off)
}
