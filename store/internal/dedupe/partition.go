package dedupe

import (
	"bytes"
	"encoding/binary"
	"errors"
	"fmt"
	"slices"
	"sort"

	"github.com/FastFilter/xorfilter"

	"lifeboat/store/internal/segment"
)

// partition is what is kept in memory of up to 4096 pages: some 1.17 bytes an
// entry. A filter says which identities are certainly not there; the fences
// say which page another one is in.
type partition struct {
	first   segment.Identity
	offset  int64 // of its first page, in the object
	page    int   // number of its first page, in the run
	entries int
	fences  []uint32
	filter  *filter // nil: see run.blind
}

func (p *partition) pages() int { return len(p.fences) }

// inPage is the number of entries in its i-th page.
func (p *partition) inPage(i int) int { return min(pageEntries, p.entries-i*pageEntries) }

// candidates is the range of pages that can hold an identity with this fence,
// both ends included. Without another fence of the same value it is one page.
func (p *partition) candidates(f uint32) (from, to int) {
	from = p.search(f)
	to = from
	for to < len(p.fences) && p.fences[to] == f {
		to++
	}
	return max(from-1, 0), max(to-1, 0)
}

// search is the first page whose fence is at least f. Identities are uniform,
// so it interpolates and walks the few steps that are left; where that is not
// true, it halves.
func (p *partition) search(f uint32) int {
	n := len(p.fences)
	low, high := p.fences[0], p.fences[n-1]
	if f <= low {
		return 0
	}
	if f > high {
		return n
	}
	i := int(uint64(f-low) * uint64(n-1) / uint64(high-low))
	for range 16 {
		switch {
		case p.fences[i] < f:
			i++
		case p.fences[i-1] >= f: // i > 0, for fences[0] < f
			i--
		default:
			return i
		}
	}
	return sort.Search(n, func(i int) bool { return p.fences[i] >= f })
}

// encode is the summary's plaintext.
func (p *partition) encode() []byte {
	size := summaryFixed + 4*len(p.fences) + len(p.filter.Fingerprints) + tagSize
	size = (size+pageSize-1)/pageSize*pageSize - tagSize
	b := make([]byte, summaryFixed, size)
	copy(b, p.first[:])
	binary.LittleEndian.PutUint32(b[16:], uint32(len(p.fences)))
	binary.LittleEndian.PutUint32(b[20:], uint32(p.entries))
	binary.LittleEndian.PutUint64(b[24:], p.filter.Seed)
	binary.LittleEndian.PutUint32(b[32:], p.filter.SegmentLength)
	binary.LittleEndian.PutUint32(b[36:], p.filter.SegmentCount)
	for _, f := range p.fences {
		b = binary.LittleEndian.AppendUint32(b, f)
	}
	return append(b, p.filter.Fingerprints...)[:size]
}

// maxSummary bounds the size of a sealed summary with so many entries.
func maxSummary(entries int) int {
	return summaryFixed + 4*partitionPages + 2*entries + 4096 + pageSize
}

// decodePartition parses a summary of which the directory has said how many
// pages and entries it is about. It checks all that reading relies on, so
// that not even a summary with the right seal can make it go out of bounds.
// Without lookups it keeps no filter.
func decodePartition(b []byte, pages, entries int, lookups bool) (*partition, error) {
	if len(b) < summaryFixed+4*pages {
		return nil, fmt.Errorf("%d bytes are too few", len(b))
	}
	p := &partition{first: segment.Identity(b[:16]), entries: entries, fences: make([]uint32, pages)}
	if int(binary.LittleEndian.Uint32(b[16:])) != pages || int(binary.LittleEndian.Uint32(b[20:])) != entries {
		return nil, errors.New("it is about other pages")
	}
	for i := range p.fences {
		p.fences[i] = binary.LittleEndian.Uint32(b[summaryFixed+4*i:])
	}
	if !slices.IsSorted(p.fences) || p.fences[0] != fence(p.first) {
		return nil, errors.New("its pages are out of order")
	}
	length, count := binary.LittleEndian.Uint32(b[32:]), binary.LittleEndian.Uint32(b[36:])
	rest := b[summaryFixed+4*pages:]
	if length == 0 || length > maxSegment || length&(length-1) != 0 || count == 0 ||
		uint64(count+2)*uint64(length) > uint64(len(rest)) || count > 1<<30 {
		return nil, fmt.Errorf("a filter of %d segments of %d bytes is impossible", count, length)
	}
	size := (count + 2) * length
	if len(bytes.Trim(rest[size:], "\x00")) > 0 {
		return nil, errors.New("its padding is not zero")
	}
	if !lookups {
		return p, nil
	}
	p.filter = keepFilter(xorfilter.BinaryFuse[uint8]{
		Seed: binary.LittleEndian.Uint64(b[24:]), SegmentLength: length, SegmentLengthMask: length - 1,
		SegmentCount: count, SegmentCountLength: count * length, Fingerprints: rest[:size],
	})
	return p, nil
}

// memory is what it occupies, in bytes.
func (p *partition) memory() int {
	n := 4 * cap(p.fences)
	if p.filter != nil {
		n += cap(p.filter.Fingerprints)
	}
	return n
}
