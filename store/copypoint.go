package store

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"io"

	"lifeboat/disk"
)

// copyVM copies the points of one VM, oldest first.
func (c *copying) copyVM(ctx context.Context, vm *copyVM) error {
	for i, p := range vm.wanted {
		if ctx.Err() != nil {
			return context.Cause(ctx)
		}
		guess := estimate(p, i == 0)
		twin, err := c.copyPoint(ctx, vm, p, guess)
		switch {
		case err == nil:
			vm.twins[c.src.origin(p)] = twin
			c.done(func(r *CopyReport) { r.Copied = append(r.Copied, Copied{p.ID, twin}) })
		case ctx.Err() == nil && (errors.Is(err, ErrDamaged) || errors.Is(err, ErrNotFound)):
			c.src.log.Error("left out a restore point that cannot be copied", "point", p.ID, "vm", p.VM, "error", err)
			c.done(func(r *CopyReport) {
				r.Failed = append(r.Failed, CopyFailure{From: p.ID, VM: p.VM, Time: p.Time, Error: err.Error(), Err: err})
			})
		default:
			return fmt.Errorf("point %s of %s: %w", p.ID, p.VM, err)
		}
	}
	return nil
}

func (c *copying) done(enter func(*CopyReport)) {
	c.mu.Lock()
	enter(&c.report)
	c.mu.Unlock()
	c.advance(1, CopyProgress{})
}

// copyPoint makes the copy of p. guess is what the progress counts on for it.
func (c *copying) copyPoint(ctx context.Context, vm *copyVM, p *Point, guess int64) (*Point, error) {
	base, release, err := c.hold(ctx, vm, p)
	if err != nil {
		return nil, err
	}
	defer release()
	spec, err := c.spec(ctx, p)
	if err != nil {
		return nil, err
	}
	w, err := c.begin(vm, base, spec)
	if err != nil {
		return nil, err
	}
	defer w.Abort()
	if w.parent == nil {
		base = nil
	}
	areas := make([][]disk.Extent, len(p.Disks))
	for n := range p.Disks {
		if areas[n], err = c.changed(ctx, base, p, n); err != nil {
			return nil, err
		}
	}
	for n := range p.Disks {
		if err := c.copyDisk(ctx, w, p, n, areas[n], &guess); err != nil {
			c.keepUnfinished(ctx)
			return nil, err
		}
	}
	c.advance(0, CopyProgress{Total: -guess})
	twin, err := w.Commit(ctx)
	if err != nil || !c.opts.Verify {
		return twin, err
	}
	return twin, c.compare(ctx, p, twin, areas)
}

// hold keeps p, and the point to compare it with, from being pruned meanwhile.
// Where the latter was forgotten it is done without.
func (c *copying) hold(ctx context.Context, vm *copyVM, p *Point) (base *Point, release func(), err error) {
	const purpose = "copy to another repository"
	if base = vm.nearest(c.src, p); base != nil {
		release, err = c.src.HoldToRead(ctx, []*Point{p, base}, purpose)
		if err == nil || !errors.Is(err, ErrNotFound) {
			return base, release, err
		}
	}
	release, err = c.src.HoldToRead(ctx, []*Point{p}, purpose)
	return nil, release, err
}

// keepUnfinished saves what an interrupted point has stored for the next
// attempt. The point is still open, so that nothing was removed yet.
func (c *copying) keepUnfinished(ctx context.Context) {
	if ctx.Err() == nil {
		return
	}
	if err := c.in.keepStored(); err != nil {
		c.dst.log.Warn("could not keep what was copied of an unfinished point; it will be copied again", "error", err)
	}
}

// spec is p as the destination will have it.
func (c *copying) spec(ctx context.Context, p *Point) (PointSpec, error) {
	origin := c.src.origin(p)
	s := PointSpec{
		VM: p.VM, VMID: p.VMID, Time: p.Time, Consistency: p.Consistency, Labels: p.Labels, Origin: &origin,
		Config: make(map[string][]byte, len(p.Config)),
	}
	for _, f := range p.Config {
		data, err := c.src.Config(ctx, p, f.Name)
		if err != nil {
			return s, err
		}
		s.Config[f.Name] = data
	}
	return s, nil
}

// nearest is the point of the source to compare p with: of those that have a
// copy in the destination the newest before p, or else the oldest after it.
func (vm *copyVM) nearest(src *Repository, p *Point) *Point {
	var before *Point
	for _, q := range vm.source {
		switch {
		case vm.twins[src.origin(q)] == nil:
		case q.Time.After(p.Time) && before == nil:
			return q
		case q.Time.After(p.Time):
			return before
		default:
			before = q
		}
	}
	return before
}

// begin starts the copy, with the copy of base as its parent. Where that was
// forgotten meanwhile it does without, and so do later points.
func (c *copying) begin(vm *copyVM, base *Point, spec PointSpec) (*PointWriter, error) {
	if base != nil {
		spec.Parent = vm.twins[c.src.origin(base)]
	}
	w, err := c.in.Begin(spec)
	if err != nil && spec.Parent != nil && (errors.Is(err, ErrNotFound) || errors.Is(err, ErrDamaged)) {
		delete(vm.twins, c.src.origin(base))
		spec.Parent = nil
		w, err = c.in.Begin(spec)
	}
	return w, err
}

