package ntfs_test

import (
	"bytes"
	"os"
	"path/filepath"
	"testing"
	"time"

	"golang.org/x/sys/unix"

	"lifeboat/disk"
	"lifeboat/guestfs"
	"lifeboat/guestfs/guestfstest"
	"lifeboat/guestfs/ntfs"
)

// BenchmarkRead reads a large file through the reader, from a cached image.
func BenchmarkRead(b *testing.B) {
	guestfstest.NeedMount(b, "fuse", "mkfs.ntfs", "ntfs-3g", "wimcapture")
	image := format(b, 256<<20)
	dir, unmount := mount(b, image, "streams_interface=windows,compression")
	data := samples(b)["text"]
	data = bytes.Repeat(data, 40<<20/len(data))
	must(b, os.WriteFile(filepath.Join(dir, "plain"), data, 0o644))
	packs := filepath.Join(dir, "packed")
	must(b, os.Mkdir(packs, 0o755))
	must(b, unix.Setxattr(packs, "system.ntfs_attrib_be", []byte{0, 0, 8, 0}, 0))
	must(b, os.WriteFile(filepath.Join(packs, "LZNT1"), data[:20<<20], 0o644))
	for name, m := range methods {
		putWOF(b, filepath.Join(dir, name), 20<<20, packed(b, data[:20<<20], m.args...), m.number)
	}
	unmount()
	fsys := open(b, image)
	for _, path := range []string{"plain", "packed/LZNT1", "XPRESS4K", "XPRESS8K", "XPRESS16K", "LZX"} {
		b.Run(filepath.Base(path), func(b *testing.B) { readFile(b, fsys, find(b, fsys, path)) })
	}
}

func readFile(b *testing.B, fsys *ntfs.FS, inode guestfs.Inode) {
	buf := make([]byte, 1<<20)
	total, start := int64(0), cpuTime(b)
	for b.Loop() {
		img, err := fsys.Open(b.Context(), inode)
		must(b, err)
		b.SetBytes(img.Size())
		total += img.Size()
		for off := int64(0); off < img.Size(); off += int64(len(buf)) {
			if n, err := img.ReadAt(buf, off); n == 0 {
				b.Fatal(err)
			}
		}
		img.Close()
	}
	b.ReportMetric(float64(total)/1e6/(cpuTime(b)-start).Seconds(), "MB/cpu-s")
}

// cpuTime is what this process has used of processors, so that a busy machine
// can be measured on.
func cpuTime(b *testing.B) time.Duration {
	var u unix.Rusage
	must(b, unix.Getrusage(unix.RUSAGE_SELF, &u))
	return time.Duration(u.Utime.Nano() + u.Stime.Nano())
}

// BenchmarkWalk opens a volume of 44,000 entries and walks it with all that is
// to know of each.
func BenchmarkWalk(b *testing.B) {
	guestfstest.NeedMount(b, "fuse", "mkfs.ntfs", "ntfs-3g")
	image := format(b, 512<<20)
	dir, unmount := mount(b, image, "")
	guestfstest.Populate(b, dir, guestfstest.Trees{Seed: 5, Entries: 44_000, MaxFile: 3000, Plain: true})
	unmount()
	start, rounds := cpuTime(b), 0
	for b.Loop() {
		rounds++
		img, err := disk.Open(b.Context(), image, disk.OpenOptions{Format: disk.FormatRaw})
		must(b, err)
		fsys, err := ntfs.Open(b.Context(), img)
		must(b, err)
		n := walk(b, fsys, fsys.Root())
		if n < 44_000 {
			b.Fatalf("%d entries", n)
		}
		img.Close()
	}
	b.ReportMetric((cpuTime(b)-start).Seconds()/float64(rounds), "cpu-s/op")
}

func walk(b *testing.B, fsys *ntfs.FS, dir guestfs.Inode) (n int) {
	for e, err := range fsys.ReadDir(b.Context(), dir, 0) {
		must(b, err)
		a, err := fsys.Stat(b.Context(), e.Inode)
		must(b, err)
		_, err = fsys.Streams(b.Context(), e.Inode)
		must(b, err)
		_, err = fsys.SecurityDescriptor(b.Context(), e.Inode)
		must(b, err)
		n++
		if a.Type() == guestfs.TypeDir {
			n += walk(b, fsys, e.Inode)
		}
	}
	return n
}

// BenchmarkFirstListing opens a volume and lists its root: of one that is clean,
// and of one whose log is replayed.
func BenchmarkFirstListing(b *testing.B) {
	guestfstest.NeedMount(b, "fuse", "mkfs.ntfs", "ntfs-3g")
	p := makePair(b)
	w := newLogWriter(b, logSize(b, p.before), false, 0, 7)
	checkpoint := w.checkpoint(p.open, p.names, nil, nil)
	known := w.last
	p.log(b, w, p.before, p.after, 0x40)
	w.end(0x40)
	for name, volume := range map[string][]byte{"clean": p.before, "replayed": withLog(b, p.before, w.finish(checkpoint, known))} {
		b.Run(name, func(b *testing.B) {
			file := filepath.Join(b.TempDir(), "volume.raw")
			must(b, os.WriteFile(file, volume, 0o600))
			for b.Loop() {
				img, err := disk.Open(b.Context(), file, disk.OpenOptions{Format: disk.FormatRaw})
				must(b, err)
				fsys, err := ntfs.Open(b.Context(), img)
				must(b, err)
				if s := fsys.Info().State; (s == guestfs.Replayed) != (name == "replayed") {
					b.Fatalf("the state is %s", s)
				}
				for _, err := range fsys.ReadDir(b.Context(), fsys.Root(), 0) {
					must(b, err)
				}
				img.Close()
			}
		})
	}
}
