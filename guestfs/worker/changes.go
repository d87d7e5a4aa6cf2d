package worker

import (
	"context"
	"errors"
	"iter"
	"slices"

	"lifeboat/disk"
	"lifeboat/guestfs"
)

// Questions about which files a piece of a volume is about, many in one frame. The
// appliance cuts them so that no answer takes long: limits of one question are
const (
	bulkInodes  = 2000     // inodes to describe
	bulkDirs    = 500      // directories to list
	bulkExtents = 16 << 10 // ranges, of 16 bytes
	bulkRecords = 8 << 20  // bytes of inodes that are looked through
)

var (
	_ guestfs.ChangeReader = (*remoteFS)(nil)
	_ guestfs.BulkReader   = (*remoteFS)(nil)
)

func (e *encoder) extents(list []disk.Extent) {
	e.u32(uint32(len(list)))
	for _, x := range list {
		e.i64(x.Offset)
		e.i64(x.Length)
	}
}

func (d *decoder) extents() []disk.Extent {
	out := make([]disk.Extent, 0, min(d.peekCount(16), bulkExtents))
	for range d.count(16) {
		x := disk.Extent{Offset: d.i64(), Length: d.i64()}
		if x.Offset < 0 || x.Length <= 0 || x.End() < x.Offset {
			d.bad = true
			return nil
		}
		out = append(out, x)
	}
	return out
}

// peekCount is what count will be, for making room.
func (d *decoder) peekCount(size int) int {
	c := decoder{b: d.b, bad: d.bad}
	return c.count(size)
}

func (e *encoder) inodes(list []guestfs.Inode) {
	e.u32(uint32(len(list)))
	for _, inode := range list {
		e.u64(uint64(inode))
	}
}

func (d *decoder) inodes() []guestfs.Inode {
	out := make([]guestfs.Inode, d.count(8))
	for i := range out {
		out[i] = guestfs.Inode(d.u64())
	}
	return out
}

// bulk answers them in the worker.
func bulk(ctx context.Context, op byte, fsys guestfs.FS, d *decoder, e *encoder) error {
	switch op {
	case opStatAll:
		return statAll(ctx, fsys, d.inodes(), e)
	case opReadDirs:
		return readDirs(ctx, fsys, d.inodes(), d.u64(), e)
	}
	r, ok := fsys.(guestfs.ChangeReader)
	if !ok {
		return guestfs.NoChanges()
	}
	switch op {
	case opMetadata, opOverlaid:
		return extentsPart(ctx, op, r, d.u64(), e)
	case opInodesIn:
		list, err := guestfs.InodesInAll(ctx, fsys, d.extents())
		e.inodes(list)
		return err
	case opOwners:
		records := disk.Extent{Offset: d.i64(), Length: d.i64()}
		list, err := guestfs.OwnersIn(ctx, fsys, records, d.extents())
		e.u32(uint32(len(list)))
		for _, o := range list {
			e.u64(uint64(o.Inode))
			e.i64(o.Offset)
			e.i64(o.At)
			e.i64(o.Length)
			e.bool(o.Encoded)
		}
		return err
	}
	return errProtocol
}

func statAll(ctx context.Context, fsys guestfs.FS, inodes []guestfs.Inode, e *encoder) error {
	list, err := guestfs.StatAll(ctx, fsys, inodes)
	for _, d := range list {
		e.bool(d.Attr != nil)
		if d.Attr != nil {
			e.attr(d.Attr)
		}
		e.u32(uint32(len(d.Links)))
		for _, l := range d.Links {
			e.u64(uint64(l.Dir))
			e.str(l.Name)
		}
		e.err(d.Err)
	}
	return err
}

// readDirs lists directories, the first behind a cookie, as far as there is room:
// it says how many are listed to their end. What it listed of the next one is
// gone on with.
func readDirs(ctx context.Context, fsys guestfs.FS, dirs []guestfs.Inode, after uint64, e *encoder) error {
	for i, dir := range dirs {
		e.u8(2)
		e.u32(uint32(i))
		var failed error
		for entry, err := range fsys.ReadDir(ctx, dir, after) {
			if err != nil {
				failed = err
				break
			}
			if len(e.b) > partBytes {
				e.u8(0)
				return nil
			}
			e.u8(1)
			e.dirent(entry)
		}
		if ctx.Err() != nil {
			return ctx.Err()
		}
		after = 0
		e.u8(3)
		e.err(failed)
	}
	e.u8(0)
	return nil
}

