package appliance

import (
	"os"
	"path/filepath"
	"slices"
	"strings"
	"testing"
	"time"

	"lifeboat/disk"
	"lifeboat/guestfs/guestfstest"
)

// TestDiffFilesLive: of volumes in use it is what a replayed journal shows that is
// compared, whatever stands on the disk.
func TestDiffFilesLive(t *testing.T) {
	for _, kind := range []struct{ fsType, make string }{
		{"ext4", "mke2fs -q -F -t ext4"},
		{"xfs", "mkfs.xfs -q -f"},
	} {
		t.Run(kind.fsType, func(t *testing.T) {
			t.Parallel()
			args := strings.Fields(kind.make)
			guestfstest.NeedMount(t, kind.fsType, args[0])
			live := guestfstest.NewLive(t, 320<<20)
			guestfstest.Run(t, args[0], append(args[1:], live.Image)...)
			dir, unmount := guestfstest.Mount(t, live.Image, kind.fsType, "")
			guestfstest.Populate(t, dir, guestfstest.Trees{Seed: 11, Entries: 80, MaxFile: 20_000, NoBigXattrs: true})
			repo, last := pointOf(t, live.Image)
			stop := guestfstest.Load(t, dir, 12)
			for range 3 {
				time.Sleep(300 * time.Millisecond) // let it work; nothing depends on how far it gets
				synced, err := os.Create(filepath.Join(dir, "synced"))
				if err != nil {
					t.Fatal(err)
				}
				if err := synced.Sync(); err != nil { // something is in the journal
					t.Fatal(err)
				}
				synced.Close()
				pt, err := BackupDisks(t.Context(), repo, BackupDisksRequest{VM: "guest", Files: []string{live.Copy(t, live.Image)}, Format: disk.FormatRaw})
				if err != nil {
					t.Fatal(err)
				}
				fast := diffFiles(t, repo, last, pt, true, false)
				if fast.Volumes[0].Method != DiffByBlocks {
					t.Errorf("compared by %s: %s", fast.Volumes[0].Method, fast.Volumes[0].Why)
				}
				one, two := comparableChanges(fast.Changes), comparableChanges(diffFiles(t, repo, last, pt, true, true).Changes)
				if !slices.Equal(one, two) {
					t.Errorf("by blocks:\n%s\nby a walk:\n%s", strings.Join(one, "\n"), strings.Join(two, "\n"))
				}
				t.Logf("%d changes", len(one))
				last = pt
			}
			stop()
			unmount()
		})
	}
}
