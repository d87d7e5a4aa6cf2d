package store

import (
	"context"
	"errors"
	"path/filepath"

	"lifeboat/store/internal/blockcache"
)

// openNear puts a cache over a slow backend. Only what never changes goes
// through it: a segment, a run of the index or a restore point under a name is
// what it was, for as long as it is there. That it is still there, the cache
// cannot tell: whoever has to know asks the backend.
func (r *Repository) openNear(opts Options) {
	r.reads = r.backend
	if !opts.Remote && (opts.DiskCache.Dir == "" || opts.DiskCache.Bytes <= 0) {
		return
	}
	o := blockcache.Options{
		Bytes: opts.DiskCache.Bytes, Logger: r.log, Key: r.keys.SubKey("block cache", []byte(r.id)),
		Prefixes: []string{"segments/", pointPrefix, indexPrefix},
	}
	if opts.DiskCache.Dir != "" {
		o.Dir = filepath.Join(opts.DiskCache.Dir, r.id)
	}
	r.near = blockcache.New(r.backend, o)
	r.reads, r.farMax = r.near, farMax
}

// readListedPoint is readPoint for a point that a listing has just shown: one
// that was read before costs no request.
func (r *Repository) readListedPoint(ctx context.Context, id string) (*pointRecord, error) {
	if r.near == nil {
		return r.readPoint(ctx, id)
	}
	name := pointName(id)
	sealed, err := getObject(ctx, r.near, name, maxPointBytes+envelopeRoom)
	if err != nil {
		return nil, err
	}
	if plain, err := r.keys.Open(name, sealed); err == nil {
		return decodePoint(plain, id, r.blockSize)
	} else if !errors.Is(damaged(err), ErrDamaged) {
		return nil, err
	}
	r.near.Forget(name) // it may have been repaired
	return r.readPoint(ctx, id)
}

// distrustPoint forgets what is remembered of a point, which a repair may have
// made anew under its name.
func (r *Repository) distrustPoint(id string) {
	r.points.drop(id)
	if r.near != nil {
		r.near.Forget(pointName(id))
	}
}
