package appliance

import (
	"errors"
	"fmt"
	"math/rand/v2"
	"os"
	"os/exec"
	"path/filepath"
	"slices"
	"strings"
	"testing"
	"time"

	"golang.org/x/sys/unix"

	"lifeboat/guestfs/guestfstest"
)

// withNTFS runs fn on a mounted image.
func withNTFS(t *testing.T, image string, fn func(dir string)) {
	t.Helper()
	dir := t.TempDir()
	cmd := exec.CommandContext(t.Context(), "ntfs-3g", "-o", "no_detach", image, dir)
	if err := cmd.Start(); err != nil {
		t.Fatal(err)
	}
	var in, above unix.Stat_t
	for range 2000 { // another process mounts it, which says nothing
		if err := errors.Join(unix.Stat(dir, &in), unix.Stat(filepath.Dir(dir), &above)); err == nil && in.Dev != above.Dev {
			break
		}
		time.Sleep(5 * time.Millisecond)
	}
	if in.Dev == above.Dev {
		t.Fatal("ntfs-3g does not mount")
	}
	fn(dir)
	for unix.Unmount(dir, 0) == unix.EBUSY {
		time.Sleep(10 * time.Millisecond)
	}
	if err := cmd.Wait(); err != nil {
		t.Fatal(err)
	}
}

// TestDiffFilesNTFS: where inodes tell their own names, no directory is read, and
// what is found is what a walk finds.
func TestDiffFilesNTFS(t *testing.T) {
	guestfstest.NeedMount(t, "fuse", "mkfs.ntfs", "ntfs-3g")
	image := guestfstest.NewImage(t, 32<<20)
	guestfstest.Run(t, "mkfs.ntfs", "-q", "-F", "-f", image)
	must := func(err error) {
		t.Helper()
		if err != nil {
			t.Fatal(err)
		}
	}
	rng := rand.New(rand.NewPCG(4, 4))
	write := func(name string) {
		t.Helper()
		b := make([]byte, 1+rng.IntN(9000))
		for i := range b {
			b[i] = byte(rng.Uint32())
		}
		must(os.WriteFile(name, b, 0o644))
	}
	withNTFS(t, image, func(dir string) {
		for n := range 8 {
			sub := filepath.Join(dir, fmt.Sprintf("Directory %d", n), "deep ü")
			must(os.MkdirAll(sub, 0o755))
			for i := range 40 {
				write(filepath.Join(sub, fmt.Sprintf("file %d", i)))
			}
		}
	})
	repo, a := pointOf(t, image)
	withNTFS(t, image, func(dir string) {
		in := func(n, i int) string {
			return filepath.Join(dir, fmt.Sprintf("Directory %d", n), "deep ü", fmt.Sprintf("file %d", i))
		}
		write(filepath.Join(dir, "new"))
		write(in(0, 1))
		must(os.Rename(in(1, 1), in(2, 100)))
		must(os.Rename(in(1, 2), in(1, 3)))
		must(os.Rename(filepath.Join(dir, "Directory 3"), filepath.Join(dir, "Directory 4", "moved")))
		must(os.Remove(in(5, 1)))
		must(os.RemoveAll(filepath.Join(dir, "Directory 6")))
		must(os.Link(in(7, 1), filepath.Join(dir, "another name")))
		info, err := os.Stat(in(7, 2))
		must(err)
		f, err := os.OpenFile(in(7, 2), os.O_WRONLY, 0)
		must(err)
		_, err = f.WriteAt([]byte{0x55, 0xaa}, info.Size()/2)
		must(errors.Join(err, f.Close(), os.Chtimes(in(7, 2), info.ModTime(), info.ModTime())))
	})
	b := backupAgain(t, repo, image)
	fast := diffFiles(t, repo, a, b, true, false)
	if fast.Volumes[0].Method != DiffByBlocks {
		t.Fatalf("compared by %s: %s", fast.Volumes[0].Method, fast.Volumes[0].Why)
	}
	one, two := comparableChanges(fast.Changes), comparableChanges(diffFiles(t, repo, a, b, true, true).Changes)
	if !slices.Equal(one, two) || len(one) < 50 {
		t.Errorf("by blocks:\n%s\nby a walk:\n%s", strings.Join(one, "\n"), strings.Join(two, "\n"))
	}
	text := strings.Join(one, "\n")
	for _, want := range []string{
		`created "disk0/new"`, `created "disk0/another name"`, `renamed "disk0/Directory 4/moved" from "disk0/Directory 3" (dir)`,
		`renamed "disk0/Directory 2/deep ü/file 100" from "disk0/Directory 1/deep ü/file 1"`, `deleted "disk0/Directory 6"`, `"disk0/Directory 7/deep ü/file 2"`,
	} {
		if !strings.Contains(text, want) {
			t.Errorf("%s is missing in:\n%s", want, text)
		}
	}
}
