package microvm_test

import (
	"errors"
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
	"sync"
	"testing"
	"time"

	"lifeboat/disk"
	"lifeboat/guestfs"
	"lifeboat/guestfs/guestfstest"
	"lifeboat/guestfs/microvm"
)

// agentProgram builds the agent once.
var agentProgram = sync.OnceValues(func() (string, error) {
	dir, err := os.MkdirTemp("", "lifeboat-agent")
	if err != nil {
		return "", err
	}
	path := filepath.Join(dir, "lifeboat-agent")
	cmd := exec.Command("go", "build", "-trimpath", "-ldflags=-s -w", "-o", path, "lifeboat/cmd/lifeboat-agent")
	cmd.Env = append(os.Environ(), "CGO_ENABLED=0")
	if out, err := cmd.CombinedOutput(); err != nil {
		return "", fmt.Errorf("build the agent: %w\n%s", err, out)
	}
	return path, nil
})

func TestMain(m *testing.M) {
	code := m.Run()
	if path, err := agentProgram(); err == nil {
		os.RemoveAll(filepath.Dir(path))
	}
	os.Exit(code)
}

func options(t testing.TB) microvm.Options {
	t.Helper()
	agent, err := agentProgram()
	if err != nil {
		t.Fatal(err)
	}
	base, err := os.UserCacheDir()
	if err != nil {
		t.Fatal(err)
	}
	o := microvm.Options{CacheDir: filepath.Join(base, "lifeboat"), Agent: agent, Progress: func(s string) { t.Log(s) }}
	if err := microvm.Available(o); err != nil {
		t.Fatal(err) // QEMU is in the list of tools/provision.sh test
	}
	return o
}

func openImages(t testing.TB, paths ...string) []disk.Image {
	t.Helper()
	var list []disk.Image
	for _, path := range paths {
		img, err := disk.Open(t.Context(), path, disk.OpenOptions{Format: disk.FormatRaw})
		if err != nil {
			t.Fatal(err)
		}
		t.Cleanup(func() { img.Close() })
		list = append(list, img)
	}
	return list
}

func mount(t *testing.T, fsType string, images ...string) *microvm.FS {
	t.Helper()
	began := time.Now()
	fsys, err := microvm.Open(t.Context(), microvm.Volume{Type: fsType, Disks: openImages(t, images...)}, options(t))
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() {
		if err := fsys.Close(); err != nil {
			t.Errorf("close: %v", err)
		}
	})
	t.Logf("%s was mounted after %v: %+v", fsType, time.Since(began), fsys.Info())
	return fsys
}

// TestLive: a copy of a file system in use is shown as this machine's own kernel
// shows it after replay.
func TestLive(t *testing.T) {
	for name, v := range map[string]struct {
		size   int64
		format []string
	}{
		"btrfs": {256 << 20, []string{"mkfs.btrfs", "-q", "-f"}},
		"ext4":  {64 << 20, []string{"mke2fs", "-q", "-F", "-t", "ext4"}},
		"xfs":   {320 << 20, []string{"mkfs.xfs", "-q", "-f"}},
	} {
		t.Run(name, func(t *testing.T) {
			guestfstest.NeedMount(t, name, v.format[0])
			image := guestfstest.NewImage(t, v.size)
			guestfstest.Run(t, v.format[0], append(v.format[1:], image)...)
			dir, unmount := guestfstest.Mount(t, image, name, "")
			guestfstest.Populate(t, dir, guestfstest.Trees{Seed: 2, Entries: 150, MaxFile: 50_000, NoBigXattrs: true})
			for i := range 50 {
				f, err := os.Create(filepath.Join(dir, fmt.Sprintf("late %d", i)))
				if err != nil {
					t.Fatal(err)
				}
				if _, err := f.WriteString("written late"); err != nil {
					t.Fatal(err)
				}
				if err := errors.Join(f.Sync(), f.Close()); err != nil {
					t.Fatal(err)
				}
			}
			copied := guestfstest.CopyImage(t, image)
			replayed := guestfstest.CopyImage(t, copied)
			unmount() // no kernel likes two of the same UUID
			if name == "btrfs" {
				guestfstest.Run(t, "btrfs", "device", "scan", "--forget")
			}
			fsys := mount(t, name, copied)
			opts := "noatime"
			if name == "xfs" {
				opts += ",nouuid" // the one that it is a copy of is mounted, too
			}
			peer, _ := guestfstest.Mount(t, replayed, name, opts)
			if n := guestfstest.Compare(t, fsys, peer, guestfstest.Compared{NoAtime: true}); n < 200 {
				t.Errorf("only %d entries were compared", n)
			}
			if state := fsys.Info().State; state != guestfs.Replayed {
				t.Errorf("the state is %s: nothing was tested", state)
			}
			again := guestfstest.CopyImage(t, copied)
			a, err := os.ReadFile(copied)
			if err != nil {
				t.Fatal(err)
			}
			b, err := os.ReadFile(again)
			if err != nil || string(a) != string(b) {
				t.Error("the disk was written to")
			}
		})
	}
}

// TestNotMountable: what the kernel does not take is said with its own words.
func TestNotMountable(t *testing.T) {
	image := guestfstest.NewImage(t, 16<<20)
	_, err := microvm.Open(t.Context(), microvm.Volume{Type: "ext4", Disks: openImages(t, image)}, options(t))
	var refused *microvm.MountError
	if !errors.As(err, &refused) || !errors.Is(err, guestfs.ErrCorrupt) || refused.Messages == "" {
		t.Errorf("%v", err)
	}
}

// TestUnavailable: what is missing is named.
func TestUnavailable(t *testing.T) {
	t.Setenv("PATH", t.TempDir())
	if err := microvm.Available(microvm.Options{Agent: "/bin/true"}); !errors.Is(err, microvm.ErrUnavailable) {
		t.Errorf("without QEMU: %v", err)
	}
}
