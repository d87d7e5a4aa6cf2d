package disk_test

import (
	"fmt"
	"math/rand/v2"
	"path/filepath"
	"testing"

	"lifeboat/disk"
	"lifeboat/disk/disktest"
)

const oddSize = 3<<20 + 3*disk.SectorSize

// TestReadAsQEMU reads what qemu-img converts a random disk into.
func TestReadAsQEMU(t *testing.T) {
	dir := t.TempDir()
	raw := filepath.Join(dir, "source.raw")
	source := disktest.Random(1, oddSize, 0.5)
	writeDisk(t, raw, source)
	for i, test := range []struct {
		format, options string
		compress        bool
	}{
		{"raw", "", false},
		{"qcow2", "compat=0.10", false},
		{"qcow2", "compat=1.1", false},
		{"qcow2", "compat=0.10", true},
		{"qcow2", "cluster_size=512", false},
		{"qcow2", "cluster_size=512", true},
		{"qcow2", "cluster_size=4k", true},
		{"qcow2", "cluster_size=2M", false},
		{"qcow2", "cluster_size=2M", true},
		{"qcow2", "compression_type=zlib", true},
		{"qcow2", "compression_type=zstd", true},
		{"qcow2", "compression_type=zstd,cluster_size=512", true},
		{"qcow2", "compression_type=zstd,cluster_size=2M", true},
		{"qcow2", "extended_l2=on", false},
		{"qcow2", "extended_l2=on,cluster_size=16k", false},
		{"qcow2", "extended_l2=on,cluster_size=2M", true},
		{"qcow2", "lazy_refcounts=on,refcount_bits=1", false},
		{"qcow2", "preallocation=metadata", false},
		{"qcow2", "preallocation=falloc", false},
		{"vmdk", "", false},
		{"vmdk", "subformat=monolithicSparse,zeroed_grain=on", false},
		{"vmdk", "subformat=monolithicFlat", false},
		{"vmdk", "subformat=twoGbMaxExtentSparse", false},
		{"vmdk", "subformat=twoGbMaxExtentFlat", false},
		{"vmdk", "subformat=streamOptimized", true},
		{"vmdk", "subformat=streamOptimized,adapter_type=lsilogic,hwversion=13", true},
	} {
		t.Run(fmt.Sprintf("%s,%s,%v", test.format, test.options, test.compress), func(t *testing.T) {
			name := filepath.Join(dir, fmt.Sprintf("image%d.img", i))
			args := []string{"qemu-img", "convert", "-O", test.format}
			if test.options != "" {
				args = append(args, "-o", test.options)
			}
			if test.compress {
				args = append(args, "-c")
			}
			qemu(t, dir, append(args, raw, name)...)
			disktest.RunImage(t, source, func(t *testing.T) disk.Image { return open(t, name) })
			sameHoles(t, open(t, name), dir, filepath.Base(name))
		})
	}
}

// TestWrittenByQEMU reads images that qemu-io wrote into at random, alone and
// in chains.
func TestWrittenByQEMU(t *testing.T) {
	for i, test := range []struct {
		format, options string
		chain           int
	}{
		{"qcow2", "", 3},
		{"qcow2", "compat=0.10", 2},
		{"qcow2", "cluster_size=512", 2},
		{"qcow2", "cluster_size=2M", 2},
		{"qcow2", "extended_l2=on", 3},
		{"vmdk", "", 2},
		{"vmdk", "zeroed_grain=on", 1},
		{"vmdk", "subformat=twoGbMaxExtentSparse", 0},
		{"vmdk", "subformat=monolithicFlat", 0},
	} {
		t.Run(fmt.Sprintf("%s,%s", test.format, test.options), func(t *testing.T) {
			rng := rand.New(rand.NewPCG(uint64(i), 1))
			dir := t.TempDir()
			size := int64(4<<20 + 512)
			for level := range test.chain + 1 {
				name := filepath.Join(dir, fmt.Sprintf("level%d.img", level))
				args := []string{"qemu-img", "create", "-q", "-f", test.format}
				if test.options != "" {
					args = append(args, "-o", test.options)
				}
				if level > 0 {
					args = append(args, "-b", fmt.Sprintf("level%d.img", level-1), "-F", test.format)
				}
				args = append(args, name)
				if level == 0 || test.format == "qcow2" {
					args = append(args, fmt.Sprint(size))
					size += rng.Int64N(3) * 700 * 512 // a child larger than its parent
				}
				qemu(t, dir, args...)
				size := open(t, name).Size()
				scribble(t, rng, name, size, 15)
				sameAsQEMU(t, name)
			}
		})
	}
}

