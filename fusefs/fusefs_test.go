package fusefs_test

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"io"
	"log/slog"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"sync/atomic"
	"testing"
	"time"

	"golang.org/x/sys/unix"

	"lifeboat/disk"
	"lifeboat/fusefs"
	"lifeboat/guestfs"
	"lifeboat/guestfs/browse"
	"lifeboat/guestfs/ext4"
	"lifeboat/guestfs/guestfstest"
	"lifeboat/guestfs/kernelfs"
)

// source has one disk, with an ext4 on it, in as many points of as many VMs as
// are wanted.
type source struct {
	image   string
	vms     int
	points  int
	opened  atomic.Int64
	present atomic.Int64
}

func (s *source) VMs(context.Context) ([]browse.VM, error) {
	var list []browse.VM
	for i := range s.vms {
		list = append(list, browse.VM{Name: fmt.Sprintf("vm %d", i), Latest: time.Unix(1_700_000_000, 0)})
	}
	return list, nil
}

func (s *source) Points(_ context.Context, vm string) ([]browse.Point, error) {
	size, err := os.Stat(s.image)
	if err != nil {
		return nil, err
	}
	var list []browse.Point
	for i := range s.points {
		list = append(list, browse.Point{
			ID: fmt.Sprintf("%s/%d", vm, i), Name: fmt.Sprintf("2026-11-%02dT00-00-00Z", i+1), Time: time.Unix(1_700_000_000, 0),
			Disks: []browse.Disk{{Name: "disk0.raw", Size: size.Size()}},
		})
	}
	return list, nil
}

func (s *source) OpenDisk(ctx context.Context, _ string, _ int) (disk.Image, error) {
	return disk.Open(ctx, s.image, disk.OpenOptions{Format: disk.FormatRaw})
}

func (s *source) OpenFiles(ctx context.Context, point string) (browse.Files, error) {
	img, err := s.OpenDisk(ctx, point, 0)
	if err != nil {
		return nil, err
	}
	s.opened.Add(1)
	s.present.Add(1)
	fsys, err := ext4.Open(ctx, img)
	return &files{s, img, fsys}, err
}

type files struct {
	s    *source
	img  disk.Image
	fsys guestfs.FS
}

func (f *files) Trees() []string { return []string{"root", "broken"} }

func (f *files) Open(_ context.Context, n int) (guestfs.FS, error) {
	if n == 1 {
		return nil, guestfs.Corruptf("ext4", "a volume that cannot be read")
	}
	return f.fsys, nil
}

func (f *files) Close() error {
	f.s.present.Add(-1)
	return f.img.Close()
}

// mounted is a tree that is mounted for as long as the test lasts.
func mounted(t testing.TB, s *source, o browse.Options) (dir string) {
	t.Helper()
	guestfstest.NeedMount(t, "fuse")
	dir = t.TempDir()
	tree := browse.New(s, o)
	m, err := fusefs.New(dir, tree, fusefs.Options{Logger: slog.New(slog.DiscardHandler)})
	if err != nil {
		t.Fatal(err)
	}
	ctx, stop := context.WithCancel(context.Background())
	ended := make(chan error, 1)
	go func() { ended <- m.Run(ctx) }()
	t.Cleanup(func() {
		stop()
		if err := <-ended; err != nil {
			t.Errorf("unmount: %v", err)
		}
		if err := tree.Close(); err != nil {
			t.Errorf("close: %v", err)
		}
		if n := s.present.Load(); n != 0 {
			t.Errorf("%d points are still open", n)
		}
	})
	return dir
}

// volume makes an ext4 with everything on it, and returns it and where the
// kernel shows it.
func volume(t testing.TB, entries int, change func(dir string)) (image, peer string) {
	t.Helper()
	guestfstest.NeedMount(t, "ext4", "mke2fs")
	image = guestfstest.NewImage(t, 128<<20)
	guestfstest.Run(t, "mke2fs", "-q", "-F", "-t", "ext4", "-O", "ea_inode", image)
	dir, unmount := guestfstest.Mount(t, image, "ext4", "")
	guestfstest.Populate(t, dir, guestfstest.Trees{Seed: 1, Entries: entries, MaxFile: 100_000})
	if change != nil {
		change(dir)
	}
	unmount()
	peer, _ = guestfstest.Mount(t, image, "ext4", "ro,noload")
	return image, peer
}

