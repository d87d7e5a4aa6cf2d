package dedupe

import (
	"cmp"
	"context"
	"encoding/binary"
	"errors"
	"fmt"
	"io"
	"slices"
	"syscall"

	"lifeboat/store/backend"
	"lifeboat/store/internal/segment"
)

// DamageError says which part of a run is not what was written.
type DamageError struct {
	Object string
	Offset int64 // bytes from the start of the object
	Length int64
	Reason string
}

func (e *DamageError) Error() string {
	return fmt.Sprintf("dedupe index: object %s is damaged at offset %d (%d bytes): %s", e.Object, e.Offset, e.Length, e.Reason)
}

// run is an open run. It is immutable and safe for concurrent use.
type run struct {
	id       runID
	obj      backend.Object
	seal     seal
	stamp    int64
	entries  int
	parts    []*partition // ascending; nil where the summary is damaged
	starts   []uint64     // the first 8 bytes of each one's first identity, close together
	offsets  []int64      // of each one, in the object
	replaces []runID
}

func (r *run) damage(offset, length int64, reason string) *DamageError {
	return &DamageError{r.id.object(), offset, length, reason}
}

// opening says how to open a run.
type opening struct {
	// damaged hears what is wrong with a summary; the run is of use without it.
	damaged func(*DamageError)
	// replaces, if not nil, hears what the run replaces before its summaries
	// take memory.
	replaces func([]runID)
	// blind leaves the filters out.
	blind bool
	// each, if not nil, is called for each partition as it is opened, with its
	// filter, which is not kept.
	each func(*run, *partition) error
}

// openRun reads trailer and directory of a run, and its summaries too.
func openRun(ctx context.Context, b backend.Backend, keys Keys, id runID, o opening) (*run, error) {
	obj, err := b.Open(ctx, id.object())
	if err != nil {
		return nil, err
	}
	r := &run{id: id, obj: obj}
	dir, err := r.readDirectory(keys)
	if err == nil && o.replaces != nil {
		o.replaces(r.replaces)
	}
	if err == nil {
		err = r.readSummaries(dir, o)
	}
	if err != nil {
		return nil, errors.Join(err, obj.Close())
	}
	return r, nil
}

// place is a partition as the directory has it.
type place struct {
	pages, entries, summary int
}

func (r *run) readDirectory(keys Keys) ([]place, error) {
	size := r.obj.Size()
	if size < trailerSize {
		return nil, r.damage(0, size, "it is too short for a run")
	}
	trailer := make([]byte, trailerSize)
	if err := r.read(trailer, size-trailerSize); err != nil {
		return nil, err
	}
	bad := func(reason string) error { return r.damage(size-trailerSize, trailerSize, reason) }
	if string(trailer[56:]) != magic || binary.LittleEndian.Uint32(trailer[44:]) != version {
		return nil, bad("it does not end like a run of version 1")
	}
	offset, length := int64(binary.LittleEndian.Uint64(trailer[32:])), int64(binary.LittleEndian.Uint32(trailer[40:]))
	if length > maxDirectory || length < directoryHead+tagSize || offset != size-trailerSize-length {
		return nil, bad("its directory cannot be where it says")
	}
	sealed := make([]byte, length)
	if err := r.read(sealed, offset); err != nil {
		return nil, err
	}
	var err error
	if r.seal, err = newSeal(keys, trailer[:saltSize]); err != nil {
		return nil, err
	}
	plain, err := r.seal.open(directoryKind, 0, sealed, append(trailer, r.id.object()...))
	var places []place
	if err == nil {
		places, err = r.parseDirectory(plain, offset)
	}
	if err != nil {
		return nil, r.damage(offset, size-offset, "directory: "+err.Error())
	}
	return places, nil
}

