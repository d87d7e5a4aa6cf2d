package guestfstest

import (
	"fmt"
	"os"
	"path/filepath"
	"sync/atomic"
	"testing"

	"golang.org/x/sys/unix"
)

// Live is an image that can be copied while a mounted file system writes to it,
// as it is at one instant: what a snapshot of a running machine's disk holds. It
// lies on a file system of its own that can share blocks between files, which
// copies between two writes.
type Live struct {
	Image  string
	folder string
	copies atomic.Int32
}

// NewLive makes an empty image of size bytes.
func NewLive(t testing.TB, size int64) *Live {
	t.Helper()
	NeedMount(t, "xfs", "mkfs.xfs")
	outer := NewImage(t, 4*size+1<<30)
	Run(t, "mkfs.xfs", "-q", "-f", "-m", "reflink=1", outer)
	folder := t.TempDir()
	loop := attach(t, outer)
	t.Cleanup(func() {
		// What was mounted from here may live on in a mount namespace that
		// somebody made meanwhile.
		if patiently(func() error { return unix.Unmount(folder, 0) }) != nil {
			_ = unix.Unmount(folder, unix.MNT_DETACH) // it goes when that one does
		}
		detach(t, loop)
	})
	if err := unix.Mount(loop, folder, "xfs", 0, ""); err != nil {
		t.Fatalf("mount %s: %v", loop, err)
	}
	l := &Live{Image: filepath.Join(folder, "live.raw"), folder: folder}
	f, err := os.Create(l.Image)
	if err != nil {
		t.Fatal(err)
	}
	defer f.Close()
	if err := f.Truncate(size); err != nil {
		t.Fatal(err)
	}
	return l
}

// Copy copies an image, holes as holes: the live one as it is at this moment, or
// another copy.
func (l *Live) Copy(t testing.TB, image string) string {
	t.Helper()
	from, err := os.Open(image)
	if err != nil {
		t.Fatal(err)
	}
	defer from.Close()
	to, err := os.Create(filepath.Join(l.folder, fmt.Sprintf("copy %d.raw", l.copies.Add(1))))
	if err != nil {
		t.Fatal(err)
	}
	defer to.Close()
	if err := unix.IoctlFileClone(int(to.Fd()), int(from.Fd())); err != nil {
		t.Fatalf("copy %s at one instant: %v", image, err)
	}
	return to.Name()
}
