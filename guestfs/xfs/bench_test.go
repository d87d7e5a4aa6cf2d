package xfs_test

import (
	"context"
	"os"
	"path/filepath"
	"testing"

	"lifeboat/guestfs"
	"lifeboat/guestfs/guestfstest"
	"lifeboat/guestfs/xfs"
)

// filled is an image with many entries and a large file.
func filled(b *testing.B, entries int, large int) string {
	b.Helper()
	guestfstest.NeedMount(b, "xfs", "mkfs.xfs")
	image := format(b, 2<<30)
	dir, unmount := guestfstest.Mount(b, image, "xfs", "")
	guestfstest.Populate(b, dir, guestfstest.Trees{Seed: 9, Entries: entries, MaxFile: 10_000})
	if err := os.WriteFile(filepath.Join(dir, "large"), make([]byte, large), 0o644); err != nil {
		b.Fatal(err)
	}
	unmount()
	return image
}

// BenchmarkWalk goes through 44,000 entries with attributes and xattrs.
func BenchmarkWalk(b *testing.B) {
	image := filled(b, 44_000, 0)
	for b.Loop() {
		fsys := open(b, image)
		if n := walk(b, fsys, fsys.Root()); n < 44_000 {
			b.Fatalf("%d entries", n)
		}
	}
}

func walk(b *testing.B, fsys *xfs.FS, dir guestfs.Inode) int {
	ctx := context.Background()
	n := 0
	for e, err := range fsys.ReadDir(ctx, dir, 0) {
		if err != nil {
			b.Fatal(err)
		}
		n++
		a, err := fsys.Stat(ctx, e.Inode)
		if err != nil {
			b.Fatal(err)
		}
		if _, err := fsys.Xattrs(ctx, e.Inode); err != nil {
			b.Fatal(err)
		}
		if a.Type() == guestfs.TypeDir {
			n += walk(b, fsys, e.Inode)
		}
	}
	return n
}

// BenchmarkRead reads a large file, in pieces of 1 MiB.
func BenchmarkRead(b *testing.B) {
	const size = 1 << 30
	fsys := open(b, filled(b, 10, size))
	e, err := fsys.Lookup(b.Context(), fsys.Root(), "large")
	if err != nil {
		b.Fatal(err)
	}
	b.SetBytes(size)
	p := make([]byte, 1<<20)
	for b.Loop() {
		img, err := fsys.Open(b.Context(), e.Inode)
		if err != nil {
			b.Fatal(err)
		}
		for off := int64(0); off < size; off += int64(len(p)) {
			if n, err := img.ReadAt(p, off); n < len(p) {
				b.Fatal(err)
			}
		}
		img.Close()
	}
}
