package dedupe

import (
	"runtime"

	"github.com/FastFilter/xorfilter"
	"golang.org/x/sys/unix"
)

// filter says which identities are certainly not in a partition. Filters are
// nearly all that an open index takes of memory: 1.9 GB for 100 TiB. They live
// outside Go's heap, which the collector would otherwise let grow by half of
// them before it looks, and go back to the system when nobody holds the filter
// any more.
type filter struct {
	xorfilter.BinaryFuse[uint8]
}

// offHeap is from which size on a filter is worth a mapping of its own, in
// bytes.
const offHeap = 64 << 10

// keepFilter is f with fingerprints of its own in the place of those it has.
func keepFilter(f xorfilter.BinaryFuse[uint8]) *filter {
	kept := &filter{f}
	n := len(f.Fingerprints)
	if n >= offHeap {
		region, err := unix.Mmap(-1, 0, n, unix.PROT_READ|unix.PROT_WRITE, unix.MAP_ANON|unix.MAP_PRIVATE)
		if err == nil {
			kept.Fingerprints = region
			// An error would mean that it is not mapped.
			runtime.AddCleanup(kept, func(region []byte) { _ = unix.Munmap(region) }, region)
			copy(region, f.Fingerprints)
			return kept
		}
	}
	kept.Fingerprints = append(make([]uint8, 0, n), f.Fingerprints...)
	return kept
}

// mayHold reports false where an identity with that key is certainly not in the
// partition. Without a filter it may always be.
func (p *partition) mayHold(key uint64) bool {
	f := p.filter
	if f == nil {
		return true
	}
	ok := f.Contains(key)
	runtime.KeepAlive(f) // or its mapping could go while Contains reads it
	return ok
}

// blind is the run without its filters: every answer is right, and costs a page
// read.
func (r *run) blind() *run {
	b := *r
	b.parts = make([]*partition, len(r.parts))
	for i, p := range r.parts {
		if p != nil {
			q := *p
			q.filter = nil
			b.parts[i] = &q
		}
	}
	return &b
}

// blindRuns takes the filters from runs whose successor is about to be opened:
// otherwise a merge of the whole index would hold them twice.
func (x *Index) blindRuns(ids []runID) {
	gone := map[runID]bool{}
	for _, id := range ids {
		gone[id] = true
	}
	runs, freed := append([]*run(nil), *x.runs.Load()...), 0
	for i, r := range runs {
		if gone[r.id] {
			freed += r.memory()
			runs[i] = r.blind()
		}
	}
	x.runs.Store(&runs) // the objects are the same: none is retired
	if freed >= 64*offHeap {
		runtime.GC() // the heap is small, and this is once in a merge
	}
}