// parseDirectory checks that what the directory describes fills the object up
// to the directory's offset, so that nothing that it says makes us read or
// allocate more than is there.
func (r *run) parseDirectory(b []byte, end int64) ([]place, error) {
	r.stamp = int64(binary.LittleEndian.Uint64(b))
	total := binary.LittleEndian.Uint64(b[8:])
	n, replaced := int64(binary.LittleEndian.Uint32(b[16:])), int64(binary.LittleEndian.Uint32(b[20:]))
	if n < 1 || n > maxPartitions || replaced > maxReplaced || int64(len(b)) != directoryHead+n*directoryPart+replaced*8 {
		return nil, fmt.Errorf("%d partitions and %d replaced runs do not fit %d bytes", n, replaced, len(b))
	}
	places := make([]place, n)
	var offset int64
	for i := range places {
		e := b[directoryHead+i*directoryPart:]
		p := place{int(binary.LittleEndian.Uint32(e)), int(binary.LittleEndian.Uint32(e[4:])), int(binary.LittleEndian.Uint32(e[8:]))}
		last := i == len(places)-1
		if err := p.check(last); err != nil {
			return nil, fmt.Errorf("partition %d: %w", i, err)
		}
		places[i] = p
		r.offsets = append(r.offsets, offset)
		r.entries += p.entries
		offset += int64(p.pages)*pageSize + int64(p.summary)
	}
	if offset != end || uint64(r.entries) != total {
		return nil, fmt.Errorf("its partitions end at %d and have %d entries", offset, r.entries)
	}
	for e := b[directoryHead+n*directoryPart:]; len(e) > 0; e = e[8:] {
		r.replaces = append(r.replaces, runID(binary.LittleEndian.Uint64(e)))
	}
	return places, nil
}

func (p place) check(last bool) error {
	if p.pages < 1 || p.pages > partitionPages || !last && p.pages != partitionPages {
		return fmt.Errorf("%d pages are impossible", p.pages)
	}
	if p.entries > p.pages*pageEntries || p.entries <= (p.pages-1)*pageEntries || !last && p.entries != p.pages*pageEntries {
		return fmt.Errorf("%d entries in %d pages are impossible", p.entries, p.pages)
	}
	if p.summary < pageSize || p.summary%pageSize != 0 || p.summary > maxSummary(p.entries) {
		return fmt.Errorf("a summary of %d bytes is impossible", p.summary)
	}
	return nil
}

func (r *run) readSummaries(places []place, o opening) error {
	var buf []byte
	for i, pl := range places {
		buf = slices.Grow(buf[:0], pl.summary)[:pl.summary]
		at := r.offsets[i] + int64(pl.pages)*pageSize
		err := r.read(buf, at)
		if err != nil && !errors.As(err, new(*DamageError)) {
			return err
		}
		var p *partition
		if err == nil {
			p, err = r.openSummary(i, pl, buf, !o.blind)
		}
		if err != nil {
			o.damaged(r.damage(at, int64(pl.summary), fmt.Sprintf("summary of partition %d: %v", i, err)))
			p = nil
		}
		if p != nil && o.each != nil {
			if err := o.each(r, p); err != nil {
				return err
			}
			p.filter = nil
		}
		r.addPartition(p)
	}
	return nil
}

func (r *run) openSummary(i int, pl place, sealed []byte, lookups bool) (*partition, error) {
	plain, err := r.seal.open(summaryKind, i, sealed, nil)
	if err != nil {
		return nil, err
	}
	p, err := decodePartition(plain, pl.pages, pl.entries, lookups)
	if err != nil {
		return nil, err
	}
	if i > 0 && r.starts[i-1] > binary.BigEndian.Uint64(p.first[:]) {
		return nil, errors.New("it is out of order")
	}
	p.offset, p.page = r.offsets[i], i*partitionPages
	return p, nil
}

// addPartition keeps starts ascending; a damaged partition takes that of the
// one before.
func (r *run) addPartition(p *partition) {
	var start uint64
	if p != nil {
		start = binary.BigEndian.Uint64(p.first[:])
	} else if len(r.starts) > 0 {
		start = r.starts[len(r.starts)-1]
	}
	r.parts, r.starts = append(r.parts, p), append(r.starts, start)
}

func bytesCompare(a, b segment.Identity) int {
	x, y := binary.BigEndian.Uint64(a[:]), binary.BigEndian.Uint64(b[:])
	if x == y {
		x, y = binary.BigEndian.Uint64(a[8:]), binary.BigEndian.Uint64(b[8:])
	}
	return cmp.Compare(x, y)
}

