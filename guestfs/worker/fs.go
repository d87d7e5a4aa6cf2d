package worker

import (
	"context"
	"iter"

	"lifeboat/disk"
	"lifeboat/guestfs"
)

// remoteFS is the file system of a volume, as it is asked for through the worker.
// It has all abilities: where the reader has not, the answer is nothing.
type remoteFS struct {
	s      *Session
	volume uint32
	info   guestfs.Info
}

var (
	_ guestfs.FS             = (*remoteFS)(nil)
	_ guestfs.Lookuper       = (*remoteFS)(nil)
	_ guestfs.XattrReader    = (*remoteFS)(nil)
	_ guestfs.StreamReader   = (*remoteFS)(nil)
	_ guestfs.SecurityReader = (*remoteFS)(nil)
	_ guestfs.Mapped         = (*remoteFS)(nil)
	_ guestfs.PlusReader     = (*remoteFS)(nil)
	_ guestfs.Describer      = (*remoteFS)(nil)
)

func (f *remoteFS) Info() guestfs.Info { return f.info }

func (f *remoteFS) Root() guestfs.Inode { return guestfs.Inode(f.s.roots[f.volume]) }

// request begins a question about an inode.
func (f *remoteFS) request(inode guestfs.Inode) *encoder {
	e := newEncoder(64)
	e.u32(f.volume)
	e.u64(uint64(inode))
	return e
}

func (f *remoteFS) Stat(ctx context.Context, inode guestfs.Inode) (*guestfs.Attr, error) {
	d, err := f.s.call(ctx, opStat, f.request(inode).b)
	if err != nil {
		return nil, err
	}
	a := d.attr()
	return a, f.s.check(d)
}

func (f *remoteFS) Lookup(ctx context.Context, dir guestfs.Inode, name string) (guestfs.Dirent, error) {
	e := f.request(dir)
	e.str(name)
	d, err := f.s.call(ctx, opLookup, e.b)
	if err != nil {
		return guestfs.Dirent{}, err
	}
	found := d.dirent()
	return found, f.s.check(d)
}

func (f *remoteFS) Xattrs(ctx context.Context, inode guestfs.Inode) ([]guestfs.Xattr, error) {
	d, err := f.s.call(ctx, opXattrs, f.request(inode).b)
	if err != nil {
		return nil, err
	}
	list := d.xattrs()
	return list, f.s.check(d)
}

func (f *remoteFS) Streams(ctx context.Context, inode guestfs.Inode) ([]guestfs.Stream, error) {
	d, err := f.s.call(ctx, opStreams, f.request(inode).b)
	if err != nil {
		return nil, err
	}
	var list []guestfs.Stream
	for range d.count(12) {
		list = append(list, guestfs.Stream{Name: d.str(), Size: d.i64()})
	}
	return list, f.s.check(d)
}

func (f *remoteFS) SecurityDescriptor(ctx context.Context, inode guestfs.Inode) ([]byte, error) {
	d, err := f.s.call(ctx, opDescriptor, f.request(inode).b)
	if err != nil {
		return nil, err
	}
	sd := d.bytes()
	return sd, f.s.check(d)
}

func (f *remoteFS) ReadDir(ctx context.Context, dir guestfs.Inode, after uint64) iter.Seq2[guestfs.Dirent, error] {
	return func(yield func(guestfs.Dirent, error) bool) {
		for e, err := range f.list(ctx, dir, after, listNames) {
			if !yield(e.Dirent, err) {
				return
			}
		}
	}
}

func (f *remoteFS) ReadDirPlus(ctx context.Context, dir guestfs.Inode, after uint64, xattrs bool) iter.Seq2[guestfs.Entry, error] {
	if xattrs {
		return f.list(ctx, dir, after, listXattrs)
	}
	return f.list(ctx, dir, after, listAttrs)
}

