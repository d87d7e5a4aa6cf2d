package fat

import (
	"bytes"
	"context"
	"encoding/binary"
	"fmt"
	"io"
	"io/fs"
	"iter"
	"strings"
	"time"

	"lifeboat/disk"
	"lifeboat/guestfs"
	"lifeboat/guestfs/internal/chain"
	"lifeboat/guestfs/internal/wtf8"
)

// An entry of a directory has 32 bytes: name (8+3), attributes, lower case
// flags, time of creation (10 ms, time, date), date of access, high half of the
// cluster, time and date of modification, low half of the cluster, size.
// A long name stands in front of its entry, last part first, 13 characters in
// each.
const (
	entrySize = 32

	attrReadOnly = 0x01
	attrHidden   = 0x02
	attrSystem   = 0x04
	attrVolume   = 0x08
	attrDir      = 0x10
	attrArchive  = 0x20
	attrLong     = 0x0f
	attrLongMask = 0x3f

	lowerBase = 0x08
	lowerExt  = 0x10

	deleted   = 0xe5
	lastLong  = 0x40
	partUnits = 13
	maxParts  = 20 // 255 characters

	// maxDirBytes bounds a directory: 65,536 entries, as the specification does.
	maxDirBytes = 1 << 16 * entrySize

	// rootInode is the place of no entry: the volume begins with its boot sector.
	rootInode = 1
)

// slot is one entry, wherever it is.
type slot struct {
	at  int64 // on the volume, bytes
	n   uint64
	raw [entrySize]byte
}

func (f *FS) inodeAt(at int64) guestfs.Inode { return guestfs.Inode(at / entrySize) }

// raw reads the entry of an inode.
func (f *FS) raw(ctx context.Context, inode guestfs.Inode) ([]byte, error) {
	missing := fmt.Errorf("fat: inode %d: %w", inode, fs.ErrNotExist)
	if inode == 0 || uint64(inode) >= uint64(f.disk.Size()/entrySize) || int64(inode)*entrySize < f.l.root {
		return nil, missing
	}
	b := make([]byte, entrySize)
	if err := f.read(ctx, b, int64(inode)*entrySize); err != nil {
		return nil, err
	}
	if b[0] == 0 || b[0] == deleted || b[11]&attrVolume != 0 {
		return nil, missing
	}
	return b, nil
}

func (f *FS) first(raw []byte) uint32 {
	le := binary.LittleEndian
	n := uint32(le.Uint16(raw[26:]))
	if f.l.bits == fat32 {
		n |= uint32(le.Uint16(raw[20:])) << 16
	}
	return n
}

// slots yields the entries of a directory, from the n-th on, up to its end.
func (f *FS) slots(ctx context.Context, dir guestfs.Inode, n uint64) iter.Seq2[slot, error] {
	return func(yield func(slot, error) bool) {
		if err := f.eachSlot(ctx, dir, n, func(s slot) bool { return yield(s, nil) }); err != nil {
			yield(slot{}, err)
		}
	}
}

func (f *FS) eachSlot(ctx context.Context, dir guestfs.Inode, n uint64, yield func(slot) bool) error {
	if dir == rootInode && f.l.bits != fat32 {
		_, err := f.run(ctx, f.l.root+int64(n)*entrySize, f.l.rootSize-int64(n)*entrySize, n, yield)
		return err
	}
	first := f.l.rootCluster
	if dir != rootInode {
		raw, err := f.raw(ctx, dir)
		if err != nil {
			return err
		}
		if raw[11]&attrDir == 0 {
			return fmt.Errorf("fat: inode %d: %w", dir, guestfs.ErrNotDir)
		}
		if first = f.first(raw); !f.l.valid(first) {
			return corrupt("directory %d is at cluster %d", dir, first)
		}
	}
	perCluster := uint64(f.l.cluster / entrySize)
	for done, cluster := uint64(0), first; done*entrySize < maxDirBytes; done += perCluster {
		if from := max(n, done); from < done+perCluster {
			skip := int64(from-done) * entrySize
			more, err := f.run(ctx, f.l.at(cluster)+skip, f.l.cluster-skip, from, yield)
			if err != nil || !more {
				return err
			}
		}
		var err error
		if cluster, err = f.follow(ctx, cluster); err == io.EOF {
			return nil
		} else if err != nil {
			return fmt.Errorf("directory %d: %w", dir, err)
		}
	}
	return corrupt("directory %d has no end", dir)
}

// run yields the entries in one run of bytes; false where the directory ends.
func (f *FS) run(ctx context.Context, at, length int64, n uint64, yield func(slot) bool) (bool, error) {
	for ; length >= entrySize; at, length, n = at+entrySize, length-entrySize, n+1 {
		s := slot{at: at, n: n}
		if err := f.read(ctx, s.raw[:], at); err != nil {
			return false, err
		}
		if s.raw[0] == 0 || !yield(s) {
			return false, nil
		}
	}
	return true, nil
}

