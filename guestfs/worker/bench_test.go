package worker_test

import (
	"context"
	"fmt"
	"os"
	"path/filepath"
	"testing"

	"lifeboat/disk"
	"lifeboat/guestfs"
	"lifeboat/guestfs/guestfstest"
	"lifeboat/guestfs/worker"
)

// manyFiles is an image with n small files in directories of a hundred, and a
// large one, which a page of holes divides in two.
func manyFiles(b *testing.B, n int) string {
	guestfstest.NeedMount(b, "ext4", "mke2fs")
	file := guestfstest.NewImage(b, 1<<30)
	guestfstest.Run(b, "mke2fs", "-q", "-F", "-t", "ext4", "-N", "60000", "-E", "lazy_itable_init=0", file)
	dir, unmount := guestfstest.Mount(b, file, "ext4", "")
	defer unmount()
	for i := range n {
		sub := filepath.Join(dir, fmt.Sprintf("directory %d", i/100))
		if i%100 == 0 {
			if err := os.Mkdir(sub, 0o755); err != nil {
				b.Fatal(err)
			}
		}
		if err := os.WriteFile(filepath.Join(sub, fmt.Sprintf("file %d", i)), []byte("content"), 0o644); err != nil {
			b.Fatal(err)
		}
	}
	large := make([]byte, 200<<20)
	for i := range large {
		large[i] = byte(i >> 12 * 7)
	}
	if err := os.WriteFile(filepath.Join(dir, "large"), large, 0o600); err != nil {
		b.Fatal(err)
	}
	return file
}

// walk counts what is below a directory, with attributes and extended ones.
func walk(ctx context.Context, fsys guestfs.FS, dir guestfs.Inode) (n int, err error) {
	for e, err := range guestfs.ReadDirPlus(ctx, fsys, dir, 0, true) {
		if err != nil || e.Err != nil {
			return n, fmt.Errorf("%w %w", err, e.Err)
		}
		n++
		if e.Attr.Type() != guestfs.TypeDir {
			continue
		}
		below, err := walk(ctx, fsys, e.Inode)
		n += below
		if err != nil {
			return n, err
		}
	}
	return n, nil
}

// BenchmarkWorker: a session from nothing to the first listing; a walk of 44,000
// entries; reading a file (the image is in the page cache).
func BenchmarkWorker(b *testing.B) {
	file := manyFiles(b, 44_000)
	img := image(b, file)
	b.Run("first listing", func(b *testing.B) {
		for b.Loop() {
			s := start(b, worker.Options{}, img)
			fsys := volume(b, s, 0)
			for _, err := range fsys.ReadDir(b.Context(), fsys.Root(), 0) {
				if err != nil {
					b.Fatal(err)
				}
			}
			s.Close()
		}
	})
	b.Run("walk", func(b *testing.B) {
		for b.Loop() {
			s := start(b, worker.Options{}, img)
			fsys := volume(b, s, 0)
			if n, err := walk(b.Context(), fsys, fsys.Root()); n < 44_000 || err != nil {
				b.Fatal(n, err)
			}
			s.Close()
		}
	})
	for _, how := range []string{"file", "image"} {
		b.Run("read/"+how, func(b *testing.B) {
			s := start(b, worker.Options{}, img)
			fsys := volume(b, s, 0)
			e, err := guestfs.Lookup(b.Context(), fsys, fsys.Root(), "large")
			if err != nil {
				b.Fatal(err)
			}
			from, err := fsys.Open(b.Context(), e.Inode)
			if err != nil {
				b.Fatal(err)
			}
			size := from.Size()
			if how == "image" {
				from = disk.Section(b.Context(), img, 300<<20, size)
			}
			b.SetBytes(size)
			buf := make([]byte, 1<<20)
			for b.Loop() {
				for off := int64(0); off < size; off += int64(len(buf)) {
					if n, err := from.ReadAt(buf, off); n < len(buf) {
						b.Fatal(err)
					}
				}
			}
		})
	}
	b.Run("open and read small", func(b *testing.B) {
		s := start(b, worker.Options{}, img)
		fsys := volume(b, s, 0)
		d, err := guestfs.Lookup(b.Context(), fsys, fsys.Root(), "directory 7")
		if err != nil {
			b.Fatal(err)
		}
		e, err := guestfs.Lookup(b.Context(), fsys, d.Inode, "file 777")
		if err != nil {
			b.Fatal(err)
		}
		buf := make([]byte, 7)
		for b.Loop() {
			f, err := fsys.Open(b.Context(), e.Inode)
			if err != nil {
				b.Fatal(err)
			}
			if _, err := f.ReadAt(buf, 0); err != nil || string(buf) != "content" {
				b.Fatal(err)
			}
			f.Close()
		}
	})
}
