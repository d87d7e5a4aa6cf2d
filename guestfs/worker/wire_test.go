package worker

import (
	"bytes"
	"errors"
	"io/fs"
	"math/rand/v2"
	"reflect"
	"testing"
	"time"

	"pgregory.net/rapid"

	"lifeboat/disk"
	"lifeboat/guestfs"
)

// FuzzReply: whatever a worker that was taken over answers, it is refused or
// understood, and what is understood lies within the disks.
func FuzzReply(f *testing.F) {
	e := newEncoder(0)
	e.i64(100)
	e.runs([]mapped{{length: 60, kind: pieceZero}, {off: 60, length: 40, kind: pieceDisk, at: 12}})
	e.bytes(nil)
	f.Add(e.b[headerSize:])
	e = newEncoder(0)
	e.u8(1)
	e.dirent(guestfs.Dirent{Name: "name", Inode: 3, Cookie: 4})
	e.described(guestfs.Entry{Attr: &guestfs.Attr{Mtime: time.Unix(1, 2)}, Xattrs: []guestfs.Xattr{{Name: "user.a", Value: []byte("b")}}})
	f.Add(e.b[headerSize:])
	disks := []disk.Image{disk.Bytes(f.Context(), make([]byte, 1000))}
	f.Fuzz(func(t *testing.T, b []byte) {
		d := &decoder{b: b}
		size := d.i64()
		off := int64(0)
		for _, m := range d.runs(0, size, disks) {
			if m.off != off || m.length <= 0 || m.length > size-off {
				t.Fatalf("a run of %d bytes at %d, of %d", m.length, m.off, size)
			}
			if m.kind == pieceDisk && (m.disk != 0 || m.at < 0 || m.at+m.length > 1000) {
				t.Fatalf("a run at %d of disk %d", m.at, m.disk)
			}
			off += m.length
		}
		d = &decoder{b: b}
		for d.u8() == 1 && !d.bad {
			entry := guestfs.Entry{Dirent: d.dirent()}
			d.described(&entry)
		}
		_ = d.end()
	})
}

func TestRoundTrip(t *testing.T) {
	rapid.Check(t, func(t *rapid.T) {
		want := guestfs.Entry{
			Dirent: guestfs.Dirent{Name: rapid.String().Draw(t, "name"), Inode: guestfs.Inode(rapid.Uint64().Draw(t, "inode")), Cookie: rapid.Uint64().Draw(t, "cookie"), Type: rapid.Uint32().Draw(t, "type")},
			Attr: &guestfs.Attr{
				Inode: 1, Mode: rapid.Uint32().Draw(t, "mode"), Size: rapid.Int64().Draw(t, "size"), UID: 7, GID: 8, Links: 9, Allocated: 10, Major: 11, Minor: 12, Generation: 13, Flags: 14,
				Mtime: time.Unix(rapid.Int64Range(-1<<40, 1<<40).Draw(t, "seconds"), rapid.Int64Range(0, 999_999_999).Draw(t, "nanoseconds")), Ctime: time.Unix(0, 0),
			},
			Xattrs: []guestfs.Xattr{{Name: "user.x", Value: rapid.SliceOf(rapid.Byte()).Draw(t, "value")}},
		}
		e := newEncoder(0)
		e.dirent(want.Dirent)
		e.described(want)
		d := &decoder{b: e.b[headerSize:]}
		got := guestfs.Entry{Dirent: d.dirent()}
		d.described(&got)
		if err := d.end(); err != nil || !reflect.DeepEqual(got, want) {
			t.Fatalf("%v: got %+v, want %+v", err, got, want)
		}
		d = &decoder{b: e.b[headerSize : len(e.b)-1]} // one byte less is nonsense
		d.dirent()
		d.described(&got)
		if d.end() == nil {
			t.Fatal("a body that is cut off was taken")
		}
	})
}

