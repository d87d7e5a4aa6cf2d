package appliance

import (
	"context"
	"errors"
	"fmt"
	"io"
	"iter"
	"os"
	"path/filepath"
	"slices"
	"sync"

	"lifeboat/disk"
	"lifeboat/store/overlay"
)

// liveDisk is a session's disk while a guest writes to it: the overlay, and at
// times a cut of it, the disk as it was at one moment. Of what the guest writes
// over after that moment, the cut saves the old content first:
//
//	write ── lock(read) ── has the cut this block? ── no: save it ── overlay
//
// A cut begins with every disk of a session locked for writing, so that all of
// them are of one moment: what a power failure would have left, which is what
// guests are made to survive.
//
// Lock order: liveDisk.mu, then a stripe of the cut, then cut.mu. Taking or
// dropping a cut holds mu for moments only, whatever the disk's size.
type liveDisk struct {
	*overlay.Overlay

	mu  sync.RWMutex // writers hold it for reading
	cut *diskCut     // nil for most of the time
}

// WriteAt implements disk.Device.
func (d *liveDisk) WriteAt(p []byte, off int64) (int, error) {
	d.mu.RLock()
	defer d.mu.RUnlock()
	d.cut.save(off, int64(len(p)))
	return d.Overlay.WriteAt(p, off)
}

// TryWriteAt implements disk.TryWriter: saving for a cut means waiting.
func (d *liveDisk) TryWriteAt(p []byte, off int64) (bool, error) {
	if !d.mu.TryRLock() {
		return false, nil
	}
	defer d.mu.RUnlock()
	if !d.cut.saved(off, int64(len(p))) {
		return false, nil
	}
	return d.Overlay.TryWriteAt(p, off)
}

// Zero implements disk.Zeroer.
func (d *liveDisk) Zero(off, length int64) error {
	d.mu.RLock()
	defer d.mu.RUnlock()
	d.cut.save(off, length)
	return d.Overlay.Zero(off, length)
}

// cutBlock is the unit in which old content is saved, bytes. It is a block of
// most repositories, which is what a keep reads.
const cutBlock = 64 << 10

// cutStripes is how many blocks can be saved or read at the same time.
const cutStripes = 64

// diskCut is a disk as it was when the cut began. It is a disk.Image; reading
// it costs the guest nothing but the device's time. Old content goes to a file
// without a name, which the kernel removes with the process.
//
// Invariant: a block that is not in at has not been written since the cut began,
// and is not while its stripe is held. So a reader that holds the stripe reads
// the old content from the overlay, or, later, from the file.
//
// Saving can fail (no room): then the cut is lost, never the guest's write.
type diskCut struct {
	disk *overlay.Overlay
	file *os.File

	stripes [cutStripes]sync.Mutex

	mu   sync.RWMutex
	at   map[int64]int64 // block → offset in file
	next int64
	err  error // the cut is lost
}

// errCutLost: a consistent view of a running disk could not be kept up.
var errCutLost = errors.New("the state of the running disk could not be kept")

func newDiskCut(d *overlay.Overlay, dir string) (*diskCut, error) {
	f, err := os.CreateTemp(dir, "cut-*")
	if err != nil {
		return nil, fmt.Errorf("%w: %w", errCutLost, err)
	}
	if err := os.Remove(f.Name()); err != nil {
		f.Close()
		return nil, fmt.Errorf("%w: %w", errCutLost, err)
	}
	return &diskCut{disk: d, file: f, at: map[int64]int64{}}, nil
}

// find says where a block's old content is; ok is false while it is still the
// overlay's.
func (c *diskCut) find(block int64) (pos int64, ok bool, err error) {
	c.mu.RLock()
	defer c.mu.RUnlock()
	pos, ok = c.at[block]
	return pos, ok, c.err
}

// saved reports whether [off, off+length) can be written without saving first.
// A nil receiver has nothing to save.
func (c *diskCut) saved(off, length int64) bool {
	if c == nil {
		return true
	}
	c.mu.RLock()
	defer c.mu.RUnlock()
	if c.err != nil {
		return true
	}
	for b := off / cutBlock; b*cutBlock < off+length; b++ {
		if _, ok := c.at[b]; !ok {
			return false
		}
	}
	return true
}

// save keeps the old content of the blocks that [off, off+length) touches.
func (c *diskCut) save(off, length int64) {
	if c == nil || off < 0 {
		return
	}
	end := min(off+length, c.disk.Size())
	var buf []byte
	for b := off / cutBlock; b*cutBlock < end; b++ {
		if _, ok, err := c.find(b); ok || err != nil {
			continue
		}
		if buf == nil {
			buf = make([]byte, cutBlock)
		}
		c.saveBlock(b, buf)
	}
}