// list fetches a directory part by part.
func (f *remoteFS) list(ctx context.Context, dir guestfs.Inode, after uint64, how byte) iter.Seq2[guestfs.Entry, error] {
	return func(yield func(guestfs.Entry, error) bool) {
		for {
			entries, done, err := f.part(ctx, dir, after, how)
			for _, e := range entries {
				if !yield(e, nil) {
					return
				}
				after = e.Cookie
			}
			if err == nil && !done && len(entries) == 0 {
				err = &FailureError{Reason: "its listing has no end"}
			}
			if err != nil {
				yield(guestfs.Entry{}, err)
			}
			if done || err != nil {
				return
			}
		}
	}
}

func (f *remoteFS) part(ctx context.Context, dir guestfs.Inode, after uint64, how byte) (list []guestfs.Entry, done bool, err error) {
	e := f.request(dir)
	e.u64(after)
	e.u8(how)
	d, err := f.s.call(ctx, opReadDir, e.b)
	if err != nil {
		return nil, false, err
	}
	for d.u8() == 1 && !d.bad {
		entry := guestfs.Entry{Dirent: d.dirent()}
		if how != listNames {
			d.described(&entry)
		}
		list = append(list, entry)
	}
	done = d.bool()
	failed := d.err()
	if err := f.s.check(d); err != nil {
		return nil, false, err
	}
	return list, done, failed
}

// PhysicalExtents implements [guestfs.Mapped].
func (f *remoteFS) PhysicalExtents(ctx context.Context, inode guestfs.Inode) iter.Seq2[guestfs.PhysicalExtent, error] {
	return func(yield func(guestfs.PhysicalExtent, error) bool) {
		for n := uint64(0); ; {
			list, done, err := f.physical(ctx, inode, n)
			for _, x := range list {
				if !yield(x, nil) {
					return
				}
				n++
			}
			if err == nil && !done && len(list) == 0 {
				err = &FailureError{Reason: "its map of a file has no end"}
			}
			if err != nil {
				yield(guestfs.PhysicalExtent{}, err)
			}
			if done || err != nil {
				return
			}
		}
	}
}

func (f *remoteFS) physical(ctx context.Context, inode guestfs.Inode, skip uint64) (list []guestfs.PhysicalExtent, done bool, err error) {
	e := f.request(inode)
	e.u64(skip)
	d, err := f.s.call(ctx, opPhysical, e.b)
	if err != nil {
		return nil, false, err
	}
	for d.u8() == 1 && !d.bad {
		list = append(list, guestfs.PhysicalExtent{Offset: d.i64(), At: d.i64(), Length: d.i64(), Encoded: d.bool()})
	}
	done = d.bool()
	failed := d.err()
	if err := f.s.check(d); err != nil {
		return nil, false, err
	}
	return list, done, failed
}

// Open implements [guestfs.FS].
func (f *remoteFS) Open(ctx context.Context, inode guestfs.Inode) (disk.Image, error) {
	return f.open(ctx, inode, false, "")
}

// OpenStream implements [guestfs.StreamReader].
func (f *remoteFS) OpenStream(ctx context.Context, inode guestfs.Inode, name string) (disk.Image, error) {
	return f.open(ctx, inode, true, name)
}

func (f *remoteFS) open(ctx context.Context, inode guestfs.Inode, named bool, stream string) (disk.Image, error) {
	img := newImage(ctx, f, inode, named, stream)
	d, err := f.s.call(ctx, opOpen, img.request().b)
	if err != nil {
		return nil, err
	}
	img.size = d.i64()
	img.runs = d.runs(0, img.size, f.s.disks)
	if data := d.bytes(); len(data) > 0 {
		img.inline = append([]byte{}, data...)
	}
	if img.size < 0 || img.inline != nil && int64(len(img.inline)) != img.size {
		d.bad = true
	}
	if err := f.s.check(d); err != nil {
		return nil, err
	}
	return img, nil
}
