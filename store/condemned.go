package store

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io/fs"
	"math/bits"
	"slices"

	"lifeboat/store/backend"
	"lifeboat/store/internal/segment"
)

// The list of the condemned, prune/condemned: addresses that no point needed when
// a prune looked, and that no writer may take from the dedupe index any more once
// it has seen the list. It is replaced whole, by prunes alone, and each version has
// a higher sequence number than any before, lost ones included: also higher than
// what any claim says that its owner has seen. See prune.go for what it is for.
const (
	condemnedName     = "prune/condemned"
	maxCondemnedBytes = 256 << 20
	condemnedFormat   = 2 // 1 had no sequence; it is read as an empty list
	slotBytes         = (segment.MaxSlots + 8) / 8
)

// condemnedRecord is the list as it is stored.
type condemnedRecord struct {
	Format   int    `json:"format"`
	Sequence uint64 `json:"sequence"`
	// Stale is how many segments are gone whose blobs the dedupe index still has.
	Stale   int64            `json:"stale"`
	Batches []condemnedBatch `json:"batches,omitempty"`

	damaged bool // it could not be read, and was begun anew
}

// condemnedBatch is what one prune condemned.
type condemnedBatch struct {
	Sequence uint64 `json:"sequence"` // of the first list that it was in
	Since    int64  `json:"since"`    // Unix seconds by the backend's clock
	// Clear is when a prune first found that all writers have seen it; 0: not yet.
	Clear    int64           `json:"clear,omitempty"`
	Segments []uint64        `json:"segments,omitempty"` // whole, ascending
	Parts    []condemnedPart `json:"parts,omitempty"`    // by segment, ascending
}

// condemnedPart is slots of a segment that is to be compacted.
type condemnedPart struct {
	Segment uint64 `json:"segment"`
	Dead    []byte `json:"dead"` // bit s%8 of byte s/8 is slot s
}

func (c *condemnedRecord) check() error {
	for _, b := range c.Batches {
		for _, n := range b.Segments {
			if n == 0 || n > segment.MaxNumber {
				return fmt.Errorf("%w: segment %x", ErrDamaged, n)
			}
		}
		for _, p := range b.Parts {
			if p.Segment == 0 || p.Segment > segment.MaxNumber || len(p.Dead) > slotBytes {
				return fmt.Errorf("%w: %d slots of segment %x", ErrDamaged, 8*len(p.Dead), p.Segment)
			}
		}
		if b.Sequence > c.Sequence || b.Since < 0 || b.Clear < 0 {
			return fmt.Errorf("%w: a batch of %d in list %d", ErrDamaged, b.Sequence, c.Sequence)
		}
	}
	return nil
}

func decodeCondemned(data []byte) (*condemnedRecord, error) {
	var head struct {
		Format int `json:"format"`
	}
	if err := json.Unmarshal(data, &head); err == nil && head.Format == recordFormat {
		return new(condemnedRecord), nil
	}
	c := new(condemnedRecord)
	err := decodeFormat(data, c, condemnedFormat)
	if err == nil {
		err = c.check()
	}
	return c, err
}

// readCondemned reads the list; where there is none it is empty. One that is
// damaged is begun anew: what was in it is condemned again, later.
func (r *Repository) readCondemned(ctx context.Context) (*condemnedRecord, error) {
	data, err := r.getSealed(ctx, condemnedName, maxCondemnedBytes)
	c := new(condemnedRecord)
	if err == nil {
		c, err = decodeCondemned(data)
	}
	switch {
	case errors.Is(err, fs.ErrNotExist):
		return new(condemnedRecord), nil
	case errors.Is(err, ErrDamaged):
		r.log.Error("the list of condemned segments is damaged: begun anew", "error", err)
		return &condemnedRecord{damaged: true}, nil
	case err != nil:
		return nil, fmt.Errorf("the list of condemned segments: %w", err)
	}
	return c, nil
}

func (r *Repository) putCondemned(ctx context.Context, c *condemnedRecord) error {
	c.Format = condemnedFormat
	c.Batches = slices.DeleteFunc(c.Batches, func(b condemnedBatch) bool { return len(b.Segments)+len(b.Parts) == 0 })
	data, err := json.Marshal(c)
	if err == nil && len(data) > maxCondemnedBytes {
		err = fmt.Errorf("the list of condemned segments takes %d bytes, at most %d fit", len(data), maxCondemnedBytes)
	}
	if err != nil {
		return err
	}
	return r.putSealed(ctx, condemnedName, data, backend.Replace)
}

// condemnedSet is what a writer must not take from the dedupe index. It only
// grows, so that what it saw once it respects for good.
type condemnedSet struct {
	sequence uint64
	dead     map[uint64][]byte // by segment; nil: all of it
}

// has reports whether an address is condemned. The set may be nil.
func (s *condemnedSet) has(a segment.Addr) bool {
	if s == nil {
		return false
	}
	dead, ok := s.dead[a.Segment()]
	return ok && (dead == nil || deadSlot(dead, a.Slot()))
}

// with is the set and what is in a list.
func (s *condemnedSet) with(c *condemnedRecord) *condemnedSet {
	out := &condemnedSet{sequence: c.Sequence, dead: make(map[uint64][]byte)}
	if s != nil {
		for n, dead := range s.dead {
			out.dead[n] = dead
		}
	}
	for _, b := range c.Batches {
		for _, p := range b.Parts {
			old, ok := out.dead[p.Segment]
			switch {
			case ok && old == nil:
			case len(p.Dead) > 0:
				out.dead[p.Segment] = unite(old, p.Dead)
			}
		}
		for _, n := range b.Segments {
			out.dead[n] = nil
		}
	}
	return out
}

func deadSlot(dead []byte, slot int) bool {
	return slot/8 < len(dead) && dead[slot/8]&(1<<(slot%8)) != 0
}

// unite is the slots in a or in b, in memory of its own.
func unite(a, b []byte) []byte {
	if len(a) < len(b) {
		a, b = b, a
	}
	out := slices.Clone(a)
	for i, v := range b {
		out[i] |= v
	}
	return out
}

// spare takes out of dead the slots that are needed, and returns how many are
// left.
func spare(dead []byte, needed *segmentBits) (left int) {
	for i := range dead {
		dead[i] &^= byte(needed.get(i/8) >> (8 * (i % 8)))
		left += bits.OnesCount8(dead[i])
	}
	return left
}