// find is the partition that id can be in, or nil. In the place of one that is
// damaged it gives the one before, which does no harm.
func (r *run) find(id segment.Identity) *partition {
	hi := binary.BigEndian.Uint64(id[:])
	from, to := 0, len(r.starts) // the first partition that begins after id
	for from < to {
		if mid := (from + to) / 2; r.starts[mid] <= hi {
			from = mid + 1
		} else {
			to = mid
		}
	}
	for i := from - 1; i >= 0; i-- {
		if p := r.parts[i]; p != nil && (r.starts[i] < hi || bytesCompare(p.first, id) <= 0) {
			return p
		}
	}
	return nil
}

// lookup finds the address of id. An error is a damaged page or one that could
// not be read; id may be in it.
func (r *run) lookup(id segment.Identity, key uint64) (segment.Addr, bool, error) {
	p := r.find(id)
	if p == nil || !p.mayHold(key) {
		return 0, false, nil
	}
	s := r.seal.pool.Get().(*scratch)
	defer r.seal.pool.Put(s)
	// More than one candidate is an identity whose page, or the one before,
	// begins with the same four bytes: the later page is the likely one.
	var failed error
	for from, to := p.candidates(fence(id)); from <= to; {
		page := (from + to + 1) / 2
		entries, err := r.readPage(p, page, s)
		if err != nil {
			failed, to = err, page-1
			continue
		}
		last := entries[len(entries)-entrySize:]
		switch {
		case bytesCompare(id, segment.Identity(entries[:16])) < 0:
			to = page - 1
		case bytesCompare(id, segment.Identity(last[:16])) > 0:
			from = page + 1
		default:
			addr, ok := searchPage(entries, id)
			return addr, ok, nil
		}
	}
	return 0, false, failed
}

func searchPage(entries []byte, id segment.Identity) (segment.Addr, bool) {
	lo, hi := 0, len(entries)/entrySize
	for lo < hi {
		mid := (lo + hi) / 2
		if bytesCompare(segment.Identity(entries[mid*entrySize:][:16]), id) < 0 {
			lo = mid + 1
		} else {
			hi = mid
		}
	}
	if lo*entrySize == len(entries) {
		return 0, false
	}
	e := getEntry(entries[lo*entrySize:])
	return e.Addr, e.ID == id
}

// readPage reads the i-th page of a partition into s and returns its entries,
// at least one.
func (r *run) readPage(p *partition, i int, s *scratch) ([]byte, error) {
	at := p.offset + int64(i)*pageSize
	if n, ok := r.obj.(backend.NoWaitReader); !ok || !n.ReadAtNoWait(s.page[:], at) {
		if err := r.read(s.page[:], at); err != nil {
			return nil, err
		}
	}
	return r.openPage(p, i, s.page[:], &s.nonce)
}

// openPage opens a page in place.
func (r *run) openPage(p *partition, i int, sealed []byte, nonce *[12]byte) ([]byte, error) {
	binary.LittleEndian.PutUint32(nonce[:], uint32(pageKind))
	binary.LittleEndian.PutUint64(nonce[4:], uint64(p.page+i))
	plain, err := r.seal.aead.Open(sealed[:0], nonce[:], sealed, nil)
	if err != nil {
		return nil, r.damage(p.offset+int64(i)*pageSize, pageSize, fmt.Sprintf("page %d: %v", p.page+i, errAuth))
	}
	return plain[:p.inPage(i)*entrySize], nil
}

func (r *run) memory() int {
	n := 0
	for _, p := range r.parts {
		if p != nil {
			n += p.memory()
		}
	}
	return n
}

// read fills p from off. What the medium has lost (EIO) is damage; other
// failures may pass.
func (r *run) read(p []byte, off int64) error {
	n, err := r.obj.ReadAt(p, off)
	switch {
	case n == len(p):
		return nil
	case errors.Is(err, syscall.EIO):
		return r.damage(off, int64(len(p)), err.Error())
	}
	return fmt.Errorf("read %s: %w", r.id.object(), cmp.Or(err, io.ErrUnexpectedEOF))
}
