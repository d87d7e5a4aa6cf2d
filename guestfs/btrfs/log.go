package btrfs

import (
	"context"
	"encoding/binary"
	"errors"
	"fmt"

	"lifeboat/guestfs"
)

// What is synced between two transactions stands in logs (the kernel's fs/btrfs/
// tree-log.c): one tree for each subvolume, and a tree of their roots. A log holds
// the items of the inodes that were synced, as they were then, and for directories
// the ranges of their order of creation that it knows all about: what is in the
// subvolume in such a range and not in the log was removed.
//
// Mounting puts the logs into the subvolumes, in three rounds: inodes, with what
// was removed from them; names in directories; all else. At last the links of all
// inodes that were touched are counted. It is done here in the same way, on views.
// A reader sees no times of the mount: what the kernel touches while it replays
// keeps the times that it had.
const (
	maxLogged     = 1 << 20  // items
	maxLogChanges = 48 << 20 // bytes in memory
	maxLogWork    = 1 << 26  // items and names looked at: seconds
)

var errLogTooLarge = &guestfs.UnsupportedError{FS: fsName, What: "a log of this size"}

// replayer puts one log into its subvolume.
type replayer struct {
	f     *FS
	ctx   context.Context
	sub   *subvolume
	log   view
	items []item // of the log, in order
	fixup map[uint64]bool
	work  int
}

// spend bounds the work that a log can make.
func (r *replayer) spend(n int) error {
	if r.work += n; r.work > maxLogWork {
		return errLogTooLarge
	}
	if r.work&0xfff < n && r.ctx.Err() != nil {
		return context.Cause(r.ctx)
	}
	return nil
}

// all is what an inode has of one kind in a tree, from an offset to another one,
// inclusive: a list, so that it can be changed on the way.
func (r *replayer) all(v view, id uint64, kind byte, from, to uint64) ([]item, error) {
	var out []item
	size := 0
	err := v.of(r.ctx, id, kind, from, func(it item) bool {
		if it.offset > to {
			return false
		}
		out = append(out, it)
		size += 1 + len(it.data)/32
		return size <= maxLogWork
	})
	return out, first(err, r.spend(size+1))
}

// recover looks after what was synced since the last transaction.
//
// A log that cannot be replayed is not the end: without it, everything is as it was
// at the last transaction.
func (f *FS) recover(ctx context.Context) error {
	if f.sb.logRoot.at == 0 {
		return nil
	}
	n, err := f.replay(ctx)
	switch {
	case err == nil && n == 0:
		return nil
	case err == nil:
		if f.state == guestfs.Clean {
			f.state = guestfs.Replayed
		}
		f.note = join(f.note, fmt.Sprintf("%d items of its log were replayed", n))
		return nil
	case errors.Is(err, guestfs.ErrUnsupported):
		f.state = guestfs.Dirty
	case errors.Is(err, guestfs.ErrCorrupt):
		f.state = guestfs.Damaged
	default:
		return fmt.Errorf("btrfs: the log: %w", err)
	}
	for _, s := range f.subs {
		s.changed = nil
	}
	f.logSums = nil
	f.note = join(f.note, fmt.Sprintf("its log was not replayed, what was synced last is missing: %v", err))
	return nil
}

func join(a, b string) string {
	if a == "" {
		return b
	}
	return a + "; " + b
}

func (f *FS) replay(ctx context.Context) (items int, err error) {
	var all []*replayer
	var bad error
	logs := tree{f.nodes, f.sb.logRoot}
	err = logs.scan(ctx, key{idLog, kindRoot, 0}, func(it item) bool {
		if it.id != idLog || it.kind != kindRoot {
			return false
		}
		t, _, ok := f.parseRoot(it.data)
		if !ok {
			bad = corrupt("the root of a log is of %d bytes", len(it.data))
			return false
		}
		if sub := f.byID[it.offset]; sub != nil { // else it was removed since
			all = append(all, &replayer{f: f, ctx: ctx, sub: sub, log: view{tree: t}, fixup: map[uint64]bool{}})
		}
		return true
	})
	if err := first(err, bad); err != nil {
		return 0, err
	}
	for _, r := range all {
		if err := r.run(); err != nil {
			return 0, err
		}
		items += len(r.items)
	}
	return items, nil
}

