package disk_test

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"io"
	"os"
	"path/filepath"
	"strings"
	"testing"

	"pgregory.net/rapid"

	"lifeboat/disk"
	"lifeboat/disk/disktest"
)

// writers are all the ways to write an image into a new file.
var writers = map[string]func(ctx context.Context, f *os.File, img disk.Image) error{
	"raw": func(ctx context.Context, f *os.File, img disk.Image) error {
		return disk.WriteRaw(ctx, f, img, nil)
	},
	"rawstream": func(ctx context.Context, f *os.File, img disk.Image) error {
		return disk.WriteRawTo(ctx, f, img, nil)
	},
	"qcow2": func(ctx context.Context, f *os.File, img disk.Image) error {
		return disk.WriteQCOW2(ctx, f, img, disk.QCOW2Options{})
	},
	"qcow2zstd": func(ctx context.Context, f *os.File, img disk.Image) error {
		return disk.WriteQCOW2(ctx, f, img, disk.QCOW2Options{Compress: disk.CompressZstd})
	},
	"vmdkstream": func(ctx context.Context, f *os.File, img disk.Image) error {
		return disk.WriteVMDK(ctx, f, img, disk.VMDKOptions{})
	},
	"vmdkflat": func(ctx context.Context, f *os.File, img disk.Image) error {
		flat, err := os.Create(strings.TrimSuffix(f.Name(), ".img") + "-flat.vmdk")
		if err != nil {
			return err
		}
		defer flat.Close()
		return disk.WriteFlatVMDK(ctx, f, flat, img, disk.VMDKOptions{})
	},
}

func writeWith(t rapid.TB, dir, writer string, img disk.Image) (name string) {
	t.Helper()
	name = filepath.Join(dir, writer+".img")
	f, err := os.Create(name)
	if err != nil {
		t.Fatal(err)
	}
	defer f.Close()
	if err := writers[writer](context.Background(), f, img); err != nil {
		t.Fatalf("%s: %v", writer, err)
	}
	return name
}

// padded is img with the zeros that formats of whole sectors add to it.
func padded(img *disktest.Memory, writer string) disk.Image {
	if strings.HasPrefix(writer, "raw") || img.Size()%disk.SectorSize == 0 {
		return img
	}
	big := make([]byte, (img.Size()+disk.SectorSize-1)&^(disk.SectorSize-1))
	copy(big, img.Bytes())
	return disktest.FromBytes(big)
}

// TestWriters: what we write, QEMU finds sound and equal to the source.
func TestWriters(t *testing.T) {
	for writer := range writers {
		t.Run(writer, func(t *testing.T) {
			for seed, size := range []int64{512, 3<<20 + 512, 70<<20 + 4096} {
				dir := t.TempDir()
				source := disktest.Random(uint64(seed), size, 0.1)
				raw := filepath.Join(dir, "source.raw")
				writeDisk(t, raw, source)
				name := writeWith(t, dir, writer, source)
				if format := string(formatOf(t, name)); format != "raw" {
					if out, err := tryQEMU(dir, "qemu-img", "check", name); err != nil && !strings.Contains(out, "does not support checks") {
						t.Errorf("qemu-img check: %v\n%s", err, out)
					}
				}
				qemu(t, dir, "qemu-img", "compare", raw, name)
				disktest.Equal(t, open(t, name), source)
				sameHoles(t, open(t, name), dir, filepath.Base(name))
			}
		})
	}
}

// TestPadding: what rounds a disk up to sectors is zeros, not what a buffer
// held before.
func TestPadding(t *testing.T) {
	for writer := range writers {
		source := disktest.Random(15, 9<<20+100, 1)
		if _, err := source.WriteAt(bytes.Repeat([]byte{'x'}, 100), 9<<20); err != nil {
			t.Fatal(err)
		}
		disktest.Equal(t, open(t, writeWith(t, t.TempDir(), writer, source)), padded(source, writer))
	}
}

func formatOf(t testing.TB, name string) disk.Format {
	t.Helper()
	return open(t, name).(disk.Described).Format()
}