// ReadDir implements [guestfs.FS]. A cookie is one more than the entry's number
// in its directory. The long name of an entry stands before it, so that reading
// on begins with what belongs to the next one.
func (f *FS) ReadDir(ctx context.Context, dir guestfs.Inode, after uint64) iter.Seq2[guestfs.Dirent, error] {
	return func(yield func(guestfs.Dirent, error) bool) {
		var long longName
		if after > maxDirBytes/entrySize {
			return
		}
		for s, err := range f.slots(ctx, dir, after) {
			if err != nil {
				yield(guestfs.Dirent{}, err)
				return
			}
			name, ok := long.take(s.raw[:])
			if !ok {
				continue
			}
			e := guestfs.Dirent{Name: name, Inode: f.inodeAt(s.at), Type: guestfs.TypeFile, Cookie: s.n + 1}
			if s.raw[11]&attrDir != 0 {
				e.Type = guestfs.TypeDir
			}
			if !yield(e, nil) {
				return
			}
		}
	}
}

// longName collects the parts of a long name.
type longName struct {
	parts [maxParts]string // as bytes of UTF-16
	want  int              // the part that has to come next; 0: none
	total int
	sum   byte
}

// take looks at an entry. It reports the name of one that is a file or
// directory, and remembers parts of long names.
func (l *longName) take(raw []byte) (name string, ok bool) {
	switch {
	case raw[0] == deleted:
		l.want, l.total = 0, 0
		return "", false
	case raw[11]&attrLongMask == attrLong:
		l.part(raw)
		return "", false
	}
	complete := l.total > 0 && l.want == 0 && l.sum == shortSum(raw[:11])
	parts := l.parts[:l.total]
	l.want, l.total = 0, 0
	if raw[11]&attrVolume != 0 || bytes.Equal(raw[:11], []byte(".          ")) || bytes.Equal(raw[:11], []byte("..         ")) {
		return "", false
	}
	if complete {
		var all []byte
		for i := range parts {
			all = append(all, parts[i]...)
		}
		name = wtf8.DecodeBytes(untilZero(all))
	}
	if name == "" {
		name = shortName(raw)
	}
	if name == "" || name == "." || name == ".." || strings.ContainsAny(name, "/\x00") {
		name = fmt.Sprintf("%x", raw[:11]) // a name that no guest can use: shown, and of no harm
	}
	return name, true
}

func (l *longName) part(raw []byte) {
	n := int(raw[0] &^ lastLong)
	switch {
	case raw[0]&lastLong != 0 && n >= 1 && n <= maxParts:
		l.total, l.want, l.sum = n, n, raw[13]
	case l.want == 0 || n != l.want || raw[13] != l.sum:
		l.want, l.total = 0, 0
		return
	}
	if l.want == 0 {
		return
	}
	l.want--
	l.parts[l.want] = string(raw[1:11]) + string(raw[14:26]) + string(raw[28:32])
}

func untilZero(b []byte) []byte {
	for i := 0; i+1 < len(b); i += 2 {
		if b[i] == 0 && b[i+1] == 0 {
			return b[:i]
		}
	}
	return b
}

// shortSum ties a long name to its entry.
func shortSum(name []byte) (sum byte) {
	for _, c := range name {
		sum = sum>>1 | sum<<7
		sum += c
	}
	return sum
}

// fixFirst gives a name its first byte back, where that looked like a mark.
func fixFirst(name []byte) []byte {
	name = bytes.Clone(name)
	if name[0] == 5 {
		name[0] = deleted
	}
	return name
}

// shortName is the 8.3 name, in lower case where Windows NT noted so.
func shortName(raw []byte) string {
	n := fixFirst(raw[:11])
	base, ext := strings.TrimRight(oem(n[:8]), " "), strings.TrimRight(oem(n[8:]), " ")
	if raw[12]&lowerBase != 0 {
		base = strings.ToLower(base)
	}
	if raw[12]&lowerExt != 0 {
		ext = strings.ToLower(ext)
	}
	if ext != "" {
		base += "." + ext
	}
	return base
}

// Lookup implements [guestfs.Lookuper]: as Windows, without regard to case, and
// by the short name, too.
func (f *FS) Lookup(ctx context.Context, dir guestfs.Inode, name string) (guestfs.Dirent, error) {
	var long longName
	for s, err := range f.slots(ctx, dir, 0) {
		if err != nil {
			return guestfs.Dirent{}, err
		}
		full, ok := long.take(s.raw[:])
		if !ok || !strings.EqualFold(full, name) && !strings.EqualFold(shortName(s.raw[:]), name) {
			continue
		}
		e := guestfs.Dirent{Name: full, Inode: f.inodeAt(s.at), Type: guestfs.TypeFile, Cookie: s.n + 1}
		if s.raw[11]&attrDir != 0 {
			e.Type = guestfs.TypeDir
		}
		return e, nil
	}
	return guestfs.Dirent{}, fmt.Errorf("%q: %w", name, fs.ErrNotExist)
}

