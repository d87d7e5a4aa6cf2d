package s3

import (
	"context"
	"errors"
	"fmt"
	"io/fs"
	"sync"
	"sync/atomic"
	"time"

	"lifeboat/store/backend"
)

// What a probe of If-None-Match found.
const (
	exclusiveUnknown int32 = iota
	exclusiveYes
	exclusiveNo
)

// tmpPrefix is no part of the name space: nothing below it is an object.
const tmpPrefix = "tmp/"

// probeRacers is how many write the same name at once in a probe. A server that
// looks first and writes then lets several through.
const probeRacers = 4

var _ backend.Prober = (*Bucket)(nil)

// ProbeExclusive implements [backend.Prober]: it writes objects that nobody
// else knows of, twice and by several at once, and removes them. What it found
// holds for this Bucket from then on.
func (b *Bucket) ProbeExclusive(ctx context.Context) (bool, error) {
	holds, err := b.probe(ctx)
	if err != nil {
		return false, fmt.Errorf("find out whether %s keeps If-None-Match: %w", b.core.EndpointURL(), err)
	}
	if holds {
		b.exclusive.Store(exclusiveYes)
	} else {
		b.exclusive.Store(exclusiveNo)
		b.log.Warn("this S3 server does not keep If-None-Match: only one writer at a time is safe", "endpoint", b.core.EndpointURL().String())
	}
	return holds, nil
}

func (b *Bucket) probe(ctx context.Context) (bool, error) {
	first := b.newWriter(ctx, "", backend.Exclusive)
	name := tmpPrefix + "probe-" + first.nonce
	first.name = name
	defer func() {
		ctx, cancel := context.WithTimeout(context.WithoutCancel(ctx), abortLimit)
		defer cancel()
		if err := b.remove(ctx, name); err != nil {
			b.log.Debug("the object of a probe is left for the next sweep", "object", name, "error", err)
		}
	}()
	writers := []*writer{first}
	for range probeRacers - 1 {
		w := b.newWriter(ctx, name, backend.Exclusive)
		writers = append(writers, w)
	}
	wins, err := race(ctx, writers)
	if err != nil || wins != 1 {
		return false, err
	}
	late, err := race(ctx, []*writer{b.newWriter(ctx, name, backend.Exclusive)})
	if err != nil || late != 0 {
		return false, err
	}
	info, err := b.stat(ctx, b.key(name))
	if err == nil && nonceOf(info) == "" {
		b.log.Warn("this S3 server does not keep the metadata of objects: when an answer is lost, it stays unknown what came of the request")
	}
	return err == nil, err
}

// race has all write at once, without looking first, and counts who won.
func race(ctx context.Context, writers []*writer) (int, error) {
	var wins atomic.Int32
	errs := make([]error, len(writers))
	var wg sync.WaitGroup
	for i, w := range writers {
		wg.Go(func() {
			w.buf = []byte(w.nonce)
			switch err := w.put(ctx, w.b.opts.Stall); {
			case err == nil:
				wins.Add(1)
			case errors.Is(err, fs.ErrExist), errors.Is(err, errRefused):
			default:
				errs[i] = err
			}
		})
	}
	wg.Wait()
	return int(wins.Load()), firstError(errs)
}

// firstError is the first error: what keeps one of several racers off keeps them
// all off, and once is enough to be told.
func firstError(errs []error) error {
	for _, err := range errs {
		if err != nil {
			return err
		}
	}
	return nil
}

// sweepAge is how old an unfinished upload or a probe must be for its writer to
// be taken for dead, by the server's clock, from which ours may not differ by
// more than a quarter of an hour if it is to answer at all.
const sweepAge = 24 * time.Hour

// Sweep drops unfinished uploads below the prefix that are older than a day,
// and what probes left. It returns how many. It is safe beside writers.
func (b *Bucket) Sweep(ctx context.Context) (int, error) {
	n, err := b.sweepUploads(ctx, time.Now().Add(-sweepAge))
	if err == nil {
		var probes int
		probes, err = b.sweepProbes(ctx, time.Now().Add(-sweepAge))
		n += probes
	}
	if err != nil {
		return n, fmt.Errorf("sweep %s: %w", b, err)
	}
	return n, nil
}

func (b *Bucket) sweepUploads(ctx context.Context, before time.Time) (int, error) {
	type mark struct{ key, id string }
	removed, at := 0, mark{}
	for {
		var old []mark
		var next mark
		err := b.try(ctx, func(p *pulse) error {
			page, err := b.core.ListMultipartUploads(p.ctx, b.loc.bucket, b.loc.prefix, at.key, at.id, "", listPage)
			old, next = nil, mark{}
			if err != nil {
				return err
			}
			for _, u := range page.Uploads {
				if u.Initiated.Before(before) && !u.Initiated.IsZero() {
					old = append(old, mark{u.Key, u.UploadID})
				}
			}
			if page.IsTruncated {
				next = mark{page.NextKeyMarker, page.NextUploadIDMarker}
			}
			return nil
		})
		if err != nil {
			return removed, err
		}
		for _, u := range old {
			if err := b.abortUpload(ctx, u.key, u.id); err != nil {
				return removed, err
			}
			removed++
		}
		if next == (mark{}) || next.key < at.key {
			return removed, nil
		}
		at = next
	}
}

func (b *Bucket) sweepProbes(ctx context.Context, before time.Time) (int, error) {
	keys, err := b.keysBelow(ctx, b.key(tmpPrefix))
	removed := 0
	for _, o := range keys {
		if err == nil && o.LastModified.Before(before) {
			err = b.removeVersion(ctx, o.Key, "")
			removed++
		}
	}
	return removed, err
}
