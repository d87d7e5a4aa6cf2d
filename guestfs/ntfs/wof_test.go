package ntfs_test

import (
	"bytes"
	"encoding/binary"
	"fmt"
	"math/rand/v2"
	"os"
	"path/filepath"
	"strings"
	"testing"

	"golang.org/x/sys/unix"

	"lifeboat/disk"
	"lifeboat/disk/disktest"
	"lifeboat/guestfs"
	"lifeboat/guestfs/guestfstest"
)

// methods of WOF: its number, and how wimlib compresses the same way. What a WIM
// holds of a file is byte for byte what WOF's stream holds.
var methods = map[string]struct {
	number uint32
	args   []string
}{
	"XPRESS4K":  {0, []string{"--compress=XPRESS", "--chunk-size=4096"}},
	"LZX":       {1, []string{"--compress=LZX", "--chunk-size=32768"}},
	"XPRESS8K":  {2, []string{"--compress=XPRESS", "--chunk-size=8192"}},
	"XPRESS16K": {3, []string{"--compress=XPRESS", "--chunk-size=16384"}},
}

// samples are files that compress in different ways; this test's own program has
// x86 code, whose calls LZX translates.
func samples(t testing.TB) map[string][]byte {
	t.Helper()
	program, err := os.ReadFile("/proc/self/exe")
	must(t, err)
	rng := rand.New(rand.NewPCG(1, 2))
	random := make([]byte, 100_001)
	for i := range random {
		random[i] = byte(rng.Uint32())
	}
	var text bytes.Buffer
	for i := range 25_000 {
		fmt.Fprintf(&text, "line %d of a text with %x in it\n", i, rng.Uint32N(1<<20))
	}
	mixed := append(append(bytes.Clone(random[:50_000]), make([]byte, 200_000)...), text.Bytes()[:70_000]...)
	return map[string][]byte{
		"program": program[:min(len(program), 1<<20)], "text": text.Bytes(), "mixed": mixed, "pattern": []byte(strings.Repeat("abc", 30_000)),
		"one chunk": text.Bytes()[:4096], "just more": text.Bytes()[:32769], "small": text.Bytes()[:300],
	}
}

// packed compresses a file by wimlib and cuts it out of the WIM; nil where
// wimlib finds that it does not get smaller.
func packed(t testing.TB, data []byte, args ...string) []byte {
	t.Helper()
	dir := t.TempDir()
	must(t, os.Mkdir(filepath.Join(dir, "in"), 0o755))
	must(t, os.WriteFile(filepath.Join(dir, "in", "file"), data, 0o644))
	out := filepath.Join(dir, "out.wim")
	guestfstest.Run(t, "wimcapture", append([]string{filepath.Join(dir, "in"), out}, args...)...)
	wim, err := os.ReadFile(out)
	must(t, err)
	// The header has the place of the table of resources at 48; its entries have
	// 50 bytes: length (7 bytes) and flags, offset, length of the content.
	le := binary.LittleEndian
	length := func(b []byte) uint64 { return le.Uint64(b) & (1<<56 - 1) }
	table := wim[le.Uint64(wim[56:]):][:length(wim[48:])]
	for ; len(table) >= 50; table = table[50:] {
		const isMetadata, isCompressed = 2, 4
		if table[7]&isMetadata == 0 && table[7]&isCompressed != 0 && le.Uint64(table[16:]) == uint64(len(data)) {
			return wim[le.Uint64(table[8:]):][:length(table)]
		}
	}
	return nil
}

// putWOF makes a file as WOF leaves it: a hole, the stream, the reparse point.
func putWOF(t testing.TB, name string, size int, stream []byte, method uint32) {
	t.Helper()
	must(t, os.WriteFile(name, nil, 0o644))
	must(t, os.Truncate(name, int64(size)))
	must(t, os.WriteFile(name+":WofCompressedData", stream, 0o644))
	le := binary.LittleEndian
	point := le.AppendUint32(nil, 0x80000017)
	point = le.AppendUint32(point, 16)
	for _, v := range []uint32{1, 2, 1, method} {
		point = le.AppendUint32(point, v)
	}
	must(t, unix.Setxattr(name, "system.ntfs_reparse_data", point, 0))
}

// TestWOF: what wimlib compresses is what it was.
func TestWOF(t *testing.T) {
	guestfstest.NeedMount(t, "fuse", "mkfs.ntfs", "ntfs-3g", "wimcapture")
	for name, m := range methods {
		t.Run(name, func(t *testing.T) {
			t.Parallel()
			image := format(t, 64<<20)
			dir, unmount := mount(t, image, "streams_interface=windows")
			want := map[string][]byte{}
			for file, data := range samples(t) {
				if stream := packed(t, data, m.args...); stream != nil {
					putWOF(t, filepath.Join(dir, file), len(data), stream, m.number)
					want[file] = data
				}
			}
			unmount()
			if len(want) < 6 {
				t.Fatalf("only %d samples are compressed", len(want))
			}
			fsys := open(t, image)
			for file, data := range want {
				inode := find(t, fsys, file)
				img, err := fsys.Open(t.Context(), inode)
				must(t, err)
				disktest.Equal(t, img, disktest.FromBytes(data))
				a, err := fsys.Stat(t.Context(), inode)
				must(t, err)
				if a.Type() != guestfs.TypeFile || a.Size != int64(len(data)) || a.Flags&(guestfs.Compressed|guestfs.Reparse) != guestfs.Compressed || a.Allocated >= a.Size && len(data) > 8192 {
					t.Errorf("%s: %+v", file, a)
				}
				if streams, err := fsys.Streams(t.Context(), inode); err != nil || len(streams) > 0 {
					t.Errorf("%s: streams %v, %v", file, streams, err)
				}
			}
			disktest.RunImage(t, disktest.FromBytes(want["mixed"]), func(t *testing.T) disk.Image {
				img, err := fsys.Open(t.Context(), find(t, fsys, "mixed"))
				must(t, err)
				return img
			})
		})
	}
}
