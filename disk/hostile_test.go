package disk_test

import (
	"bytes"
	"context"
	"encoding/binary"
	"errors"
	"fmt"
	"io"
	"os"
	"path/filepath"
	"strings"
	"syscall"
	"testing"

	"lifeboat/disk"
	"lifeboat/disk/disktest"
)

// readAll opens an image of any quality and reads a bounded part of it: it may
// fail, and must neither panic nor hang nor give data for holes.
func readAll(t testing.TB, name string) {
	t.Helper()
	img, err := disk.Open(context.Background(), name, disk.OpenOptions{CacheBytes: 1 << 20})
	if err != nil {
		if img != nil {
			t.Fatal("an image and an error")
		}
		return
	}
	defer img.Close()
	if img.Size() < 0 {
		t.Fatalf("a size of %d", img.Size())
	}
	buf := make([]byte, 100_000)
	runs, at := 0, int64(0)
	for ext, err := range disk.Extents(context.Background(), img, disk.Extent{Length: 1 << 40}) {
		if err != nil || runs > 50 {
			break
		}
		if ext.Offset != at || ext.Length <= 0 || ext.End() > img.Size() {
			t.Fatalf("extent %+v after %d, in a disk of %d", ext, at, img.Size())
		}
		at, runs = ext.End(), runs+1
		n := min(int64(len(buf)), ext.Length)
		got, err := img.ReadAt(buf[:n], ext.Offset)
		if err == nil && int64(got) != n {
			t.Fatalf("a short read without an error: %d of %d", got, n)
		}
		if ext.Hole && (err == nil || err == io.EOF) && strings.Trim(string(buf[:got]), "\x00") != "" {
			t.Fatalf("data in the hole %+v", ext)
		}
	}
}

// refused opens name and wants an error of kind that says all of words.
func refused(t *testing.T, name string, kind error, words ...string) {
	t.Helper()
	img, err := disk.Open(context.Background(), name, disk.OpenOptions{})
	if err == nil {
		img.Close()
		t.Errorf("%s was opened; want an error about %q", filepath.Base(name), words)
		return
	}
	if !errors.Is(err, kind) {
		t.Errorf("%s: %v, want %v", filepath.Base(name), err, kind)
	}
	for _, word := range words {
		if !strings.Contains(err.Error(), word) {
			t.Errorf("%s: %q does not say %q", filepath.Base(name), err, word)
		}
	}
}

type patch struct {
	at    int
	value any // uint8, uint16, uint32, uint64 in the file's byte order, or string
}

func patched(order binary.AppendByteOrder, image []byte, patches ...patch) []byte {
	out := append([]byte(nil), image...)
	for _, p := range patches {
		var b []byte
		switch v := p.value.(type) {
		case uint8:
			b = []byte{v}
		case uint32:
			b = order.AppendUint32(nil, v)
		case uint64:
			b = order.AppendUint64(nil, v)
		case string:
			b = []byte(v)
		}
		copy(out[p.at:], b)
	}
	return out
}

func smallImage(t testing.TB, format, options string) []byte {
	t.Helper()
	dir := t.TempDir()
	name := filepath.Join(dir, "small.img")
	args := []string{"qemu-img", "create", "-q", "-f", format}
	if options != "" {
		args = append(args, "-o", options)
	}
	qemu(t, dir, append(args, name, "1M")...)
	qemu(t, dir, "qemu-io", "-c", "write -P 1 0 100k", "-c", "write -P 2 700k 512", name)
	b, err := os.ReadFile(name)
	if err != nil {
		t.Fatal(err)
	}
	return b
}