// TestAgainstKernel: the whole tree through FUSE is what the kernel itself shows.
func TestAgainstKernel(t *testing.T) {
	image, peer := volume(t, 1000, nil)
	dir := mounted(t, &source{image: image, vms: 2, points: 2}, browse.Options{})
	root := filepath.Join(dir, "vm 1", "2026-11-02T00-00-00Z", "files", "root")
	fsys, err := kernelfs.Open(root, guestfs.Info{})
	if err != nil {
		t.Fatal(err)
	}
	defer fsys.Close()
	opts := guestfstest.Compared{NoInodes: true, NoBtime: true, NoAtime: true, Skip: func(path string) bool {
		return strings.HasPrefix(path, "/special/link out") || strings.HasPrefix(path, "/special/link to bytes") || strings.HasPrefix(path, "/special/link of 4000")
	}}
	if n := guestfstest.Compare(t, fsys, peer, opts); n < 1000 {
		t.Errorf("only %d entries were compared", n)
	}
	// Whole disks, and their holes.
	raw := filepath.Join(dir, "vm 0", "2026-11-01T00-00-00Z", "disks", "disk0.raw")
	guestfstest.Run(t, "cmp", raw, image)
	f, err := os.Open(raw)
	if err != nil {
		t.Fatal(err)
	}
	defer f.Close()
	hole, err := unix.Seek(int(f.Fd()), 0, unix.SEEK_HOLE)
	if err != nil || hole == 0 || hole >= 128<<20 {
		t.Errorf("the first hole is at %d, %v", hole, err)
	}
}

// TestTools: programs that people use.
func TestTools(t *testing.T) {
	image, peer := volume(t, 300, func(dir string) {
		if err := os.Remove(filepath.Join(dir, "sizes", "far away")); err != nil { // 2 GiB of zeros, for tools that read them
			t.Fatal(err)
		}
	})
	dir := mounted(t, &source{image: image, vms: 1, points: 1}, browse.Options{})
	root := filepath.Join(dir, "vm 0", "2026-11-01T00-00-00Z", "files", "root")
	guestfstest.Run(t, "diff", "-r", "--no-dereference", "-x", "special", peer, root)
	a := guestfstest.Run(t, "bash", "-c", "cd '"+peer+"' && find . -path ./special -prune -o -printf '%p %s %m %n %T@\\n' | sort")
	b := guestfstest.Run(t, "bash", "-c", "cd '"+root+"' && find . -path ./special -prune -o -printf '%p %s %m %n %T@\\n' | sort")
	if a != b {
		t.Error("find sees something else than on the kernel's own mount")
	}
	out := filepath.Join(t.TempDir(), "a.tar")
	guestfstest.Run(t, "tar", "--xattrs", "-cf", out, "-C", root, ".")
	loop := strings.TrimSpace(guestfstest.Run(t, "losetup", "--find", "--show", "-r", filepath.Join(dir, "vm 0", "2026-11-01T00-00-00Z", "disks", "disk0.raw")))
	defer guestfstest.Run(t, "losetup", "--detach", loop)
	if got := guestfstest.Run(t, "blkid", "-p", "-s", "TYPE", "-o", "value", loop); got != "ext4\n" {
		t.Errorf("a loop device on a disk shows %q", got)
	}
	for _, args := range [][]string{{"touch", root + "/new"}, {"rm", "-f", root + "/sizes/1"}, {"bash", "-c", "echo > '" + root + "/sizes/1'"}} {
		if err := exec.Command(args[0], args[1:]...).Run(); err == nil {
			t.Errorf("%q changed something", args)
		}
	}
	if _, err := os.ReadDir(filepath.Join(filepath.Dir(root), "broken")); !errors.Is(err, unix.EUCLEAN) {
		t.Errorf("a volume that cannot be read: %v", err)
	}
}

