package appliance

import (
	"context"
	"errors"
	"fmt"
	"io"
	"iter"
	"maps"
	"slices"
	"sync"

	"lifeboat/disk"
	"lifeboat/store"
)

// salvageUnit is the piece of a disk that is given up when it cannot be read,
// bytes: a frame of a segment, the smallest piece that damage costs.
const salvageUnit = 16 << 10

// maxSalvage is how many units are given up at most: a disk of which 16 GiB are
// lost is better looked for elsewhere.
const maxSalvage = 1 << 20

// salvaged reads what can be read of a damaged disk, and zeros for the rest. It
// remembers where that was.
type salvaged struct {
	disk.Image

	mu   sync.Mutex
	lost map[int64]struct{} // offsets of units
}

func newSalvaged(img disk.Image) *salvaged {
	return &salvaged{Image: img, lost: make(map[int64]struct{})}
}

// ReadAt implements disk.Image. Errors other than damage are returned.
func (s *salvaged) ReadAt(p []byte, off int64) (int, error) {
	n, err := s.Image.ReadAt(p, off)
	if err == nil || !errors.Is(err, store.ErrDamaged) {
		return n, err
	}
	var eof error
	if room := s.Size() - off; int64(len(p)) > room {
		p, eof = p[:room], io.EOF
	}
	for done := 0; done < len(p); {
		at := off + int64(done)
		piece := p[done:min(len(p), done+int(salvageUnit-at%salvageUnit))]
		n, err := s.Image.ReadAt(piece, at)
		switch {
		case n == len(piece):
		case !errors.Is(err, store.ErrDamaged):
			return done + n, err
		case !s.give(at / salvageUnit * salvageUnit):
			return done, fmt.Errorf("too much is damaged to go on: %w", err)
		default:
			clear(piece)
		}
		done += len(piece)
	}
	return len(p), eof
}

// give remembers a unit that is given up, and reports whether there is room for
// it.
func (s *salvaged) give(unit int64) bool {
	s.mu.Lock()
	defer s.mu.Unlock()
	s.lost[unit] = struct{}{}
	return len(s.lost) <= maxSalvage
}

// Extents implements disk.Mapper. Where the map itself is damaged, the rest of
// what was asked for counts as data, so that each place is tried.
func (s *salvaged) Extents(ctx context.Context, within disk.Extent) iter.Seq2[disk.Extent, error] {
	return func(yield func(disk.Extent, error) bool) {
		next, end := within.Offset, min(within.End(), s.Size())
		for e, err := range disk.Extents(ctx, s.Image, within) {
			if errors.Is(err, store.ErrDamaged) {
				break
			}
			if !yield(e, err) || err != nil {
				return
			}
			next = e.End()
		}
		if next < end {
			yield(disk.Extent{Offset: next, Length: end - next}, nil)
		}
	}
}

// areas is what was given up, ascending.
func (s *salvaged) areas() []disk.Extent {
	s.mu.Lock()
	defer s.mu.Unlock()
	var areas []disk.Extent
	for _, at := range slices.Sorted(maps.Keys(s.lost)) {
		n := min(salvageUnit, s.Size()-at)
		if last := len(areas) - 1; last >= 0 && areas[last].End() == at {
			areas[last].Length += n
			continue
		}
		areas = append(areas, disk.Extent{Offset: at, Length: n})
	}
	return areas
}
