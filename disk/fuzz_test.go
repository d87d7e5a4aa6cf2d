package disk_test

import (
	"bytes"
	"compress/zlib"
	"encoding/binary"
	"os"
	"path/filepath"
	"testing"
)

// Fuzzing lives from small seeds: QEMU's smallest qcow2 images, and sparse
// extents of a few sectors that no tool would make.

// fuzzImage feeds whole files to Open, alone in their folder.
func fuzzImage(f *testing.F, seeds ...[]byte) {
	for _, seed := range seeds {
		f.Add(seed)
	}
	name := filepath.Join(f.TempDir(), "image") // each worker is a process and has its own
	f.Fuzz(func(t *testing.T, image []byte) {
		if err := os.WriteFile(name, image, 0o600); err != nil {
			t.Fatal(err)
		}
		readAll(t, name)
	})
}

// tinyQCOW2 is a disk of 16 KiB in clusters of 512 bytes, or what options say.
func tinyQCOW2(f *testing.F, options string, compress bool) []byte {
	f.Helper()
	dir := f.TempDir()
	writeFile(f, filepath.Join(dir, "raw"), append(bytes.Repeat([]byte("text"), 1024), make([]byte, 12<<10)...))
	args := []string{"qemu-img", "convert", "-O", "qcow2", "-o", options}
	if compress {
		args = append(args, "-c")
	}
	qemu(f, dir, append(args, "raw", "image")...)
	b, err := os.ReadFile(filepath.Join(dir, "image"))
	if err != nil {
		f.Fatal(err)
	}
	return b
}

func FuzzQCOW2(f *testing.F) {
	fuzzImage(f, tinyQCOW2(f, "cluster_size=512", false), tinyQCOW2(f, "cluster_size=512,compat=0.10", true),
		tinyQCOW2(f, "cluster_size=512,compression_type=zstd", true), tinyQCOW2(f, "cluster_size=16k,extended_l2=on", false))
}

// tinySparse is a sparse extent of four grains of a sector: data, none, zeros,
// data, in one grain table.
func tinySparse(compressed bool) []byte {
	le := binary.LittleEndian
	h := make([]byte, 512)
	copy(h, "KDMV")
	le.PutUint32(h[4:], 1)
	le.PutUint32(h[8:], 1<<2)
	le.PutUint64(h[12:], 4)
	le.PutUint64(h[20:], 1)
	le.PutUint64(h[28:], 1)
	le.PutUint64(h[36:], 1)
	le.PutUint32(h[44:], 4)
	le.PutUint64(h[56:], 2)
	sector := func(b []byte) []byte { return append(b, make([]byte, -len(b)&511)...) }
	text := sector([]byte(title + "CID=1\nparentCID=ffffffff\nRW 4 SPARSE \"x\"\n"))
	directory := sector(le.AppendUint32(nil, 3))
	table := sector([]byte{4, 0, 0, 0, 0, 0, 0, 0, 1, 0, 0, 0, 5, 0, 0, 0})
	grains := [][]byte{bytes.Repeat([]byte("a"), 512), bytes.Repeat([]byte("b"), 512)}
	if compressed {
		le.PutUint32(h[8:], 1<<2|3<<16)
		le.PutUint16(h[77:], 1)
		for i, lba := range []uint64{0, 3} {
			var packed bytes.Buffer
			z := zlib.NewWriter(&packed)
			z.Write(grains[i])
			z.Close()
			marker := le.AppendUint32(le.AppendUint64(nil, lba), uint32(packed.Len()))
			grains[i] = sector(append(marker, packed.Bytes()...))
		}
	}
	return bytes.Join([][]byte{h, text, directory, table, grains[0], grains[1]}, nil)
}

// TestTinySparse: the seeds are valid.
func TestTinySparse(t *testing.T) {
	want := append(bytes.Repeat([]byte("a"), 512), make([]byte, 1024)...)
	want = append(want, bytes.Repeat([]byte("b"), 512)...)
	for _, compressed := range []bool{false, true} {
		name := filepath.Join(t.TempDir(), "tiny.vmdk")
		writeFile(t, name, tinySparse(compressed))
		got := make([]byte, 2048)
		if _, err := open(t, name).ReadAt(got, 0); err != nil || !bytes.Equal(got, want) {
			t.Errorf("%v, %q", err, got)
		}
	}
}

func FuzzVMDK(f *testing.F) {
	fuzzImage(f, tinySparse(false), tinySparse(true))
}
