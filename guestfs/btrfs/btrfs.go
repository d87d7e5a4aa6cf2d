// Package btrfs reads Btrfs, on one device or several, as the kernel would show
// the top level (subvolid=5): subvolumes and snapshots are directories.
//
// What is written where is described in the kernel's include/uapi/linux/
// btrfs_tree.h. All of it is little-endian. Btrfs never writes over what is in
// use, so that what a committed superblock leads to is whole at any time; what was
// synced since stands in a log, which is replayed in memory. Checksums of metadata
// and data are verified, and where there is another copy, a bad one does not
// matter.
//
// RAID5 and RAID6 are read where nothing is lost.
package btrfs

import (
	"context"
	"encoding/binary"
	"fmt"
	"slices"
	"sync"

	"github.com/klauspost/compress/zstd"

	"lifeboat/disk"
	"lifeboat/guestfs"
)

const fsName = "btrfs"

// cacheBytes bounds the nodes that are kept, decodedBytes the content of
// compressed extents.
const (
	cacheBytes   = 12 << 20
	decodedBytes = 8 << 20
)

// Objects, and kinds of items.
const (
	idChunks       = 256
	idTop          = 5 // the top level, as a subvolume
	idRootDir      = 6 // names of subvolumes that mean something
	idSums         = 7
	idFirst        = 256 // of subvolumes and of files
	idLast         = -256 & (1<<64 - 1)
	idLog          = -6 & (1<<64 - 1)
	idExtentSum    = -10 & (1<<64 - 1)
	kindInode      = 1
	kindRef        = 12
	kindExtRef     = 13
	kindXattr      = 24
	kindDirLog     = 72
	kindDirItem    = 84
	kindDirIndex   = 96
	kindExtent     = 108
	kindSum        = 128
	kindRoot       = 132
	kindRootRef    = 156
	kindChunk      = 228
	rootBytes      = 239 // of a root's item, at least
	maxSubvolumes  = 1<<16 - 1
	subvolumeShift = 48 // of an inode's number: below it, the number in its subvolume
)

// FS is a Btrfs file system.
type FS struct {
	sb      *superblock
	v       *volume
	nodes   *nodes
	sums    view
	logSums []view       // logs, for the checksums in them
	subs    []*subvolume // the top level, and then by number
	byID    map[uint64]*subvolume
	decoded *decodedCache
	zstd    func() (*zstd.Decoder, error)
	state   guestfs.State
	note    string
}

var (
	_ guestfs.FS          = (*FS)(nil)
	_ guestfs.Lookuper    = (*FS)(nil)
	_ guestfs.XattrReader = (*FS)(nil)
	_ guestfs.Mapped      = (*FS)(nil)
	_ guestfs.Describer   = (*FS)(nil)
)

// Open reads the file system on a device, or on several: all that [Member] says
// are of it, in any order. They must stay open as long. Where a device is missing,
// what has another copy is read. guestfs.ErrNoFS where there is none.
func Open(ctx context.Context, img disk.Image, more ...disk.Image) (*FS, error) {
	sb, devices, err := members(append([]disk.Image{img}, more...))
	if err != nil {
		return nil, err
	}
	f := &FS{sb: sb, v: &volume{devices: devices}, byID: map[uint64]*subvolume{}, state: guestfs.Clean, decoded: newDecodedCache(decodedBytes), zstd: sync.OnceValues(newZstd)}
	f.nodes = newNodes(f.v, sb, cacheBytes)
	if err := f.v.bootstrap(sb.sys); err != nil {
		return nil, err
	}
	if missing := int(sb.devices) - len(devices); missing > 0 {
		f.state, f.note = guestfs.Damaged, fmt.Sprintf("%d of its %d devices are missing", missing, sb.devices)
	}
	if err := f.trees(ctx); err != nil {
		return nil, fmt.Errorf("%w%s", err, f.lost())
	}
	return f, nil
}

// lost tells of missing devices, which may be why something cannot be read.
func (f *FS) lost() string {
	if f.note == "" {
		return ""
	}
	return " (" + f.note + ")"
}

// members reads the superblocks of all devices. The latest one counts.
func members(imgs []disk.Image) (*superblock, map[uint64]disk.Image, error) {
	var latest *superblock
	devices := map[uint64]disk.Image{}
	for i, img := range imgs {
		sb, err := readSuper(img)
		if err != nil {
			return nil, nil, err
		}
		if latest != nil && sb.fsid != latest.fsid {
			return nil, nil, fmt.Errorf("btrfs: device %d is of file system %x, not %x: %w", i, sb.fsid, latest.fsid, guestfs.ErrNoFS)
		}
		if devices[sb.device] != nil {
			return nil, nil, fmt.Errorf("btrfs: two devices have the number %d: give only one of them", sb.device)
		}
		devices[sb.device] = img
		if latest == nil || sb.generation > latest.generation {
			latest = sb
		}
	}
	return latest, devices, nil
}

// trees finds the chunks, the checksums and the subvolumes.
func (f *FS) trees(ctx context.Context) error {
	var bad error
	chunks := tree{f.nodes, f.sb.chunkRoot}
	err := chunks.scan(ctx, key{idChunks, kindChunk, 0}, func(it item) bool {
		if it.id != idChunks || it.kind != kindChunk {
			return false
		}
		c, _, err := parseChunk(it.offset, it.data)
		if err == nil {
			err = f.v.add(c)
		}
		bad = err
		return err == nil
	})
	if err != nil || bad != nil {
		return first(err, bad)
	}
	roots := tree{f.nodes, f.sb.root}
	sums, ok, err := f.root(ctx, roots, idSums)
	if err != nil {
		return err
	}
	if ok {
		f.sums = view{tree: sums}
	}
	if err := f.subvolumes(ctx, roots); err != nil {
		return err
	}
	return f.recover(ctx)
}

