package appliance

import (
	"bytes"
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"iter"
	"log/slog"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"testing"

	"golang.org/x/sys/unix"

	"lifeboat/disk"
	"lifeboat/guestfs"
	"lifeboat/guestfs/guestfstest"
	"lifeboat/guestfs/inspect"
	"lifeboat/guestfs/tree"
	"lifeboat/store"
)

// pointOf backs image files up as one VM.
func pointOf(t *testing.T, files ...string) (*store.Repository, *store.Point) {
	t.Helper()
	dir := filepath.Join(t.TempDir(), "repo")
	password := []byte("x")
	if err := InitRepository(t.Context(), dir, password, store.InitOptions{}); err != nil {
		t.Fatal(err)
	}
	repo, err := OpenRepository(t.Context(), dir, password, store.Options{})
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { repo.Close() })
	pt, err := BackupDisks(t.Context(), repo, BackupDisksRequest{VM: "guest", Files: files, Format: disk.FormatRaw})
	if err != nil {
		t.Fatal(err)
	}
	return repo, pt
}

func openGuest(t *testing.T, repo *store.Repository, pt *store.Point) *Guest {
	t.Helper()
	g, err := OpenGuest(t.Context(), repo, pt, GuestOptions{Logger: slog.New(slog.DiscardHandler)})
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(g.Close)
	return g
}

// populated is an image of ext4 with everything in it that can be got wrong.
func populated(t *testing.T) string {
	t.Helper()
	guestfstest.NeedMount(t, "ext4", "mke2fs", "tar")
	file := guestfstest.NewImage(t, 64<<20)
	guestfstest.Run(t, "mke2fs", "-q", "-F", "-t", "ext4", "-I", "512", "-O", "inline_data", file)
	dir, unmount := guestfstest.Mount(t, file, "ext4", "")
	guestfstest.Populate(t, dir, guestfstest.Trees{Seed: 9, Entries: 150, MaxFile: 50_000, NoBigXattrs: true})
	if err := os.Remove(filepath.Join(dir, "special", "socket")); err != nil { // no archive has sockets
		t.Fatal(err)
	}
	unmount()
	return file
}

// whole is how a tree is compared that was taken out of a guest.
func whole() guestfstest.Compared {
	return guestfstest.Compared{
		NoInodes: true, NoCtime: true, NoBtime: true, NoDirSize: true, NoAllocated: true,
		NoDirLinks: true, // not every file system counts them
		NoAtime:    true, // it changes when the content is compared
		Xattr: func(name string) (string, bool) {
			return name, !strings.HasPrefix(name, "security.selinux")
		},
	}
}

// dressRoot gives the directory where a whole volume went what its root has: the
// directory is the caller's.
func dressRoot(t *testing.T, fsys guestfs.FS, dir string) {
	t.Helper()
	a, err := fsys.Stat(t.Context(), fsys.Root())
	if err != nil {
		t.Fatal(err)
	}
	if err := errors.Join(os.Chmod(dir, os.FileMode(a.Mode&0o777)), os.Chtimes(dir, a.Atime, a.Mtime)); err != nil {
		t.Fatal(err)
	}
}

// TestGetToDirectory: everything comes out as it is in the guest.
func TestGetToDirectory(t *testing.T) {
	repo, pt := pointOf(t, populated(t))
	g := openGuest(t, repo, pt)
	out := filepath.Join(t.TempDir(), "out")
	var last int64
	req := GetRequest{Places: []string{"disk0/"}, Progress: func(_, done, total int64, _ bool) {
		if done < last || done > total {
			t.Errorf("progress: %d after %d, of %d", done, last, total)
		}
		last = done
	}}
	result, err := g.GetToDir(t.Context(), req, GetDirOptions{Output: out, Devices: true})
	if err != nil || result.Err() != nil || len(result.LeftOut) > 0 {
		t.Fatalf("%v, left out: %+v", err, result)
	}
	fsys, err := g.Volume(t.Context(), 0)
	if err != nil {
		t.Fatal(err)
	}
	dressRoot(t, fsys, out)
	if n := guestfstest.Compare(t, fsys, out, whole()); n < 150 || int64(n) != result.Files {
		t.Errorf("%d entries were compared, %d taken", n, result.Files)
	}
	// Nothing is written over, and nothing is left of the attempt.
	req.Progress = nil
	if _, err := g.GetToDir(t.Context(), req, GetDirOptions{Output: out}); !errors.Is(err, ErrUsage) {
		t.Errorf("a second time: %v", err)
	}
	left, err := filepath.Glob(filepath.Join(out, ".lifeboat-part-*"))
	if err != nil || len(left) > 0 {
		t.Errorf("left behind: %v %v", left, err)
	}
}

