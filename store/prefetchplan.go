package store

import (
	"cmp"
	"context"
	"slices"
	"sync"

	"golang.org/x/sync/errgroup"

	"lifeboat/store/internal/blockmap"
	"lifeboat/store/internal/segment"
)

// prefetchRequest is blobs of one segment that are read with one request.
type prefetchRequest struct {
	spans  []segment.Span
	when   int  // the first of its blocks was touched, in the window
	memory bool // there is room for its blocks in memory
}

// plan turns a window into requests, in the order in which their first blocks
// were touched. What does not fit into memory is worth a request only if it
// stays on local disk.
func (f *prefetcher) plan(ctx context.Context, window []tracedBlock, largest int64) ([]prefetchRequest, error) {
	if f.room < int64(f.r.blockSize) && !f.r.keepsOnDisk() {
		return nil, errEnough
	}
	addrs, err := f.addresses(ctx, window)
	if err != nil {
		return nil, err
	}
	fit := int(min(int64(len(addrs)), f.room/int64(f.r.blockSize)))
	f.room -= int64(fit) * int64(f.r.blockSize)
	requests, err := f.locate(ctx, addrs[:fit], largest)
	if err != nil {
		return nil, err
	}
	for i := range requests {
		requests[i].memory = true
	}
	if fit == len(addrs) || !f.r.keepsOnDisk() {
		return requests, nil
	}
	rest, err := f.locate(ctx, addrs[fit:], largest)
	return append(requests, rest...), err
}

// locate finds blocks in their segments and joins those that are close.
func (f *prefetcher) locate(ctx context.Context, addrs []segment.Addr, largest int64) ([]prefetchRequest, error) {
	touched := make(map[segment.Addr]int, len(addrs))
	bySegment := map[uint64][]segment.Addr{}
	for i, a := range addrs {
		touched[a] = i
		bySegment[a.Segment()] = append(bySegment[a.Segment()], a)
	}
	var mu sync.Mutex
	var requests []prefetchRequest
	group, gctx := errgroup.WithContext(ctx)
	group.SetLimit(f.gate.limit)
	for _, in := range bySegment {
		group.Go(func() error {
			spans, err := f.r.segments.Locate(gctx, in)
			if err := f.judge(gctx, err); err != nil {
				return err
			}
			joined := joinSpans(spans, largest, touched)
			mu.Lock()
			defer mu.Unlock()
			requests = append(requests, joined...)
			return nil
		})
	}
	if err := group.Wait(); err != nil {
		return nil, err
	}
	slices.SortFunc(requests, func(a, b prefetchRequest) int { return cmp.Compare(a.when, b.when) })
	return requests, nil
}

// joinSpans joins spans of one segment, which are sorted by offset, where the
// holes between them are small.
func joinSpans(spans []segment.Span, largest int64, touched map[segment.Addr]int) []prefetchRequest {
	var out []prefetchRequest
	for i := range spans {
		s := &spans[i]
		when := touched[s.Addr]
		if n := len(out) - 1; n >= 0 {
			have := out[n].spans
			if s.Offset-have[len(have)-1].End() <= prefetchGap && s.End()-have[0].Offset <= largest {
				out[n].spans = have[:len(have)+1] // they are neighbours in spans
				out[n].when = min(out[n].when, when)
				continue
			}
		}
		out = append(out, prefetchRequest{spans: spans[i : i+1], when: when})
	}
	return out
}

// addresses looks the blocks of a window up and returns what has to be read of
// them: each address once, and none that is in memory.
func (f *prefetcher) addresses(ctx context.Context, window []tracedBlock) ([]segment.Addr, error) {
	if err := f.leaves(ctx, window); err != nil {
		return nil, err
	}
	addrs := make([]segment.Addr, 0, len(window))
	for _, b := range window {
		addr, err := f.r.maps.Lookup(ctx, *b.tree, b.block)
		if err := f.judge(ctx, err); err != nil {
			return nil, err
		}
		if _, again := f.seen[addr]; again || err != nil || !addr.Stored() {
			continue
		}
		f.seen[addr] = struct{}{}
		f.stats.Blocks++ // only the planner counts these two
		if f.r.fetch.inMemory(addr) {
			f.stats.Ready++
			continue
		}
		addrs = append(addrs, addr)
	}
	return addrs, nil
}

// leaves reads the nodes that a window needs, several at the same time; they are
// in the maps' cache then.
func (f *prefetcher) leaves(ctx context.Context, window []tracedBlock) error {
	type leaf struct {
		tree  *blockmap.Tree
		index int64
	}
	seen := map[leaf]struct{}{}
	group, ctx := errgroup.WithContext(ctx)
	group.SetLimit(f.gate.limit)
	for _, b := range window {
		l := leaf{b.tree, b.block / blockmap.Fanout}
		if _, again := seen[l]; again {
			continue
		}
		seen[l] = struct{}{}
		group.Go(func() error {
			_, err := f.r.maps.Lookup(ctx, *b.tree, b.block)
			return f.judge(ctx, err)
		})
	}
	return group.Wait()
}