// Stat implements [guestfs.FS].
func (f *FS) Stat(ctx context.Context, inode guestfs.Inode) (*guestfs.Attr, error) {
	if inode == rootInode {
		a := &guestfs.Attr{Inode: inode, Mode: guestfs.TypeDir | 0o755, Links: 1}
		return a, f.dirSize(ctx, inode, a)
	}
	raw, err := f.raw(ctx, inode)
	if err != nil {
		return nil, err
	}
	le := binary.LittleEndian
	a := &guestfs.Attr{
		Inode: inode, Mode: guestfs.TypeFile | 0o644, Links: 1, Size: int64(le.Uint32(raw[28:])),
		Mtime: stamp(le.Uint16(raw[24:]), le.Uint16(raw[22:]), 0),
		Btime: stamp(le.Uint16(raw[16:]), le.Uint16(raw[14:]), raw[13]),
		Atime: stamp(le.Uint16(raw[18:]), 0, 0),
	}
	a.Allocated = (a.Size + f.l.cluster - 1) / f.l.cluster * f.l.cluster
	for bit, flag := range map[byte]guestfs.Flags{
		attrReadOnly: guestfs.ReadOnly, attrHidden: guestfs.Hidden, attrSystem: guestfs.System, attrArchive: guestfs.Archive,
	} {
		if raw[11]&bit != 0 {
			a.Flags |= flag
		}
	}
	if raw[11]&attrReadOnly != 0 {
		a.Mode &^= 0o222
	}
	if raw[11]&attrDir == 0 {
		return a, nil
	}
	a.Mode = guestfs.TypeDir | 0o755
	return a, f.dirSize(ctx, inode, a)
}

// dirSize finds how long a directory is, of which nothing tells.
func (f *FS) dirSize(ctx context.Context, inode guestfs.Inode, a *guestfs.Attr) error {
	a.Size, a.Allocated = f.l.rootSize, f.l.rootSize
	first := f.l.rootCluster
	if inode != rootInode {
		raw, err := f.raw(ctx, inode)
		if err != nil {
			return err
		}
		first = f.first(raw)
	} else if f.l.bits != fat32 {
		return nil
	}
	a.Size = 0
	for cluster := first; f.l.valid(cluster) && a.Size < maxDirBytes; {
		a.Size += f.l.cluster
		next, err := f.follow(ctx, cluster)
		if err != nil {
			break // reading it will tell
		}
		cluster = next
	}
	a.Allocated = a.Size
	return nil //nolint:nilerr // reading the directory will tell
}

// stamp decodes a date (years from 1980, months, days) and a time of day (two
// seconds), with hundredths.
func stamp(date, clock uint16, hundredths byte) time.Time {
	if date == 0 {
		return time.Time{}
	}
	t := time.Date(1980+int(date>>9), time.Month(max(1, date>>5&0xf)), max(1, int(date&0x1f)), int(clock>>11), int(clock>>5&0x3f), int(clock&0x1f)*2, 0, time.UTC)
	return t.Add(time.Duration(hundredths) * 10 * time.Millisecond)
}

// Open implements [guestfs.FS].
func (f *FS) Open(ctx context.Context, inode guestfs.Inode) (disk.Image, error) {
	if inode == rootInode {
		return nil, fmt.Errorf("fat: inode %d is a directory", inode)
	}
	raw, err := f.raw(ctx, inode)
	if err != nil {
		return nil, err
	}
	if raw[11]&attrDir != 0 {
		return nil, fmt.Errorf("fat: inode %d is a directory", inode)
	}
	size, first := int64(binary.LittleEndian.Uint32(raw[28:])), f.first(raw)
	if size == 0 {
		return disk.Bytes(ctx, nil), nil
	}
	if !f.l.valid(first) {
		return nil, corrupt("file %d is at cluster %d of %d", inode, first, f.l.clusters)
	}
	count := uint64((size + f.l.cluster - 1) / f.l.cluster)
	list := chain.New(fsName, first, count, f.follow)
	return disk.Assemble(ctx, size, func(off int64) (disk.Piece, error) {
		n := off / f.l.cluster
		cluster, run, err := list.Run(ctx, uint64(n))
		if err != nil {
			return disk.Piece{}, err
		}
		run = min(run, uint64(f.l.clusters-(cluster-2)))
		return disk.Piece{Offset: n * f.l.cluster, Length: int64(run) * f.l.cluster, From: f.disk, At: f.l.at(cluster)}, nil
	}), nil
}
