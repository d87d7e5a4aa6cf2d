package store

import (
	"context"
	"fmt"
	"strings"
)

// Stat is what a repository holds.
type Stat struct {
	Points       int   `json:"points"`
	Segments     int   `json:"segments"`
	SegmentBytes int64 `json:"segment_bytes"`
	IndexBytes   int64 `json:"index_bytes"`
	OtherBytes   int64 `json:"other_bytes"` // header, keys, claims, points
	TotalBytes   int64 `json:"total_bytes"`
	// VirtualBytes and UsedBytes are the sums over all disks of all points.
	VirtualBytes int64 `json:"virtual_bytes"`
	UsedBytes    int64 `json:"used_bytes"`
}

// Stat lists the repository and adds up.
func (r *Repository) Stat(ctx context.Context) (*Stat, error) {
	points, err := r.Points(ctx)
	if err != nil {
		return nil, err
	}
	s := &Stat{Points: len(points)}
	for _, p := range points {
		for _, d := range p.Disks {
			s.VirtualBytes += d.Size
			s.UsedBytes += d.Used
		}
	}
	for info, err := range r.backend.List(ctx, "") {
		if err != nil {
			return nil, fmt.Errorf("list the repository: %w", err)
		}
		switch {
		case strings.HasPrefix(info.Name, "segments/"):
			s.Segments++
			s.SegmentBytes += info.Size
		case strings.HasPrefix(info.Name, "index/"):
			s.IndexBytes += info.Size
		default:
			s.OtherBytes += info.Size
		}
		s.TotalBytes += info.Size
	}
	return s, nil
}
