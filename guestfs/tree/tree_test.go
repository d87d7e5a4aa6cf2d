package tree_test

import (
	"context"
	"errors"
	"fmt"
	"io/fs"
	"iter"
	"slices"
	"strings"
	"testing"

	"pgregory.net/rapid"

	"lifeboat/disk"
	"lifeboat/guestfs"
	"lifeboat/guestfs/tree"
)

// memory is a file system of paths. A path that ends in a slash is a directory,
// one with -> a symbolic link; the content of a file is its own path. Inode
// numbers begin at base.
type memory struct {
	base  guestfs.Inode
	names []string // "/", "/a/", "/a/b", "/a/link -> target"
	kind  string
}

func (m *memory) Info() guestfs.Info { return guestfs.Info{Type: m.kind} }

func (m *memory) Root() guestfs.Inode { return m.base }

func (m *memory) entry(inode guestfs.Inode) (path, target string, kind uint32, err error) {
	i := inode - m.base
	if i >= guestfs.Inode(len(m.names)) {
		return "", "", 0, fmt.Errorf("inode %d: %w", inode, fs.ErrNotExist)
	}
	path, target, link := strings.Cut(m.names[i], " -> ")
	switch {
	case link:
		kind = guestfs.TypeSymlink
	case strings.HasSuffix(path, "/"):
		kind = guestfs.TypeDir
	default:
		kind = guestfs.TypeFile
	}
	return path, target, kind, nil
}

func (m *memory) Stat(_ context.Context, inode guestfs.Inode) (*guestfs.Attr, error) {
	_, _, kind, err := m.entry(inode)
	return &guestfs.Attr{Inode: inode, Mode: kind | 0o644, UID: 7, Links: 1}, err
}

func (m *memory) ReadDir(_ context.Context, dir guestfs.Inode, after uint64) iter.Seq2[guestfs.Dirent, error] {
	return func(yield func(guestfs.Dirent, error) bool) {
		parent, _, _, err := m.entry(dir)
		if err != nil {
			yield(guestfs.Dirent{}, err)
			return
		}
		for i := range m.names {
			path, _, kind, _ := m.entry(m.base + guestfs.Inode(i))
			name, below := strings.CutPrefix(strings.TrimSuffix(path, "/"), parent)
			if !below || name == "" || strings.Contains(name, "/") || uint64(i+1) <= after {
				continue
			}
			if !yield(guestfs.Dirent{Name: name, Inode: m.base + guestfs.Inode(i), Type: kind, Cookie: uint64(i + 1)}, nil) {
				return
			}
		}
	}
}

func (m *memory) Open(ctx context.Context, inode guestfs.Inode) (disk.Image, error) {
	path, target, kind, err := m.entry(inode)
	if err != nil {
		return nil, err
	}
	if kind == guestfs.TypeSymlink {
		path = target
	}
	return disk.Bytes(ctx, []byte(path)), nil
}

func opener(fsys guestfs.FS) tree.Opener {
	return func(context.Context) (guestfs.FS, error) { return fsys, nil }
}

func composed(t *testing.T, mounts map[string]tree.Opener) *tree.Tree {
	t.Helper()
	tr := tree.New()
	for _, path := range slices.Sorted(func(yield func(string) bool) {
		for p := range mounts {
			if !yield(p) {
				return
			}
		}
	}) {
		if err := tr.Mount(path, mounts[path]); err != nil {
			t.Fatal(err)
		}
	}
	return tr
}

// errLocked is why a mount cannot be opened. A listing of the directory that it is
// in says so.
var errLocked = errors.New("it is locked")

func names(t *testing.T, fsys guestfs.FS, path string) ([]string, error) {
	t.Helper()
	at, err := tree.Walk(t.Context(), fsys, path, tree.Follow)
	if err != nil {
		return nil, err
	}
	var out []string
	for e, err := range guestfs.ReadDirPlus(t.Context(), fsys, at.Inode, 0, true) {
		if err != nil {
			return out, err
		}
		if e.Err != nil && !errors.Is(e.Err, errLocked) || e.Attr == nil || e.Attr.Inode != e.Inode || e.Attr.Type() != e.Type {
			t.Errorf("%s in %s: %+v, %v", e.Name, path, e.Attr, e.Err)
		}
		out = append(out, e.Name)
	}
	return out, nil
}

