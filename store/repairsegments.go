package store

import (
	"context"
	"errors"
	"io/fs"
	"maps"
	"slices"

	"lifeboat/store/internal/blockmap"
	"lifeboat/store/internal/segment"
)

// repairBatch is how many damaged segments are looked after at a time: it bounds
// what has to be known of their slots.
const repairBatch = 256

// patient is a damaged segment.
type patient struct {
	number uint64
	// marked says that all of its damage is frames marked as lost before.
	marked bool
	// places is where points have the slots that they need.
	places map[int]place
	// ids is what the dedupe index knows of its slots.
	ids map[int]segment.Identity
}

// place is where a point has a blob.
type place struct {
	rec   *pointRecord
	disk  int    // index
	file  string // a configuration file's name, instead of a disk
	block int64  // number of the block, or of the first below a node
	level int    // of a node; -1 for a block
}

const blockLevel = -1

// segments mends the damaged segments. A node of a map that is mended says where
// more of them is needed, so it goes on until a round mends no node.
func (p *repairer) segments(ctx context.Context, bad map[uint64]*badSegment) error {
	todo := make(map[uint64]bool)
	for number, b := range bad {
		if p.unkept(number) {
			p.left(segment.Prefix(number), "a backup that has not finished is writing there")
			continue
		}
		todo[number] = b.marked
	}
	total, done := len(todo), 0
	for round := 0; len(todo) > 0 && round <= blockmap.MaxLevels; round++ {
		again := false
		for batch := range slices.Chunk(slices.Sorted(maps.Keys(todo)), repairBatch) {
			patients := make(map[uint64]*patient, len(batch))
			for _, number := range batch {
				patients[number] = &patient{number: number, marked: todo[number], places: make(map[int]place), ids: make(map[int]segment.Identity)}
			}
			if err := p.examine(ctx, patients); err != nil {
				return err
			}
			for _, number := range batch {
				nodes, err := p.mend(ctx, patients[number])
				if err != nil {
					return err
				}
				again = again || nodes
				if done++; p.opts.Progress != nil {
					p.opts.Progress(min(done, total), total)
				}
			}
		}
		clear(todo)
		for number := range p.lost {
			if again {
				todo[number] = true // now it may be known where they are needed
			}
		}
	}
	return nil
}

// examine finds out where points have what is in the patients, and what the
// index knows of them.
func (p *repairer) examine(ctx context.Context, patients map[uint64]*patient) error {
	for e := range p.index.All() {
		if pt := patients[e.Addr.Segment()]; pt != nil {
			pt.ids[e.Addr.Slot()] = e.ID
		}
	}
	recs, err := p.r.pointRecords(ctx, func(string, error) {}) // LostPoints has them
	if err != nil {
		return err
	}
	if p.source != nil {
		// Of several points that have a block the first counts: one with a copy.
		slices.SortStableFunc(recs, func(a, b *pointRecord) int {
			return compareBool(p.source.copyOfRecord(b) != nil, p.source.copyOfRecord(a) != nil)
		})
	}
	segments := segment.NewReader(p.r.backend, p.r.keys, segment.ReaderOptions{Logger: p.r.log})
	defer segments.Close()
	tree := blockmap.NewReader(segments, blockmap.ReaderOptions{})
	nodes := newAddrSet()
	note := func(a segment.Addr, at place) {
		if pt := patients[a.Segment()]; pt != nil && a.Stored() {
			if _, ok := pt.places[a.Slot()]; !ok {
				pt.places[a.Slot()] = at
			}
		}
	}
	for _, rec := range recs {
		for _, c := range rec.Config {
			for i, a := range c.Blocks {
				note(segment.Addr(a), place{rec: rec, file: c.Name, block: int64(i), level: blockLevel})
			}
		}
		for i, d := range rec.Disks {
			err := tree.Visit(ctx, d.tree(p.r.blockSize), nodes.add, func(n blockmap.Node) error {
				note(n.Addr, place{rec: rec, disk: i, block: n.Block, level: n.Level})
				if n.Level == 0 {
					for k, a := range n.Entries {
						note(a, place{rec: rec, disk: i, block: n.Block + int64(k), level: blockLevel})
					}
				}
				return nil
			})
			if err != nil {
				return err
			}
		}
	}
	return nil
}

func compareBool(a, b bool) int {
	switch {
	case a == b:
		return 0
	case a:
		return 1
	}
	return -1
}

