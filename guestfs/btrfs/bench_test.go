package btrfs_test

import (
	"fmt"
	"os"
	"path/filepath"
	"testing"
	"time"

	"golang.org/x/sys/unix"

	"lifeboat/guestfs"
	"lifeboat/guestfs/btrfs"
	"lifeboat/guestfs/guestfstest"
)

// filled is an image with many entries, or a large file.
func filled(b *testing.B, mount string, entries, large int) string {
	b.Helper()
	guestfstest.NeedMount(b, "btrfs", "mkfs.btrfs")
	image := guestfstest.NewImage(b, 3<<30)
	guestfstest.Run(b, "mkfs.btrfs", "-q", "-f", image)
	dir, unmount := guestfstest.Mount(b, image, "btrfs", mount)
	guestfstest.Populate(b, dir, guestfstest.Trees{Seed: 9, Entries: entries, MaxFile: 10_000, NoBigXattrs: true})
	data := make([]byte, 0, large)
	for i := 0; len(data) < large; i++ { // text, as in a log: a third of it remains
		data = fmt.Appendf(data, "2026-11-21T%02d:%02d:%02d host%d daemon[%d]: request %d took %d ms\n", i/3600%24, i/60%60, i%60, i%7, i*31%32768, i, i*7919%1000)
	}
	if err := os.WriteFile(filepath.Join(dir, "large"), data[:large], 0o644); err != nil {
		b.Fatal(err)
	}
	unmount()
	return image
}

// BenchmarkWalk goes through 44,000 entries with attributes and xattrs.
func BenchmarkWalk(b *testing.B) {
	image := filled(b, "", 44_000, 0)
	for b.Loop() {
		fsys := open(b, image)
		if n := walk(b, fsys, fsys.Root()); n < 44_000 {
			b.Fatalf("%d entries", n)
		}
	}
}

func walk(b *testing.B, fsys *btrfs.FS, dir guestfs.Inode) int {
	n := 0
	for e, err := range fsys.ReadDir(b.Context(), dir, 0) {
		if err != nil {
			b.Fatal(err)
		}
		n++
		a, err := fsys.Stat(b.Context(), e.Inode)
		if err != nil {
			b.Fatal(err)
		}
		if _, err := fsys.Xattrs(b.Context(), e.Inode); err != nil {
			b.Fatal(err)
		}
		if a.Type() == guestfs.TypeDir {
			n += walk(b, fsys, e.Inode)
		}
	}
	return n
}

// cpu is the time that this process was on a CPU.
func cpu(b *testing.B) time.Duration {
	b.Helper()
	var u unix.Rusage
	if err := unix.Getrusage(unix.RUSAGE_SELF, &u); err != nil {
		b.Fatal(err)
	}
	return time.Duration(u.Utime.Nano() + u.Stime.Nano())
}

// BenchmarkRead reads a large file, in pieces of 1 MiB.
func BenchmarkRead(b *testing.B) {
	for name, mount := range map[string]string{"plain": "", "zlib": "compress-force=zlib", "lzo": "compress-force=lzo", "zstd": "compress-force=zstd"} {
		b.Run(name, func(b *testing.B) {
			const size = 256 << 20
			fsys := open(b, filled(b, mount, 10, size))
			e, err := fsys.Lookup(b.Context(), fsys.Root(), "large")
			if err != nil {
				b.Fatal(err)
			}
			b.SetBytes(size)
			p := make([]byte, 1<<20)
			start, rounds := cpu(b), 0
			for b.Loop() {
				rounds++
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
			b.ReportMetric(size/1e6*float64(rounds)/(cpu(b)-start).Seconds(), "MB/cpu-s") // on a busy machine, this is what to look at
		})
	}
}
