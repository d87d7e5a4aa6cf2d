package store

import (
	"context"
	"errors"
	"fmt"
	"slices"
	"strings"
	"time"
)

// timeLayouts are the ways to write the time in a reference, without zone and
// with.
var timeLayouts = [...]string{"2006-01-02T15:04:05", "2006-01-02T15:04", "2006-01-02"}

// parseTime reads the time of a reference. Without a zone it is local. A date
// alone means the end of that day, and a time in whole seconds the end of that
// second: a point listed as of 10:00:00 was made within it.
func parseTime(s string) (time.Time, error) {
	for _, layout := range timeLayouts {
		t, err := time.ParseInLocation(layout, s, time.Local)
		if err != nil {
			t, err = time.Parse(layout+"Z07:00", s)
		}
		if err != nil {
			continue
		}
		switch {
		case layout == time.DateOnly:
			t = t.AddDate(0, 0, 1).Add(-time.Nanosecond)
		case t.Nanosecond() == 0:
			t = t.Add(time.Second - time.Nanosecond)
		}
		return t, nil
	}
	return time.Time{}, fmt.Errorf("%w: %.40q is not a time; write 2026-11-21T10:00 (local) or 2026-11-21T10:00:00Z, or latest", ErrReference, s)
}

// ResolvePoint finds the restore point that ref means: an ID, a unique prefix
// of one, "VM@latest", or "VM@2026-11-21T10:00" (the newest point at or before
// that time, which is local unless it carries a zone). VM is a name or a VMID.
// Errors match ErrNotFound, ErrAmbiguous (and then name the candidates) or
// ErrReference.
func (r *Repository) ResolvePoint(ctx context.Context, ref string) (*Point, error) {
	if at := strings.LastIndexByte(ref, '@'); at >= 0 {
		return r.resolveTime(ctx, ref[:at], ref[at+1:])
	}
	if validID(ref) {
		return r.Point(ctx, ref)
	}
	return r.resolvePrefix(ctx, ref)
}

func (r *Repository) resolvePrefix(ctx context.Context, prefix string) (*Point, error) {
	ids, err := r.pointIDs(ctx)
	if err != nil {
		return nil, err
	}
	lower := strings.ToLower(prefix)
	if len(lower) == 0 || len(lower) > 16 || strings.Trim(lower, "0123456789abcdef") != "" {
		return nil, r.notAReference(ctx, prefix)
	}
	var found []*Point
	first, _ := slices.BinarySearch(ids, lower)
	for _, id := range ids[first:] {
		if !strings.HasPrefix(id, lower) {
			break
		}
		rec, err := r.pointRecord(ctx, id)
		if errors.Is(err, ErrNotFound) {
			continue // a void, forgotten, or gone
		}
		if err != nil {
			return nil, err
		}
		found = append(found, rec.public())
		if len(found) > maxCandidates {
			break
		}
	}
	switch len(found) {
	case 0:
		return nil, fmt.Errorf("restore point %q: %w", prefix, ErrNotFound)
	case 1:
		return found[0], nil
	}
	return nil, fmt.Errorf("%q: %w: %s", prefix, ErrAmbiguous, candidates(found))
}

// notAReference helps the one who gave a VM's name alone.
func (r *Repository) notAReference(ctx context.Context, ref string) error {
	points, err := r.Points(ctx)
	if err != nil {
		return err
	}
	for _, p := range points {
		if ref != "" && (p.VM == ref || p.VMID == ref) {
			return fmt.Errorf("%w: %q is a VM; write %s@latest for its newest point", ErrReference, ref, ref)
		}
	}
	return fmt.Errorf("%w: %.100q: give an ID, the start of one, VM@latest or VM@2026-11-21T10:00", ErrNotFound, ref)
}

// maxCandidates is how many points an ambiguous reference names.
const maxCandidates = 10

// candidates lists points for a message.
func candidates(points []*Point) string {
	var b strings.Builder
	for i, p := range points {
		if i == maxCandidates {
			b.WriteString(", …")
			break
		}
		if i > 0 {
			b.WriteString(", ")
		}
		fmt.Fprintf(&b, "%s (%s, %s", p.ID, p.VM, p.Time.Local().Format(time.RFC3339))
		if p.VMID != "" {
			fmt.Fprintf(&b, ", %s", p.VMID)
		}
		b.WriteByte(')')
	}
	return b.String()
}

// Latest returns the newest restore point of a VM (by name or VMID), or
// ErrNotFound.
func (r *Repository) Latest(ctx context.Context, vm string) (*Point, error) {
	return r.resolveTime(ctx, vm, "latest")
}

func (r *Repository) resolveTime(ctx context.Context, vm, when string) (*Point, error) {
	var until time.Time
	if when != "latest" {
		t, err := parseTime(when)
		if err != nil {
			return nil, err
		}
		until = t
	}
	points, err := r.Points(ctx)
	if err != nil {
		return nil, err
	}
	of := pointsOf(points, vm)
	if len(of) == 0 {
		return nil, fmt.Errorf("VM %q: %w%s", vm, ErrNotFound, knownVMs(points))
	}
	newest := make(map[string]*Point) // by VMID, for names that several VMs bear
	for _, p := range of {
		if until.IsZero() || !p.Time.After(until) {
			newest[p.VMID] = p
		}
	}
	switch len(newest) {
	case 0:
		return nil, fmt.Errorf("VM %q has no restore point at or before %s: %w; its oldest is %s", vm,
			until.Format(time.RFC3339), ErrNotFound, candidates(of[:1]))
	case 1:
		for _, p := range newest {
			return p, nil
		}
	}
	var several []*Point
	for _, p := range newest {
		several = append(several, p)
	}
	slices.SortFunc(several, func(a, b *Point) int { return strings.Compare(a.ID, b.ID) })
	return nil, fmt.Errorf("%d VMs are called %q: %w: %s; give the ID, or the VM's own ID before the @", len(several), vm,
		ErrAmbiguous, candidates(several))
}

// pointsOf is the points of a VM, by VMID where one has it, else by name.
func pointsOf(points []*Point, vm string) []*Point {
	var byID, byName []*Point
	for _, p := range points {
		if p.VMID == vm && vm != "" {
			byID = append(byID, p)
		} else if p.VM == vm {
			byName = append(byName, p)
		}
	}
	if len(byID) > 0 {
		return byID
	}
	return byName
}

// knownVMs names what there is, for the message about what there is not.
func knownVMs(points []*Point) string {
	var names []string
	for _, p := range points {
		names = append(names, p.VM)
	}
	slices.Sort(names)
	names = slices.Compact(names)
	switch {
	case len(names) == 0:
		return "; the repository has no restore points yet"
	case len(names) > maxCandidates:
		return fmt.Sprintf("; there are points of %s and %d more VMs", strings.Join(names[:maxCandidates], ", "), len(names)-maxCandidates)
	}
	return "; there are points of " + strings.Join(names, ", ")
}