// changed lists where disk n of p differs from the disk with its key in base;
// nil means that there is nothing to compare with.
func (c *copying) changed(ctx context.Context, base, p *Point, n int) ([]disk.Extent, error) {
	if base == nil {
		return nil, nil
	}
	for m, d := range base.Disks {
		if d.Key != p.Disks[n].Key {
			continue
		}
		if d.Size != p.Disks[n].Size {
			return nil, nil
		}
		areas := []disk.Extent{}
		for e, err := range c.src.Diff(ctx, base, m, p, n) {
			if err != nil {
				return nil, err
			}
			if last := len(areas) - 1; last >= 0 && areas[last].End() == e.Offset {
				areas[last].Length += e.Length
				continue
			}
			areas = append(areas, disk.Extent{Offset: e.Offset, Length: e.Length})
		}
		return areas, nil
	}
	return nil, nil
}

// copyDisk copies disk n of p. Of guess, what the progress counted on, it takes
// what the disk turns out to need.
func (c *copying) copyDisk(ctx context.Context, w *PointWriter, p *Point, n int, areas []disk.Extent, guess *int64) error {
	img, err := c.src.OpenDisk(ctx, p, n)
	if err != nil {
		return err
	}
	defer img.Close()
	var src disk.Image = img
	if c.src.blockSize == c.dst.blockSize {
		src = newTranscoder(img)
	}
	var last Progress
	tell := func(now Progress) {
		step := CopyProgress{Done: now.Done - last.Done, Total: now.Total - last.Total, New: now.New - last.New, Stored: now.Stored - last.Stored}
		taken := min(step.Total, *guess)
		*guess -= taken
		step.Total -= taken
		c.advance(0, step)
		last = now
	}
	d := p.Disks[n]
	return w.AddDisk(ctx, DiskSpec{Key: d.Key, Label: d.Label}, src, areas, tell)
}

// compare reads the copy back and compares it with the source: in the areas that
// were copied, because the rest it shares with a point that was compared then.
func (c *copying) compare(ctx context.Context, p, twin *Point, areas [][]disk.Extent) error {
	for n := range p.Disks {
		if err := c.compareDisk(ctx, p, twin, n, areas[n]); err != nil {
			return fmt.Errorf("the copy %s was made, and reading it back failed: %w; `lifeboat verify` on the destination says more", twin.ID, err)
		}
	}
	return nil
}

func (c *copying) compareDisk(ctx context.Context, p, twin *Point, n int, areas []disk.Extent) error {
	a, err := c.src.OpenDisk(ctx, p, n)
	if err != nil {
		return err
	}
	defer a.Close()
	b, err := c.dst.OpenDisk(ctx, twin, n)
	if err != nil {
		return err
	}
	defer b.Close()
	if areas == nil {
		areas = []disk.Extent{disk.Whole(a)}
	}
	bufA, bufB := make([]byte, chunkBytes), make([]byte, chunkBytes)
	for _, area := range areas {
		if err := sameArea(ctx, a, b, area, bufA, bufB); err != nil {
			return err
		}
	}
	return nil
}

// sameArea compares what either disk has in an area.
func sameArea(ctx context.Context, a, b disk.Image, area disk.Extent, bufA, bufB []byte) error {
	for at := area.Offset; at < area.End(); {
		end := area.End()
		hole, err := bothHole(ctx, a, b, disk.Extent{Offset: at, Length: end - at})
		if err != nil {
			return err
		}
		if hole > 0 {
			at += hole
			continue
		}
		n := min(end-at, int64(len(bufA)))
		if err := errors.Join(readFull(a, bufA[:n], at), readFull(b, bufB[:n], at)); err != nil {
			return err
		}
		if !bytes.Equal(bufA[:n], bufB[:n]) {
			return fmt.Errorf("%w: the copy differs from the source between %d and %d", ErrDamaged, at, at+n)
		}
		at += n
	}
	return nil
}

func readFull(img disk.Image, p []byte, off int64) error {
	n, err := img.ReadAt(p, off)
	switch {
	case n == len(p):
		return nil
	case err == nil || errors.Is(err, io.EOF):
		err = io.ErrUnexpectedEOF
	}
	return fmt.Errorf("at %d: %w", off+int64(n), err)
}

// bothHole is how many bytes from the start of within are holes of both disks.
func bothHole(ctx context.Context, a, b disk.Image, within disk.Extent) (int64, error) {
	n := within.Length
	for _, img := range []disk.Image{a, b} {
		for e, err := range disk.Extents(ctx, img, within) {
			if err != nil {
				return 0, err
			}
			if !e.Hole {
				n = 0
			} else {
				n = min(n, e.Length)
			}
			break
		}
	}
	return n, nil
}
