package guestfstest

import (
	"os/exec"
	"strings"
	"testing"

	"golang.org/x/sys/unix"
)

// MountDevices mounts the file system that several images make up, the first of
// which is named, until the end of the test, or until the function that it returns
// is called.
func MountDevices(t testing.TB, images []string, fsType, options string) (dir string, unmount func()) {
	t.Helper()
	dir = t.TempDir()
	var loops []string
	for _, image := range images {
		loops = append(loops, attach(t, image))
	}
	release := func() {
		for _, loop := range loops {
			detach(t, loop)
		}
	}
	list := []string{options}
	for _, loop := range loops[1:] {
		list = append(list, "device="+loop)
	}
	args := []string{"-t", fsType, "-o", strings.Trim(strings.Join(list, ","), ","), loops[0], dir}
	if out, err := exec.CommandContext(t.Context(), "mount", args...).CombinedOutput(); err != nil {
		release()
		t.Fatalf("mount %s: %v\n%s", strings.Join(args, " "), err, out)
	}
	mounted := true
	unmount = func() {
		if !mounted {
			return
		}
		mounted = false
		if err := patiently(func() error { return unix.Unmount(dir, 0) }); err != nil {
			t.Errorf("unmount %s: %v", dir, err)
		}
		release()
	}
	t.Cleanup(unmount)
	return dir, unmount
}
