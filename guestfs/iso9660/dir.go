package iso9660

import (
	"context"
	"encoding/binary"
	"fmt"
	"io/fs"
	"iter"
	"strings"
	"time"

	"lifeboat/disk"
	"lifeboat/guestfs"
)

// A directory record: length (1), of extended attributes (1), first block (4+4),
// size (4+4), time (7), flags (1), interleaving (2), volume (4), length of the
// name (1), name, padding, system use.
const (
	recordMin  = 34
	flagHidden = 0x01
	flagDir    = 0x02
	flagMore   = 0x80 // another record of the same file follows

	// maxDirBytes bounds a directory, maxParts the extents of a file: 4 GiB each.
	maxDirBytes = 256 << 20
	maxParts    = 4096
)

// record is one file or directory.
type record struct {
	at    int64 // of its first directory record
	next  int64 // behind its last, where the same directory goes on
	raw   []byte
	parts []part
	rr    rock
}

// part is one extent of a file.
type part struct{ at, size int64 }

func (r *record) name() []byte { return r.raw[33 : 33+int(r.raw[32])] }
func (r *record) isDir() bool  { return r.raw[25]&flagDir != 0 }

func (r *record) size() (n int64) {
	for _, p := range r.parts {
		n += p.size
	}
	return n
}

// system is what stands behind the name.
func (r *record) system() []byte {
	at := 33 + int(r.raw[32])
	at += at % 2
	if at > len(r.raw) {
		return nil
	}
	return r.raw[at:]
}

// one reads the record at off, without what belongs to it elsewhere.
func (f *FS) one(ctx context.Context, off int64) ([]byte, error) {
	head, err := f.read(ctx, off, 1)
	if err != nil {
		return nil, err
	}
	n := int64(head[0])
	if n < recordMin || n > sectorSize-off%sectorSize {
		return nil, fmt.Errorf("iso9660: no record at %d: %w", off, fs.ErrNotExist)
	}
	raw, err := f.read(ctx, off, n)
	if err != nil {
		return nil, err
	}
	if 33+int64(raw[32]) > n || raw[32] == 0 {
		return nil, corrupt("a record of %d bytes at %d with a name of %d", n, off, raw[32])
	}
	if raw[26] != 0 || raw[27] != 0 {
		return nil, &guestfs.UnsupportedError{FS: fsName, What: "an interleaved file"}
	}
	return raw, nil
}

func (f *FS) part(raw []byte) (part, error) {
	le := binary.LittleEndian
	p := part{at: (int64(le.Uint32(raw[2:])) + int64(raw[1])) * f.block, size: int64(le.Uint32(raw[10:]))}
	if p.size > 0 && p.at+p.size > f.disk.Size() {
		return p, corrupt("%d bytes at %d lie behind the end of the disc", p.size, p.at)
	}
	return p, nil
}

// record reads the file whose first record is at an inode.
func (f *FS) record(ctx context.Context, inode guestfs.Inode) (*record, error) {
	off := int64(inode)
	if off < firstDescriptor*sectorSize || off >= f.disk.Size() {
		return nil, fmt.Errorf("iso9660: inode %d: %w", inode, fs.ErrNotExist)
	}
	raw, err := f.one(ctx, off)
	if err != nil {
		return nil, err
	}
	r := &record{at: off, raw: raw}
	if r.next, err = f.gather(ctx, r); err != nil {
		return nil, err
	}
	if f.kind == rockRidge {
		err = f.rockRidge(ctx, r, r.system())
	}
	return r, err
}

