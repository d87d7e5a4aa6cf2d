package s3

import (
	"context"
	"time"
)

// SweepBefore is Sweep of what is older than a time.
func (b *Bucket) SweepBefore(ctx context.Context, before time.Time) (int, error) {
	n, err := b.sweepUploads(ctx, before)
	if err != nil {
		return n, err
	}
	probes, err := b.sweepProbes(ctx, before)
	return n + probes, err
}

// ParseContentRange is for the fuzzer.
func ParseContentRange(s string) (first, end, size int64, err error) { return parseContentRange(s) }