// TestLinks: whatever a guest's links say, nobody gets out of the volume by them.
func TestLinks(t *testing.T) {
	secret := filepath.Join(t.TempDir(), "secret")
	if err := os.WriteFile(secret, []byte("of the host"), 0o600); err != nil {
		t.Fatal(err)
	}
	links := map[string]string{ // → what the guest would read, "" for nothing
		"absolute":          "/etc/hosts",
		"host":              secret,
		"up":                strings.Repeat("../", 30) + secret,
		"deep/1/2/3/up":     strings.Repeat("../", 30) + "etc/hosts",
		"deep/1/2/3/short":  "../../../../etc/hosts",
		"deep/1/2/3/tricky": "down/" + strings.Repeat("../", 12) + strings.TrimPrefix(secret, "/"),
		"deep/1/2/3/down":   "/",
		"deep/1/2/3/proc":   "down/../../../../../../../../proc/self/environ",
		"loop":              "loop",
		"loop2":             "/loop3",
		"loop3":             "../../loop2",
		"root":              "/",
		"dangling":          "/no/such/../file",
		"dots":              "./././..//../../..",
	}
	image, _ := volume(t, 10, func(dir string) {
		must := func(err error) {
			if err != nil {
				t.Fatal(err)
			}
		}
		must(os.MkdirAll(filepath.Join(dir, "etc"), 0o755))
		must(os.MkdirAll(filepath.Join(dir, "deep/1/2/3"), 0o755))
		must(os.WriteFile(filepath.Join(dir, "etc/hosts"), []byte("of the guest"), 0o644))
		for name, target := range links {
			must(os.Symlink(target, filepath.Join(dir, name)))
		}
		// One link in two directories, of different depth.
		must(os.Symlink("../../../../etc/hosts", filepath.Join(dir, "deep/1/2/3/shared")))
		must(os.Link(filepath.Join(dir, "deep/1/2/3/shared"), filepath.Join(dir, "shared")))
	})
	dir := mounted(t, &source{image: image, vms: 1, points: 1}, browse.Options{})
	root := filepath.Join(dir, "vm 0", "2026-11-01T00-00-00Z", "files", "root")
	inside := func(path string) {
		t.Helper()
		to, err := filepath.EvalSymlinks(path)
		if err == nil && to != root && !strings.HasPrefix(to, root+"/") {
			t.Errorf("%s leads to %s", path, to)
		}
		if b, err := os.ReadFile(path); err == nil && string(b) != "of the guest" {
			t.Errorf("%s reads %q", path, b)
		}
	}
	for name := range links {
		inside(filepath.Join(root, name))
	}
	inside(filepath.Join(root, "shared"))
	inside(filepath.Join(root, "deep/1/2/3/shared"))
	for _, name := range []string{"absolute", "deep/1/2/3/up", "deep/1/2/3/short", "shared", "deep/1/2/3/shared"} {
		if b, err := os.ReadFile(filepath.Join(root, name)); err != nil || string(b) != "of the guest" {
			t.Errorf("%s: %q, %v", name, b, err)
		}
	}
	if target, err := os.Readlink(filepath.Join(root, "deep/1/2/3/short")); err != nil || target != "../../../../etc/hosts" {
		t.Errorf("a link that stays inside was changed: %q, %v", target, err)
	}
}

// TestShelf: of many points only a few stay open, and files that somebody reads
// stay readable.
func TestShelf(t *testing.T) {
	image, _ := volume(t, 10, nil)
	s := &source{image: image, vms: 3, points: 20}
	dir := mounted(t, s, browse.Options{Open: 4})
	first, err := os.Open(filepath.Join(dir, "vm 0", "2026-11-01T00-00-00Z", "files", "root", "sizes", "65537"))
	if err != nil {
		t.Fatal(err)
	}
	defer first.Close()
	matches, err := filepath.Glob(filepath.Join(dir, "*", "*", "files", "root", "sizes", "4097"))
	if err != nil || len(matches) != 60 {
		t.Fatalf("%d files, %v", len(matches), err)
	}
	for _, m := range matches {
		if b, err := os.ReadFile(m); err != nil || len(b) != 4097 {
			t.Fatalf("%s: %d bytes, %v", m, len(b), err)
		}
	}
	if n := s.present.Load(); n > 6 {
		t.Errorf("%d points are open", n)
	}
	if b, err := io.ReadAll(first); err != nil || len(b) != 65537 {
		t.Errorf("the file that was open: %d bytes, %v", len(b), err)
	}
	if n := s.opened.Load(); n < 60 {
		t.Errorf("only %d points were opened: nothing was tested", n)
	}
	// Every file of every point has a number of its own.
	seen := map[uint64]string{}
	for _, m := range matches {
		var st unix.Stat_t
		if err := unix.Stat(m, &st); err != nil {
			t.Fatal(err)
		}
		if was := seen[st.Ino]; was != "" {
			t.Errorf("%s has the number of %s", m, was)
		}
		seen[st.Ino] = m
	}
}