// gather collects the extents of a file: its record may be followed by more, in
// the same sector or at the start of the next. It returns where they end.
func (f *FS) gather(ctx context.Context, r *record) (next int64, err error) {
	raw, off := r.raw, r.at
	for len(r.parts) < maxParts {
		p, err := f.part(raw)
		if err != nil {
			return 0, err
		}
		r.parts = append(r.parts, p)
		off += int64(raw[0])
		if raw[25]&flagMore == 0 || r.isDir() {
			return off, nil
		}
		if off, err = f.skipPadding(ctx, off); err != nil {
			return 0, err
		}
		following, err := f.one(ctx, off)
		if err != nil {
			return 0, fmt.Errorf("the file at %d goes on at %d: %w", r.at, off, err)
		}
		if string(following[33:33+int(following[32])]) != string(r.name()) {
			return 0, corrupt("the file at %d has no end", r.at)
		}
		raw = following
	}
	return 0, corrupt("the file at %d has more than %d parts", r.at, maxParts)
}

// skipPadding moves on to the next sector where no record begins.
func (f *FS) skipPadding(ctx context.Context, off int64) (int64, error) {
	if off%sectorSize == 0 {
		return off, nil
	}
	b, err := f.read(ctx, off, 1)
	if err == nil && b[0] == 0 {
		off = (off/sectorSize + 1) * sectorSize
	}
	return off, err
}

// directory finds where the records of a directory are.
func (f *FS) directory(ctx context.Context, inode guestfs.Inode) (part, error) {
	r, err := f.record(ctx, inode)
	if err != nil {
		return part{}, err
	}
	if !r.isDir() {
		return part{}, fmt.Errorf("iso9660: inode %d: %w", inode, guestfs.ErrNotDir)
	}
	if p := r.parts[0]; p.size > maxDirBytes || p.at%sectorSize != 0 && f.block == sectorSize {
		return part{}, corrupt("a directory of %d bytes at %d", p.size, p.at)
	}
	return r.parts[0], nil
}

// ReadDir implements [guestfs.FS]. A cookie is the place behind an entry's last
// record, in the directory.
func (f *FS) ReadDir(ctx context.Context, dir guestfs.Inode, after uint64) iter.Seq2[guestfs.Dirent, error] {
	return func(yield func(guestfs.Dirent, error) bool) {
		stopped := false
		err := f.readDir(ctx, dir, after, func(e guestfs.Dirent) bool {
			stopped = !yield(e, nil)
			return !stopped
		})
		if err != nil && !stopped {
			yield(guestfs.Dirent{}, err)
		}
	}
}

func (f *FS) readDir(ctx context.Context, dir guestfs.Inode, after uint64, yield func(guestfs.Dirent) bool) error {
	where, err := f.directory(ctx, dir)
	if err != nil {
		return err
	}
	if after > uint64(where.size) {
		return nil
	}
	off, end := where.at+int64(after), where.at+where.size
	for off < end {
		if ctx.Err() != nil {
			return context.Cause(ctx)
		}
		if off, err = f.skipPadding(ctx, off); err != nil || off >= end {
			return err
		}
		r, err := f.record(ctx, guestfs.Inode(off))
		if err != nil {
			return fmt.Errorf("directory at %d: %w", where.at, orCorrupt(err))
		}
		off = r.next
		name, shown := f.display(r)
		if !shown {
			continue
		}
		e := guestfs.Dirent{Name: name, Inode: guestfs.Inode(r.at), Type: r.mode() & guestfs.TypeMask, Cookie: uint64(off - where.at)}
		if r.rr.child != 0 {
			e.Inode = guestfs.Inode(r.rr.child)
		}
		if !yield(e) {
			return nil
		}
	}
	return nil
}

// orCorrupt: what a directory lists has to be there.
func orCorrupt(err error) error {
	if strings.HasPrefix(err.Error(), "iso9660: no record") {
		return corrupt("%v", err)
	}
	return err
}

