package xfs_test

import (
	"os"
	"path/filepath"
	"strconv"
	"testing"
	"time"

	"lifeboat/guestfs"
	"lifeboat/guestfs/guestfstest"
)

// TestLive: a copy of a file system in use, taken between two of its writes, holds
// its latest changes in the log only. The reader shows what the kernel shows after
// it has replayed.
func TestLive(t *testing.T) {
	guestfstest.NeedMount(t, "xfs", "mkfs.xfs")
	copies, layouts := 1, map[string][]string{
		"v5 1k": {"-m", "rmapbt=1", "-i", "nrext64=1", "-b", "size=1024", "-l", "su=4096,size=6m"},
	}
	if runs, _ := strconv.Atoi(os.Getenv("LIFEBOAT_CRASH_RUNS")); runs > 0 {
		copies = runs
		layouts = variants
	}
	for name, args := range layouts {
		t.Run(name, func(t *testing.T) {
			t.Parallel()
			live := guestfstest.NewLive(t, imageSize)
			mkfs(t, live.Image, args...)
			dir, _ := guestfstest.Mount(t, live.Image, "xfs", "")
			guestfstest.Populate(t, dir, guestfstest.Trees{Seed: 2, Entries: 150, MaxFile: 50_000})
			stop := guestfstest.Load(t, dir, 3)
			var copied []string
			for range copies {
				time.Sleep(400 * time.Millisecond) // let it work; nothing depends on how far it gets
				copied = append(copied, live.Copy(t, live.Image))
			}
			stop()
			synced, err := os.Create(filepath.Join(dir, "synced"))
			if err != nil {
				t.Fatal(err)
			}
			defer synced.Close()
			if err := synced.Sync(); err != nil { // all that was done before is in the log now
				t.Fatal(err)
			}
			for _, image := range append(copied, live.Copy(t, live.Image)) {
				compareReplayed(t, live, image)
			}
		})
	}
}

func compareReplayed(t *testing.T, live *guestfstest.Live, copied string) {
	t.Helper()
	fsys := open(t, copied)
	replayed := live.Copy(t, copied)
	peer, unmount := guestfstest.Mount(t, replayed, "xfs", "ro,noatime,nouuid")
	defer unmount()
	if n := guestfstest.Compare(t, fsys, peer, guestfstest.Compared{}); n < 150 {
		t.Errorf("only %d entries were compared", n)
	}
	if info := fsys.Info(); info.State != guestfs.Replayed {
		t.Errorf("the state is %+v: nothing was tested", info)
	} else {
		t.Log(info.Note)
	}
}
