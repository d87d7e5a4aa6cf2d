package blockcache

import (
	"errors"
	"fmt"
	"io/fs"
	"log/slog"
	"os"
	"path/filepath"
	"sync"
	"sync/atomic"

	"github.com/zeebo/blake3"
	"golang.org/x/sys/unix"
)

// diskTier keeps chunks in slots of a sparse file. Which slot has which chunk is
// in memory, and in the index for the next start.
//
// A slot is overwritten in place: record taken out of memory, bytes written,
// record written, record put into memory. A reader copies the record under the
// lock, reads without it and checks the MAC; if the slot changed meanwhile, or
// a crash left a record with other bytes, the MAC does not fit and it is a miss.
//
// Eviction is a clock: the hand takes the first slot that was not asked for
// since it last came by, up to three times as often for what is asked for often.
type diskTier struct {
	slots    int64
	readOnly bool // another process writes
	log      *slog.Logger
	data     *os.File
	index    *os.File
	lock     *os.File
	corrupt  atomic.Int64

	mu      sync.Mutex
	records []record // of the slots used so far
	heat    []uint8  // up to maxHeat, or busy
	where   map[uint64]uint32
	hand    int
	puts    int
	failed  bool // a write failed: nothing more is stored
	gone    bool // the files were removed: they are to take no space
}

const (
	maxHeat = 3
	busy    = 255 // the slot is being written
	// maxSlots keeps slot numbers in 32 bits: 128 TiB.
	maxSlots = 1 << 31
)

// openDisk opens or makes the files in dir.
func openDisk(dir string, slots int64, key [32]byte, log *slog.Logger) (d *diskTier, err error) {
	d = &diskTier{slots: min(slots, maxSlots), log: log, where: make(map[uint64]uint32)}
	if err := os.MkdirAll(dir, 0o700); err != nil {
		return nil, err
	}
	defer func() {
		if err != nil {
			err = errors.Join(err, d.close())
			d = nil
		}
	}()
	if d.lock, err = openFile(dir, "lock"); err != nil {
		return d, err
	}
	switch err := unix.Flock(int(d.lock.Fd()), unix.LOCK_EX|unix.LOCK_NB); {
	case errors.Is(err, unix.EWOULDBLOCK):
		d.readOnly = true
		log.Info("the cache on local disk is in use by another process: it is read and not added to", "dir", dir)
	case err != nil:
		return d, fmt.Errorf("lock %s: %w", d.lock.Name(), err)
	}
	if d.data, err = openFile(dir, "blocks"); err != nil {
		return d, err
	}
	if d.index, err = openFile(dir, "index"); err != nil {
		return d, err
	}
	return d, d.load(newHasher(key))
}

// openFile opens or makes a file of ours: no link to one of somebody else.
func openFile(dir, name string) (*os.File, error) {
	return os.OpenFile(filepath.Join(dir, name), os.O_RDWR|os.O_CREATE|unix.O_NOFOLLOW, 0o600)
}

// load reads the index, and starts anew where it is not ours.
func (d *diskTier) load(h *blake3.Hasher) error {
	records, ok, err := readIndex(d.index, h, d.slots)
	if err != nil {
		return err
	}
	if !d.readOnly {
		if err := d.prepare(h, ok); err != nil {
			return err
		}
	}
	d.records, d.heat = records, make([]uint8, len(records))
	for i := range records {
		if r := &records[i]; r.length > 0 {
			d.where[r.id.hash()] = uint32(i)
		}
	}
	return nil
}

// prepare cuts the files to the size that they may have now.
func (d *diskTier) prepare(h *blake3.Hasher, ours bool) error {
	if !ours {
		if err := errors.Join(d.index.Truncate(0), d.data.Truncate(0)); err != nil {
			return err
		}
		b := header(h)
		if _, err := d.index.WriteAt(b[:], 0); err != nil {
			return err
		}
	}
	return errors.Join(cut(d.index, (d.slots+1)*recordSize), cut(d.data, d.slots*ChunkSize))
}

func cut(f *os.File, size int64) error {
	info, err := f.Stat()
	if err == nil && info.Size() > size {
		err = f.Truncate(size)
	}
	return err
}

// find returns the slot of a chunk. The caller has mu.
func (d *diskTier) find(id chunkID) (slot uint32, ok bool) {
	slot, ok = d.where[id.hash()]
	return slot, ok && d.records[slot].id == id
}

// has reports whether the chunk seems to be there.
func (d *diskTier) has(id chunkID) bool {
	d.mu.Lock()
	defer d.mu.Unlock()
	_, ok := d.find(id)
	return ok
}

