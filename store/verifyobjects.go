package store

import (
	"context"
	"errors"
	"fmt"
	"io/fs"
	"strings"
	"time"

	"golang.org/x/sync/errgroup"

	"lifeboat/store/backend"
	"lifeboat/store/internal/blockmap"
	"lifeboat/store/internal/keyring"
	"lifeboat/store/internal/segment"
)

// listing is the objects of a repository, by kind.
type listing struct {
	claims   []listedClaim
	points   []backend.Info
	segments []backend.Info
	now      time.Time // the newest modification time: not later than the backend's clock
}

// list lists and sorts all objects, and names those that belong to nothing.
func (v *verification) list(ctx context.Context) (*listing, error) {
	l := new(listing)
	for info, err := range v.r.backend.List(ctx, "") {
		if err != nil {
			return nil, fmt.Errorf("list the repository: %w", err)
		}
		if !v.sortIn(l, info) {
			v.report.Unexpected = append(v.report.Unexpected, info.Name)
			continue
		}
		v.count(info.Name, info.Size)
		v.total += info.Size
		if info.Modified.After(l.now) {
			l.now = info.Modified
		}
	}
	return l, nil
}

// sortIn puts an object where it belongs and reports whether it does.
func (v *verification) sortIn(l *listing, info backend.Info) bool {
	switch {
	case info.Name == keyring.HeaderName, info.Name == condemnedName, strings.HasPrefix(info.Name, keyring.KeyPrefix), strings.HasPrefix(info.Name, indexPrefix):
		return true // keyring and dedupe know their own
	case strings.HasPrefix(info.Name, pointPrefix):
		l.points = append(l.points, info)
		return validID(strings.TrimPrefix(info.Name, pointPrefix))
	}
	if n, ok := parseClaimName(info.Name); ok {
		l.claims = append(l.claims, listedClaim{n, info.Modified})
		return true
	}
	if _, _, err := segment.ParseName(info.Name); err == nil {
		l.segments = append(l.segments, info)
		return true
	}
	return false
}

// small checks all objects but the segments, and returns the points.
func (v *verification) small(ctx context.Context, l *listing) ([]*pointRecord, error) {
	err := v.r.ring.Verify(ctx, v.r.backend, func(object string, err error) { v.whole(object, err, nil) })
	if err != nil {
		return nil, err
	}
	if err := v.claims(ctx, l); err != nil {
		return nil, err
	}
	if err := v.index(ctx); err != nil {
		return nil, err
	}
	if _, err := v.r.getSealed(ctx, condemnedName, maxCondemnedBytes); errors.Is(err, ErrDamaged) {
		v.whole(condemnedName, err, nil)
	} else if err != nil && !errors.Is(err, fs.ErrNotExist) {
		return nil, err
	}
	var recs []*pointRecord
	for _, info := range l.points {
		id := strings.TrimPrefix(info.Name, pointPrefix)
		if !validID(id) {
			continue
		}
		rec, err := v.r.readPoint(ctx, id)
		v.progress(info.Size, false)
		switch {
		case errors.Is(err, fs.ErrNotExist):
		case errors.Is(err, ErrDamaged), errors.Is(err, ErrVersion):
			v.whole(info.Name, err, &Hurt{Point: id, Disk: -1})
		case err != nil:
			return nil, err
		case !rec.Void:
			recs = append(recs, rec)
		}
	}
	return recs, nil
}

// claims checks the claims, and finds what dead writers left.
func (v *verification) claims(ctx context.Context, l *listing) error {
	for _, c := range l.claims {
		rec, err := v.r.getClaim(ctx, c.number)
		switch {
		case errors.Is(err, fs.ErrNotExist):
			continue
		case errors.Is(err, ErrDamaged), errors.Is(err, ErrVersion):
			v.whole(claimName(c.number), err, nil)
			continue
		case err != nil:
			return err
		}
		if s := v.r.standing(rec, c.modified, l.now); s == standingAlive || s == standingClosed {
			continue
		}
		kept, err := v.r.keptOf(ctx, rec)
		if err != nil {
			return err
		}
		v.report.Leftovers = append(v.report.Leftovers, claimName(c.number))
		for _, info := range l.segments {
			if n, _, _ := segment.ParseName(info.Name); n >= rec.first() && n <= rec.last() && n > kept {
				v.report.Leftovers = append(v.report.Leftovers, info.Name)
			}
		}
	}
	return nil
}