// TestGetToTar: GNU tar unpacks what is in the guest, sparse files, capabilities
// and ACLs included.
func TestGetToTar(t *testing.T) {
	repo, pt := pointOf(t, populated(t))
	g := openGuest(t, repo, pt)
	var archive bytes.Buffer
	result, err := g.GetToTar(t.Context(), &archive, GetRequest{Places: []string{"disk0/"}})
	if err != nil || result.Err() != nil {
		t.Fatalf("%v, left out: %+v", err, result)
	}
	if archive.Len() > 64<<20 {
		t.Errorf("the archive has %d bytes: holes were stored", archive.Len())
	}
	out := t.TempDir()
	cmd := exec.CommandContext(t.Context(), "tar", "-x", "-p", "--warning=no-timestamp", "--numeric-owner", "--xattrs", "--xattrs-include=*", "--same-owner", "-C", out, "-f", "-")
	cmd.Stdin = &archive
	if text, err := cmd.CombinedOutput(); err != nil || len(text) > 0 {
		t.Fatalf("tar: %v\n%s", err, text)
	}
	fsys, err := g.Volume(t.Context(), 0)
	if err != nil {
		t.Fatal(err)
	}
	dressRoot(t, fsys, out)
	if n := guestfstest.Compare(t, fsys, out, whole()); n < 150 {
		t.Errorf("%d entries were compared", n)
	}
	holes := filepath.Join(out, "sizes", "only a hole")
	var st unix.Stat_t
	if err := unix.Stat(holes, &st); err != nil || st.Blocks*512 > 64<<10 {
		t.Errorf("%s has %d bytes, %v", holes, st.Blocks*512, err)
	}
}

// TestGetToZip: unzip unpacks it, and the sidecar has the rest.
func TestGetToZip(t *testing.T) {
	repo, pt := pointOf(t, populated(t))
	g := openGuest(t, repo, pt)
	file := filepath.Join(t.TempDir(), "a.zip")
	f, err := os.Create(file)
	if err != nil {
		t.Fatal(err)
	}
	defer f.Close()
	req := GetRequest{Places: []string{"disk0/attributes", "disk0/special", "disk0/odd names"}}
	result, err := g.GetToZip(t.Context(), f, req)
	if err != nil || result.Err() != nil {
		t.Fatalf("%v, left out: %+v", err, result)
	}
	guestfstest.Run(t, "unzip", "-tq", file)
	text := guestfstest.Run(t, "unzip", "-p", file, zipSidecar)
	seen := map[string]zipMetadata{}
	for dec := json.NewDecoder(strings.NewReader(text)); ; {
		var m zipMetadata
		if err := dec.Decode(&m); errors.Is(err, io.EOF) {
			break
		} else if err != nil {
			t.Fatal(err)
		}
		if strings.ContainsAny(m.Name, "\\:") || strings.Contains("/"+m.Name, "/../") || strings.HasPrefix(m.Name, "/") {
			t.Errorf("the name %q is not safe everywhere", m.Name)
		}
		if _, twice := seen[m.Name]; twice {
			t.Errorf("the name %q is there twice", m.Name)
		}
		seen[m.Name] = m
	}
	if int64(len(seen)) != result.Files {
		t.Errorf("%d lines of metadata for %d files", len(seen), result.Files)
	}
	if m := seen["attributes/capable"]; len(m.Xattrs) == 0 {
		t.Errorf("the capability is lost: %+v", m)
	}
}

