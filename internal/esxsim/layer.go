package esxsim

import (
	"errors"
	"fmt"
	"io"
	"maps"
	"math/bits"
	"slices"
	"sync"
	"sync/atomic"
	"syscall"

	"lifeboat/disk"
)

// layer is one file of a disk's chain: a flat base, or a delta that has the
// grains written since its parent was frozen.
//
// A delta is our own: after a header of 64 KiB that says COWD, as a host's does,
// the grains stand where they are on the disk. So whoever takes the file for a
// flat one reads rubbish, as with a real one.
type layer struct {
	at     dsPath // the descriptor
	data   string // the file with the bytes, in the same datastore
	size   int64
	parent *layer
	cid    uint32

	redo bool // a redo log: thrown away when its VM goes off

	mu     sync.RWMutex
	f      file             // nil: not open
	grains map[int64]uint16 // of a delta: by block of 64 KiB, which of its 16 grains it has
	users  atomic.Int32     // deltas that stand on it
	track  *tracker         // of a base: the tracking of the disk, which outlives its registration
}

const (
	grain       = 4 << 10
	block       = 64 << 10 // the unit of change tracking
	deltaHeader = 64 << 10
)

func (l *layer) delta() bool { return l.parent != nil }

// open opens the data, if it is not open.
func (l *layer) open(how openHow) error {
	l.mu.Lock()
	defer l.mu.Unlock()
	if l.f != nil {
		return nil
	}
	if _, local := l.at.ds.vol.(localVolume); local && how == openRead {
		how = openWrite // needs no lock, and a delta may be merged into it later
	}
	f, err := l.at.ds.vol.open(l.data, how)
	if err != nil {
		return fmt.Errorf("opening %s: %w", l.data, err)
	}
	l.f = f
	return nil
}

func (l *layer) close() error {
	l.mu.Lock()
	defer l.mu.Unlock()
	if l.f == nil {
		return nil
	}
	err := l.f.Close()
	l.f = nil
	return err
}

// closeChain closes a layer and all below it.
func closeChain(l *layer) (err error) {
	for ; l != nil; l = l.parent {
		err = errors.Join(err, l.close())
	}
	return err
}

// handle opens a layer for those who come without power-on: the guest's stand-in
// and backup readers. A local file needs no lock.
func (l *layer) handle() (file, error) {
	l.mu.RLock()
	f := l.f
	l.mu.RUnlock()
	if f != nil {
		return f, nil
	}
	if err := l.open(openRead); err != nil {
		return nil, err
	}
	l.mu.RLock()
	defer l.mu.RUnlock()
	if l.f == nil {
		return nil, errors.New("the disk was closed")
	}
	return l.f, nil
}

// ReadAt reads what the disk has, seen from this layer.
func (l *layer) ReadAt(p []byte, off int64) (int, error) {
	if off < 0 || off > l.size {
		return 0, fmt.Errorf("reading at %d of a disk of %d bytes", off, l.size)
	}
	n := int(min(int64(len(p)), l.size-off))
	if err := l.read(p[:n], off); err != nil {
		return 0, err
	}
	if n < len(p) {
		return n, io.EOF
	}
	return n, nil
}

func (l *layer) read(p []byte, off int64) error {
	if !l.delta() {
		f, err := l.handle()
		if err != nil {
			return err
		}
		n, err := f.ReadAt(p, off)
		if n == len(p) {
			return nil
		}
		return fmt.Errorf("reading %s at %d: %w", l.data, off, err)
	}
	for len(p) > 0 {
		n, here := l.run(off, int64(len(p)))
		if err := l.readRun(p[:n], off, here); err != nil {
			return err
		}
		p, off = p[n:], off+n
	}
	return nil
}

func (l *layer) readRun(p []byte, off int64, here bool) error {
	if !here {
		return l.parent.readThrough(p, off)
	}
	f, err := l.handle()
	if err != nil {
		return err
	}
	n, err := f.ReadAt(p, off+deltaHeader)
	if n < len(p) && !errors.Is(err, io.EOF) {
		return fmt.Errorf("reading %s: %w", l.data, err)
	}
	clear(p[n:])
	return nil
}

// readThrough reads past the end of a parent that is smaller as zeros: the disk
// was enlarged in the delta.
func (l *layer) readThrough(p []byte, off int64) error {
	n := max(0, min(int64(len(p)), l.size-off))
	clear(p[n:])
	if n == 0 {
		return nil
	}
	return l.read(p[:n], off)
}

