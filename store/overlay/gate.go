package overlay

import "sync/atomic"

// readGate lets a checkpoint wait for the reads that were planned before it
// changed where pages lie, and for no others. A reader enters under the
// overlay's lock, where it looks up where its pages lie, and leaves when it
// has read them from the log and data files. Flipping (under the same lock,
// exclusively) divides readers into those before and those after.
//
// Two counters are enough because a flip comes only after the drain of the one
// before it.
type readGate struct {
	epoch   uint32 // under Overlay.mu
	inside  [2]atomic.Int64
	waiting atomic.Bool
	wake    chan struct{}
}

// enter returns what leave wants. Caller holds mu, shared at least.
func (g *readGate) enter() uint32 {
	slot := g.epoch & 1
	g.inside[slot].Add(1)
	return slot
}

func (g *readGate) leave(slot uint32) {
	if g.inside[slot].Add(-1) == 0 && g.waiting.Load() {
		ring(g.wake)
	}
}

// flip starts a new epoch; the argument for drain is the one that ended.
// Caller holds mu.
func (g *readGate) flip() uint32 {
	g.epoch++
	return (g.epoch - 1) & 1
}

// drain waits until everyone who entered before the flip has left.
func (g *readGate) drain(slot uint32) {
	g.waiting.Store(true)
	for g.inside[slot].Load() != 0 {
		<-g.wake
	}
	g.waiting.Store(false)
}