func first(errs ...error) error {
	for _, err := range errs {
		if err != nil {
			return err
		}
	}
	return nil
}

// parseRoot reads the item of a tree's root (struct btrfs_root_item).
func (f *FS) parseRoot(b []byte) (t tree, refs uint32, ok bool) {
	if len(b) < rootBytes {
		return t, 0, false
	}
	le := binary.LittleEndian
	return tree{f.nodes, pointer{at: le.Uint64(b[176:]), generation: le.Uint64(b[160:]), level: int(b[238])}}, le.Uint32(b[216:]), true
}

// root finds the root of a tree.
func (f *FS) root(ctx context.Context, roots tree, id uint64) (t tree, ok bool, err error) {
	it, ok, err := roots.floor(ctx, key{id, kindRoot, ^uint64(0)})
	if err != nil || !ok || it.id != id || it.kind != kindRoot {
		return t, false, err
	}
	if t, _, ok = f.parseRoot(it.data); !ok {
		return t, false, corrupt("the root of tree %d is of %d bytes", id, len(it.data))
	}
	return t, true, nil
}

// subvolume is one, or a snapshot.
type subvolume struct {
	view
	index uint64
	id    uint64
	// parents are the places where it is mounted by its name: key (parent,
	// kindRootRef, id) of the tree of roots.
	parents map[uint64]place
}

// place is a name in a directory of a subvolume.
type place struct {
	dir  uint64
	name string
}

// subvolumes finds them all. Their order is that of their numbers, so that inodes
// have the same number each time.
func (f *FS) subvolumes(ctx context.Context, roots tree) error {
	var bad error
	err := roots.scan(ctx, key{id: idTop}, func(it item) bool {
		if it.id != idTop && (it.id < idFirst || it.id > idLast) {
			return it.id < idFirst
		}
		switch it.kind {
		case kindRoot:
			bad = f.addSubvolume(it)
		case kindRootRef:
			f.addPlace(it)
		}
		return bad == nil
	})
	if err != nil || bad != nil {
		return first(err, bad)
	}
	if len(f.subs) == 0 || f.subs[0].id != idTop {
		return corrupt("there is no top level")
	}
	return nil
}

func (f *FS) addSubvolume(it item) error {
	t, refs, ok := f.parseRoot(it.data)
	if !ok {
		return corrupt("the root of subvolume %d is of %d bytes", it.id, len(it.data))
	}
	s := f.byID[it.id]
	if s == nil {
		s = &subvolume{id: it.id, index: uint64(len(f.subs)), parents: map[uint64]place{}}
	} else if refs == 0 {
		return nil
	}
	s.view = view{tree: t}
	if f.byID[it.id] == nil && (refs > 0 || it.id == idTop) { // else it is being deleted
		if len(f.subs) >= maxSubvolumes {
			return &guestfs.UnsupportedError{FS: fsName, What: fmt.Sprintf("a volume of more than %d subvolumes", maxSubvolumes)}
		}
		f.byID[it.id] = s
		f.subs = append(f.subs, s)
	}
	return nil
}

// addPlace reads a reference (struct btrfs_root_ref): directory 8, sequence 8,
// length of the name 2, name. It stands in front of the subvolume that it is to.
func (f *FS) addPlace(it item) {
	le := binary.LittleEndian
	if len(it.data) < 18 || len(it.data) < 18+int(le.Uint16(it.data[16:])) || f.byID[it.id] == nil {
		return
	}
	f.byID[it.id].parents[it.offset] = place{dir: le.Uint64(it.data), name: string(it.data[18 : 18+le.Uint16(it.data[16:])])}
}

// Info implements [guestfs.Describer].
func (f *FS) Info() guestfs.Info {
	u := f.sb.fsid
	return guestfs.Info{
		Type: fsName, Label: f.sb.label, UUID: fmt.Sprintf("%x-%x-%x-%x-%x", u[:4], u[4:6], u[6:8], u[8:10], u[10:]),
		Size: f.sb.total, Used: min(f.sb.used, f.sb.total), State: f.state, Note: f.note,
	}
}

// Root implements [guestfs.FS]: the directory of the top level.
func (f *FS) Root() guestfs.Inode { return f.number(f.subs[0], idFirst) }

// DefaultRoot is the directory of the subvolume that is mounted when none is asked
// for.
func (f *FS) DefaultRoot(ctx context.Context) (guestfs.Inode, error) {
	roots := tree{f.nodes, f.sb.root}
	target := f.subs[0]
	err := roots.scan(ctx, key{idRootDir, kindDirItem, 0}, func(it item) bool {
		if it.id != idRootDir || it.kind != kindDirItem {
			return false
		}
		for _, e := range parseDirItems(it.data) {
			if s := f.byID[e.to.id]; e.name == "default" && e.to.kind == kindRoot && s != nil {
				target = s
			}
		}
		return true
	})
	return f.number(target, idFirst), err
}

// Subvolume is one, as [FS.Subvolumes] lists it.
type Subvolume struct {
	ID   uint64 // as in the mount option subvolid=
	Root guestfs.Inode
}

// Subvolumes lists all, the top level first.
func (f *FS) Subvolumes() []Subvolume {
	out := make([]Subvolume, 0, len(f.subs))
	for _, s := range f.subs {
		out = append(out, Subvolume{ID: s.id, Root: f.number(s, idFirst)})
	}
	return slices.Clip(out)
}

// number is the inode number of a file of a subvolume: those of the top level are
// its own, as in the kernel.
func (f *FS) number(s *subvolume, id uint64) guestfs.Inode {
	return guestfs.Inode(s.index<<subvolumeShift | id)
}