// TestLargeDirectory is listed in parts, and gone on with from the middle.
func TestLargeDirectory(t *testing.T) {
	const n = 20_000
	image, _ := volume(t, 10, func(dir string) {
		if err := os.Mkdir(filepath.Join(dir, "large"), 0o755); err != nil {
			t.Fatal(err)
		}
		for i := range n {
			if err := os.Symlink("x", filepath.Join(dir, "large", fmt.Sprintf("entry %d", i))); err != nil {
				t.Fatal(err)
			}
		}
	})
	dir := mounted(t, &source{image: image, vms: 1, points: 1}, browse.Options{})
	large := filepath.Join(dir, "vm 0", "2026-11-01T00-00-00Z", "files", "root", "large")
	for range 2 {
		f, err := os.Open(large)
		if err != nil {
			t.Fatal(err)
		}
		names, err := f.Readdirnames(-1)
		if err != nil || len(names) != n {
			t.Errorf("%d entries, %v", len(names), err)
		}
		if _, err := f.Seek(0, io.SeekStart); err != nil {
			t.Error(err)
		}
		if names, err = f.Readdirnames(1000); err != nil || len(names) != 1000 {
			t.Errorf("from the start again: %d entries, %v", len(names), err)
		}
		f.Close()
	}
}

// TestRefused: where a mount would do harm it is not made.
func TestRefused(t *testing.T) {
	tree := browse.New(&source{}, browse.Options{})
	full := t.TempDir()
	if err := os.WriteFile(filepath.Join(full, "a"), nil, 0o600); err != nil {
		t.Fatal(err)
	}
	for _, dir := range []string{full, filepath.Join(full, "a"), filepath.Join(full, "none")} {
		if _, err := fusefs.New(dir, tree, fusefs.Options{}); !errors.Is(err, fusefs.ErrNotReady) {
			t.Errorf("%s: %v", dir, err)
		}
	}
}

const mountHere = "LIFEBOAT_TEST_MOUNT"

// TestMain lets the test run itself as a program that mounts, and is killed.
func TestMain(m *testing.M) {
	if dir := os.Getenv(mountHere); dir != "" {
		mnt, err := fusefs.New(dir, browse.New(&source{vms: 1}, browse.Options{}), fusefs.Options{})
		if err != nil {
			fmt.Println(err)
			os.Exit(1)
		}
		fmt.Println("mounted")
		_ = mnt.Run(context.Background())
		os.Exit(0)
	}
	os.Exit(m.Run())
}

// TestDead: a mount whose process was killed is cleared away by the next, also
// where the kernel still remembers the directory's attributes, and through a link.
func TestDead(t *testing.T) {
	guestfstest.NeedMount(t, "fuse")
	dir := filepath.Join(t.TempDir(), "link")
	if err := os.Symlink(t.TempDir(), dir); err != nil {
		t.Fatal(err)
	}
	start := func() *exec.Cmd {
		cmd := exec.Command(os.Args[0])
		cmd.Env = append(os.Environ(), mountHere+"="+dir)
		out, err := cmd.StdoutPipe()
		if err != nil {
			t.Fatal(err)
		}
		if err := cmd.Start(); err != nil {
			t.Fatal(err)
		}
		line := make([]byte, 100)
		n, err := out.Read(line)
		if err != nil || !bytes.HasPrefix(line[:n], []byte("mounted")) {
			t.Fatalf("it said %q, %v", line[:n], err)
		}
		return cmd
	}
	for range 2 {
		cmd := start()
		if _, err := os.Stat(filepath.Join(dir, "vm 0")); err != nil {
			t.Error(err)
		}
		if _, err := os.Stat(dir); err != nil {
			t.Error(err)
		}
		if err := cmd.Process.Kill(); err != nil {
			t.Fatal(err)
		}
		_ = cmd.Wait()
		var st unix.Statfs_t
		if err := unix.Statfs(dir, &st); !errors.Is(err, unix.ENOTCONN) && !errors.Is(err, unix.ECONNABORTED) {
			t.Fatalf("after the kill: %v", err)
		}
	}
	cmd := start()
	if err := unix.Unmount(dir, 0); err != nil {
		t.Error(err)
	}
	if err := cmd.Wait(); err != nil {
		t.Errorf("somebody else unmounted it, and the program: %v", err)
	}
}