// TestWriteAndRead writes random disks in every format and reads them back.
func TestWriteAndRead(t *testing.T) {
	dir := t.TempDir()
	rapid.Check(t, func(t *rapid.T) {
		size := rapid.Int64Range(1, 2<<20).Draw(t, "size")
		source := disktest.NewMemory(size)
		for range rapid.IntRange(0, 12).Draw(t, "writes") {
			n := rapid.Int64Range(1, min(size, 150_000)).Draw(t, "n")
			off := rapid.Int64Range(0, size-n).Draw(t, "off")
			fill := rapid.SampledFrom([]string{"\x00", "a", "some text that repeats ", noise}).Draw(t, "fill")
			p := bytes.Repeat([]byte(fill), int(n)/len(fill)+1)[:n]
			if _, err := source.WriteAt(p, off); err != nil {
				t.Fatal(err)
			}
		}
		writer := rapid.SampledFrom([]string{"raw", "rawstream", "qcow2", "qcow2zstd", "vmdkstream", "vmdkflat"}).Draw(t, "writer")
		name := writeWith(t, dir, writer, source)
		img, err := disk.Open(context.Background(), name, disk.OpenOptions{})
		if err != nil {
			t.Fatal(err)
		}
		defer img.Close()
		same(t, img, padded(source, writer))
	})
}

// noise does not compress.
var noise = string(disktest.Random(77, 1<<16, 1).Bytes())

// same is disktest.Equal for rapid, over the whole disk.
func same(t *rapid.T, got, want disk.Image) {
	if got.Size() != want.Size() {
		t.Fatalf("size is %d, want %d", got.Size(), want.Size())
	}
	a, b := make([]byte, want.Size()), make([]byte, want.Size())
	if _, err := got.ReadAt(a, 0); err != nil {
		t.Fatal(err)
	}
	want.ReadAt(b, 0)
	if !bytes.Equal(a, b) {
		t.Fatal("content differs")
	}
	for ext, err := range disk.Extents(context.Background(), got, disk.Whole(got)) {
		if err != nil {
			t.Fatal(err)
		}
		if ext.Hole && strings.Trim(string(b[ext.Offset:ext.End()]), "\x00") != "" {
			t.Fatalf("data in the hole %+v", ext)
		}
	}
}

// TestQCOW2Tables: small clusters make a small file have many L2 tables and
// refcount blocks (one for each 8 MiB), and ends just before and behind one's
// reach; qemu-img check counts them all.
func TestQCOW2Tables(t *testing.T) {
	dir := t.TempDir()
	name := filepath.Join(dir, "image")
	for _, size := range []int64{8<<20 - 60<<10, 8<<20 - 40<<10, 8<<20 - 36<<10, 8<<20 - 32<<10, 8<<20 - 28<<10, 35 << 20} {
		for _, compress := range []disk.Compression{disk.CompressNone, disk.CompressZstd} {
			source := disktest.Random(uint64(size), size, 1)
			f, err := os.Create(name)
			if err != nil {
				t.Fatal(err)
			}
			opts := disk.QCOW2Options{Compress: compress, ClusterSize: 4096}
			if err := disk.WriteQCOW2(context.Background(), f, source, opts); err != nil {
				t.Fatal(err)
			}
			f.Close()
			if out := qemu(t, dir, "qemu-img", "check", name); !strings.Contains(out, "No errors were found") {
				t.Error(out)
			}
			disktest.Equal(t, open(t, name), source)
		}
	}
}

// TestQCOW2Refuses what it cannot lay out.
func TestQCOW2Refuses(t *testing.T) {
	for _, test := range []struct {
		size int64
		opts disk.QCOW2Options
	}{
		{1 << 20, disk.QCOW2Options{ClusterSize: 5000}},
		{1 << 20, disk.QCOW2Options{ClusterSize: 2 << 20}},
		{1 << 20, disk.QCOW2Options{Compress: "lzma"}},
		{62 << 40, disk.QCOW2Options{ClusterSize: 4096}},
	} {
		f, err := os.Create(filepath.Join(t.TempDir(), "x"))
		if err != nil {
			t.Fatal(err)
		}
		defer f.Close()
		if err := disk.WriteQCOW2(context.Background(), f, disktest.NewMemory(test.size), test.opts); !errors.Is(err, disk.ErrUnsupported) {
			t.Errorf("%+v: %v", test, err)
		}
	}
}

// TestWriteHuge: a disk of tens of terabytes costs what it holds, and QEMU
// finds what is in it.
func TestWriteHuge(t *testing.T) {
	for writer, size := range map[string]int64{"raw": 7 << 40, "qcow2zstd": 62 << 40, "vmdkstream": 3 << 40, "vmdkflat": 7 << 40} {
		source := disktest.NewMemory(size)
		dir := t.TempDir()
		var reads []string
		for i, off := range []int64{0, 5 << 20, 1 << 40, size - 64<<10} {
			if _, err := source.WriteAt(bytes.Repeat([]byte{byte(i + 1)}, 64<<10), off); err != nil {
				t.Fatal(err)
			}
			reads = append(reads, "-c", fmt.Sprintf("read -P %d %d 64k", i+1, off))
		}
		reads = append(reads, "-c", "read -P 0 64k 1M", "-c", fmt.Sprintf("read -P 0 %d 1M", size-2<<20))
		name := writeWith(t, dir, writer, source)
		out := qemu(t, dir, append([]string{"qemu-io", "-r", name}, reads...)...)
		if strings.Contains(out, "fail") || strings.Count(out, "read ") != len(reads)/2 {
			t.Errorf("%s: %s", writer, out)
		}
		img := open(t, name)
		disktest.Equal(t, img, source)
		disktest.CheckExtents(t, img, disk.Whole(img))
	}
}

