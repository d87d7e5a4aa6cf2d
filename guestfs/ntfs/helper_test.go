package ntfs_test

import (
	"bytes"
	"os/exec"
	"path/filepath"
	"testing"
	"time"

	"golang.org/x/sys/unix"

	"lifeboat/disk"
	"lifeboat/guestfs/guestfstest"
	"lifeboat/guestfs/ntfs"
)

// format makes an NTFS volume in a file.
func format(t testing.TB, size int64, args ...string) string {
	t.Helper()
	image := guestfstest.NewImage(t, size)
	guestfstest.Run(t, "mkfs.ntfs", append(append([]string{"--quick", "--force", "--no-indexing", "--label", "Größe"}, args...), image)...)
	return image
}

// mount mounts a volume by ntfs-3g until the end of the test, or until the
// function that it returns is called: then all is written.
func mount(t testing.TB, image, options string) (dir string, unmount func()) {
	t.Helper()
	dir = t.TempDir()
	all := "no_detach,special_files=wsl"
	if options != "" {
		all += "," + options
	}
	cmd := exec.Command("ntfs-3g", "-o", all, image, dir)
	var said bytes.Buffer
	cmd.Stdout, cmd.Stderr = &said, &said
	if err := cmd.Start(); err != nil {
		t.Fatal(err)
	}
	ended := make(chan error, 1)
	go func() { ended <- cmd.Wait() }()
	for !mounted(dir) {
		select {
		case err := <-ended:
			t.Fatalf("ntfs-3g does not mount: %v\n%s", err, &said)
		case <-time.After(2 * time.Millisecond): // the mount is made by another process, which says nothing
		}
	}
	done := false
	unmount = func() {
		if done {
			return
		}
		done = true
		for unix.Unmount(dir, 0) == unix.EBUSY {
			time.Sleep(10 * time.Millisecond)
		}
		if err := <-ended; err != nil {
			t.Errorf("ntfs-3g: %v\n%s", err, &said)
		}
	}
	t.Cleanup(unmount)
	return dir, unmount
}

func mounted(dir string) bool {
	var in, above unix.Stat_t
	return unix.Stat(dir, &in) == nil && unix.Stat(filepath.Dir(dir), &above) == nil && in.Dev != above.Dev
}

func open(t testing.TB, image string) *ntfs.FS {
	t.Helper()
	img, err := disk.Open(t.Context(), image, disk.OpenOptions{Format: disk.FormatRaw})
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { img.Close() })
	fsys, err := ntfs.Open(t.Context(), img)
	if err != nil {
		t.Fatal(err)
	}
	return fsys
}
