package xfs_test

import (
	"bytes"
	"fmt"
	"io/fs"
	"math"
	"math/rand/v2"
	"os"
	"path/filepath"
	"strings"
	"testing"

	"lifeboat/guestfs"
	"lifeboat/guestfs/guestfstest"
)

// older are layouts that kernels no longer mount by default: mkfs.xfs fills them,
// from a prototype.
var older = map[string][]string{
	"v4 no ftype":   {"-m", "crc=0", "-n", "ftype=0"},
	"v4 inodes 256": {"-m", "crc=0", "-i", "size=256", "-l", "version=1"},
	"v4 512":        {"-m", "crc=0", "-b", "size=512", "-n", "size=4096"},
	"v4 dir 16k":    {"-m", "crc=0", "-n", "size=16384"},
	"v4 folded":     {"-m", "crc=0", "-n", "version=ci"},
}

// prototype makes a tree, and the file that has mkfs.xfs copy it.
func prototype(t *testing.T) (tree, proto string) {
	t.Helper()
	tree = t.TempDir()
	rng := rand.New(rand.NewPCG(7, 7))
	must := func(err error) {
		t.Helper()
		if err != nil {
			t.Fatal(err)
		}
	}
	for _, n := range []int{1, 3, 30, 100, 700} { // in the inode, a block, leaves, a tree
		dir := filepath.Join(tree, fmt.Sprintf("dir%d", n), "below")
		must(os.MkdirAll(dir, 0o755))
		for i := range n {
			must(os.WriteFile(filepath.Join(dir, fmt.Sprintf("entry-%d-%s", i, strings.Repeat("y", rng.IntN(40)))), nil, 0o640))
		}
	}
	for _, n := range []int{0, 1, 100, 511, 512, 4096, 300_001} {
		data := make([]byte, n)
		for i := range data {
			data[i] = byte(rng.Uint32())
		}
		must(os.WriteFile(filepath.Join(tree, fmt.Sprintf("file%d", n)), data, 0o600))
	}
	for _, n := range []int{1, 100, 156, 157, 300, 512, 600, 1000} {
		must(os.Symlink(strings.Repeat("t", n), filepath.Join(tree, fmt.Sprintf("link%d", n))))
	}
	var text bytes.Buffer
	text.WriteString("/nothing\n0 0\nd--755 0 0\n")
	describe(t, &text, tree)
	text.WriteString("$\n")
	proto = filepath.Join(t.TempDir(), "prototype")
	must(os.WriteFile(proto, text.Bytes(), 0o644))
	return tree, proto
}

func describe(t *testing.T, text *bytes.Buffer, dir string) {
	t.Helper()
	list, err := os.ReadDir(dir)
	if err != nil {
		t.Fatal(err)
	}
	for _, e := range list {
		path := filepath.Join(dir, e.Name())
		info, err := e.Info()
		if err != nil {
			t.Fatal(err)
		}
		switch e.Type() {
		case fs.ModeDir:
			fmt.Fprintf(text, "%s d--%o 0 0\n", e.Name(), info.Mode().Perm())
			describe(t, text, path)
			text.WriteString("$\n")
		case fs.ModeSymlink:
			target, err := os.Readlink(path)
			if err != nil {
				t.Fatal(err)
			}
			fmt.Fprintf(text, "%s l--777 0 0 %s\n", e.Name(), target)
		default:
			fmt.Fprintf(text, "%s ---%o 0 0 %s\n", e.Name(), info.Mode().Perm(), path)
		}
	}
}

// TestOlder: trees that mkfs.xfs wrote, in every layout that it knows.
func TestOlder(t *testing.T) {
	guestfstest.NeedMount(t, "", "mkfs.xfs", "xfs_db")
	tree, proto := prototype(t)
	for name, args := range older {
		t.Run(name, func(t *testing.T) {
			t.Parallel()
			image := format(t, imageSize, append(args, "-p", proto)...)
			want := attributes(t, image)
			fsys := open(t, image)
			if n := guestfstest.Compare(t, fsys, tree, guestfstest.Compared{
				NoInodes: true, NoXattrs: true, NoDirSize: true, NoAllocated: true, Granularity: math.MaxInt64,
			}); n < 700 {
				t.Errorf("only %d entries were compared", n)
			}
			e, err := guestfs.Lookup(t.Context(), fsys, fsys.Root(), map[bool]string{true: "FILE100", false: "file100"}[name == "v4 folded"])
			if err != nil {
				t.Fatal(err)
			}
			got, err := fsys.Xattrs(t.Context(), e.Inode)
			if err != nil {
				t.Fatal(err)
			}
			for _, x := range got {
				if len(x.Value) != want[x.Name] || strings.Trim(string(x.Value), "v") != "" {
					t.Errorf("attribute %q has %d bytes, want %d", x.Name, len(x.Value), want[x.Name])
				}
				delete(want, x.Name)
			}
			if len(want) > 0 {
				t.Errorf("missing: %v", want)
			}
			if info := fsys.Info(); info.State != guestfs.Clean {
				t.Errorf("info: %+v", info)
			}
		})
	}
}

// attributes gives a file attributes that do not fit in its inode: xfs_db is the
// only one that can here. It returns their names and how long they are.
func attributes(t *testing.T, image string) map[string]int {
	t.Helper()
	want := map[string]int{}
	args := []string{"-x", "-c", "path /file100"}
	for i, n := range []int{1, 10, 200, 1000, 3000, 9000, 60_000} {
		args = append(args, "-c", fmt.Sprintf("attr_set -u -v %d attribute%d", n, i))
		want[fmt.Sprintf("user.attribute%d", i)] = n
	}
	guestfstest.Run(t, "xfs_db", append(args, image)...)
	return want
}