// hostile is a file system that an attacker made: names that lead elsewhere, the
// same name twice, directories in themselves, content that cannot be read.
type hostile struct {
	guestfs.FS
	entries map[guestfs.Inode][]guestfs.Dirent
	target  string
}

func (h *hostile) Root() guestfs.Inode { return 1 }

func (h *hostile) Stat(_ context.Context, inode guestfs.Inode) (*guestfs.Attr, error) {
	a := &guestfs.Attr{Inode: inode, Links: 1, Size: 4, Mode: guestfs.TypeFile | 0o644, UID: uint32(os.Getuid()), GID: uint32(os.Getgid())}
	switch {
	case inode < 10:
		a.Mode = guestfs.TypeDir | 0o755
	case inode < 20:
		a.Mode = guestfs.TypeSymlink | 0o777
	case inode < 30:
		a.Links = 2
	case inode == 99:
		a.Size = 1 << 20
	}
	return a, nil
}

func (h *hostile) ReadDir(_ context.Context, dir guestfs.Inode, _ uint64) iter.Seq2[guestfs.Dirent, error] {
	return func(yield func(guestfs.Dirent, error) bool) {
		for _, e := range h.entries[dir] {
			if !yield(e, nil) {
				return
			}
		}
	}
}

func (h *hostile) Open(ctx context.Context, inode guestfs.Inode) (disk.Image, error) {
	switch {
	case inode >= 10 && inode < 20:
		return disk.Bytes(ctx, []byte(h.target)), nil
	case inode == 98:
		return nil, guestfs.Corruptf("hostile", "inode 98")
	case inode == 99:
		return disk.Assemble(ctx, 1<<20, func(int64) (disk.Piece, error) { return disk.Piece{}, guestfs.Corruptf("hostile", "block 7") }), nil
	}
	return disk.Bytes(ctx, []byte("evil")), nil
}

func entry(name string, inode guestfs.Inode) guestfs.Dirent {
	return guestfs.Dirent{Name: name, Inode: inode, Cookie: uint64(inode) + 1}
}

// TestGetHostile: nothing leaves the directory, what is wrong is left out and
// said, and the rest is there.
func TestGetHostile(t *testing.T) {
	outside := t.TempDir()
	secret := filepath.Join(outside, "secret")
	if err := os.WriteFile(secret, []byte("untouched"), 0o600); err != nil {
		t.Fatal(err)
	}
	h := &hostile{target: outside, entries: map[guestfs.Inode][]guestfs.Dirent{
		1: {
			entry("../secret", 40), entry("..", 2), entry(".", 2), entry("", 41), entry("/etc/x", 42), entry("nul\x00", 43),
			entry("trap", 10), entry("trap", 3), entry("good", 44), entry("lost", 98), entry("torn", 99), entry("loop", 4),
			entry("first", 20), entry("second", 20), entry("line\nbreak", 45), entry("\xff\xfe", 46), entry(strings.Repeat("n", 255), 47),
		},
		3: {entry("secret", 48)},
		4: {entry("in", 5)},
		5: {entry("again", 4), entry("up", 1)},
	}}
	g := &Guest{report: oneVolume(), fs: func(context.Context, int) (guestfs.FS, error) { return h, nil }}
	for _, kind := range []string{"directory", "tar", "zip"} {
		t.Run(kind, func(t *testing.T) {
			out := filepath.Join(t.TempDir(), "out")
			req := GetRequest{Places: []string{"disk0/"}}
			var result *GetResult
			var err error
			switch kind {
			case "directory":
				result, err = g.GetToDir(t.Context(), req, GetDirOptions{Output: out})
			case "tar":
				result, err = unpack(t, out, g.GetToTar, req, "tar", "-x", "-C", out, "-f", "-")
			default:
				result, err = unpack(t, out, g.GetToZip, req, "sh", "-c", "cat > a.zip && unzip -q a.zip && rm a.zip")
			}
			if err != nil || !errors.Is(result.Err(), ErrPartial) {
				t.Fatalf("%v; %v", err, result.Err())
			}
			var left int64
			for _, l := range result.LeftOut {
				left += l.Count
			}
			if left < 9 {
				t.Errorf("left out: %+v", result.LeftOut)
			}
			if b, err := os.ReadFile(secret); err != nil || string(b) != "untouched" {
				t.Fatalf("a file outside has become %q, %v", b, err)
			}
			for name, want := range map[string]string{"good": "evil", "first": "evil", "second": "evil"} {
				if b, err := os.ReadFile(filepath.Join(out, name)); err != nil || string(b) != want {
					t.Errorf("%s: %q, %v", name, b, err)
				}
			}
			if kind == "directory" {
				if _, err := os.Lstat(filepath.Join(out, "torn")); !errors.Is(err, os.ErrNotExist) {
					t.Errorf("half a file is there: %v", err)
				}
			}
			parent, err := os.ReadDir(filepath.Dir(out))
			if err != nil || len(parent) != 1 {
				t.Errorf("beside the directory there are %v, %v", parent, err)
			}
		})
	}
}

