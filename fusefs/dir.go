package fusefs

import (
	"context"
	"iter"
	"sync"

	"github.com/hanwen/go-fuse/v2/fuse"

	"lifeboat/guestfs"
)

// dir is an open directory. The offset of an entry, as the kernel has it, is its
// number in the listing: cookies of file systems use all 64 bits, and the kernel
// takes the last for a sign.
type dir struct {
	inode guestfs.Inode
	node  uint64

	mu      sync.Mutex
	cookies []uint64 // by number of the entry
	// pull is a listing that is under way: its next entry has the number at.
	at      int
	next    func() (guestfs.Entry, error, bool)
	stop    func()
	waiting *guestfs.Entry // read, but had no room in the last answer
}

// OpenDir implements fuse.RawFileSystem.
func (r *rawFS) OpenDir(_ <-chan struct{}, in *fuse.OpenIn, out *fuse.OpenOut) fuse.Status {
	inode := r.links.inode(in.NodeId)
	out.Fh = r.handle(&dir{inode: inode, node: in.NodeId})
	if tree, root := r.tree.TreeOf(inode); tree != 0 && !root {
		out.OpenFlags = fuse.FOPEN_KEEP_CACHE | fuse.FOPEN_CACHE_DIR
	}
	return fuse.OK
}

// ReleaseDir implements fuse.RawFileSystem.
func (r *rawFS) ReleaseDir(in *fuse.ReleaseIn) {
	h, _ := r.handles.LoadAndDelete(in.Fh)
	if d, ok := h.(*dir); ok {
		d.mu.Lock()
		defer d.mu.Unlock()
		d.end()
	}
}

func (d *dir) end() {
	if d.stop != nil {
		d.stop()
		d.next, d.stop, d.waiting = nil, nil, nil
	}
}

// begin makes sure that the listing goes on with the entry of that number.
func (r *rawFS) begin(d *dir, number int, plus bool) bool {
	if d.next != nil && d.at == number {
		return true
	}
	d.end()
	if !r.skipTo(d, number) {
		return false
	}
	after := uint64(0)
	if number > 0 {
		after = d.cookies[number-1]
	}
	d.cookies = d.cookies[:number]
	d.at = number
	// Not bound to one request: the next goes on with it. A listing that is left
	// ends with the directory.
	ctx, cancel := context.WithCancel(context.Background())
	next, stop := iter.Pull2(r.listing(ctx, d.inode, after, plus))
	d.next, d.stop = next, func() { cancel(); stop() }
	return true
}

// skipTo learns the cookies up to an entry that this directory was not listed to
// yet: somebody has the offset from another listing of it.
func (r *rawFS) skipTo(d *dir, number int) bool {
	if number <= len(d.cookies) {
		return true
	}
	after := uint64(0)
	if n := len(d.cookies); n > 0 {
		after = d.cookies[n-1]
	}
	for e, err := range r.tree.ReadDir(context.Background(), d.inode, after) {
		if err != nil {
			return false
		}
		if d.cookies = append(d.cookies, e.Cookie); len(d.cookies) == number {
			return true
		}
	}
	return false
}

func (r *rawFS) listing(ctx context.Context, inode guestfs.Inode, after uint64, plus bool) iter.Seq2[guestfs.Entry, error] {
	if plus {
		return r.tree.ReadDirPlus(ctx, inode, after, false)
	}
	return func(yield func(guestfs.Entry, error) bool) {
		for d, err := range r.tree.ReadDir(ctx, inode, after) {
			if !yield(guestfs.Entry{Dirent: d}, err) {
				return
			}
		}
	}
}

// ReadDir implements fuse.RawFileSystem.
func (r *rawFS) ReadDir(_ <-chan struct{}, in *fuse.ReadIn, out *fuse.DirEntryList) fuse.Status {
	return r.readDir(in, false, func(_ *dir, e *guestfs.Entry, fe fuse.DirEntry) bool { return out.AddDirEntry(fe) }, out)
}

// ReadDirPlus implements fuse.RawFileSystem.
func (r *rawFS) ReadDirPlus(_ <-chan struct{}, in *fuse.ReadIn, out *fuse.DirEntryList) fuse.Status {
	return r.readDir(in, true, func(d *dir, e *guestfs.Entry, fe fuse.DirEntry) bool {
		slot := out.AddDirLookupEntry(fe)
		if slot == nil {
			return false
		}
		if e.Attr != nil {
			r.entry(slot, d.node, e.Name, e.Attr)
		} // else: the kernel looks it up, and is told what is wrong
		return true
	}, out)
}

// dots are the first two entries of every directory.
const dots = 2

func (r *rawFS) readDir(in *fuse.ReadIn, plus bool, add func(*dir, *guestfs.Entry, fuse.DirEntry) bool, out *fuse.DirEntryList) fuse.Status {
	h, _ := r.handles.Load(in.Fh)
	d, ok := h.(*dir)
	if !ok {
		return fuse.EBADF
	}
	d.mu.Lock()
	defer d.mu.Unlock()
	for off := in.Offset; off < dots; off++ {
		fe := fuse.DirEntry{Mode: fuse.S_IFDIR, Name: [dots]string{".", ".."}[off], Off: off + 1}
		if off == 0 {
			fe.Ino = uint64(d.inode)
		}
		if plus && out.AddDirLookupEntry(fe) == nil || !plus && !out.AddDirEntry(fe) {
			return fuse.OK
		}
	}
	if !r.begin(d, int(max(in.Offset, dots)-dots), plus) {
		return fuse.EINVAL
	}
	some := false
	for {
		e := d.waiting
		if e == nil {
			entry, err, more := d.next()
			if !more {
				return fuse.OK
			}
			if err != nil {
				if some {
					d.end() // what was read first; the next request meets the error again
					return fuse.OK
				}
				d.end()
				return r.status("list", d.inode, err)
			}
			e = &entry
		}
		fe := fuse.DirEntry{Name: e.Name, Mode: e.Type, Ino: uint64(e.Inode), Off: uint64(d.at) + 1 + dots}
		if e.Attr != nil {
			fe.Mode = e.Attr.Mode
		}
		if !add(d, e, fe) {
			d.waiting = e
			return fuse.OK
		}
		d.waiting, some = nil, true
		d.at++
		d.cookies = append(d.cookies, e.Cookie)
	}
}