// TestMounts: mounts cover what is below them, appear where nothing is, and what
// cannot be opened says so where it would be, and nowhere else.
func TestMounts(t *testing.T) {
	opened := 0
	tr := composed(t, map[string]tree.Opener{
		"/":          opener(&memory{base: 2, names: []string{"/", "/etc/", "/home/", "/home/hidden", "/file", "/mnt/", "/mnt/here"}}),
		"/home":      opener(&memory{base: 2, names: []string{"/", "/user/", "/user/letter"}}),
		"/var/lib/x": opener(&memory{base: 2, names: []string{"/", "/data"}}),
		"/mnt/usb":   func(context.Context) (guestfs.FS, error) { return nil, errLocked },
		"/never": func(context.Context) (guestfs.FS, error) {
			opened++
			return nil, errLocked
		},
	})
	for path, want := range map[string][]string{
		"/":          {"home", "mnt", "never", "var", "etc", "file"},
		"/home":      {"user"},
		"/home/user": {"letter"},
		"/mnt":       {"usb", "here"},
		"/var":       {"lib"},
		"/var/lib/x": {"data"},
	} {
		if got, err := names(t, tr, path); err != nil || !slices.Equal(got, want) {
			t.Errorf("%s: %v, %v; want %v", path, got, err, want)
		}
	}
	if opened > 1 {
		t.Errorf("a mount that cannot be opened was tried %d times", opened)
	}
	if _, err := names(t, tr, "/mnt/usb"); !errors.Is(err, errLocked) {
		t.Errorf("/mnt/usb: %v", err)
	}
	if a, err := tr.Stat(t.Context(), tr.Root()); err != nil || a.UID != 7 {
		t.Errorf("the root is not that of what is mounted there: %+v, %v", a, err)
	}
	for _, inode := range []guestfs.Inode{0, 99, 1 << 40, 1 << 60, ^guestfs.Inode(0)} {
		if _, err := tr.Stat(t.Context(), inode); !errors.Is(err, fs.ErrNotExist) {
			t.Errorf("inode %#x: %v", inode, err)
		}
	}
}

// TestNumbers: inode numbers are different for different files and the same each
// time, whatever numbers the file systems use.
func TestNumbers(t *testing.T) {
	rapid.Check(t, func(rt *rapid.T) {
		tr := tree.New()
		mounts := rapid.IntRange(1, 5).Draw(rt, "mounts")
		for i := range mounts {
			base := guestfs.Inode(rapid.Uint64Range(1, 1<<64-1000).Draw(rt, "base"))
			if rapid.Bool().Draw(rt, "small") {
				base = base%(1<<36-1000) + 1
			}
			if err := tr.Mount(fmt.Sprintf("/m%d", i), opener(&memory{base: base, names: []string{"/", "/a", "/d/", "/d/b"}})); err != nil {
				rt.Fatal(err)
			}
		}
		first := map[string]guestfs.Inode{}
		for round := range 2 {
			seen := map[guestfs.Inode]string{}
			for i := range mounts {
				for _, name := range []string{"", "/a", "/d", "/d/b"} {
					path := fmt.Sprintf("/m%d%s", i, name)
					at, err := tree.Walk(t.Context(), tr, path, tree.Follow)
					if err != nil {
						rt.Fatalf("%s: %v", path, err)
					}
					if other, ok := seen[at.Inode]; ok {
						rt.Fatalf("%s and %s are both inode %#x", path, other, at.Inode)
					}
					seen[at.Inode] = path
					if round == 0 {
						first[path] = at.Inode
					} else if first[path] != at.Inode {
						rt.Fatalf("%s was inode %#x and is %#x", path, first[path], at.Inode)
					}
				}
				img, err := tr.Open(t.Context(), first[fmt.Sprintf("/m%d/d/b", i)])
				if err != nil {
					rt.Fatal(err)
				}
				b := make([]byte, img.Size())
				if n, _ := img.ReadAt(b, 0); string(b[:n]) != "/d/b" {
					rt.Fatalf("another file: %q", b)
				}
			}
		}
	})
}