func unpack(t *testing.T, out string, write func(context.Context, io.Writer, GetRequest) (*GetResult, error), req GetRequest, name string, args ...string) (*GetResult, error) {
	t.Helper()
	if err := os.Mkdir(out, 0o700); err != nil {
		t.Fatal(err)
	}
	var archive bytes.Buffer
	result, err := write(t.Context(), &archive, req)
	if err != nil {
		return result, err
	}
	cmd := exec.CommandContext(t.Context(), name, args...)
	cmd.Dir, cmd.Stdin = out, &archive
	if text, err := cmd.CombinedOutput(); err != nil {
		return result, fmt.Errorf("%s: %w\n%s", name, err, text)
	}
	return result, nil
}

// TestGetInterrupted: an interruption leaves nothing.
func TestGetInterrupted(t *testing.T) {
	h := &hostile{entries: map[guestfs.Inode][]guestfs.Dirent{1: {entry("a", 40), entry("b", 41)}}}
	g := &Guest{report: oneVolume(), fs: func(context.Context, int) (guestfs.FS, error) { return h, nil }}
	ctx, cancel := context.WithCancel(t.Context())
	out := t.TempDir()
	req := GetRequest{Places: []string{"disk0/"}, Progress: func(files, _, _ int64, _ bool) {
		if files == 1 {
			cancel()
		}
	}}
	if _, err := g.GetToDir(ctx, req, GetDirOptions{Output: out}); !errors.Is(err, context.Canceled) {
		t.Errorf("%v", err)
	}
	if left, err := os.ReadDir(out); err != nil || len(left) > 0 {
		t.Errorf("left behind: %v, %v", left, err)
	}
}

// TestGetFailed: where one of the places is not there, nothing of the others
// appears, and a directory made for them goes.
func TestGetFailed(t *testing.T) {
	h := &hostile{entries: map[guestfs.Inode][]guestfs.Dirent{1: {entry("good", 44)}}}
	g := &Guest{report: oneVolume(), fs: func(context.Context, int) (guestfs.FS, error) { return h, nil }}
	req := GetRequest{Places: []string{"disk0/good", "disk0/typo"}}
	there := t.TempDir()
	for _, out := range []string{there, filepath.Join(there, "new")} {
		if _, err := g.GetToDir(t.Context(), req, GetDirOptions{Output: out}); !errors.Is(err, ErrNotFound) {
			t.Errorf("%v, want %v", err, ErrNotFound)
		}
		if left, err := os.ReadDir(there); err != nil || len(left) > 0 {
			t.Errorf("%v is left, %v", left, err)
		}
	}
}

