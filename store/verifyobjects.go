package store

import (
	"context"
	"errors"
	"fmt"
	"io/fs"
	"maps"
	"slices"
	"strings"
	"time"

	"golang.org/x/sync/errgroup"

	"lifeboat/store/backend"
	"lifeboat/store/internal/blockmap"
	"lifeboat/store/internal/dedupe"
	"lifeboat/store/internal/keyring"
	"lifeboat/store/internal/segment"
)

// listing is the objects of a repository, by kind.
type listing struct {
	claims   []listedClaim
	points   []backend.Info
	segments []backend.Info
	// envelopes are the small objects that nobody's data depends on.
	envelopes []backend.Info
	now       time.Time // the newest modification time: not later than the backend's clock
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

// envelopePrefixes are where small sealed objects are, other than points and
// claims: tombstones, holds, pins, settings, what is known of time, boot traces,
// results of verifications, and what prunes and repairs remember.
func envelopePrefixes() []string {
	return []string{"forgotten/", "holds/", "pins/", "settings/", "clock/", "traces/", verifiedPrefix, "prune/", "repair/"}
}

func isEnvelope(name string) bool {
	return slices.ContainsFunc(envelopePrefixes(), func(prefix string) bool { return strings.HasPrefix(name, prefix) })
}

// sortIn puts an object where it belongs and reports whether it does.
func (v *verification) sortIn(l *listing, info backend.Info) bool {
	switch {
	case info.Name == keyring.HeaderName, strings.HasPrefix(info.Name, keyring.KeyPrefix), strings.HasPrefix(info.Name, indexPrefix):
		return true // keyring and dedupe know their own
	case strings.HasPrefix(info.Name, pointPrefix):
		l.points = append(l.points, info)
		return validID(strings.TrimPrefix(info.Name, pointPrefix))
	}
	if isEnvelope(info.Name) {
		l.envelopes = append(l.envelopes, info)
		return true
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
	for _, info := range l.envelopes {
		_, err := v.r.getSealed(ctx, info.Name, maxCondemnedBytes)
		if errors.Is(err, ErrDamaged) {
			v.whole(info.Name, err, nil)
		} else if err != nil && !errors.Is(err, fs.ErrNotExist) {
			return nil, err
		}
		v.progress(info.Size, false)
	}
	// What a forgotten point needs may be gone, or go now.
	forgotten, err := v.r.forgottenIDs(ctx)
	if err != nil {
		return nil, err
	}
	var recs []*pointRecord
	for _, info := range l.points {
		id := strings.TrimPrefix(info.Name, pointPrefix)
		if _, ok := forgotten[id]; ok || !validID(id) {
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

// allSegments checks every segment. Of several generations only the newest
// counts; the others are leftovers of a compaction.
func (v *verification) allSegments(ctx context.Context, list []backend.Info) error {
	v.wanted = newestOf(list, func(old string) { v.report.Leftovers = append(v.report.Leftovers, old) })
	return v.checkSegments(ctx, nil)
}

// newestOf is the newest generation of each segment, by ascending number.
func newestOf(list []backend.Info, older func(name string)) []backend.Info {
	newest := make(map[uint64]backend.Info)
	for _, info := range list {
		n, g, err := segment.ParseName(info.Name)
		if err != nil {
			continue
		}
		have, ok := newest[n]
		if _, h, _ := segment.ParseName(have.Name); ok && h > g {
			older(info.Name)
			continue
		}
		if ok {
			older(have.Name)
		}
		newest[n] = info
	}
	out := make([]backend.Info, 0, len(newest))
	for _, n := range slices.Sorted(maps.Keys(newest)) {
		out = append(out, newest[n])
	}
	return out
}

// neededSegments checks the segments that points need, and in them the blocks
// that they need. What is not there is found when the structure is checked.
func (v *verification) neededSegments(ctx context.Context, recs []*pointRecord) error {
	need, nodes := newAddrSet(), newAddrSet()
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
	var list []backend.Info
	for info, err := range v.r.backend.List(ctx, "segments/") {
		if err != nil {
			return fmt.Errorf("list the segments: %w", err)
		}
		if n, _, err := segment.ParseName(info.Name); err == nil && need.segments[n] != nil {
			list = append(list, info)
		}
	}
	v.wanted = newestOf(list, func(string) {})
	for _, info := range v.wanted {
		v.total += info.Size
		v.report.Objects++
		v.report.Bytes += info.Size
	}
	return v.checkSegments(ctx, need)
}

// collect adds the nodes and blocks of a disk to need.
func (v *verification) collect(ctx context.Context, d diskRecord, need, nodes *addrSet) error {
	return v.maps.Visit(ctx, d.tree(v.r.blockSize), nodes.add, func(n blockmap.Node) error {
		need.add(n.Addr)
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

// checkSegments checks the wanted segments, of need only the slots in it.
func (v *verification) checkSegments(ctx context.Context, need *addrSet) error {
	group, ctx := errgroup.WithContext(ctx)
	group.SetLimit(v.opts.Workers)
	for _, info := range v.wanted {
		number, _, _ := segment.ParseName(info.Name)
		if v.known(number) {
			v.progress(info.Size, false)
			continue
		}
		group.Go(func() error { return v.checkSegment(ctx, number, info, need) })
	}
	return group.Wait()
}

func (v *verification) checkSegment(ctx context.Context, number uint64, info backend.Info, need *addrSet) error {
	left := info.Size
	o := segment.VerifyOptions{Slots: v.slots(number, need), Wait: func(ctx context.Context, n int) error {
		if err := v.pace.wait(ctx, int64(n)); err != nil {
			return err
		}
		told := min(left, int64(n))
		left -= told
		v.progress(told, false)
		return nil
	}}
	good := true
	err := segment.VerifyPart(ctx, v.r.backend, v.r.keys, info.Name, o, func(d *segment.DamageError) {
		if errors.Is(d, fs.ErrNotExist) {
			return // swept or compacted meanwhile; who needs it will be heard of
		}
		good = false
		v.damaged(number, d)
	})
	if errors.Is(err, segment.ErrVersion) {
		v.whole(info.Name, err, nil)
		good, err = false, nil
	}
	if err != nil {
		return err
	}
	v.progress(left, false)
	if good {
		v.passed(ctx, number)
	}
	return nil
}

// slots chooses what of a segment is read; nil means all.
func (v *verification) slots(number uint64, need *addrSet) func(slot int) bool {
	needed := func(slot int) bool { return need == nil || need.has(segment.MakeAddr(number, slot)) }
	switch v.opts.Level {
	case VerifyStructure:
		return func(int) bool { return false }
	case VerifySample:
		return func(slot int) bool { return v.sampled(number, slot/segmentPage) && needed(slot) }
	}
	if need == nil {
		return nil
	}
	return needed
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

// index checks the dedupe index: whole, or only that its runs can be used.
// Damage there hurts no point.
func (v *verification) index(ctx context.Context) error {
	check := dedupe.Verify
	if v.opts.Level == VerifyStructure {
		check = dedupe.VerifyStructure
	}
	return check(ctx, v.r.backend, v.r.keys, func(d *dedupe.DamageError) {
		v.mu.Lock()
		defer v.mu.Unlock()
		v.add(Damage{Object: d.Object, Offset: d.Offset, Length: d.Length, Problem: d.Error(), frame: -1})
	})
}