func TestHostileQCOW2(t *testing.T) {
	good := smallImage(t, "qcow2", "cluster_size=4k")
	l1 := int(binary.BigEndian.Uint64(good[40:]))
	l2 := int(binary.BigEndian.Uint64(good[l1:]) & 0xfffffffffffe00)
	for i, test := range []struct {
		patch []patch
		kind  error
		words []string
	}{
		{[]patch{{4, uint32(1)}}, disk.ErrUnsupported, []string{"version 1"}},
		{[]patch{{4, uint32(4)}}, disk.ErrUnsupported, []string{"version 4"}},
		{[]patch{{20, uint32(8)}}, disk.ErrFormat, []string{"cluster size of 2^8"}},
		{[]patch{{20, uint32(63)}}, disk.ErrFormat, []string{"cluster size of 2^63"}},
		{[]patch{{24, ^uint64(0)}}, disk.ErrFormat, []string{"a size of"}},
		{[]patch{{24, uint64(1 << 62)}}, disk.ErrFormat, []string{"L1 table of 1 entries"}},
		{[]patch{{32, uint32(1)}}, disk.ErrUnsupported, []string{"encrypted"}},
		{[]patch{{32, uint32(2)}}, disk.ErrUnsupported, []string{"encrypted"}},
		{[]patch{{36, ^uint32(0)}}, disk.ErrFormat, []string{"L1 table of 4294967295 entries"}},
		{[]patch{{36, uint32(0)}}, disk.ErrFormat, []string{"L1 table of 0 entries"}},
		{[]patch{{40, uint64(513)}}, disk.ErrFormat, []string{"cluster's start"}},
		{[]patch{{40, uint64(1 << 40)}}, disk.ErrFormat, []string{"the file at"}},
		{[]patch{{40, uint64(1 << 63)}}, disk.ErrFormat, []string{"L1 table is at"}},
		{[]patch{{72, uint64(4)}}, disk.ErrUnsupported, []string{"external data file"}},
		{[]patch{{72, uint64(16)}}, disk.ErrFormat, []string{"extended L2"}},
		{[]patch{{72, uint64(1 << 40)}}, disk.ErrUnsupported, []string{"feature bit 40"}},
		{[]patch{{72, uint64(8)}, {104, uint8(9)}}, disk.ErrUnsupported, []string{"compression type 9"}},
		{[]patch{{104, uint8(1)}}, disk.ErrFormat, []string{"compression type 1"}},
		{[]patch{{100, uint32(90)}}, disk.ErrFormat, []string{"header length of 90"}},
		{[]patch{{100, ^uint32(0)}}, disk.ErrFormat, []string{"header length"}},
		{[]patch{{112, uint32(0x44415441)}, {116, uint32(0)}}, disk.ErrUnsupported, []string{"external data file"}},
		{[]patch{{112, uint32(5)}, {116, ^uint32(0)}}, disk.ErrFormat, []string{"header extension", "do not fit"}},
		{[]patch{{8, uint64(600)}, {16, uint32(2000)}}, disk.ErrFormat, []string{"2000 bytes"}},
		{[]patch{{8, uint64(1 << 50)}, {16, uint32(5)}}, disk.ErrFormat, []string{"outside the first cluster"}},
	} {
		t.Run(fmt.Sprint(i), func(t *testing.T) {
			name := filepath.Join(t.TempDir(), "bad.qcow2")
			writeFile(t, name, patched(binary.BigEndian, good, test.patch...))
			refused(t, name, test.kind, test.words...)
		})
	}
	for i, test := range []struct {
		patch patch
		word  string
	}{
		{patch{l1, uint64(1<<63 | 1<<40)}, "L2 table"},
		{patch{l1, uint64(1<<63 | 512)}, "L2 table"},
		{patch{l2, uint64(1<<63 | 1<<50)}, "it was cut"},
		{patch{l2, uint64(1<<63 | 512)}, "cluster's start"},
		{patch{l2, uint64(1<<62 | 1<<50)}, "beyond its end"},
		{patch{l2, uint64(1 << 62)}, "compressed cluster"},
	} {
		t.Run(fmt.Sprint("read", i), func(t *testing.T) {
			name := filepath.Join(t.TempDir(), "bad.qcow2")
			writeFile(t, name, patched(binary.BigEndian, good, test.patch))
			_, err := open(t, name).ReadAt(make([]byte, 512), 0)
			if !errors.Is(err, disk.ErrFormat) || !strings.Contains(err.Error(), test.word) {
				t.Errorf("%v, want %q", err, test.word)
			}
		})
	}
}

// TestAbsurdSizes: sizes that are possible in the format and nowhere else.
func TestAbsurdSizes(t *testing.T) {
	dir := t.TempDir()
	l1 := make([]byte, 1<<22)
	copy(l1, smallImage(t, "qcow2", "cluster_size=2M"))
	qcow := patched(binary.BigEndian, l1, patch{24, uint64(1 << 58)}, patch{36, uint32(1 << 19)}, patch{40, uint64(0)})
	vmdk := fmt.Sprintf("%sRW %d ZERO\n", title, int64(1)<<52)
	for name, content := range map[string][]byte{"qcow2": qcow, "vmdk": []byte(vmdk)} {
		writeFile(t, filepath.Join(dir, name), content)
		refused(t, filepath.Join(dir, name), disk.ErrUnsupported, "size", "1125899906842624")
	}
}

// TestDirtyAndCorrupt are read as they are, as QEMU does.
func TestDirtyAndCorrupt(t *testing.T) {
	good := smallImage(t, "qcow2", "")
	for bits := range uint64(4) {
		name := filepath.Join(t.TempDir(), "image.qcow2")
		writeFile(t, name, patched(binary.BigEndian, good, patch{72, bits}))
		sameAsQEMU(t, name)
	}
}