// TestWriteFails: errors of source and target, and a cancelled context, end a
// writer, and a qcow2 that was broken off is no image.
func TestWriteFails(t *testing.T) {
	boom := errors.New("boom")
	source := disktest.Random(5, 20<<20, 0.9)
	for writer, write := range writers {
		t.Run(writer, func(t *testing.T) {
			create := func() *os.File {
				f, err := os.Create(filepath.Join(t.TempDir(), "x.img"))
				if err != nil {
					t.Fatal(err)
				}
				t.Cleanup(func() { f.Close() })
				return f
			}
			bad := &disktest.Faulty{Device: source, OnRead: disktest.FailRange(15<<20, 16<<20, boom)}
			f := create()
			err := write(context.Background(), f, struct{ disk.Image }{bad})
			if !errors.Is(err, boom) {
				t.Errorf("with a bad source: %v", err)
			}
			if strings.HasPrefix(writer, "qcow2") && formatOf(t, f.Name()) == disk.FormatQCOW2 {
				t.Error("half an image is taken for one")
			}
			ctx, cancel := context.WithCancel(context.Background())
			cancel()
			if err := write(ctx, create(), source); !errors.Is(err, context.Canceled) {
				t.Errorf("with a cancelled context: %v", err)
			}
			closed := create()
			closed.Close()
			if err := write(context.Background(), closed, source); err == nil {
				t.Error("into a closed file: no error")
			}
		})
	}
}

// TestProgress: it never goes back, and ends at the end.
func TestProgress(t *testing.T) {
	source := disktest.Random(5, 10<<20+17, 0.3)
	last := int64(-1)
	err := disk.WriteRawTo(context.Background(), io.Discard, source, func(done, total int64) {
		if done < last || total != source.Size() {
			t.Errorf("progress %d of %d after %d", done, total, last)
		}
		last = done
	})
	if err != nil || last != source.Size() {
		t.Errorf("ends at %d: %v", last, err)
	}
}

// TestWriteRawOverOldContent: nothing of what the file held shows through.
func TestWriteRawOverOldContent(t *testing.T) {
	name := filepath.Join(t.TempDir(), "raw.img")
	writeFile(t, name, bytes.Repeat([]byte("old"), 2<<20))
	f, err := os.OpenFile(name, os.O_RDWR, 0)
	if err != nil {
		t.Fatal(err)
	}
	defer f.Close()
	source := disktest.Random(13, 3<<20+100, 0.5)
	if err := disk.WriteRaw(context.Background(), f, source, nil); err != nil {
		t.Fatal(err)
	}
	disktest.Equal(t, open(t, name), source)
	same := disktest.Random(13, 3<<20+100, 0.5).Bytes()
	if got, err := os.ReadFile(name); err != nil || !bytes.Equal(got, same) {
		t.Errorf("content differs: %v", err)
	}
}

// TestWriteRawIntoPipe: what cannot be sought gets the zeros too.
func TestWriteRawIntoPipe(t *testing.T) {
	source := disktest.Random(14, 2<<20+100, 0.5)
	r, w, err := os.Pipe()
	if err != nil {
		t.Fatal(err)
	}
	defer r.Close()
	done := make(chan error, 1)
	go func() {
		defer w.Close()
		done <- disk.WriteRaw(context.Background(), w, source, nil)
	}()
	got, err := io.ReadAll(r)
	if err := errors.Join(err, <-done); err != nil {
		t.Fatal(err)
	}
	if !bytes.Equal(got, source.Bytes()) {
		t.Error("content differs")
	}
}

// TestWriteRawIsSparse: holes and zeros take no space.
func TestWriteRawIsSparse(t *testing.T) {
	source := disktest.NewMemory(1 << 40)
	for i := range int64(50) {
		fmt.Fprint(io.NewOffsetWriter(source, i<<30), "data")
		io.NewOffsetWriter(source, i<<30+1<<20).Write(make([]byte, 1<<18))
	}
	name := writeWith(t, t.TempDir(), "raw", source)
	if used := open(t, name).(disk.Usage).Used(); used > 50*4096 {
		t.Errorf("%d bytes are used for 50 blocks", used)
	}
	disktest.Equal(t, open(t, name), source)
}