func TestErrorsKeepTheirKind(t *testing.T) {
	for _, err := range []error{
		fs.ErrNotExist, guestfs.Corruptf("ext4", "inode %d", 5), &guestfs.UnsupportedError{FS: "xfs", What: "realtime"},
		guestfs.ErrEncrypted, guestfs.ErrNotDir,
	} {
		got := decodeError(encodeError(err))
		if got.Error() != err.Error() || encodeKind(got) != encodeKind(err) {
			t.Errorf("%v became %v", err, got)
		}
	}
	if err := decodeError(encodeError(nil)); err != nil {
		t.Errorf("no error became %v", err)
	}
	if err := decodeError(200, "x"); err == nil || errors.Is(err, fs.ErrNotExist) {
		t.Errorf("an unknown code became %v", err)
	}
}

func encodeKind(err error) byte {
	code, _ := encodeError(err)
	return code
}

// TestRuns: whatever parts of a file's map are learned, in whatever order, what is
// known of an offset is what was told of it.
func TestRuns(t *testing.T) {
	rapid.Check(t, func(t *rapid.T) {
		lengths := rapid.SliceOfN(rapid.Int64Range(1, 20), 1, 30).Draw(t, "lengths")
		var all []mapped
		size := int64(0)
		for n, length := range lengths {
			all = append(all, mapped{off: size, length: length, kind: pieceDisk, disk: n, at: int64(1000 * n)})
			size += length
		}
		i := &image{size: size}
		for range rapid.IntRange(1, 10).Draw(t, "questions") {
			off := rapid.Int64Range(0, size-1).Draw(t, "offset")
			if _, ok := i.known(off); !ok {
				i.learn(fromAll(all, off, rapid.IntRange(1, 5).Draw(t, "runs")))
			}
			got, ok := i.known(off)
			want := fromAll(all, off, 1)[0]
			if !ok || got.disk != want.disk || got.at != want.at || got.length > want.length {
				t.Fatalf("at %d: %+v %t, want %+v", off, got, ok, want)
			}
		}
		for n := 1; n < len(i.runs); n++ {
			if i.runs[n-1].off+i.runs[n-1].length > i.runs[n].off {
				t.Fatalf("runs overlap: %+v", i.runs)
			}
		}
	})
}

func fromAll(all []mapped, off int64, n int) []mapped {
	for k, m := range all {
		if off < m.off+m.length {
			return append([]mapped{m.from(off)}, all[k+1:min(len(all), k+n)]...)
		}
	}
	return nil
}

// TestTrace: reading where a trace says is reading the file.
func TestTrace(t *testing.T) {
	rng := rand.New(rand.NewPCG(1, 2))
	base := make([]byte, 1<<16)
	for i := range base {
		base[i] = byte(rng.Uint32())
	}
	under := disk.Bytes(t.Context(), base)
	// A file of pieces of 100 bytes in a volume of pieces of 1000 in a disk.
	volume := disk.Assemble(t.Context(), 60_000, func(off int64) (disk.Piece, error) {
		n := off / 1000
		return disk.Piece{Offset: n * 1000, Length: 1000, From: under, At: (59 - n) * 1000}, nil
	})
	file := disk.Assemble(t.Context(), 30_000, func(off int64) (disk.Piece, error) {
		n := off / 100
		if n%7 == 0 {
			return disk.Piece{Offset: n * 100, Length: 100}, nil
		}
		return disk.Piece{Offset: n * 100, Length: 100, From: volume, At: n * 199}, nil
	})
	want := make([]byte, file.Size())
	if _, err := file.ReadAt(want, 0); err != nil {
		t.Fatal(err)
	}
	got := make([]byte, 0, len(want))
	for off := int64(0); off < file.Size(); {
		pc, err := disk.Trace(file, off)
		if err != nil {
			t.Fatal(err)
		}
		part := make([]byte, pc.Length)
		if pc.From != nil {
			if _, err := pc.From.ReadAt(part, pc.At); err != nil {
				t.Fatal(err)
			}
		}
		got = append(got, part...)
		off += pc.Length
	}
	if !bytes.Equal(got, want) {
		t.Error("the bytes are not where the trace says")
	}
}