// extentsPart sends a part of a list of extents, and how many there are.
func extentsPart(ctx context.Context, op byte, r guestfs.ChangeReader, skip uint64, e *encoder) error {
	list, err := r.Overlaid(ctx)
	if op == opMetadata {
		list, err = r.MetadataExtents(ctx)
	}
	if err != nil {
		return err
	}
	e.u64(uint64(len(list)))
	list = list[min(skip, uint64(len(list))):]
	e.extents(list[:min(len(list), bulkExtents)])
	return nil
}

// maxChangeExtents bounds the lists that a worker tells, in extents.
const maxChangeExtents = 1 << 22

func (f *remoteFS) extents(ctx context.Context, op byte) ([]disk.Extent, error) {
	var out []disk.Extent
	for {
		e := f.request(f.Root())
		e.u64(uint64(len(out)))
		d, err := f.s.call(ctx, op, e.b)
		if err != nil {
			return nil, err
		}
		total, part := d.u64(), d.extents()
		if total > maxChangeExtents || len(part) == 0 && uint64(len(out)) < total {
			d.bad = true
		}
		if err := f.s.check(d); err != nil {
			return nil, err
		}
		if out = append(out, part...); uint64(len(out)) >= total {
			return out, nil
		}
	}
}

// MetadataExtents implements [guestfs.ChangeReader].
func (f *remoteFS) MetadataExtents(ctx context.Context) ([]disk.Extent, error) {
	return f.extents(ctx, opMetadata)
}

// Overlaid implements [guestfs.ChangeReader].
func (f *remoteFS) Overlaid(ctx context.Context) ([]disk.Extent, error) {
	return f.extents(ctx, opOverlaid)
}

// InodesIn implements [guestfs.ChangeReader].
func (f *remoteFS) InodesIn(ctx context.Context, within disk.Extent) iter.Seq2[guestfs.Inode, error] {
	return func(yield func(guestfs.Inode, error) bool) {
		list, err := f.InodesInAll(ctx, []disk.Extent{within})
		for _, inode := range list {
			if !yield(inode, nil) {
				return
			}
		}
		if err != nil {
			yield(0, err)
		}
	}
}

// InodesInAll implements [guestfs.BulkReader].
func (f *remoteFS) InodesInAll(ctx context.Context, within []disk.Extent) ([]guestfs.Inode, error) {
	var out []guestfs.Inode
	for part := range cut(within, bulkRecords) {
		e := f.request(f.Root())
		e.extents(part)
		d, err := f.s.call(ctx, opInodesIn, e.b)
		if err != nil {
			return nil, err
		}
		list := d.inodes()
		if err := f.s.check(d); err != nil {
			return nil, err
		}
		out = append(out, list...)
	}
	slices.Sort(out)
	return slices.Compact(out), nil
}

// cut makes parts of a list of extents that have at most limit bytes each, and
// are not too many.
func cut(list []disk.Extent, limit int64) iter.Seq[[]disk.Extent] {
	return func(yield func([]disk.Extent) bool) {
		var part []disk.Extent
		room := limit
		for _, x := range list {
			for x.Length > 0 {
				n := min(x.Length, room)
				part = append(part, disk.Extent{Offset: x.Offset, Length: n})
				x.Offset, x.Length, room = x.Offset+n, x.Length-n, room-n
				if room > 0 && len(part) < bulkExtents {
					continue
				}
				if !yield(part) {
					return
				}
				part, room = nil, limit
			}
		}
		if len(part) > 0 {
			yield(part)
		}
	}
}

// OwnersIn implements [guestfs.BulkReader].
func (f *remoteFS) OwnersIn(ctx context.Context, records disk.Extent, within []disk.Extent) ([]guestfs.Owner, error) {
	var out []guestfs.Owner
	for some := range slices.Chunk(within, bulkExtents) {
		for part := range cut([]disk.Extent{records}, bulkRecords) {
			list, err := f.owners(ctx, part[0], some)
			if err != nil {
				return nil, err
			}
			out = append(out, list...)
		}
	}
	return out, nil
}

func (f *remoteFS) owners(ctx context.Context, records disk.Extent, within []disk.Extent) ([]guestfs.Owner, error) {
	e := f.request(f.Root())
	e.i64(records.Offset)
	e.i64(records.Length)
	e.extents(within)
	d, err := f.s.call(ctx, opOwners, e.b)
	if err != nil {
		return nil, err
	}
	var out []guestfs.Owner
	for range d.count(33) {
		o := guestfs.Owner{Inode: guestfs.Inode(d.u64())}
		o.Offset, o.At, o.Length, o.Encoded = d.i64(), d.i64(), d.i64(), d.bool()
		out = append(out, o)
	}
	return out, f.s.check(d)
}

