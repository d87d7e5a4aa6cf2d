package tree

import (
	"sync"

	"lifeboat/guestfs"
)

// wideTable numbers the inodes whose own numbers leave no room for that of their
// mount.
type wideTable struct {
	mu      sync.Mutex
	numbers map[place]uint64
	places  []place
}

// The table's numbers are an index, around the bits that say that they are its.
func spread(i uint64) guestfs.Inode {
	const low = 1<<mountShift - 1
	return guestfs.Inode(i&low | wideMount<<mountShift | i>>mountShift<<(mountShift+mountBits))
}

func gather(n guestfs.Inode) uint64 {
	const low = 1<<mountShift - 1
	return uint64(n)&low | uint64(n)>>(mountShift+mountBits)<<mountShift
}

func (w *wideTable) number(p place) guestfs.Inode {
	w.mu.Lock()
	defer w.mu.Unlock()
	i, ok := w.numbers[p]
	if !ok {
		if w.numbers == nil {
			w.numbers = map[place]uint64{}
		}
		i = uint64(len(w.places))
		w.numbers[p] = i
		w.places = append(w.places, p)
	}
	return spread(i)
}

func (w *wideTable) place(n guestfs.Inode) (place, bool) {
	w.mu.Lock()
	defer w.mu.Unlock()
	if i := gather(n); i < uint64(len(w.places)) {
		return w.places[i], true
	}
	return place{}, false
}
