package xfs_test

import (
	"bytes"
	"crypto/sha256"
	"encoding/hex"
	"encoding/json"
	"errors"
	"io/fs"
	"os"
	"os/exec"
	"path/filepath"
	"regexp"
	"strings"
	"testing"

	"lifeboat/guestfs"
	"lifeboat/guestfs/guestfstest"
	"lifeboat/guestfs/xfs"
	"lifeboat/internal/guestimage"
	"lifeboat/internal/qemu"
)

// TestV4Log: a virtual machine whose kernel still mounts version 4 is killed while
// it writes. The reader shows what that kernel shows after it has replayed the log.
// It takes a minute, and Debian's archive the first time.
func TestV4Log(t *testing.T) {
	if os.Getenv("LIFEBOAT_CRASH_RUNS") == "" {
		t.Skip("LIFEBOAT_CRASH_RUNS is not set")
	}
	guestfstest.NeedMount(t, "", "mkfs.xfs", "qemu-system-x86_64")
	guest := filepath.Join(t.TempDir(), "guest")
	cmd := exec.CommandContext(t.Context(), "go", "build", "-o", guest, "./testdata/v4guest")
	cmd.Env = append(os.Environ(), "CGO_ENABLED=0")
	if out, err := cmd.CombinedOutput(); err != nil {
		t.Fatalf("%v\n%s", err, out)
	}
	cache, err := os.UserCacheDir()
	if err != nil {
		t.Fatal(err)
	}
	kernel, initrd, err := guestimage.FileSystemVM(t.Context(), filepath.Join(cache, "lifeboat"), guest, func(s string) { t.Log(s) })
	if err != nil {
		t.Fatal(err)
	}
	for name, args := range map[string][]string{
		"log v2":      {"-m", "crc=0", "-l", "size=6m"},
		"log v1 256":  {"-m", "crc=0", "-l", "version=1,size=6m", "-i", "size=256", "-b", "size=1024"},
		"version 5":   {"-l", "size=6m"},
		"v4 512 unit": {"-m", "crc=0", "-b", "size=512", "-l", "size=6m,su=32768"},
	} {
		t.Run(name, func(t *testing.T) {
			image := format(t, 160<<20, args...)
			vm := qemu.Options{Name: "v4", Kernel: kernel, Initrd: initrd, Append: "console=ttyS0 quiet", Disks: []qemu.Disk{{Path: image}}}
			m, err := qemu.Start(t.Context(), vm)
			if err != nil {
				t.Fatal(err)
			}
			defer m.Close()
			if _, got, err := m.Console().Expect(t.Context(), regexp.MustCompile(`changed [0-9]*[05]000|failed: .*`)); err != nil || !strings.HasPrefix(got[0], "changed") {
				t.Fatalf("%v, %v\n%s", got, err, m.Console().Recent())
			}
			if err := m.Kill(); err != nil {
				t.Fatal(err)
			}
			fsys := open(t, guestfstest.CopyImage(t, image))
			t.Log(fsys.Info())
			if fsys.Info().State != guestfs.Replayed {
				t.Error("nothing was replayed")
			}
			listing := guestfstest.NewImage(t, 64<<20)
			vm.Append += " lifeboat.dump"
			vm.Disks = append(vm.Disks, qemu.Disk{Path: listing})
			if m, err = qemu.Start(t.Context(), vm); err != nil {
				t.Fatal(err)
			}
			defer m.Close()
			if err := m.Wait(t.Context()); err != nil {
				t.Fatalf("%v\n%s", err, m.Console().Recent())
			}
			compareListing(t, fsys, listing)
		})
	}
}

// seen is what the guest saw of a file: see testdata/v4guest.
type seen struct {
	Path, Sum, Target          string
	Mode, UID, GID             uint32
	Size, Links, Blocks, Inode uint64
	Mtime, Ctime               int64
	Xattrs                     map[string]string
}

func compareListing(t *testing.T, fsys *xfs.FS, file string) {
	t.Helper()
	f, err := os.Open(file)
	if err != nil {
		t.Fatal(err)
	}
	defer f.Close()
	want := map[string]seen{}
	for dec := json.NewDecoder(f); ; {
		var e *seen
		if err := dec.Decode(&e); err != nil {
			t.Fatalf("the guest's listing, after %d entries: %v", len(want), err)
		}
		if e == nil {
			break
		}
		want[e.Path] = *e
	}
	got := map[string]seen{}
	collect(t, fsys, fsys.Root(), "", got)
	for path, w := range want {
		g, ok := got[path]
		a, _ := json.Marshal(g)
		b, _ := json.Marshal(w)
		if !ok || !bytes.Equal(a, b) {
			t.Errorf("%q is\n%.600s, want\n%.600s", path, a, b)
		}
	}
	for path := range got {
		if _, ok := want[path]; !ok {
			t.Errorf("%q is not there", path)
		}
	}
	t.Logf("%d entries", len(want))
}

func collect(t *testing.T, fsys *xfs.FS, inode guestfs.Inode, path string, out map[string]seen) {
	t.Helper()
	a, err := fsys.Stat(t.Context(), inode)
	if err != nil {
		t.Errorf("%q: %v", path, err)
		return
	}
	s := seen{
		Path: path, Mode: a.Mode, UID: a.UID, GID: a.GID, Size: uint64(a.Size), Links: uint64(a.Links), Blocks: uint64(a.Allocated / 512),
		Inode: uint64(inode), Mtime: a.Mtime.UnixNano(), Ctime: a.Ctime.UnixNano(), Xattrs: map[string]string{},
	}
	list, err := fsys.Xattrs(t.Context(), inode)
	if err != nil {
		t.Errorf("%q: %v", path, err)
	}
	for _, x := range list {
		s.Xattrs[x.Name] = hex.EncodeToString(x.Value)
	}
	switch a.Type() {
	case guestfs.TypeSymlink:
		if s.Target, err = guestfs.ReadLink(t.Context(), fsys, inode); err != nil {
			t.Errorf("%q: %v", path, err)
		}
	case guestfs.TypeFile:
		data, err := content(t, fsys, inode)
		if err != nil {
			t.Errorf("%q: %v", path, err)
		}
		sum := sha256.Sum256(data)
		s.Sum = hex.EncodeToString(sum[:])
	case guestfs.TypeDir:
		for e, err := range fsys.ReadDir(t.Context(), inode, 0) {
			if err != nil {
				t.Errorf("%q: %v", path, err)
				break
			}
			collect(t, fsys, e.Inode, path+"/"+e.Name, out)
		}
	}
	out[path] = s
}

func content(t *testing.T, fsys *xfs.FS, inode guestfs.Inode) ([]byte, error) {
	t.Helper()
	img, err := fsys.Open(t.Context(), inode)
	if err != nil {
		return nil, err
	}
	defer img.Close()
	p := make([]byte, img.Size())
	n, err := img.ReadAt(p, 0)
	if n < len(p) {
		return nil, errors.Join(fs.ErrInvalid, err)
	}
	return p, nil
}
