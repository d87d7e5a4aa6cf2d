package ntfs

import (
	"context"
	"encoding/binary"
	"fmt"
	"io/fs"
	"iter"

	"lifeboat/guestfs"
	"lifeboat/guestfs/internal/wtf8"
)

// What an index of names has as its key is a $FILE_NAME attribute.
const (
	fileNameHeader = 66
	indexNames     = "$I30"

	namespaceDOS = 2 // a name that was made up for DOS; there is another one

	dosDirectory = 0x10000000 // in the copy of the attributes that is kept here
)

// fileName is a $FILE_NAME attribute.
type fileName []byte

func parseFileName(b []byte) (fileName, bool) {
	if len(b) < fileNameHeader || fileNameHeader+2*int(b[64]) > len(b) {
		return nil, false
	}
	return b[:fileNameHeader+2*int(b[64])], true
}

func (n fileName) flags() uint32   { return binary.LittleEndian.Uint32(n[56:]) }
func (n fileName) namespace() byte { return n[65] }
func (n fileName) units() []byte   { return n[fileNameHeader:] }
func (n fileName) String() string  { return wtf8.DecodeBytes(n.units()) }

func (n fileName) parent() guestfs.Inode { return guestfs.Inode(binary.LittleEndian.Uint64(n)) }

// kind is the type of the entry, 0 where only the file itself can tell.
func (n fileName) kind() uint32 {
	switch {
	case n.flags()&dosReparse != 0:
		return 0
	case n.flags()&dosDirectory != 0:
		return guestfs.TypeDir
	}
	return guestfs.TypeFile
}

func (ix *index) fileName(e *entry) (fileName, error) {
	n, ok := parseFileName(e.key())
	if !ok {
		return nil, corrupt("directory %d: an entry with a name of %d bytes", ix.number, len(e.key()))
	}
	return n, nil
}

// names opens the index of a directory.
func (f *FS) names(ctx context.Context, dir guestfs.Inode) (*index, error) {
	n, err := f.node(ctx, dir)
	if err != nil {
		return nil, err
	}
	if !n.isDir() {
		return nil, fmt.Errorf("ntfs: record %d: %w", n.base.number, guestfs.ErrNotDir)
	}
	ix, err := n.index(ctx, indexNames)
	if err == nil && ix == nil {
		err = corrupt("directory %d has no index", n.base.number)
	}
	return ix, err
}

// ReadDir implements [guestfs.FS], in the order of the index. A cookie is where
// in the index the entry stands.
func (f *FS) ReadDir(ctx context.Context, dir guestfs.Inode, after uint64) iter.Seq2[guestfs.Dirent, error] {
	return func(yield func(guestfs.Dirent, error) bool) {
		if err := f.readDir(ctx, dir, after, func(e guestfs.Dirent) bool { return yield(e, nil) }); err != nil {
			yield(guestfs.Dirent{}, err)
		}
	}
}

func (f *FS) readDir(ctx context.Context, dir guestfs.Inode, after uint64, yield func(guestfs.Dirent) bool) error {
	ix, err := f.names(ctx, dir)
	if err != nil {
		return err
	}
	defer ix.close()
	c := ix.cursor()
	if after > 0 {
		if err := f.resume(c, after); err != nil {
			return err
		}
	}
	for {
		if ctx.Err() != nil {
			return context.Cause(ctx)
		}
		e, err := c.next()
		if e == nil || err != nil {
			return err
		}
		name, err := ix.fileName(e)
		if err != nil {
			return err
		}
		if name.namespace() == namespaceDOS || dir == f.root && e.ref()&numberMask < firstUser {
			continue
		}
		if !yield(dirent(e, name)) {
			return nil
		}
	}
}

// resume puts a cursor behind the entry with a cookie: the tree is searched for
// its name.
func (f *FS) resume(c *cursor, cookie uint64) error {
	from, err := c.ix.at(cookie)
	if err != nil {
		return err
	}
	name, err := c.ix.fileName(from)
	if err != nil {
		return err
	}
	if err := c.seek(f.before(c.ix, name.units(), true)); err != nil {
		return err
	}
	for {
		e, err := c.next()
		if err != nil {
			return err
		}
		if e == nil {
			return corrupt("directory %d is not in order", c.ix.number)
		}
		if e.at == cookie {
			return nil
		}
	}
}

func dirent(e *entry, name fileName) guestfs.Dirent {
	return guestfs.Dirent{Name: wtf8.DecodeBytes(name.units()), Inode: guestfs.Inode(e.ref()), Type: name.kind(), Cookie: e.at}
}

// Lookup implements [guestfs.Lookuper]: without case, as Windows does, but of
// names that differ in nothing else, the exact one.
func (f *FS) Lookup(ctx context.Context, dir guestfs.Inode, name string) (guestfs.Dirent, error) {
	ix, err := f.names(ctx, dir)
	if err != nil {
		return guestfs.Dirent{}, err
	}
	defer ix.close()
	missing := fmt.Errorf("ntfs: %q in directory %d: %w", name, ix.number, fs.ErrNotExist)
	if name == "." || name == ".." {
		return guestfs.Dirent{}, missing // the root has an entry for itself
	}
	var want []byte
	for _, u := range wtf8.Encode(name) {
		want = binary.LittleEndian.AppendUint16(want, u)
	}
	c := ix.cursor()
	if err := c.seek(f.before(ix, want, false)); err != nil {
		return guestfs.Dirent{}, err
	}
	var found guestfs.Dirent
	for {
		e, err := c.next()
		if err != nil {
			return guestfs.Dirent{}, err
		}
		var got fileName
		if e != nil {
			if got, err = ix.fileName(e); err != nil {
				return guestfs.Dirent{}, err
			}
		}
		if e == nil || f.upcase.compare(got.units(), want) != 0 {
			if found.Inode == 0 {
				return found, missing
			}
			return found, nil
		}
		if d := dirent(e, got); d.Name == name || found.Inode == 0 {
			found = d
			if d.Name == name {
				return d, nil
			}
		}
	}
}

// before tells the entries before a name: by the order without case and, if
// exact, among those that are equal then, by that of the units.
func (f *FS) before(ix *index, name []byte, exact bool) func(*entry) (bool, error) {
	return func(e *entry) (bool, error) {
		got, err := ix.fileName(e)
		if err != nil {
			return false, err
		}
		order := f.upcase.compare(got.units(), name)
		if order == 0 && exact {
			order = compareUnits(got.units(), name)
		}
		return order < 0, nil
	}
}

// compare orders two names in UTF-16 without case.
func (t *upcaseTable) compare(a, b []byte) int {
	le := binary.LittleEndian
	for i := 0; i+1 < len(a) && i+1 < len(b); i += 2 {
		x, y := le.Uint16(a[i:]), le.Uint16(b[i:])
		if x == y {
			continue
		}
		if x, y = t[x], t[y]; x != y {
			return int(x) - int(y)
		}
	}
	return len(a) - len(b)
}

// compareUnits orders two names in UTF-16 by their units.
func compareUnits(a, b []byte) int {
	le := binary.LittleEndian
	for i := 0; i+1 < len(a) && i+1 < len(b); i += 2 {
		if x, y := le.Uint16(a[i:]), le.Uint16(b[i:]); x != y {
			return int(x) - int(y)
		}
	}
	return len(a) - len(b)
}