// get reads a chunk.
func (d *diskTier) get(h *blake3.Hasher, id chunkID) (chunk, bool) {
	d.mu.Lock()
	slot, ok := d.find(id)
	if !ok {
		d.mu.Unlock()
		return chunk{}, false
	}
	rec := d.records[slot]
	if d.heat[slot] < maxHeat {
		d.heat[slot]++
	}
	d.mu.Unlock()
	data := make([]byte, rec.length)
	if _, err := d.data.ReadAt(data, int64(slot)*ChunkSize); err == nil && rec.same(h, data) {
		return chunk{data: data, size: rec.size}, true
	}
	d.mu.Lock()
	defer d.mu.Unlock()
	if d.records[slot] == rec { // not merely overwritten meanwhile
		d.corrupt.Add(1)
		d.unlink(slot)
	}
	return chunk{}, false
}

// put keeps a chunk, if nothing speaks against it, and reports whether it did.
func (d *diskTier) put(h *blake3.Hasher, id chunkID, ch chunk) bool {
	slot, ok := d.take(id)
	if !ok {
		return false
	}
	rec := record{id: id, length: uint32(len(ch.data)), size: ch.size}
	rec.mac = rec.seal(h, ch.data)
	b := rec.encode()
	_, err := d.data.WriteAt(ch.data, int64(slot)*ChunkSize)
	if err == nil {
		_, err = d.index.WriteAt(b[:], (int64(slot)+1)*recordSize)
	}
	d.mu.Lock()
	defer d.mu.Unlock()
	d.heat[slot] = 0
	if d.puts++; err == nil && (d.gone || d.puts%removedEvery == 0 && d.removed()) {
		// Their space is free only when we let go of it, whoever still writes.
		d.gone = true
		err = errors.Join(errRemoved, d.data.Truncate(0), d.index.Truncate(0))
	}
	if err != nil {
		d.fail(err)
		return false
	}
	d.records[slot] = rec
	d.where[id.hash()] = slot
	return true
}

// removedEvery is after how many chunks put checks that the files are there.
const removedEvery = 64

var errRemoved = errors.New("the files were removed")

// removed reports whether somebody removed the files.
func (d *diskTier) removed() bool {
	_, err := os.Lstat(d.data.Name())
	return errors.Is(err, fs.ErrNotExist)
}

// fail gives up writing. What is there is still read. The caller has mu.
func (d *diskTier) fail(err error) {
	if d.failed {
		return
	}
	d.failed = true
	d.log.Warn("the cache on local disk cannot be written: nothing more is kept there until the next start",
		"file", d.data.Name(), "error", err)
}

// take reserves a slot for a chunk that is not there yet.
func (d *diskTier) take(id chunkID) (uint32, bool) {
	d.mu.Lock()
	defer d.mu.Unlock()
	if _, ok := d.find(id); ok || d.readOnly || d.failed {
		return 0, false
	}
	if int64(len(d.records)) < d.slots {
		d.records, d.heat = append(d.records, record{}), append(d.heat, busy)
		return uint32(len(d.records) - 1), true
	}
	for range (maxHeat + 1) * len(d.records) {
		slot := uint32(d.hand)
		d.hand = (d.hand + 1) % len(d.records)
		switch heat := d.heat[slot]; heat {
		case busy:
		case 0:
			d.unlink(slot)
			d.heat[slot] = busy
			return slot, true
		default:
			d.heat[slot] = heat - 1
		}
	}
	return 0, false
}

// unlink empties a slot in memory; on disk it stays, and its MAC with it, which
// does no harm: it is what it says it is. The caller has mu.
func (d *diskTier) unlink(slot uint32) {
	rec := &d.records[slot]
	if at, ok := d.where[rec.id.hash()]; ok && at == slot {
		delete(d.where, rec.id.hash())
	}
	*rec = record{}
}

// drop forgets a chunk, for the next start too.
func (d *diskTier) drop(id chunkID) {
	d.mu.Lock()
	slot, ok := d.find(id)
	if ok {
		d.unlink(slot)
		ok = d.heat[slot] != busy
	}
	d.mu.Unlock()
	if ok && !d.readOnly {
		var empty [recordSize]byte
		_, _ = d.index.WriteAt(empty[:], (int64(slot)+1)*recordSize) // if not, a MAC or the next Forget says so
	}
}

func (d *diskTier) close() error {
	var errs []error
	for _, f := range []*os.File{d.data, d.index, d.lock} {
		if f != nil {
			errs = append(errs, f.Close())
		}
	}
	return errors.Join(errs...)
}