// TestCatSpecial: what has no content is the caller's error, and its kind said.
func TestCatSpecial(t *testing.T) {
	h := &hostile{entries: map[guestfs.Inode][]guestfs.Dirent{1: {{Name: "pipe", Inode: 44, Cookie: 45, Type: guestfs.TypeFIFO}}}}
	g := &Guest{report: oneVolume(), fs: func(context.Context, int) (guestfs.FS, error) { return h, nil }}
	if err := g.Cat(t.Context(), io.Discard, "disk0/pipe", nil); !errors.Is(err, ErrUsage) || !strings.Contains(err.Error(), "fifo") {
		t.Error(err)
	}
}

// TestUnusableVolume: the error says what there is to do, also where that was
// found out after the volumes were.
func TestUnusableVolume(t *testing.T) {
	for _, c := range []struct {
		err  error
		want string
	}{
		{guestfs.ErrUnsupported, "QEMU is missing"},
		{guestfs.ErrEncrypted, "--unlock"},
		{guestfs.Corruptf("hostile", "x"), "damaged"},
	} {
		g := &Guest{report: oneVolume(), fs: func(context.Context, int) (guestfs.FS, error) { return nil, c.err }}
		g.report.Volumes[0].Note = "QEMU is missing"
		if _, err := g.Volume(t.Context(), 0); !errors.Is(err, c.err) || !strings.Contains(err.Error(), c.want) {
			t.Errorf("%v does not say %q", err, c.want)
		}
	}
}

func TestResolveFile(t *testing.T) {
	file := guestfstest.NewImage(t, 1<<20)
	repo, pt := pointOf(t, file)
	at := pt.Time.Format("2006-01-02T15:04:05")
	for ref, want := range map[string]string{
		"guest@latest:/etc/fstab":     "/etc/fstab",
		"guest@latest:":               "",
		"guest@latest":                "",
		"guest@latest:C:/Users/a:b":   "C:/Users/a:b",
		pt.ID + ":disk0/x":            "disk0/x",
		"guest@" + at + "Z:/a":        "/a",
		"guest@2099-01-02T10:00:/a:b": "/a:b",
	} {
		f, err := ResolveFile(t.Context(), repo, ref)
		if err != nil || f.Place != want || f.Point.ID != pt.ID {
			t.Errorf("%q: %+v, %v; want place %q", ref, f, err, want)
		}
	}
	for _, ref := range []string{"other@latest:/x", "", ":", "guest@yesterday:/x"} {
		if f, err := ResolveFile(t.Context(), repo, ref); err == nil {
			t.Errorf("%q: %+v", ref, f)
		}
	}
}

// oneVolume is the report of a guest with one volume.
func oneVolume() *inspect.Report {
	return &inspect.Report{Volumes: []inspect.Volume{{Name: "disk0", Backend: inspect.Native, Mounts: []string{}}}}
}

// TestLocate: drives, volumes and the guest's own tree are told apart.
func TestLocate(t *testing.T) {
	h := &hostile{entries: map[guestfs.Inode][]guestfs.Dirent{1: {entry("file", 40)}}}
	report := oneVolume()
	report.Volumes[0].Mounts = []string{"C:"}
	report.Systems = []inspect.System{{Kind: inspect.Windows, Mounts: []inspect.Mount{{Path: "/C:"}}}}
	open := func(context.Context, int) (guestfs.FS, error) { return h, nil }
	g := &Guest{Point: &store.Point{ID: "p"}, report: report, fs: open, tree: inspect.Tree(report, open)}
	for place, want := range map[string]string{
		`C:\file`: "/C:/file", "c:/file": "/C:/file", "C:": "/C:", "/C:/file": "/C:/file", "": "/", "/": "/", "disk0/file": "/file", "disk0": "/",
	} {
		_, at, err := g.find(t.Context(), place, tree.Follow)
		if err != nil || at.Path != want {
			t.Errorf("%q is %q, %v; want %q", place, at.Path, err, want)
		}
	}
	for _, place := range []string{"D:/file", "disk1/file", "disk0/nothing", `C:\nothing`, "file"} {
		if _, at, err := g.find(t.Context(), place, tree.Follow); !errors.Is(err, ErrNotFound) {
			t.Errorf("%q is %q, %v", place, at.Path, err)
		}
	}
}
