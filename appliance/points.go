package appliance

import (
	"context"
	"errors"
	"fmt"

	"lifeboat/disk"
	"lifeboat/store"
)

// ResolvePoint finds the restore point that a person means; see
// store.Repository.ResolvePoint.
func ResolvePoint(ctx context.Context, repo *store.Repository, ref string) (*store.Point, error) {
	pt, err := repo.ResolvePoint(ctx, ref)
	return pt, pointError(err)
}

// pointError gives the store's errors about points the appliance's kinds.
func pointError(err error) error {
	switch {
	case errors.Is(err, store.ErrNotFound):
		return fmt.Errorf("%w (`lifeboat points` lists the restore points)", err)
	case errors.Is(err, store.ErrReference):
		return fmt.Errorf("%w: %w", ErrUsage, err)
	}
	return err
}

// DiskDiff is what differs between one disk of two points.
type DiskDiff struct {
	Key int `json:"key"`
	// Only is "a" or "b" when just one of the points has the disk; then there
	// are no extents.
	Only    string       `json:"only,omitempty"`
	Bytes   int64        `json:"bytes"` // sum of the extents' lengths
	Extents []DiffExtent `json:"extents"`
}

// DiffExtent is an area that differs, in bytes.
type DiffExtent struct {
	Offset int64 `json:"offset"`
	Length int64 `json:"length"`
	Zero   bool  `json:"zero,omitempty"` // reads as zeros in b
}

// DiffPoints compares two points disk by disk; disks are matched by key. It
// costs what differs.
func DiffPoints(ctx context.Context, repo *store.Repository, a, b *store.Point) ([]DiskDiff, error) {
	var diffs []DiskDiff
	inA := map[int]int{}
	for i, d := range a.Disks {
		inA[d.Key] = i
	}
	for j, d := range b.Disks {
		i, ok := inA[d.Key]
		if !ok {
			diffs = append(diffs, DiskDiff{Key: d.Key, Only: "b", Extents: []DiffExtent{}})
			continue
		}
		delete(inA, d.Key)
		one, err := diffDisk(ctx, repo, a, i, b, j)
		if err != nil {
			return nil, fmt.Errorf("comparing disk %d: %w", d.Key, err)
		}
		diffs = append(diffs, one)
	}
	for _, d := range a.Disks {
		if _, left := inA[d.Key]; left {
			diffs = append(diffs, DiskDiff{Key: d.Key, Only: "a", Extents: []DiffExtent{}})
		}
	}
	return diffs, nil
}

func diffDisk(ctx context.Context, repo *store.Repository, a *store.Point, i int, b *store.Point, j int) (DiskDiff, error) {
	out := DiskDiff{Key: b.Disks[j].Key, Extents: []DiffExtent{}}
	for e, err := range repo.Diff(ctx, a, i, b, j) {
		if err != nil {
			return out, err
		}
		out.Bytes += e.Length
		if n := len(out.Extents); n > 0 {
			last := &out.Extents[n-1]
			if last.Offset+last.Length == e.Offset && last.Zero == e.Hole {
				last.Length += e.Length
				continue
			}
		}
		out.Extents = append(out.Extents, DiffExtent{Offset: e.Offset, Length: e.Length, Zero: e.Hole})
	}
	return out, nil
}

// diskByNumber finds a point's disk by its index in the point.
func diskByNumber(pt *store.Point, n int) (store.Disk, error) {
	if n < 0 || n >= len(pt.Disks) {
		return store.Disk{}, fmt.Errorf("%w: restore point %s has no disk %d: it has %d, counted from 0", ErrNotFound, pt.ID, n, len(pt.Disks))
	}
	return pt.Disks[n], nil
}

// OpenPointDisk opens one disk of a point for reading.
func OpenPointDisk(ctx context.Context, repo *store.Repository, pt *store.Point, n int) (disk.Image, error) {
	if _, err := diskByNumber(pt, n); err != nil {
		return nil, err
	}
	return repo.OpenDisk(ctx, pt, n)
}
