package exfat

import (
	"context"
	"encoding/binary"
	"errors"
	"fmt"
	"io"
	"io/fs"
	"iter"
	"math/bits"
	"slices"
	"strings"
	"time"

	"lifeboat/disk"
	"lifeboat/guestfs"
	"lifeboat/guestfs/internal/wtf8"
)

// A file is a set of entries of 32 bytes: itself, its stream, and its name in
// pieces of 15 characters. The high bit of the type says that an entry is in
// use.
const (
	entrySize  = 32
	typeBitmap = 0x81
	typeUpcase = 0x82
	typeLabel  = 0x83
	typeFile   = 0x85
	typeStream = 0xc0
	typeName   = 0xc1
	secondary  = 0x40

	nameUnits  = 15
	maxName    = 255
	minEntries = 2 // besides the first

	attrReadOnly = 0x01
	attrHidden   = 0x02
	attrSystem   = 0x04
	attrDir      = 0x10
	attrArchive  = 0x20

	noFATChain = 2

	// maxDirBytes bounds a directory (specification, 7.4.7).
	maxDirBytes = 256 << 20
)

// directory is where a directory's entries are.
type directory struct {
	inode guestfs.Inode
	stream
}

// slot is one entry, wherever it is.
type slot struct {
	at  int64 // on the volume, bytes
	n   uint64
	raw [entrySize]byte
}

// An inode is the place of the first entry of its set, in entries, and whether
// the directory's clusters follow each other without the table: what is needed
// to find the rest of a set that goes beyond its cluster.
const rootDir guestfs.Inode = 1

func makeInode(at int64, contiguous bool) guestfs.Inode {
	n := guestfs.Inode(at/entrySize) << 1
	if contiguous {
		n |= 1
	}
	return n
}

// Root implements [guestfs.FS].
func (f *FS) Root() guestfs.Inode { return rootDir }

// directory finds the entries of a directory.
func (f *FS) directory(ctx context.Context, inode guestfs.Inode) (directory, error) {
	if inode == rootDir {
		// Nothing tells its length: its list of clusters does.
		return directory{inode, stream{first: f.l.root, size: maxDirBytes}}, nil
	}
	s, err := f.set(ctx, inode)
	if err != nil {
		return directory{}, err
	}
	if !s.isDir() {
		return directory{}, fmt.Errorf("exfat: inode %d: %w", inode, guestfs.ErrNotDir)
	}
	if s.stream.size > maxDirBytes || s.stream.size > 0 && !f.l.valid(s.stream.first) {
		return directory{}, corrupt("directory %d is of %d bytes at cluster %d", inode, s.stream.size, s.stream.first)
	}
	return directory{inode, s.stream}, nil
}

// slots yields the entries of a directory from the n-th on, up to its end.
func (f *FS) slots(ctx context.Context, dir guestfs.Inode, n uint64) iter.Seq2[slot, error] {
	return func(yield func(slot, error) bool) {
		d, err := f.directory(ctx, dir)
		if err == nil {
			err = f.eachSlot(ctx, d, n, func(s slot) bool { return yield(s, nil) })
		}
		if err != nil {
			yield(slot{}, err)
		}
	}
}

func (f *FS) eachSlot(ctx context.Context, d directory, n uint64, yield func(slot) bool) error {
	perCluster := uint64(f.l.cluster / entrySize)
	cluster := d.first
	for done := uint64(0); int64(done)*entrySize < d.size; done += perCluster {
		for i := max(n, done); i < done+perCluster; i++ {
			s := slot{n: i, at: f.l.at(cluster) + int64(i-done)*entrySize}
			if err := f.read(ctx, s.raw[:], s.at); err != nil {
				return err
			}
			if s.raw[0] == 0 || !yield(s) {
				return nil
			}
		}
		next, err := f.after(ctx, cluster, d.contiguous)
		if errors.Is(err, io.EOF) && (d.inode == rootDir || int64(done+perCluster)*entrySize >= d.size) {
			return nil
		}
		if err != nil {
			return fmt.Errorf("directory %d: %w", d.inode, orCorrupt(err))
		}
		cluster = next
	}
	if d.inode == rootDir {
		return corrupt("the root directory has no end")
	}
	return nil
}

func orCorrupt(err error) error {
	if errors.Is(err, io.EOF) {
		return corrupt("it ends too early")
	}
	return err
}

// after is the next cluster of a directory.
func (f *FS) after(ctx context.Context, cluster uint32, contiguous bool) (uint32, error) {
	if !contiguous {
		return f.follow(ctx, cluster)
	}
	if !f.l.valid(cluster + 1) {
		return 0, io.EOF
	}
	return cluster + 1, nil
}

// set is a file's set of entries.
type set struct {
	raw    []byte // all of it
	stream stream
	name   string
}