// display is the name to show; false for what is not shown.
func (f *FS) display(r *record) (string, bool) {
	raw := r.name()
	if len(raw) == 1 && raw[0] <= 1 || r.rr.relocated { // itself and its parent; what is shown elsewhere
		return "", false
	}
	var name string
	switch {
	case f.kind == rockRidge && r.rr.name != "":
		name = r.rr.name
	case f.kind == joliet:
		name = unversioned(ucs2(raw))
	default:
		name = strings.TrimSuffix(strings.ToLower(unversioned(string(raw))), ".")
	}
	if name == "" || name == "." || name == ".." || strings.ContainsAny(name, "/\x00") {
		name = fmt.Sprintf("%x", raw)
	}
	return name, true
}

func unversioned(name string) string {
	if i := strings.LastIndexByte(name, ';'); i > 0 && allDigits([]byte(name[i+1:])) {
		return name[:i]
	}
	return name
}

// mode is the type and the permissions, where nothing says them: everybody may
// read.
func (r *record) mode() uint32 {
	switch {
	case r.rr.child != 0:
		return guestfs.TypeDir | 0o555
	case r.rr.hasMode:
		return r.rr.mode
	case r.isDir():
		return guestfs.TypeDir | 0o555
	}
	return guestfs.TypeFile | 0o444
}

// Stat implements [guestfs.FS].
func (f *FS) Stat(ctx context.Context, inode guestfs.Inode) (*guestfs.Attr, error) {
	r, err := f.record(ctx, inode)
	if err != nil {
		return nil, err
	}
	a := &guestfs.Attr{Inode: inode, Mode: r.mode(), Links: 1, Size: r.size(), Mtime: shortTime(r.raw[18:25])}
	if r.raw[25]&flagHidden != 0 {
		a.Flags |= guestfs.Hidden
	}
	if f.kind == rockRidge {
		r.rr.describe(a)
	} else {
		a.Atime, a.Ctime = a.Mtime, a.Mtime
	}
	if inode == f.root {
		a.Mode = guestfs.TypeDir | a.Mode&0o7777
	}
	switch a.Type() {
	case guestfs.TypeSymlink:
		a.Size = int64(len(r.rr.target))
	case guestfs.TypeFile, guestfs.TypeDir:
		a.Allocated = (a.Size + f.block - 1) / f.block * f.block
	default:
		a.Size = 0
	}
	return a, nil
}

func (rr *rock) describe(a *guestfs.Attr) {
	if rr.hasMode {
		a.Links, a.UID, a.GID = rr.links, rr.uid, rr.gid
	}
	a.Major, a.Minor = rr.major, rr.minor
	a.Atime, a.Ctime = a.Mtime, a.Mtime
	for from, to := range map[*time.Time]*time.Time{&rr.mtime: &a.Mtime, &rr.atime: &a.Atime, &rr.ctime: &a.Ctime} {
		if !from.IsZero() {
			*to = *from
		}
	}
	a.Btime = rr.btime
}

// Open implements [guestfs.FS].
func (f *FS) Open(ctx context.Context, inode guestfs.Inode) (disk.Image, error) {
	r, err := f.record(ctx, inode)
	if err != nil {
		return nil, err
	}
	switch kind := r.mode() & guestfs.TypeMask; {
	case kind == guestfs.TypeSymlink:
		return disk.Bytes(ctx, []byte(r.rr.target)), nil
	case kind == guestfs.TypeDir || inode == f.root:
		return nil, fmt.Errorf("iso9660: inode %d is a directory", inode)
	case kind != guestfs.TypeFile:
		return nil, fmt.Errorf("iso9660: inode %d is not a file", inode)
	case r.rr.unsupported != "":
		return nil, &guestfs.UnsupportedError{FS: fsName, What: r.rr.unsupported}
	}
	return disk.Assemble(ctx, r.size(), func(off int64) (disk.Piece, error) {
		start := int64(0)
		for _, p := range r.parts {
			if off < start+p.size {
				return disk.Piece{Offset: start, Length: p.size, From: f.disk, At: p.at}, nil
			}
			start += p.size
		}
		return disk.Piece{}, corrupt("the file at %d ends before %d", r.at, off)
	}), nil
}
