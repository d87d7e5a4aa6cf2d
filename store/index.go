package store

import (
	"context"
	"errors"
	"fmt"
	"io/fs"
	"iter"
	"sync"
	"sync/atomic"

	"lifeboat/store/internal/dedupe"
	"lifeboat/store/internal/segment"
)

const indexPrefix = dedupe.Prefix

// blobIndex is the dedupe index as an ingest uses it. It knows what is condemned,
// and does not find it. And it doubts, since the index may name what a prune has
// removed: before the first address in a segment is used, the segment is looked
// at, and in one that was compacted every slot. It looks with a reader of its own,
// that opened nothing before the ingest had its claim and read the list of the
// condemned: what it finds then, no prune removes behind its back.
type blobIndex struct {
	r         *Repository
	index     *dedupe.Index
	look      *segment.Reader
	condemned atomic.Pointer[condemnedSet]

	mu    sync.Mutex
	known map[uint64]segmentState
}

// segmentState is what is known of a segment that the index names.
type segmentState int

const (
	segmentBad   segmentState = iota + 1
	segmentWhole              // as its writer wrote it: what the index says holds
	segmentLater              // of a later generation: slots may be gone or lost
)

func (r *Repository) openIndex(ctx context.Context) (*blobIndex, error) {
	index, err := dedupe.Open(ctx, r.reads, r.keys, dedupe.Options{Logger: r.log, Now: r.clock})
	if err != nil {
		return nil, err
	}
	look := segment.NewReader(r.backend, r.keys, segment.ReaderOptions{MaxOpen: 64, TableBytes: 4 << 20, Logger: r.log})
	return &blobIndex{r: r, index: index, look: look, known: make(map[uint64]segmentState)}, nil
}

// lookup finds a blob that was stored before.
func (x *blobIndex) lookup(ctx context.Context, id segment.Identity) (segment.Addr, bool) {
	addr, ok := x.index.Lookup(id)
	if !ok || !addr.Stored() || x.condemned.Load().has(addr) || !x.trusted(ctx, addr, id) {
		return 0, false
	}
	return addr, true
}

// publish adds blobs, and merges runs when there are many.
func (x *blobIndex) publish(ctx context.Context, pending map[segment.Identity]segment.Addr) error {
	if len(pending) == 0 {
		return nil
	}
	entries := make([]dedupe.Entry, 0, len(pending))
	for id, addr := range pending {
		entries = append(entries, dedupe.Entry{ID: id, Addr: addr})
	}
	if err := x.index.Publish(ctx, entries); err != nil {
		return err
	}
	if !x.index.NeedsMerge() {
		return nil
	}
	condemned := x.condemned.Load()
	if err := x.index.MergeKeeping(ctx, func(a segment.Addr) bool { return !condemned.has(a) }); err != nil {
		x.r.log.Warn("could not merge runs of the dedupe index; a later backup tries again", "error", err)
	}
	return nil
}

func (x *blobIndex) close() error { return errors.Join(x.index.Close(), x.look.Close()) }

// trusted reports whether the segment of addr is there and has id at that
// place. It is asked once per segment, and for every slot of one that was
// compacted or mended.
func (x *blobIndex) trusted(ctx context.Context, addr segment.Addr, id segment.Identity) bool {
	x.mu.Lock()
	state := x.known[addr.Segment()]
	x.mu.Unlock()
	if state == segmentBad || state == segmentWhole {
		return state == segmentWhole
	}
	slot, err := x.look.Stat(ctx, addr)
	if err != nil && ctx.Err() != nil {
		return false
	}
	good := err == nil && slot.Identity == id && slot.Lost == 0
	switch {
	case err == nil && slot.Generation > 0, errors.Is(err, segment.ErrRemoved):
		state = segmentLater
	case good:
		state = segmentWhole
	case errors.Is(err, fs.ErrNotExist):
		state = segmentBad // pruned
	default:
		state = segmentBad
		x.r.log.Warn("the dedupe index names a block that is not there: it is stored again", "address", addr, "error", err)
	}
	x.mu.Lock()
	x.known[addr.Segment()] = state
	x.mu.Unlock()
	return good
}

// RebuildIndex makes the dedupe index anew from the segments, for when it was
// lost or damaged. No backup should be running: what one adds meanwhile may be
// left out, and is then stored again some day.
func (r *Repository) RebuildIndex(ctx context.Context) error {
	index, err := dedupe.Open(ctx, r.backend, r.keys, dedupe.Options{Logger: r.log, Now: r.clock})
	if err != nil {
		return err
	}
	defer index.Close()
	if err := index.Rebuild(ctx, r.allBlobs(ctx)); err != nil {
		return fmt.Errorf("rebuild the dedupe index: %w", damaged(err))
	}
	return nil
}

// allBlobs yields what is in the segments. Tables that are damaged are left out,
// and so are the segments of writers that are not finished: they may be swept.
func (r *Repository) allBlobs(ctx context.Context) iter.Seq2[dedupe.Entry, error] {
	return func(yield func(dedupe.Entry, error) bool) {
		unkept, err := r.unkept(ctx)
		if err != nil {
			yield(dedupe.Entry{}, err)
			return
		}
		for info, err := range r.backend.List(ctx, "segments/") {
			if err != nil {
				yield(dedupe.Entry{}, err)
				return
			}
			number, _, err := segment.ParseName(info.Name)
			if err != nil || unkept(number) {
				continue
			}
			for slot, err := range segment.Scan(ctx, r.backend, r.keys, info.Name) {
				if errors.Is(err, segment.ErrDamaged) {
					r.log.Error("left damaged blocks out of the dedupe index", "error", err)
					continue
				}
				if !yield(dedupe.Entry{ID: slot.Identity, Addr: slot.Addr}, err) || err != nil {
					return
				}
			}
		}
	}
}

// unkept tells the segments that a sweep may remove.
func (r *Repository) unkept(ctx context.Context) (func(number uint64) bool, error) {
	claims, err := r.listClaims(ctx)
	if err != nil {
		return nil, err
	}
	var open []claimRecord
	for _, l := range claims {
		rec, err := r.getClaim(ctx, l.number)
		if err == nil && !rec.Closed {
			open = append(open, rec)
		}
	}
	return func(number uint64) bool {
		for _, c := range open {
			if number >= c.first() && number <= c.last() && number > c.Kept {
				return true
			}
		}
		return false
	}, nil
}