func (s *set) attrs() uint16 { return binary.LittleEndian.Uint16(s.raw[4:]) }
func (s *set) isDir() bool   { return s.attrs()&attrDir != 0 }

// set reads the set of an inode.
func (f *FS) set(ctx context.Context, inode guestfs.Inode) (*set, error) {
	missing := fmt.Errorf("exfat: inode %d: %w", inode, fs.ErrNotExist)
	at, contiguous := int64(inode>>1)*entrySize, inode&1 != 0
	end := f.l.heap + int64(f.l.clusters)*f.l.cluster
	if inode>>1 >= 1<<56 || at < f.l.heap || at >= end {
		return nil, missing
	}
	var first [entrySize]byte
	if err := f.read(ctx, first[:], at); err != nil {
		return nil, err
	}
	if first[0] != typeFile {
		return nil, missing
	}
	raw := append(make([]byte, 0, entrySize*(1+int(first[1]))), first[:]...)
	cluster := uint32((at-f.l.heap)/f.l.cluster) + 2
	for range first[1] {
		if at += entrySize; at == f.l.at(cluster)+f.l.cluster {
			next, err := f.after(ctx, cluster, contiguous)
			if err != nil {
				return nil, fmt.Errorf("exfat: inode %d: %w", inode, orCorrupt(err))
			}
			cluster, at = next, f.l.at(next)
		}
		if err := f.read(ctx, first[:], at); err != nil {
			return nil, err
		}
		raw = append(raw, first[:]...)
	}
	s, err := parseSet(raw)
	if err != nil {
		return nil, fmt.Errorf("inode %d: %w", inode, err)
	}
	return s, nil
}

// parseSet checks a set of entries and takes it apart.
func parseSet(raw []byte) (*set, error) {
	le := binary.LittleEndian
	count := int(raw[1])
	if count < minEntries || len(raw) != (count+1)*entrySize || raw[entrySize] != typeStream {
		return nil, corrupt("a set of %d entries", count+1)
	}
	var sum uint16
	for i, c := range raw {
		if i != 2 && i != 3 {
			sum = bits.RotateLeft16(sum, -1) + uint16(c)
		}
	}
	if sum != le.Uint16(raw[2:]) {
		return nil, corrupt("a set of entries has a wrong checksum")
	}
	e := raw[entrySize : 2*entrySize]
	s := &set{raw: raw, stream: stream{
		first: le.Uint32(e[20:]), valid: int64(le.Uint64(e[8:])), size: int64(le.Uint64(e[24:])), contiguous: e[1]&noFATChain != 0,
	}}
	units := int(e[3])
	var name []byte
	for i := 2; i <= count; i++ {
		if part := raw[i*entrySize : (i+1)*entrySize]; part[0] == typeName {
			name = append(name, part[2:]...)
		}
	}
	if units == 0 || units > maxName || units*2 > len(name) {
		return nil, corrupt("a name of %d characters in %d", units, len(name)/2)
	}
	s.name = wtf8.DecodeBytes(name[:units*2])
	if s.name == "." || s.name == ".." || strings.ContainsAny(s.name, "/\x00") {
		return nil, corrupt("the name %q", s.name)
	}
	if s.stream.size < 0 || s.stream.valid < 0 || s.stream.valid > s.stream.size {
		return nil, corrupt("%q has %d valid bytes of %d", s.name, s.stream.valid, s.stream.size)
	}
	return s, nil
}

// files yields the sets of a directory.
func (f *FS) files(ctx context.Context, dir guestfs.Inode, n uint64, yield func(s *set, e guestfs.Dirent) bool) error {
	d, err := f.directory(ctx, dir)
	if err != nil {
		return err
	}
	var raw []byte
	var start slot
	want := 0
	var failed error
	err = f.eachSlot(ctx, d, n, func(sl slot) bool {
		switch {
		case sl.raw[0] == typeFile:
			if want > 0 {
				failed = corrupt("directory %d: a set of entries is not complete", dir)
				return false
			}
			raw, start, want = append(raw[:0], sl.raw[:]...), sl, int(sl.raw[1])
		case want > 0 && sl.raw[0]&(secondary|0x80) == secondary|0x80:
			raw = append(raw, sl.raw[:]...)
			want--
		case want > 0:
			failed = corrupt("directory %d: an entry of type %#x in a set of entries", dir, sl.raw[0])
			return false
		default:
			return true // not in use, or about the volume
		}
		if want > 0 {
			return true
		}
		s, err := parseSet(slices.Clone(raw))
		if err != nil {
			failed = fmt.Errorf("directory %d: %w", dir, err)
			return false
		}
		e := guestfs.Dirent{Name: s.name, Inode: makeInode(start.at, d.contiguous), Type: guestfs.TypeFile, Cookie: sl.n + 1}
		if s.isDir() {
			e.Type = guestfs.TypeDir
		}
		return yield(s, e)
	})
	return errors.Join(failed, err)
}

