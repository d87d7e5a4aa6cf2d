package appliance

import (
	"fmt"
	"math/rand/v2"
	"os"
	"path/filepath"
	"testing"
	"time"

	"golang.org/x/sys/unix"

	"lifeboat/guestfs/guestfstest"
	"lifeboat/store"
)

// bigPair is two states of a disk of 4 GiB with 50,000 files, between which about
// 10,000 blocks of 4 KiB differ: 1,200 files that are new, 600 written again, 300
// deleted, 100 renamed.
func bigPair(t *testing.T) (*store.Repository, *store.Point, *store.Point) {
	t.Helper()
	guestfstest.NeedMount(t, "ext4", "mke2fs")
	image := guestfstest.NewImage(t, 4<<30)
	guestfstest.Run(t, "mke2fs", "-q", "-F", "-t", "ext4", image)
	must := func(err error) {
		if err != nil {
			t.Helper()
			t.Fatal(err)
		}
	}
	rng := rand.New(rand.NewPCG(7, 7))
	data := make([]byte, 32<<10)
	write := func(name string, n int) {
		for i := range data[:n] {
			data[i] = byte(rng.Uint32())
		}
		must(os.WriteFile(name, data[:n], 0o644))
	}
	dir, unmount := guestfstest.Mount(t, image, "ext4", "")
	name := func(n int) string {
		return filepath.Join(dir, fmt.Sprintf("directory %d", n/100), fmt.Sprintf("file %d", n))
	}
	for n := range 50_000 {
		if n%100 == 0 {
			must(os.Mkdir(filepath.Dir(name(n)), 0o755))
		}
		write(name(n), 1+rng.IntN(3000))
	}
	unmount()
	repo, a := pointOf(t, image)
	dir, unmount = guestfstest.Mount(t, image, "ext4", "")
	for n := range 1200 {
		write(filepath.Join(dir, "directory 7", fmt.Sprintf("new %d", n)), 24_000)
	}
	for range 600 {
		write(name(rng.IntN(40_000)), 8_000)
	}
	for n := range 300 {
		must(os.Remove(name(40_000 + n*7)))
	}
	for n := range 100 {
		must(os.Rename(name(45_000+n*11), name(45_000+n*11)+" renamed"))
	}
	unmount()
	return repo, a, backupAgain(t, repo, image)
}

// TestDiffSpeed: comparing two points with 10,000 changed blocks on a disk of a
// million takes at most a second. It is a measurement: LIFEBOAT_SPEED=1.
func TestDiffSpeed(t *testing.T) {
	if os.Getenv("LIFEBOAT_SPEED") == "" {
		t.Skip("a measurement: set LIFEBOAT_SPEED=1")
	}
	repo, a, b := bigPair(t)
	for range 3 {
		before := cpuTime(t)
		began := time.Now()
		d := diffFiles(t, repo, a, b, false, false)
		took := time.Since(began)
		v := d.Volumes[0]
		t.Logf("%d changes in %v (%s, %d inodes looked at, %d KiB differ; %v of processor time)", len(d.Changes), took, v.Method, v.Inodes, v.Changed>>10, cpuTime(t)-before)
		if len(d.Changes) < 2150 {
			t.Errorf("%d changes", len(d.Changes))
		}
	}
	began := time.Now()
	d := diffFiles(t, repo, a, b, false, true)
	t.Logf("by a walk: %d changes in %v", len(d.Changes), time.Since(began))
}

// cpuTime is what this process and the workers that have ended took so far.
func cpuTime(t *testing.T) (sum time.Duration) {
	t.Helper()
	for _, who := range []int{unix.RUSAGE_SELF, unix.RUSAGE_CHILDREN} {
		var u unix.Rusage
		if err := unix.Getrusage(who, &u); err != nil {
			t.Fatal(err)
		}
		sum += time.Duration(u.Utime.Nano() + u.Stime.Nano())
	}
	return sum
}