// run goes through the rounds.
func (r *replayer) run() error {
	if err := r.load(); err != nil {
		return err
	}
	r.sub.changed = newChanges()
	r.f.logSums = append(r.f.logSums, r.log)
	for _, round := range []func(item) error{r.inodeItem, r.nameItem, r.otherItem} {
		for _, it := range r.items {
			if err := round(it); err != nil {
				return err
			}
			if r.sub.changed.bytes > maxLogChanges {
				return errLogTooLarge
			}
			if r.ctx.Err() != nil {
				return context.Cause(r.ctx)
			}
		}
	}
	return r.countLinks()
}

// load reads the log, without inodes that have no name.
func (r *replayer) load() error {
	skip := uint64(0)
	size := 0
	var bad error
	err := r.log.scan(r.ctx, key{}, func(it item) bool {
		if it.id >= idLast {
			return false // checksums
		}
		if it.kind == kindInode {
			if len(it.data) < inodeBytes {
				bad = corrupt("inode %d in the log of subvolume %d is of %d bytes", it.id, r.sub.id, len(it.data))
				return false
			}
			if binary.LittleEndian.Uint32(it.data[inLinks:]) == 0 {
				skip = it.id
			}
		}
		if it.id == skip {
			return true
		}
		size += len(it.data) + bytesPerChange
		if len(r.items) >= maxLogged || size > maxLogChanges {
			bad = errLogTooLarge
			return false
		}
		r.items = append(r.items, it)
		return true
	})
	return first(err, bad)
}

// set and drop change an item of the subvolume.
func (r *replayer) set(k key, data []byte) { r.sub.changed.set(k, change{data: data}) }
func (r *replayer) drop(k key)             { r.sub.changed.set(k, change{gone: true}) }

// inode is a copy of an inode's item in the subvolume, nil where there is none.
func (r *replayer) inode(id uint64) ([]byte, error) {
	it, ok, err := r.sub.get(r.ctx, key{id, kindInode, 0})
	if err != nil || !ok {
		return nil, err
	}
	if len(it.data) < inodeBytes {
		return nil, corrupt("inode %d of subvolume %d is of %d bytes", id, r.sub.id, len(it.data))
	}
	return append([]byte(nil), it.data...), nil
}

func (r *replayer) exists(id uint64) (bool, error) {
	b, err := r.inode(id)
	return b != nil, err
}

// add adds to a field of an inode: its size, or the bytes that it takes.
func (r *replayer) add(id uint64, field int, n int64) error {
	b, err := r.inode(id)
	if err != nil || b == nil {
		return err
	}
	le := binary.LittleEndian
	le.PutUint64(b[field:], uint64(max(0, int64(le.Uint64(b[field:]))+n)))
	r.set(key{id, kindInode, 0}, b)
	return nil
}

// countLinks sets the number of links of all inodes that were touched to that of
// their names. A directory that has none is emptied, which touches others.
func (r *replayer) countLinks() error {
	for len(r.fixup) > 0 {
		highest := uint64(0)
		for id := range r.fixup {
			highest = max(highest, id)
		}
		delete(r.fixup, highest)
		if err := r.countLinksOf(highest); err != nil {
			return err
		}
	}
	return nil
}

func (r *replayer) countLinksOf(id uint64) error {
	b, err := r.inode(id)
	if err != nil || b == nil {
		return err
	}
	refs, err := r.refs(r.sub.view, id)
	if err != nil {
		return err
	}
	le := binary.LittleEndian
	le.PutUint32(b[inLinks:], uint32(len(refs)))
	r.set(key{id, kindInode, 0}, b)
	if len(refs) > 0 || le.Uint32(b[inMode:])&guestfs.TypeMask != guestfs.TypeDir {
		return nil
	}
	return r.removeNames(id, 0, ^uint64(0), true)
}