// TestBackingOfAnotherFormat puts a qcow2 over raw and vmdk, with and without a
// recorded format.
func TestBackingOfAnotherFormat(t *testing.T) {
	dir := t.TempDir()
	base := disktest.Random(4, oddSize, 0.3)
	writeDisk(t, filepath.Join(dir, "base.raw"), base)
	qemu(t, dir, "qemu-img", "convert", "-O", "vmdk", "-o", "subformat=streamOptimized", "base.raw", "base.vmdk")
	for _, format := range []string{"raw", "vmdk"} {
		name := filepath.Join(dir, "top-"+format+".qcow2")
		qemu(t, dir, "qemu-img", "create", "-q", "-f", "qcow2", "-b", "base."+format, "-F", format, name, fmt.Sprint(2*oddSize))
		scribble(t, rand.New(rand.NewPCG(9, 9)), name, 2*oddSize, 20)
		sameAsQEMU(t, name)
	}
}

// TestInternalSnapshots: the active state counts, snapshots do not.
func TestInternalSnapshots(t *testing.T) {
	dir := t.TempDir()
	name := filepath.Join(dir, "snap.qcow2")
	qemu(t, dir, "qemu-img", "create", "-q", "-f", "qcow2", name, "8M")
	rng := rand.New(rand.NewPCG(3, 3))
	for _, snapshot := range []string{"one", "two"} {
		scribble(t, rng, name, 8<<20, 15)
		qemu(t, dir, "qemu-img", "snapshot", "-c", snapshot, name)
	}
	scribble(t, rng, name, 8<<20, 15)
	sameAsQEMU(t, name)
}

// TestHuge: sizes beyond 2 TB cost what is stored in them.
func TestHuge(t *testing.T) {
	for _, test := range []struct{ format, options, size string }{
		{"qcow2", "", "62T"},
		{"qcow2", "extended_l2=on", "62T"},
		{"vmdk", "subformat=monolithicFlat", "3T"},
	} {
		t.Run(test.format+","+test.options, func(t *testing.T) {
			dir := t.TempDir()
			name := filepath.Join(dir, "huge.img")
			args := []string{"qemu-img", "create", "-q", "-f", test.format}
			if test.options != "" {
				args = append(args, "-o", test.options)
			}
			qemu(t, dir, append(args, name, test.size)...)
			qemu(t, dir, "qemu-io", "-c", "write -P 7 0 1M", "-c", "write -P 8 2500G 3M", "-c", "write -P 9 2999G 512", name)
			img := open(t, name)
			disktest.CheckExtents(t, img, disk.Whole(img))
			buf := make([]byte, 512)
			for off, want := range map[int64]byte{0: 7, 2500<<30 + 3<<20 - 512: 8, 2999 << 30: 9, 1 << 40: 0} {
				if _, err := img.ReadAt(buf, off); err != nil || buf[0] != want || buf[511] != want {
					t.Errorf("at %d: %d, %v; want %d", off, buf[0], err, want)
				}
			}
			used := img.(disk.Usage).Used()
			if used < 4<<20 || used > 40<<20 {
				t.Errorf("Used is %d", used)
			}
		})
	}
}