func (c *diskCut) saveBlock(b int64, buf []byte) {
	stripe := &c.stripes[b%cutStripes]
	stripe.Lock()
	defer stripe.Unlock()
	if _, ok, err := c.find(b); ok || err != nil {
		return
	}
	old := buf[:min(cutBlock, c.disk.Size()-b*cutBlock)]
	err := readFull(c.disk, old, b*cutBlock)
	c.mu.Lock()
	pos := c.next
	c.next += cutBlock
	c.mu.Unlock()
	if err == nil {
		_, err = c.file.WriteAt(old, pos)
	}
	c.mu.Lock()
	defer c.mu.Unlock()
	if err != nil {
		c.err = fmt.Errorf("%w: %w", errCutLost, err)
		return
	}
	c.at[b] = pos
}

// readFull reads all of p; the end of the disk is no error when p ends there.
func readFull(r io.ReaderAt, p []byte, off int64) error {
	n, err := r.ReadAt(p, off)
	if n == len(p) && errors.Is(err, io.EOF) {
		return nil
	}
	return err
}

// Size implements disk.Image.
func (c *diskCut) Size() int64 { return c.disk.Size() }

// ReadAt implements disk.Image.
func (c *diskCut) ReadAt(p []byte, off int64) (int, error) {
	if off < 0 {
		return 0, disk.ErrOutOfRange
	}
	done := 0
	for done < len(p) {
		at := off + int64(done)
		if at >= c.Size() {
			return done, io.EOF
		}
		within := at % cutBlock
		piece := p[done:]
		piece = piece[:min(int64(len(piece)), cutBlock-within, c.Size()-at)]
		if err := c.readBlock(at/cutBlock, piece, within); err != nil {
			return done, err
		}
		done += len(piece)
	}
	return done, nil
}

func (c *diskCut) readBlock(b int64, p []byte, within int64) error {
	stripe := &c.stripes[b%cutStripes]
	stripe.Lock()
	defer stripe.Unlock()
	pos, ok, err := c.find(b)
	if err != nil {
		return err
	}
	if ok {
		_, err := c.file.ReadAt(p, pos+within)
		return err
	}
	return readFull(c.disk, p, b*cutBlock+within)
}

// Extents implements disk.Mapper. What is a hole now was one at the cut unless its
// block was saved: whoever made the hole has saved before.
func (c *diskCut) Extents(ctx context.Context, within disk.Extent) iter.Seq2[disk.Extent, error] {
	return func(yield func(disk.Extent, error) bool) {
		for e, err := range c.disk.Extents(ctx, within) {
			if err != nil || !e.Hole {
				if !yield(e, err) {
					return
				}
				continue
			}
			pos, end := e.Offset, e.End()
			for _, b := range c.savedIn(e) {
				from, to := max(b*cutBlock, e.Offset), min((b+1)*cutBlock, end)
				if from > pos && !yield(disk.Extent{Offset: pos, Length: from - pos, Hole: true}, nil) {
					return
				}
				if !yield(disk.Extent{Offset: from, Length: to - from}, nil) {
					return
				}
				pos = to
			}
			if pos < end && !yield(disk.Extent{Offset: pos, Length: end - pos, Hole: true}, nil) {
				return
			}
		}
	}
}

// savedIn lists the saved blocks that e touches, ascending.
func (c *diskCut) savedIn(e disk.Extent) []int64 {
	c.mu.RLock()
	defer c.mu.RUnlock()
	var blocks []int64
	for b := range c.at {
		if b*cutBlock < e.End() && (b+1)*cutBlock > e.Offset {
			blocks = append(blocks, b)
		}
	}
	slices.Sort(blocks)
	return blocks
}

// Close ends the cut; the disk must not save for it any more.
func (c *diskCut) Close() error { return c.file.Close() }

// takeCut makes a cut of all disks, of one moment. The function that it returns
// ends it.
func takeCut(disks []*liveDisk, dir string) (cuts []*diskCut, end func(), err error) {
	defer func() {
		if err != nil {
			for _, c := range cuts {
				c.Close()
			}
		}
	}()
	for _, d := range disks {
		c, err := newDiskCut(d.Overlay, filepath.Clean(dir))
		if err != nil {
			return cuts, nil, err
		}
		cuts = append(cuts, c)
	}
	swapCuts(disks, cuts)
	return cuts, func() {
		swapCuts(disks, make([]*diskCut, len(disks)))
		for _, c := range cuts {
			c.Close()
		}
	}, nil
}

// swapCuts gives every disk its cut while no disk is being written.
func swapCuts(disks []*liveDisk, cuts []*diskCut) {
	for _, d := range disks {
		d.mu.Lock()
	}
	for i, d := range disks {
		d.cut = cuts[i]
	}
	for _, d := range disks {
		d.mu.Unlock()
	}
}

func asImages(cuts []*diskCut) []disk.Image {
	images := make([]disk.Image, 0, len(cuts))
	for _, c := range cuts {
		images = append(images, c)
	}
	return images
}