// segments reads every byte of every segment. Of several generations only the
// newest counts; the others are leftovers of a compaction.
func (v *verification) segments(ctx context.Context, list []backend.Info) error {
	newest := make(map[uint64]uint32)
	for _, info := range list {
		n, g, _ := segment.ParseName(info.Name)
		newest[n] = max(newest[n], g)
	}
	group, ctx := errgroup.WithContext(ctx)
	group.SetLimit(v.opts.Workers)
	for _, info := range list {
		n, g, _ := segment.ParseName(info.Name)
		if g != newest[n] {
			v.report.Leftovers = append(v.report.Leftovers, info.Name)
			continue
		}
		group.Go(func() error {
			err := segment.Verify(ctx, v.r.backend, v.r.keys, info.Name, func(d *segment.DamageError) {
				if errors.Is(d, fs.ErrNotExist) {
					return // swept meanwhile; who needs it will be heard of
				}
				v.damaged(n, d)
			})
			if errors.Is(err, segment.ErrVersion) {
				v.whole(info.Name, err, nil)
				err = nil
			}
			v.progress(info.Size, false)
			return err
		})
	}
	return group.Wait()
}

// blocks reads what the points need, block by block, and compares each with its
// identity.
func (v *verification) blocks(ctx context.Context, recs []*pointRecord) error {
	need := newAddrSet()
	nodes := newAddrSet()
	for _, rec := range recs {
		for _, a := range rec.configBlocks() {
			need.add(a)
		}
		for _, d := range rec.Disks {
			if err := v.collect(ctx, d, need, nodes); err != nil {
				return err
			}
		}
	}
	v.total = need.count * int64(v.r.blockSize)
	group, ctx := errgroup.WithContext(ctx)
	group.SetLimit(v.opts.Workers)
	numbers := need.numbers()
	for _, number := range numbers {
		group.Go(func() error { return v.segmentBlocks(ctx, number, need) })
	}
	v.report.Objects += int64(len(numbers))
	return group.Wait()
}

// collect adds the blocks of a disk to need.
func (v *verification) collect(ctx context.Context, d diskRecord, need, nodes *addrSet) error {
	return v.r.maps.Visit(ctx, d.tree(v.r.blockSize), nodes.add, func(n blockmap.Node) error {
		if n.Level > 0 {
			return nil
		}
		for _, a := range n.Entries {
			if a.Stored() {
				need.add(a)
			}
		}
		return nil
	})
}

func (v *verification) segmentBlocks(ctx context.Context, number uint64, need *addrSet) error {
	hasher := segment.NewHasher(v.r.keys)
	buf := make([]byte, v.r.blockSize)
	for slot := range need.slots(number) {
		addr := segment.MakeAddr(number, slot)
		err := v.readBlock(ctx, addr, buf, hasher)
		var d *segment.DamageError
		if errors.As(err, &d) {
			v.damagedOnce(number, d)
			err = nil
		}
		if err != nil {
			return err
		}
		v.mu.Lock()
		v.report.Bytes += int64(len(buf))
		v.mu.Unlock()
		v.progress(int64(len(buf)), false)
	}
	return nil
}

// readBlock reads one block and compares it with its identity.
func (v *verification) readBlock(ctx context.Context, addr segment.Addr, buf []byte, hasher *segment.Hasher) error {
	n, err := v.r.segments.ReadBlock(ctx, addr, buf)
	if err != nil {
		return err
	}
	id, err := v.r.segments.Identity(ctx, addr)
	if err != nil {
		return err
	}
	if hasher.Identity(segment.Data, buf[:n]) != id {
		return &segment.DamageError{
			Object: segment.Prefix(addr.Segment()), Part: segment.PartFrame, Addr: addr, Frame: -1, Page: -1, Offset: -1,
			Err: errors.New("its content has another identity"),
		}
	}
	return nil
}

// damagedOnce records damage of a whole object or of a page only the first time
// that it is met.
func (v *verification) damagedOnce(number uint64, d *segment.DamageError) {
	v.mu.Lock()
	known := v.bad[number].knows(d)
	v.mu.Unlock()
	if !known {
		v.damaged(number, d)
	}
	if d.Part == segment.PartObject {
		v.mu.Lock()
		v.bad[number].all = v.bad[number].object
		v.mu.Unlock()
	}
}

func (b *badSegment) knows(d *segment.DamageError) bool {
	switch {
	case b == nil:
		return false
	case d.Part == segment.PartObject:
		return len(b.object) > 0
	case d.Part == segment.PartIdentityTable:
		return b.identities[d.Page]
	case d.Part == segment.PartLocationTable:
		return len(b.pages[d.Page]) > 0
	}
	return false
}
