package btrfs

import (
	"context"
	"encoding/binary"
	"fmt"
	"hash/crc32"
	"io/fs"
	"iter"
	"strings"

	"lifeboat/guestfs"
)

// A directory's entries (struct btrfs_dir_item) stand in the tree twice: by order
// of their creation, and by hash of the name, where several may share an item. An
// entry is the key of what it is of (17), a transaction (8), lengths of data and
// name (2 each), type (1), name and data. Attributes are written in the same way.
const direntHead = 30

// dirTypes are the types of directory entries (BTRFS_FT_*).
var dirTypes = [...]uint32{0, guestfs.TypeFile, guestfs.TypeDir, guestfs.TypeChar, guestfs.TypeBlock, guestfs.TypeFIFO, guestfs.TypeSocket, guestfs.TypeSymlink}

const typeEncrypted = 0x80

// dirItem is an entry as it is stored.
type dirItem struct {
	to   key
	kind byte
	name string
	data []byte
}

// parseDirItems reads all entries of an item; nil where one is cut off.
func parseDirItems(b []byte) []dirItem {
	var out []dirItem
	le := binary.LittleEndian
	for len(b) > 0 {
		if len(b) < direntHead {
			return nil
		}
		data, name := int(le.Uint16(b[25:])), int(le.Uint16(b[27:]))
		if direntHead+name+data > len(b) {
			return nil
		}
		p := b[direntHead:]
		out = append(out, dirItem{to: parseKey(b), kind: b[29], name: string(p[:name]), data: p[name : name+data]})
		b = p[name+data:]
	}
	return out
}

// nameHash is the hash of a name: the kernel's crc32c from -2 on, which unlike
// Go's inverts at neither end.
func nameHash(name string) uint64 { return uint64(^crc32.Update(1, castagnoli, []byte(name))) }

// ReadDir implements [guestfs.FS]. A cookie is the place in the order of creation.
func (f *FS) ReadDir(ctx context.Context, dir guestfs.Inode, after uint64) iter.Seq2[guestfs.Dirent, error] {
	return func(yield func(guestfs.Dirent, error) bool) {
		in, err := f.directory(ctx, dir)
		if err != nil {
			yield(guestfs.Dirent{}, err)
			return
		}
		if after == ^uint64(0) || in.id == placeholder {
			return
		}
		more, bad := true, error(nil)
		err = in.sub.of(ctx, in.id, kindDirIndex, after+1, func(it item) bool {
			var e guestfs.Dirent
			if e, bad = f.dirent(in, it); bad == nil {
				more = yield(e, nil)
			}
			return more && bad == nil
		})
		if err = first(err, bad); err != nil && more {
			yield(guestfs.Dirent{}, err)
		}
	}
}

// directory reads the inode of one.
func (f *FS) directory(ctx context.Context, number guestfs.Inode) (*inode, error) {
	in, err := f.inode(ctx, number)
	if err == nil && in.kind() != guestfs.TypeDir {
		err = fmt.Errorf("btrfs: inode %d of subvolume %d: %w", in.id, in.sub.id, guestfs.ErrNotDir)
	}
	return in, err
}

// dirent is an entry of the order of creation.
func (f *FS) dirent(in *inode, it item) (guestfs.Dirent, error) {
	entries := parseDirItems(it.data)
	if len(entries) != 1 {
		return guestfs.Dirent{}, in.corrupt("entry %d of the directory", it.offset)
	}
	e, err := f.resolve(in, entries[0])
	e.Cookie = it.offset
	return e, err
}

// resolve finds the inode of an entry: that of a file, the directory of a
// subvolume or, where the subvolume is not mounted by this name, an empty one.
func (f *FS) resolve(in *inode, d dirItem) (guestfs.Dirent, error) {
	e := guestfs.Dirent{Name: d.name}
	switch {
	case d.kind&typeEncrypted != 0:
		return e, fmt.Errorf("btrfs: the names in directory %d of subvolume %d are %w by the guest (fscrypt)", in.id, in.sub.id, guestfs.ErrEncrypted)
	case d.name == "" || strings.ContainsAny(d.name, "/\x00") || d.name == "." || d.name == "..":
		return e, in.corrupt("an entry of the directory has the name %q", d.name)
	case d.to.kind == kindInode && d.to.id >= idFirst && d.to.id < 1<<subvolumeShift:
		e.Inode = f.number(in.sub, d.to.id)
	case d.to.kind == kindRoot:
		at, ok := in.sub.parents[d.to.id]
		if s := f.byID[d.to.id]; s != nil && ok && at == (place{in.id, d.name}) {
			e.Inode = f.number(s, idFirst)
		} else {
			e.Inode = f.number(in.sub, placeholder)
		}
	default:
		return e, in.corrupt("entry %q of the directory is %d of kind %d", d.name, d.to.id, d.to.kind)
	}
	if int(d.kind) < len(dirTypes) {
		e.Type = dirTypes[d.kind]
	}
	return e, nil
}

// Lookup implements [guestfs.Lookuper].
func (f *FS) Lookup(ctx context.Context, dir guestfs.Inode, name string) (guestfs.Dirent, error) {
	none := fmt.Errorf("%q: %w", name, fs.ErrNotExist)
	in, err := f.directory(ctx, dir)
	if err != nil {
		return guestfs.Dirent{}, err
	}
	if in.id == placeholder {
		return guestfs.Dirent{}, none
	}
	it, ok, err := in.sub.get(ctx, key{in.id, kindDirItem, nameHash(name)})
	if err != nil {
		return guestfs.Dirent{}, err
	}
	if !ok {
		return guestfs.Dirent{}, none
	}
	for _, d := range parseDirItems(it.data) {
		if d.name == name {
			return f.resolve(in, d)
		}
	}
	return guestfs.Dirent{}, none
}
