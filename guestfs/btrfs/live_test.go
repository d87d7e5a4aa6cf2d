package btrfs_test

import (
	"os"
	"path/filepath"
	"strconv"
	"testing"
	"time"

	"golang.org/x/sys/unix"

	"lifeboat/guestfs"
	"lifeboat/guestfs/guestfstest"
)

// TestLive: a copy of a file system in use, taken between two of its writes, holds
// what was synced last in its log only. The reader shows what the kernel shows
// after it has replayed.
func TestLive(t *testing.T) {
	guestfstest.NeedMount(t, "btrfs", "mkfs.btrfs")
	copies, layouts := 1, map[string]variant{"zstd": variants["zstd"]}
	if runs, _ := strconv.Atoi(os.Getenv("LIFEBOAT_CRASH_RUNS")); runs > 0 {
		copies, layouts = runs, variants
	}
	for name, v := range layouts {
		if v.devices > 1 {
			continue // copies of several devices are not of one instant
		}
		t.Run(name, func(t *testing.T) {
			t.Parallel()
			live := guestfstest.NewLive(t, imageSize)
			guestfstest.Run(t, "mkfs.btrfs", append(append([]string{"-q", "-f"}, v.mkfs...), live.Image)...)
			dir, unmount := guestfstest.Mount(t, live.Image, "btrfs", v.mount)
			guestfstest.Populate(t, dir, guestfstest.Trees{Seed: 2, Entries: 100, MaxFile: 50_000, NoBigXattrs: true})
			stop := guestfstest.Load(t, dir, 3)
			type copied struct {
				image string
				at    time.Time
			}
			var list []copied
			take := func() { list = append(list, copied{live.Copy(t, live.Image), time.Now()}) }
			for range copies {
				time.Sleep(400 * time.Millisecond) // let it work; nothing depends on how far it gets
				take()
			}
			stop()
			churn(t, dir, take)
			take()
			unmount() // two of one UUID confuse the kernel
			replayed := 0
			for _, c := range list {
				if compareReplayed(t, live, c.image, c.at) == guestfs.Replayed {
					replayed++
				}
			}
			if replayed == 0 {
				t.Error("nothing was replayed: nothing was tested")
			}
		})
	}
}

// churn commits a transaction, and then changes what only the log has; twice.
func churn(t *testing.T, dir string, take func()) {
	t.Helper()
	must := func(err error) {
		t.Helper()
		if err != nil {
			t.Fatal(err)
		}
	}
	in := func(name string) string { return filepath.Join(dir, "churn", name) }
	must(os.Mkdir(in(""), 0o755))
	for i := range 40 {
		must(os.WriteFile(in("old "+strconv.Itoa(i)), make([]byte, 1000*i), 0o644))
	}
	guestfstest.Run(t, "sync", "-f", dir)
	synced := func(name string) {
		f, err := os.OpenFile(in(name), os.O_RDONLY, 0)
		must(err)
		defer f.Close()
		must(f.Sync())
	}
	for i := range 20 {
		name := "new " + strconv.Itoa(i)
		must(os.WriteFile(in(name), make([]byte, 3000*i), 0o600))
		must(os.Link(in(name), in(name+" linked")))
		must(os.Rename(in("old "+strconv.Itoa(i)), in("renamed "+strconv.Itoa(i))))
		must(os.Truncate(in("old "+strconv.Itoa(20+i)), int64(500*i)))
		synced(name)
		synced("old " + strconv.Itoa(20+i))
	}
	must(os.Remove(in("old 30")))
	synced(".")
	take()
	// Names of files that are not in the log themselves, in a directory that is.
	must(os.Mkdir(in("names"), 0o755))
	for i := range 6 {
		name := in("names/" + strconv.Itoa(i))
		must(os.WriteFile(name, []byte("x"), 0o644))
		must(unix.Setxattr(name, "user.goes", []byte("and is not in the log"), 0))
		must(unix.Setxattr(name, "user.stays", []byte("x"), 0))
	}
	guestfstest.Run(t, "sync", "-f", dir)
	for i := range 6 {
		must(os.Link(in("names/"+strconv.Itoa(i)), in("names/linked "+strconv.Itoa(i))))
	}
	must(unix.Removexattr(in("names/3"), "user.goes"))
	synced("names/3")
}

func compareReplayed(t *testing.T, live *guestfstest.Live, image string, at time.Time) guestfs.State {
	t.Helper()
	fsys := open(t, image)
	info := fsys.Info()
	t.Log(info.State, info.Note)
	peer, unmount := guestfstest.Mount(t, live.Copy(t, image), "btrfs", "ro,noatime")
	defer unmount()
	if n := guestfstest.Compare(t, fsys, peer, guestfstest.Compared{Mounted: at}); n < 100 {
		t.Errorf("only %d entries were compared", n)
	}
	if info.State != guestfs.Clean && info.State != guestfs.Replayed {
		t.Errorf("the state is %+v", info)
	}
	return info.State
}
