package browse

import (
	"context"
	"fmt"
	"io/fs"

	"lifeboat/guestfs"
)

// An inode number of the Namespace has a slot in its upper 16 bits and a number
// in its lower 48. Slot 0 is the directories above the guests' own, by their
// place in a table. Every other slot is a tree of a point; its numbers are the
// tree's own, where they fit. Those that do not, and trees beyond the last slot,
// have numbers in the last slot, from a table that grows.
const (
	slotShift  = 48
	numberMask = 1<<slotShift - 1
	wideSlot   = 0xffff

	rootNumber guestfs.Inode = 1
)

// treeID is a tree of a point.
type treeID struct {
	point string
	n     int
}

type wideKey struct {
	slot  uint32
	inode guestfs.Inode
}

// slot is the slot of a tree.
func (n *Namespace) slot(id treeID) uint32 {
	n.mu.Lock()
	defer n.mu.Unlock()
	s, ok := n.slots[id]
	if !ok {
		n.trees = append(n.trees, id)
		s = uint32(len(n.trees)) // from 1
		n.slots[id] = s
	}
	return s
}

// rootMark stands for the root of a tree, whose own number is known only when it
// is open.
const rootMark guestfs.Inode = numberMask

// treeInode is the number of the root of a tree, which need not be open.
func (n *Namespace) treeInode(id treeID) guestfs.Inode { return n.compose(n.slot(id), rootMark) }

// number is the Namespace's number of an inode of a tree.
func (n *Namespace) number(slot uint32, fsys guestfs.FS, inode guestfs.Inode) guestfs.Inode {
	if inode == fsys.Root() {
		return n.compose(slot, rootMark)
	}
	return n.compose(slot, inode)
}

func (n *Namespace) compose(slot uint32, inode guestfs.Inode) guestfs.Inode {
	if slot < wideSlot && inode <= numberMask {
		return guestfs.Inode(slot)<<slotShift | inode
	}
	n.mu.Lock()
	defer n.mu.Unlock()
	key := wideKey{slot, inode}
	number, ok := n.wide[key]
	if !ok {
		number = wideSlot<<slotShift | guestfs.Inode(len(n.wideKey))
		n.wideKey = append(n.wideKey, key)
		n.wide[key] = number
	}
	return number
}

// own is the reverse of number: slot 0 for what is above the trees, and the
// inode rootMark for the root of one.
func (n *Namespace) own(inode guestfs.Inode) (slot uint32, number guestfs.Inode, err error) {
	slot, number = uint32(inode>>slotShift), inode&numberMask
	n.mu.Lock()
	defer n.mu.Unlock()
	if slot == wideSlot {
		if number >= guestfs.Inode(len(n.wideKey)) {
			return 0, 0, notThere(inode)
		}
		key := n.wideKey[number]
		slot, number = key.slot, key.inode
	}
	if slot > uint32(len(n.trees)) || slot == 0 && (number == 0 || number >= guestfs.Inode(len(n.nodes))) {
		return 0, 0, notThere(inode)
	}
	return slot, number, nil
}

func notThere(inode guestfs.Inode) error { return fmt.Errorf("inode %d: %w", inode, fs.ErrNotExist) }

// treeRoot reports whether an inode is the root of a tree, and of which.
func (n *Namespace) treeRoot(inode guestfs.Inode) (uint32, bool) {
	slot, number, err := n.own(inode)
	return slot, err == nil && slot != 0 && number == rootMark
}

// TreeOf reports which tree of a guest an inode is in, and whether it is the
// root of it; 0 for what is above.
func (n *Namespace) TreeOf(inode guestfs.Inode) (tree uint32, root bool) {
	slot, number, err := n.own(inode)
	if err != nil {
		return 0, false
	}
	return slot, slot != 0 && number == rootMark
}

// with calls fn with a tree, which stays open meanwhile.
func (n *Namespace) with(ctx context.Context, slot uint32, fn func(guestfs.FS) error) error {
	fsys, release, err := n.acquire(ctx, slot)
	if err != nil {
		return err
	}
	defer release()
	return fn(fsys)
}

// acquire opens a tree until release.
func (n *Namespace) acquire(ctx context.Context, slot uint32) (guestfs.FS, func(), error) {
	n.mu.Lock()
	id := n.trees[slot-1]
	n.mu.Unlock()
	files, release, err := n.shelf.take(ctx, id.point)
	if err != nil {
		return nil, nil, err
	}
	fsys, err := files.Open(ctx, id.n)
	if err != nil {
		release()
		return nil, nil, err
	}
	return fsys, release, nil
}

// inode is the tree's own number.
func ownInode(fsys guestfs.FS, number guestfs.Inode) guestfs.Inode {
	if number == rootMark {
		return fsys.Root()
	}
	return number
}