// mend writes a segment's next generation, and removes the damaged one. It
// reports whether it restored a node of a map.
func (p *repairer) mend(ctx context.Context, pt *patient) (nodes bool, err error) {
	b, keys := p.r.backend, p.r.keys
	objects, err := segment.Generations(ctx, b, pt.number)
	if err != nil {
		return false, err
	}
	if pt.marked {
		if worth, err := p.worthwhile(ctx, pt, objects); err != nil || !worth {
			return false, err
		}
	}
	o := segment.MendOptions{
		Number: pt.number, Objects: objects, FramesPerSlot: p.r.blockSize / segment.FrameSize,
		Needed:   func(slot int) bool { _, ok := pt.places[slot]; return ok },
		Identity: func(slot int) (segment.Identity, bool) { id, ok := pt.ids[slot]; return id, ok },
		Find: func(ctx context.Context, slot int, id *segment.Identity) (segment.Content, bool, error) {
			c, ok, err := p.find(ctx, pt, slot, id)
			nodes = nodes || ok && c.Kind == segment.MapNode
			return c, ok, err
		},
		Before: p.settle,
	}
	for slot := range pt.places {
		o.Slots = max(o.Slots, slot+1)
	}
	if len(objects) > 0 {
		// Somebody may count on what is known of it, though no point needs it yet.
		for slot := range pt.ids {
			o.Slots = max(o.Slots, slot+1)
		}
	}
	if o.Slots == 0 && len(objects) == 0 {
		delete(p.lost, pt.number)
		return false, nil
	}
	mended, err := segment.Mend(ctx, b, keys, o)
	if errors.Is(err, segment.ErrVersion) {
		p.left(segment.Prefix(pt.number), "it is of a format that this Lifeboat does not know: repair it with a newer one")
		return false, nil
	}
	if err != nil {
		return false, err
	}
	p.mended(ctx, pt.number, mended, objects)
	return nodes, nil
}

// worthwhile reports whether any of the slots that were marked before can be
// found now: if not, the segment stays as it is.
func (p *repairer) worthwhile(ctx context.Context, pt *patient, objects []string) (bool, error) {
	if len(objects) == 0 {
		delete(p.lost, pt.number)
		return false, nil
	}
	lost, err := segment.ScanLost(ctx, p.r.backend, p.r.keys, objects[0])
	if errors.Is(err, fs.ErrNotExist) || errors.Is(err, segment.ErrDamaged) {
		return false, nil // compacted meanwhile, or for a verification to find
	} else if err != nil {
		return false, err
	}
	p.setLost(pt.number, lost)
	for _, slot := range lost {
		id := &slot.Identity
		if *id == (segment.Identity{}) {
			id = nil // it was not known any more when the slot was marked
		}
		_, ok, err := p.find(ctx, pt, slot.Addr.Slot(), id)
		if ok || err != nil {
			return ok, err
		}
	}
	p.report.Lost += len(lost)
	return false, nil
}

func (p *repairer) setLost(number uint64, lost []segment.Slot) {
	delete(p.lost, number)
	for _, slot := range lost {
		p.lost[number] = append(p.lost[number], slot.Addr.Slot())
	}
}

// mended puts a new generation in the place of the old ones.
func (p *repairer) mended(ctx context.Context, number uint64, m *segment.Mended, old []string) {
	p.setLost(number, m.Lost)
	p.report.Segments++
	p.report.Restored += len(m.Restored)
	p.report.Lost += len(m.Lost)
	for _, name := range old {
		if err := p.r.inheritLock(ctx, name, m.Info.Name); err != nil {
			p.r.log.Error("the storage has not locked a mended segment; the next backup tries again", "object", m.Info.Name, "error", err)
		}
		if err := p.r.backend.Remove(ctx, name); err != nil {
			// Readers prefer it as long as it is there.
			p.left(name, "remove it when that is possible, "+m.Info.Name+" takes its place: "+err.Error())
		}
	}
	p.r.segments.Forget(number)
	p.r.log.Info("mended a segment", "object", m.Info.Name, "restored", len(m.Restored), "lost", len(m.Lost))
}

// find looks for the content of a slot: under another address here, then in the
// source.
func (p *repairer) find(ctx context.Context, pt *patient, slot int, id *segment.Identity) (segment.Content, bool, error) {
	addr := segment.MakeAddr(pt.number, slot)
	if id != nil {
		if other, ok := p.index.Lookup(*id); ok && other != addr {
			c, err := p.content(ctx, other)
			if err == nil && segment.NewHasher(p.r.keys).Identity(c.Kind, c.Plain) == *id {
				return c, true, nil
			}
			if ctx.Err() != nil {
				return c, false, context.Cause(ctx)
			}
		}
	}
	at, ok := pt.places[slot]
	if !ok || p.source == nil {
		return segment.Content{}, false, nil
	}
	return p.source.find(ctx, p.in, at, id)
}

// content reads a blob.
func (p *repairer) content(ctx context.Context, addr segment.Addr) (segment.Content, error) {
	slot, err := p.r.segments.Stat(ctx, addr)
	if err != nil {
		return segment.Content{}, err
	}
	plain := make([]byte, slot.RawLen)
	_, err = p.r.segments.ReadBlock(ctx, addr, plain)
	return segment.Content{Kind: slot.Kind, Plain: plain}, err
}

// settle makes what rebuilt nodes lead to durable and kept.
func (p *repairer) settle(ctx context.Context) error {
	if p.in == nil || p.source == nil || !p.source.wrote {
		return nil
	}
	p.in.app.mu.Lock()
	defer p.in.app.mu.Unlock()
	p.source.wrote = false
	return p.in.checkpoint(ctx)
}