// ReadDir implements [guestfs.FS]. A cookie is one more than the number of the
// last entry of a set.
func (f *FS) ReadDir(ctx context.Context, dir guestfs.Inode, after uint64) iter.Seq2[guestfs.Dirent, error] {
	return func(yield func(guestfs.Dirent, error) bool) {
		if after > maxDirBytes/entrySize {
			return
		}
		stopped := false
		err := f.files(ctx, dir, after, func(_ *set, e guestfs.Dirent) bool {
			stopped = !yield(e, nil)
			return !stopped
		})
		if err != nil && !stopped {
			yield(guestfs.Dirent{}, err)
		}
	}
}

// Lookup implements [guestfs.Lookuper], by the volume's own table of upper case.
func (f *FS) Lookup(ctx context.Context, dir guestfs.Inode, name string) (guestfs.Dirent, error) {
	want := f.fold(name)
	var found *guestfs.Dirent
	err := f.files(ctx, dir, 0, func(s *set, e guestfs.Dirent) bool {
		if slices.Equal(f.fold(s.name), want) {
			found = &e
		}
		return found == nil
	})
	if found != nil {
		return *found, nil
	}
	if err != nil {
		return guestfs.Dirent{}, err
	}
	return guestfs.Dirent{}, fmt.Errorf("%q: %w", name, fs.ErrNotExist)
}

func (f *FS) fold(name string) []uint16 {
	units := wtf8.Encode(name)
	for i, u := range units {
		if int(u) < len(f.upper) {
			units[i] = f.upper[u]
		}
	}
	return units
}

// Stat implements [guestfs.FS].
func (f *FS) Stat(ctx context.Context, inode guestfs.Inode) (*guestfs.Attr, error) {
	if inode == rootDir {
		a := &guestfs.Attr{Inode: inode, Mode: guestfs.TypeDir | 0o755, Links: 1}
		for cluster := f.l.root; a.Size < maxDirBytes; {
			a.Size += f.l.cluster
			next, err := f.follow(ctx, cluster)
			if err != nil {
				break // reading it will tell
			}
			cluster = next
		}
		a.Allocated = a.Size
		return a, nil //nolint:nilerr // reading the directory will tell
	}
	s, err := f.set(ctx, inode)
	if err != nil {
		return nil, err
	}
	le := binary.LittleEndian
	a := &guestfs.Attr{
		Inode: inode, Mode: guestfs.TypeFile | 0o644, Links: 1, Size: s.stream.size,
		Allocated: (s.stream.size + f.l.cluster - 1) / f.l.cluster * f.l.cluster,
		Btime:     stamp(le.Uint32(s.raw[8:]), s.raw[20], s.raw[22]),
		Mtime:     stamp(le.Uint32(s.raw[12:]), s.raw[21], s.raw[23]),
		Atime:     stamp(le.Uint32(s.raw[16:]), 0, s.raw[24]),
	}
	for bit, flag := range map[uint16]guestfs.Flags{
		attrReadOnly: guestfs.ReadOnly, attrHidden: guestfs.Hidden, attrSystem: guestfs.System, attrArchive: guestfs.Archive,
	} {
		if s.attrs()&bit != 0 {
			a.Flags |= flag
		}
	}
	if s.isDir() {
		a.Mode = guestfs.TypeDir | 0o755
	}
	if s.attrs()&attrReadOnly != 0 && !s.isDir() {
		a.Mode &^= 0o222
	}
	return a, nil
}

// stamp decodes a date and time of day, hundredths, and the distance from UTC in
// quarters of an hour where it is known; otherwise it is local time, taken for
// UTC.
func stamp(v uint32, hundredths, zone byte) time.Time {
	if v == 0 {
		return time.Time{}
	}
	t := time.Date(1980+int(v>>25), time.Month(max(1, v>>21&0xf)), max(1, int(v>>16&0x1f)), int(v>>11&0x1f), int(v>>5&0x3f), int(v&0x1f)*2, 0, time.UTC)
	t = t.Add(time.Duration(hundredths) * 10 * time.Millisecond)
	if zone&0x80 != 0 {
		quarters := int(int8(zone<<1)) >> 1
		t = t.Add(-time.Duration(quarters) * 15 * time.Minute)
	}
	return t
}

// Open implements [guestfs.FS].
func (f *FS) Open(ctx context.Context, inode guestfs.Inode) (disk.Image, error) {
	if inode == rootDir {
		return nil, fmt.Errorf("exfat: inode %d is a directory", inode)
	}
	s, err := f.set(ctx, inode)
	if err != nil {
		return nil, err
	}
	if s.isDir() {
		return nil, fmt.Errorf("exfat: inode %d is a directory", inode)
	}
	img, err := f.open(ctx, s.stream)
	if err != nil {
		return nil, fmt.Errorf("inode %d: %w", inode, err)
	}
	return img, nil
}