// TestResume: a listing goes on after any of its entries.
func TestResume(t *testing.T) {
	root := &memory{base: 2, names: []string{"/", "/a", "/b", "/c", "/m1/", "/d"}}
	tr := composed(t, map[string]tree.Opener{"/": opener(root), "/m1": opener(root), "/m2": opener(root), "/m3": opener(root)})
	var all []guestfs.Dirent
	for e, err := range tr.ReadDir(t.Context(), tr.Root(), 0) {
		if err != nil {
			t.Fatal(err)
		}
		all = append(all, e)
	}
	if len(all) != 7 {
		t.Fatalf("%d entries: %+v", len(all), all)
	}
	for i, e := range all {
		var rest []guestfs.Dirent
		for e, err := range tr.ReadDir(t.Context(), tr.Root(), e.Cookie) {
			if err != nil {
				t.Fatal(err)
			}
			rest = append(rest, e)
		}
		if !slices.Equal(rest, all[i+1:]) {
			t.Errorf("after %s: %+v", e.Name, rest)
		}
	}
}

// TestWalk: links and ".." end at the guest's root, with a limit.
func TestWalk(t *testing.T) {
	linux := &memory{base: 1, kind: "ext4", names: []string{
		"/", "/etc/", "/etc/shadow", "/up -> ../../../../../etc/shadow", "/abs -> /etc/shadow", "/dir -> etc", "/self -> self", "/a -> b", "/b -> a",
		"/empty -> ", "/slash -> /", `/back -> etc\shadow`, "/bomb -> " + strings.Repeat("dir/../", 5000),
	}}
	windows := &memory{base: 1, kind: "ntfs", names: []string{
		"/", "/Users/", "/Users/note", `/junction -> \??\C:\Users`, `/relative -> Users\note`, `/up -> ..\..\Users`, `/volume -> \??\Volume{0}\x`,
	}}
	tr := composed(t, map[string]tree.Opener{"/C:": opener(windows), "/D:": opener(linux)})
	for _, c := range []struct {
		fsys       guestfs.FS
		path, want string
	}{
		{linux, "", "/"},
		{linux, "/../..//./", "/"},
		{linux, "up", "/etc/shadow"},
		{linux, "/abs", "/etc/shadow"},
		{linux, "/dir/shadow", "/etc/shadow"},
		{linux, "/dir/../dir/../etc/../abs", "/etc/shadow"},
		{linux, "/slash/slash/etc", "/etc"},
		{tr, "/C:/junction/note", "/C:/Users/note"},
		{tr, "/c:/relative", "/C:/Users/note"},
		{tr, "/C:/up/C:/Users/note", "!file does not exist"}, // above the drive is the root, and no Users
		{tr, "/C:/volume", "!file does not exist"},
		{linux, "/self", "!too many levels"},
		{linux, "/a/x", "!too many levels"},
		{linux, "/bomb", "!too many levels"},
		{linux, "/empty", "!file does not exist"},
		{linux, "/back", "!file does not exist"},
		{linux, "/etc/shadow/..", "!not a directory"},
		{linux, "/etc/nothing", "!file does not exist"},
	} {
		at, err := tree.Walk(t.Context(), c.fsys, c.path, tree.Follow)
		if want, fails := strings.CutPrefix(c.want, "!"); fails {
			if err == nil || !strings.Contains(err.Error(), want) {
				t.Errorf("%s: %s, %v; want an error: %s", c.path, at.Path, err, want)
			}
			continue
		}
		if err != nil || at.Path != c.want {
			t.Errorf("%s: %s, %v; want %s", c.path, at.Path, err, c.want)
		}
	}
	at, err := tree.Walk(t.Context(), linux, "/abs", tree.NoFollow)
	if err != nil || at.Path != "/abs" || at.Type != guestfs.TypeSymlink {
		t.Errorf("a link that is not followed: %+v, %v", at, err)
	}
	if at, err = tree.Walk(t.Context(), linux, "/dir/", tree.NoFollow); err != nil || at.Path != "/etc" {
		t.Errorf("a link with a slash behind it: %+v, %v", at, err)
	}
}
