package store

import (
	"context"
	"fmt"

	"lifeboat/store/internal/segment"
)

// Config returns a file that was kept with the point.
func (r *Repository) Config(ctx context.Context, p *Point, name string) ([]byte, error) {
	rec, err := r.recordOf(ctx, p)
	if err != nil {
		return nil, err
	}
	for _, c := range rec.Config {
		if c.Name == name {
			data, err := r.readConfig(ctx, c)
			if err != nil {
				return nil, fmt.Errorf("read %q of point %s: %w", name, rec.ID, damaged(err))
			}
			return data, nil
		}
	}
	return nil, fmt.Errorf("point %s has no file %q: %w", rec.ID, name, ErrNotFound)
}

func (r *Repository) readConfig(ctx context.Context, c configRecord) ([]byte, error) {
	data := make([]byte, len(c.Blocks)*r.blockSize)
	for i, a := range c.Blocks {
		block, addr := data[i*r.blockSize:(i+1)*r.blockSize], segment.Addr(a)
		switch addr {
		case segment.Hole:
			continue
		case segment.Unreadable:
			return nil, errUnreadable
		}
		if err := r.fetch.read(ctx, addr, block, 0); err != nil {
			return nil, err
		}
	}
	return data[:c.Size], nil
}