func TestHostileVMDK(t *testing.T) {
	good := smallImage(t, "vmdk", "")
	descriptor := int(binary.LittleEndian.Uint64(good[28:])) * 512
	directory := int(binary.LittleEndian.Uint64(good[56:])) * 512
	grains := int(binary.LittleEndian.Uint32(good[directory:])) * 512
	for i, test := range []struct {
		patch []patch
		kind  error
		words []string
	}{
		{[]patch{{4, uint32(4)}}, disk.ErrUnsupported, []string{"version 4"}},
		{[]patch{{12, uint64(1 << 60)}}, disk.ErrFormat, []string{"capacity"}},
		{[]patch{{12, uint64(1 << 50)}}, disk.ErrFormat, []string{"grain directory"}},
		{[]patch{{20, uint64(0)}}, disk.ErrFormat, []string{"a grain of 0"}},
		{[]patch{{20, uint64(100)}}, disk.ErrFormat, []string{"a grain of 100"}},
		{[]patch{{20, uint64(1 << 40)}}, disk.ErrFormat, []string{"a grain of"}},
		{[]patch{{44, uint32(0)}}, disk.ErrFormat, []string{"grain tables of 0"}},
		{[]patch{{44, ^uint32(0)}}, disk.ErrFormat, []string{"grain tables of"}},
		{[]patch{{56, uint64(1 << 50)}}, disk.ErrFormat, []string{"grain directory"}},
		{[]patch{{56, ^uint64(0)}}, disk.ErrFormat, []string{"footer", "cut"}},
		{[]patch{{28, uint64(1 << 50)}}, disk.ErrFormat, []string{"descriptor"}},
		{[]patch{{36, uint64(1 << 50)}}, disk.ErrFormat, []string{"descriptor"}},
		{[]patch{{8, uint32(1 << 16)}}, disk.ErrUnsupported, []string{"compression algorithm 0"}},
		{[]patch{{8, uint32(1 << 16)}, {77, uint8(1)}}, disk.ErrUnsupported, []string{"markers"}},
		{[]patch{{descriptor, title + "RW 9 FLAT \"x\" 0\n\x00"}}, disk.ErrUnsupported, []string{"embedded descriptor"}},
		{[]patch{{descriptor, title + "RW 9 SPARSE \"x\"\nparentCID=1\n\x00"}}, disk.ErrFormat, []string{"parentFileNameHint"}},
		{[]patch{{descriptor, "x"}}, disk.ErrFormat, []string{"descriptor", "title"}},
	} {
		t.Run(fmt.Sprint(i), func(t *testing.T) {
			name := filepath.Join(t.TempDir(), "bad.vmdk")
			writeFile(t, name, patched(binary.LittleEndian, good, test.patch...))
			refused(t, name, test.kind, test.words...)
		})
	}
	for i, test := range []patch{{directory, uint32(1 << 31)}, {grains, uint32(1 << 31)}} {
		t.Run(fmt.Sprint("read", i), func(t *testing.T) {
			name := filepath.Join(t.TempDir(), "bad.vmdk")
			writeFile(t, name, patched(binary.LittleEndian, good, test))
			if _, err := open(t, name).ReadAt(make([]byte, 512), 0); !errors.Is(err, disk.ErrFormat) {
				t.Errorf("%v, want ErrFormat", err)
			}
		})
	}
}

// TestCutFiles: an image that lost its end is refused or fails when read; it is
// never read as zeros.
func TestCutFiles(t *testing.T) {
	dir := t.TempDir()
	source := disktest.Random(6, 4<<20, 1)
	names := []string{filepath.Join(dir, "theirs.qcow2"), filepath.Join(dir, "theirs.vmdk")} // tables first
	for _, writer := range []string{"raw", "qcow2", "qcow2zstd", "vmdkstream"} {             // tables last
		names = append(names, writeWith(t, dir, writer, source))
	}
	qemu(t, dir, "qemu-img", "convert", "-O", "qcow2", "raw.img", names[0])
	qemu(t, dir, "qemu-img", "convert", "-O", "vmdk", "raw.img", names[1])
	for _, name := range names {
		whole, err := os.ReadFile(name)
		if err != nil {
			t.Fatal(err)
		}
		for cut := 0; cut < len(whole)-1<<17; cut += len(whole)/23 + 1 {
			writeFile(t, name, whole[:cut])
			img, err := disk.Open(context.Background(), name, disk.OpenOptions{})
			if err != nil || img.(disk.Described).Format() == disk.FormatRaw {
				continue
			}
			if _, err := img.ReadAt(make([]byte, img.Size()), 0); !errors.Is(err, disk.ErrFormat) {
				t.Errorf("%s cut to %d of %d bytes: %v", filepath.Base(name), cut, len(whole), err)
			}
			img.Close()
		}
	}
}