// StatAll implements [guestfs.BulkReader].
func (f *remoteFS) StatAll(ctx context.Context, inodes []guestfs.Inode) ([]guestfs.Described, error) {
	out := make([]guestfs.Described, 0, len(inodes))
	for part := range slices.Chunk(inodes, bulkInodes) {
		e := f.request(f.Root())
		e.inodes(part)
		d, err := f.s.call(ctx, opStatAll, e.b)
		if err != nil {
			return nil, err
		}
		for range part {
			out = append(out, d.statOne())
		}
		if err := f.s.check(d); err != nil {
			return nil, err
		}
	}
	return out, nil
}

func (d *decoder) statOne() (s guestfs.Described) {
	if d.bool() {
		s.Attr = d.attr()
	}
	for range d.count(12) {
		s.Links = append(s.Links, guestfs.Link{Dir: guestfs.Inode(d.u64()), Name: d.str()})
	}
	s.Err = d.err()
	return s
}

// ReadDirs implements [guestfs.BulkReader].
func (f *remoteFS) ReadDirs(ctx context.Context, dirs []guestfs.Inode) iter.Seq2[guestfs.DirEntry, error] {
	return func(yield func(guestfs.DirEntry, error) bool) {
		after := uint64(0)
		for len(dirs) > 0 {
			part, err := f.dirsPart(ctx, dirs[:min(len(dirs), bulkDirs)], after)
			for _, e := range part.entries {
				if !yield(e, nil) {
					return
				}
			}
			if err == nil && part.done == 0 && part.last == after {
				err = &FailureError{Reason: "its listings have no end"}
			}
			if err != nil {
				yield(guestfs.DirEntry{}, err)
				return
			}
			dirs, after = dirs[part.done:], part.last
		}
	}
}

// dirsPart is one answer to a question for many directories.
type dirsPart struct {
	entries []guestfs.DirEntry
	done    int    // directories that are listed to their end
	last    uint64 // cookie behind which the next one goes on
}

func (f *remoteFS) dirsPart(ctx context.Context, dirs []guestfs.Inode, after uint64) (p dirsPart, err error) {
	e := f.request(f.Root())
	e.inodes(dirs)
	e.u64(after)
	d, err := f.s.call(ctx, opReadDirs, e.b)
	if err != nil {
		return p, err
	}
	p.last = after
	for !d.bad {
		switch d.u8() {
		case 0:
			return p, f.s.check(d)
		case 2:
			if int(d.u32()) != p.done || p.done >= len(dirs) {
				d.bad = true
			}
		case 1:
			found := d.dirent()
			if p.last = found.Cookie; p.done >= len(dirs) {
				d.bad = true
				break
			}
			p.entries = append(p.entries, guestfs.DirEntry{Dir: dirs[p.done], Dirent: found})
		case 3:
			if p.done >= len(dirs) {
				d.bad = true
				break
			}
			if err := d.err(); err != nil {
				p.entries = append(p.entries, guestfs.DirEntry{Dir: dirs[p.done], Err: err})
			}
			p.done, p.last = p.done+1, 0
		default:
			d.bad = true
		}
	}
	return p, f.s.check(d)
}

// Run is a run of a volume, and where it stands.
type Run struct {
	Offset, Length int64
	Disk           int // index; -1: it reads as zeros
	At             int64
}

// ErrNoPlace says that a volume does not stand on the disks as it is: it is
// encrypted, for one.
var ErrNoPlace = errors.New("the volume does not stand on the disks as it is")

// maxPlaces bounds the runs of a volume.
const maxPlaces = 1 << 16

// Places are the runs that the volume of a session's file system is made of, in
// order and without gaps. ErrNoPlace where it has to be decoded, or is not read by
// a session.
func Places(ctx context.Context, fsys guestfs.FS) ([]Run, error) {
	img, err := Whole(ctx, fsys)
	if err != nil {
		return nil, err
	}
	defer img.Close()
	whole, ok := img.(*image)
	if !ok {
		return nil, ErrNoPlace
	}
	var out []Run
	for off := int64(0); off < whole.size; {
		m, err := whole.run(ctx, off)
		if err != nil {
			return nil, err
		}
		if m.kind == pieceDecoded || len(out) == maxPlaces {
			return nil, ErrNoPlace
		}
		r := Run{Offset: m.off, Length: m.length, Disk: -1}
		if m.kind == pieceDisk {
			r.Disk, r.At = m.disk, m.at
		}
		out = append(out, r)
		off += m.length
	}
	return out, nil
}

// Whole is the volume that a session's file system is on, as it stands there.
// ErrNoPlace where it is not read by a session.
func Whole(ctx context.Context, fsys guestfs.FS) (disk.Image, error) {
	f, ok := fsys.(*remoteFS)
	if !ok {
		return nil, ErrNoPlace
	}
	return f.s.Volume(ctx, int(f.volume))
}
