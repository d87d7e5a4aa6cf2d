package appliance

import (
	"cmp"
	"context"
	"fmt"
	"io"
	"iter"
	"slices"

	"lifeboat/disk"
)

// areas are bytes of a disk: ascending runs that neither touch nor overlap.
type areas []disk.Extent

// areasOf puts runs in any order in shape, cut to a disk of size bytes.
func areasOf(runs []disk.Extent, size int64) areas {
	sorted := make(areas, 0, len(runs))
	for _, e := range runs {
		from, to := max(e.Offset, 0), size
		if e.Offset < 0 || e.Length < size-e.Offset { // without running over
			to = min(e.End(), size)
		}
		if from < to {
			sorted = append(sorted, disk.Extent{Offset: from, Length: to - from})
		}
	}
	slices.SortFunc(sorted, func(a, b disk.Extent) int { return cmp.Compare(a.Offset, b.Offset) })
	out := sorted[:0]
	for _, e := range sorted {
		if n := len(out); n > 0 && e.Offset <= out[n-1].End() {
			out[n-1].Length = max(out[n-1].End(), e.End()) - out[n-1].Offset
			continue
		}
		out = append(out, e)
	}
	return out
}

// union is what is in a or in b.
func (a areas) union(b areas) areas {
	return areasOf(slices.Concat(a, b), maxOffset)
}

// maxOffset is more than any disk has.
const maxOffset = 1 << 62

// without is what is in a and not in b.
func (a areas) without(b areas) areas {
	var out areas
	i := 0
	for _, e := range a {
		at := e.Offset
		for i < len(b) && b[i].End() <= at {
			i++
		}
		for j := i; j < len(b) && b[j].Offset < e.End(); j++ {
			if b[j].Offset > at {
				out = append(out, disk.Extent{Offset: at, Length: b[j].Offset - at})
			}
			at = max(at, b[j].End())
		}
		if at < e.End() {
			out = append(out, disk.Extent{Offset: at, Length: e.End() - at})
		}
	}
	return out
}

// differing is what is in one of the two.
func (a areas) differing(b areas) areas { return a.without(b).union(b.without(a)) }

// outside is the rest of a disk of size bytes.
func (a areas) outside(size int64) areas {
	if size <= 0 {
		return nil
	}
	return areas{{Length: size}}.without(a)
}

// widened is a in whole blocks.
func (a areas) widened(block, size int64) areas {
	out := make([]disk.Extent, 0, len(a))
	for _, e := range a {
		from := e.Offset / block * block
		to := min((e.End()+block-1)/block*block, size)
		out = append(out, disk.Extent{Offset: from, Length: to - from})
	}
	return areasOf(out, size)
}

// bytes is how many there are.
func (a areas) bytes() int64 {
	var n int64
	for _, e := range a {
		n += e.Length
	}
	return n
}

// from is the index of the first run that ends behind off.
func (a areas) from(off int64) int {
	i, _ := slices.BinarySearchFunc(a, off, func(e disk.Extent, off int64) int {
		if e.End() <= off {
			return -1
		}
		return 1
	})
	return i
}

// within is those that touch n bytes from off on, uncut.
func (a areas) within(off, n int64) areas {
	i := a.from(off)
	j := i
	for j < len(a) && a[j].Offset < off+n {
		j++
	}
	return a[i:j]
}

// masked is a disk with holes in it that are not the disk's own.
type masked struct {
	disk.Image
	holes areas
	// zero: what is in the holes reads as zeros. Otherwise they are holes in the
	// map only, which is a promise that the disk has zeros there.
	zero bool
}

// ReadAt implements io.ReaderAt.
func (m *masked) ReadAt(p []byte, off int64) (int, error) {
	if !m.zero || off < 0 || off >= m.Size() {
		return m.Image.ReadAt(p, off)
	}
	var short error
	if int64(len(p)) > m.Size()-off {
		p, short = p[:m.Size()-off], io.EOF
	}
	done := 0
	for i := m.holes.from(off); done < len(p); {
		at := off + int64(done)
		rest := p[done:]
		if i < len(m.holes) && m.holes[i].Offset <= at {
			n := min(int64(len(rest)), m.holes[i].End()-at)
			clear(rest[:n])
			done += int(n)
			i++
			continue
		}
		if i < len(m.holes) {
			rest = rest[:min(int64(len(rest)), m.holes[i].Offset-at)]
		}
		n, err := m.Image.ReadAt(rest, at)
		done += n
		if n < len(rest) {
			if err == nil {
				err = fmt.Errorf("read at %d: %w", at, io.ErrUnexpectedEOF)
			}
			return done, err
		}
	}
	return done, short
}

// Extents implements disk.Mapper: the disk's own holes and ours.
func (m *masked) Extents(ctx context.Context, within disk.Extent) iter.Seq2[disk.Extent, error] {
	return func(yield func(disk.Extent, error) bool) {
		for e, err := range disk.Extents(ctx, m.Image, within) {
			if err != nil {
				yield(e, err)
				return
			}
			for _, part := range m.cut(e) {
				if !yield(part, nil) {
					return
				}
			}
		}
	}
}

// cut divides a run of the disk where our holes begin and end.
func (m *masked) cut(e disk.Extent) []disk.Extent {
	if e.Hole {
		return []disk.Extent{e}
	}
	var out []disk.Extent
	at := e.Offset
	for i := m.holes.from(at); i < len(m.holes) && m.holes[i].Offset < e.End(); i++ {
		h := m.holes[i]
		if h.Offset > at {
			out = append(out, disk.Extent{Offset: at, Length: h.Offset - at})
			at = h.Offset
		}
		end := min(h.End(), e.End())
		out = append(out, disk.Extent{Offset: at, Length: end - at, Hole: true})
		at = end
	}
	if at < e.End() {
		out = append(out, disk.Extent{Offset: at, Length: e.End() - at})
	}
	return out
}