// TestDamagedStream: a flipped bit in a grain of a streamOptimized disk, its
// marker or its tables is found, or hits padding and changes nothing.
func TestDamagedStream(t *testing.T) {
	name := writeWith(t, t.TempDir(), "vmdkstream", disktest.Random(12, 1<<20, 1))
	whole, err := os.ReadFile(name)
	if err != nil {
		t.Fatal(err)
	}
	want := make([]byte, 1<<20)
	open(t, name).ReadAt(want, 0)
	found := 0
	const grains = 128 * disk.SectorSize
	for at := grains; at < len(whole); at += 4001 {
		damaged := append([]byte(nil), whole...)
		damaged[at] ^= 1 << (at % 8)
		writeFile(t, name, damaged)
		img, err := disk.Open(context.Background(), name, disk.OpenOptions{})
		if err != nil {
			found++
			continue
		}
		got := make([]byte, 1<<20)
		if _, err := img.ReadAt(got, 0); errors.Is(err, disk.ErrFormat) {
			found++
		} else if err != nil || !bytes.Equal(got, want) {
			t.Errorf("bit flipped at %d: %v, and other content", at, err)
		}
		img.Close()
	}
	if found < 50 {
		t.Errorf("only %d flips were found", found)
	}
}

// TestSwappedGrains: the marker of a compressed grain says whose it is.
func TestSwappedGrains(t *testing.T) {
	name := filepath.Join(t.TempDir(), "swapped.vmdk")
	writeFile(t, name, patched(binary.LittleEndian, tinySparse(true), patch{3 * 512, uint32(5)}, patch{3*512 + 12, uint32(4)}))
	for _, off := range []int64{0, 3 * 512} {
		if _, err := open(t, name).ReadAt(make([]byte, 512), off); !errors.Is(err, disk.ErrFormat) || !strings.Contains(err.Error(), "marker") {
			t.Errorf("read at %d: %v", off, err)
		}
	}
}

// TestRefusedByName: formats that we know and cannot read.
func TestRefusedByName(t *testing.T) {
	dir := t.TempDir()
	writeFile(t, filepath.Join(dir, "flat"), make([]byte, 4096))
	for name, content := range map[string]string{
		"vmfsSparse":       "COWD" + strings.Repeat("\x00", 4096),
		"seSparse":         "\xbe\xba\xfe\xca\x00\x00\x00\x00" + strings.Repeat("\x00", 4096),
		"VHDX":             "vhdxfile" + strings.Repeat("\x00", 4096),
		"VDI":              strings.Repeat("<", 64) + "\x7f\x10\xda\xbe" + strings.Repeat("\x00", 4096),
		"type VMFSSPARSE":  title + "RW 8 VMFSSPARSE \"flat\"\n",
		"type SESPARSE":    title + "RW 8 SESPARSE \"flat\"\n",
		"type VMFSRDM":     title + "RW 8 VMFSRDM \"flat\"\n",
		`unknown type "X"`: title + "RW 8 X \"flat\"\n",
		"NOACCESS":         title + "NOACCESS 8 FLAT \"flat\" 0\n",
	} {
		file := filepath.Join(dir, "image")
		writeFile(t, file, []byte(content))
		refused(t, file, disk.ErrUnsupported, name)
	}
	qemu(t, dir, "qemu-img", "create", "-q", "-f", "vdi", "real.vdi", "1M")
	refused(t, filepath.Join(dir, "real.vdi"), disk.ErrUnsupported, "VDI")
	qemu(t, dir, "qemu-img", "create", "-q", "-f", "qcow2", "-o", "data_file=ext.raw", "ext.qcow2", "1M")
	refused(t, filepath.Join(dir, "ext.qcow2"), disk.ErrUnsupported, "external data file")
}

// TestNotAFile: pipes do not hang, folders and missing files are errors.
func TestNotAFile(t *testing.T) {
	dir := t.TempDir()
	refused(t, dir, disk.ErrUnsupported, "neither a regular file nor a block device")
	refused(t, filepath.Join(dir, "missing"), os.ErrNotExist, "missing")
	pipe := filepath.Join(dir, "pipe")
	if err := syscall.Mkfifo(pipe, 0o600); err != nil {
		t.Fatal(err)
	}
	refused(t, pipe, disk.ErrUnsupported, "neither")
	writeFile(t, filepath.Join(dir, "d.vmdk"), []byte(title+"RW 8 FLAT \"pipe\" 0\n"))
	refused(t, filepath.Join(dir, "d.vmdk"), disk.ErrUnsupported, "neither")
}
