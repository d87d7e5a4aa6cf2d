package vsphere

import (
	"context"
	"sync/atomic"
)

type countingKey struct{}

// Counting returns a context whose calls are counted in n, too: what one of
// several jobs that share a client asks of the server. Counters do not nest.
func Counting(ctx context.Context, n *atomic.Int64) context.Context {
	return context.WithValue(ctx, countingKey{}, n)
}

// countFor counts a call for the job that it is made for.
func countFor(ctx context.Context) {
	if n, ok := ctx.Value(countingKey{}).(*atomic.Int64); ok {
		n.Add(1)
	}
}
