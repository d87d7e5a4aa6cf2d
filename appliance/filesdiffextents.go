package appliance

import (
	"cmp"
	"iter"
	"slices"

	"lifeboat/disk"
)

// Sets of ranges: ascending, without overlap.

func sorted(list []disk.Extent) []disk.Extent {
	slices.SortFunc(list, func(a, b disk.Extent) int { return cmp.Compare(a.Offset, b.Offset) })
	return list
}

// union is what is in a or b. Each has to be in order, and may have overlaps.
func union(a, b []disk.Extent) []disk.Extent {
	var out []disk.Extent
	for len(a) > 0 || len(b) > 0 {
		if len(a) == 0 || len(b) > 0 && b[0].Offset < a[0].Offset {
			a, b = b, a
		}
		e := disk.Extent{Offset: a[0].Offset, Length: a[0].Length}
		a = a[1:]
		if n := len(out); n > 0 && out[n-1].End() >= e.Offset {
			out[n-1].Length = max(out[n-1].End(), e.End()) - out[n-1].Offset
			continue
		}
		out = append(out, e)
	}
	return out
}

// intersect is what is in both.
func intersect(a, b []disk.Extent) []disk.Extent {
	var out []disk.Extent
	for len(a) > 0 && len(b) > 0 {
		from, to := max(a[0].Offset, b[0].Offset), min(a[0].End(), b[0].End())
		if from < to {
			out = append(out, disk.Extent{Offset: from, Length: to - from})
		}
		if a[0].End() < b[0].End() {
			a = a[1:]
		} else {
			b = b[1:]
		}
	}
	return out
}

// subtract is what is in a and not in b.
func subtract(a, b []disk.Extent) []disk.Extent {
	var out []disk.Extent
	for _, e := range a {
		off := e.Offset
		for len(b) > 0 && b[0].End() <= off {
			b = b[1:]
		}
		for _, x := range b {
			if x.Offset >= e.End() {
				break
			}
			if x.Offset > off {
				out = append(out, disk.Extent{Offset: off, Length: x.Offset - off})
			}
			off = max(off, x.End())
		}
		if off < e.End() {
			out = append(out, disk.Extent{Offset: off, Length: e.End() - off})
		}
	}
	return out
}

// pieces cuts ranges, at multiples of size.
func pieces(list []disk.Extent, size int64) iter.Seq[disk.Extent] {
	return func(yield func(disk.Extent) bool) {
		for _, e := range list {
			for off := e.Offset; off < e.End(); {
				n := min(size-off%size, e.End()-off)
				if !yield(disk.Extent{Offset: off, Length: n}) {
					return
				}
				off += n
			}
		}
	}
}