// run is how far from off the grains are all here, or all not.
func (l *layer) run(off, most int64) (n int64, here bool) {
	l.mu.RLock()
	defer l.mu.RUnlock()
	here = l.has(off / grain)
	end := off + most
	for at := (off/grain + 1) * grain; at < end; at += grain {
		if l.has(at/grain) != here {
			return at - off, here
		}
	}
	return most, here
}

func (l *layer) has(g int64) bool { return l.grains[g/16]>>(g%16)&1 == 1 }

// WriteAt writes to this layer, which nobody may stand on.
func (l *layer) WriteAt(p []byte, off int64) (int, error) {
	if off < 0 || off+int64(len(p)) > l.size {
		return 0, fmt.Errorf("writing %d bytes at %d of a disk of %d", len(p), off, l.size)
	}
	f, err := l.handle()
	if err != nil {
		return 0, err
	}
	if !l.delta() {
		return f.WriteAt(p, off)
	}
	// Grains that are written in part take the rest from below. Nobody else
	// writes to a delta meanwhile: see vdisk.writeLocked.
	first, last := off/grain*grain, min((off+int64(len(p))+grain-1)/grain*grain, l.size)
	whole := make([]byte, last-first)
	if err := l.read(whole, first); err != nil {
		return 0, err
	}
	copy(whole[off-first:], p)
	if _, err := f.WriteAt(whole, first+deltaHeader); err != nil {
		return 0, err
	}
	l.mu.Lock()
	for g := first / grain; g*grain < last; g++ {
		l.grains[g/16] |= 1 << (g % 16)
	}
	l.mu.Unlock()
	return len(p), nil
}

// extent is a run of bytes of a disk.
type extent struct{ off, length int64 }

// allocated is what the chain has, in order: whole where the file system does
// not tell.
func (l *layer) allocated() ([]extent, error) {
	blocks := map[int64]bool{}
	for at := l; at != nil; at = at.parent {
		if at.delta() {
			at.mu.RLock()
			for b, mask := range at.grains {
				if bits.OnesCount16(mask) > 0 {
					blocks[b] = true
				}
			}
			at.mu.RUnlock()
			continue
		}
		f, err := at.handle()
		if err != nil {
			return nil, err
		}
		lf, ok := f.(localFile)
		if !ok {
			return []extent{{0, l.size}}, nil
		}
		if err := dataBlocks(lf, at.size, blocks); err != nil {
			return nil, err
		}
	}
	return joinBlocks(slices.Sorted(maps.Keys(blocks)), l.size), nil
}

// Whence values of lseek(2) for sparse files.
const (
	seekData = 3
	seekHole = 4
)

func dataBlocks(f localFile, size int64, into map[int64]bool) error {
	for off := int64(0); off < size; {
		start, err := syscall.Seek(int(f.Fd()), off, seekData)
		if errors.Is(err, syscall.ENXIO) {
			return nil
		}
		if err != nil {
			return err
		}
		end, err := syscall.Seek(int(f.Fd()), start, seekHole)
		if err != nil {
			return err
		}
		for b := start / block; b*block < end; b++ {
			into[b] = true
		}
		off = end
	}
	return nil
}

// joinBlocks turns block numbers, sorted, into runs that end with the disk.
func joinBlocks(blocks []int64, size int64) []extent {
	var runs []extent
	for _, b := range blocks {
		off, n := b*block, int64(block)
		if off >= size {
			break
		}
		n = min(n, size-off)
		if k := len(runs) - 1; k >= 0 && runs[k].off+runs[k].length == off {
			runs[k].length += n
			continue
		}
		runs = append(runs, extent{off, n})
	}
	return runs
}

// blocksOf are the numbers of the blocks that a range touches.
func blocksOf(off, n int64, each func(b int64)) {
	for b := off / block; n > 0 && b*block < off+n; b++ {
		each(b)
	}
}

// grow makes a base larger: the extent and what the descriptor says of it.
func (l *layer) grow(size int64) error {
	if size%512 != 0 || size < l.size {
		return fmt.Errorf("a disk cannot have %d bytes", size)
	}
	f, err := l.handle()
	if err != nil {
		return err
	}
	text, err := readFile(l.at.ds.vol, l.at.path, 1<<20)
	if err != nil {
		return err
	}
	desc, err := disk.ParseDescriptor(text)
	if err != nil {
		return err
	}
	desc.Extents[0].Sectors = size / disk.SectorSize
	if text, err = desc.Encode(); err != nil {
		return err
	}
	if err := f.Truncate(size); err != nil {
		return err
	}
	if err := writeFile(l.at.ds.vol, l.at.path, text); err != nil {
		return err
	}
	l.size = size
	return nil
}
