package patch

import (
	"sort"

	"lifeboat/disk"
)

// PieceAt implements [disk.Piecewise]: what is not replaced stands in the volume,
// and so do replacements that are blocks of it.
func (m *Image) PieceAt(off int64) (disk.Piece, error) {
	number := off / m.size
	p := disk.Piece{Offset: off, Length: m.Size() - off, From: m.img, At: off}
	i := sort.Search(len(m.order), func(i int) bool { return m.order[i] >= number })
	if i == len(m.order) {
		return p, nil
	}
	if next := m.order[i]; next > number {
		p.Length = min(p.Length, next*m.size-off)
		return p, nil
	}
	within := off - number*m.size
	p.Length = min(p.Length, m.size-within)
	b := m.blocks[number]
	switch {
	case b.Data != nil || within < int64(len(b.Head)):
		p.From, p.At = inMemory{m}, off
		if b.Data == nil {
			p.Length = min(p.Length, int64(len(b.Head))-within)
		}
	default:
		p.At = b.At + within
	}
	return p, nil
}

// inMemory is the same disk without a way down.
type inMemory struct{ disk.Image }
