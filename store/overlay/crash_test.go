package overlay

import (
	"context"
	"errors"
	"fmt"
	"math/rand/v2"
	"os"
	"strconv"
	"testing"

	"lifeboat/internal/vfs/crashfs"
)

// crashRuns is how many runs a crash test does: few by default, many where
// LIFEBOAT_CRASH_RUNS says so.
func crashRuns(t *testing.T, normal int) int {
	if s := os.Getenv("LIFEBOAT_CRASH_RUNS"); s != "" {
		n, err := strconv.Atoi(s)
		if err != nil {
			t.Fatalf("LIFEBOAT_CRASH_RUNS: %v", err)
		}
		return n
	}
	return normal
}

// work does random operations until something fails, and keeps h up to date. A
// write that failed may have been taken in part.
func work(o *Overlay, h *history, rng *rand.Rand, steps int) error {
	for range steps {
		var err error
		off, n := randomRange(rng)
		switch k := rng.IntN(100); {
		case k < 60:
			p := randomBytes(rng, n)
			h.write(p, off)
			if done, terr := o.TryWriteAt(p, off); done {
				err = terr
			} else {
				_, err = o.WriteAt(p, off)
			}
		case k < 70:
			h.write(make([]byte, n), off)
			err = o.Zero(off, n)
		case k < 97:
			if err = o.Sync(); err == nil {
				h.synced()
			}
		default:
			if err = o.Checkpoint(context.Background()); err == nil {
				h.synced()
			}
		}
		if err == nil {
			err = h.reads(o, rng)
		}
		if err != nil {
			return err
		}
	}
	return nil
}

// crashOnce runs the overlay through lives that end in power loss, the first at
// a given sync, or in the death of the process, and checks each time what
// survived.
func crashOnce(seed uint64, stopSync int) (stopped bool, err error) {
	rng := rand.New(rand.NewPCG(seed, 1))
	fsys := crashfs.New(seed, crashfs.Options{})
	h := newHistory(testOptions(fsys).Base, testSize)
	for life := range 6 {
		switch {
		case life == 0:
			fsys.StopAtSync(stopSync)
		case life < 5:
			fsys.StopAtPoint(fsys.Points() + 1 + rng.IntN(250))
		}
		err := liveOnce(fsys, h, rng)
		if err != nil && !errors.Is(err, crashfs.ErrPowerLoss) {
			return stopped, fmt.Errorf("life %d: %w", life, err)
		}
		stopped = stopped || life == 0 && err != nil
		if err != nil || rng.IntN(3) == 0 {
			was := fsys
			fsys = was.Crash(rng.Uint64())
			was.Stop()
		}
	}
	return stopped, nil
}

// liveOnce opens the overlay, checks what survived, works and perhaps closes,
// else is killed. It returns the first error, which is for the machine's stop
// to explain.
func liveOnce(fsys *crashfs.FS, h *history, rng *rand.Rand) error {
	p := newProcess(fsys)
	o, err := Open(testOptions(p))
	if err != nil {
		return err
	}
	defer func() {
		p.dead.Store(true) // so that Close cannot bring more to the disk than is known
		o.Close()
	}()
	if err := h.survived(o); err != nil {
		return err
	}
	if err := work(o, h, rng, 40); err != nil {
		return err
	}
	if rng.IntN(4) == 0 {
		if err := o.Close(); err != nil {
			return err
		}
		h.synced()
	}
	if fsys.Stopped() {
		return crashfs.ErrPowerLoss
	}
	return nil
}

// TestPowerLoss loses power at every sync of a run, and some more times after.
func TestPowerLoss(t *testing.T) {
	for run := range crashRuns(t, 2) {
		for stop := 1; ; stop++ {
			seed := uint64(run)<<32 | uint64(stop)
			stopped, err := crashOnce(seed, stop)
			if err != nil {
				t.Fatalf("seed %#x, power loss at sync %d: %v", seed, stop, err)
			}
			if !stopped {
				t.Logf("run %d lost power at %d syncs", run, stop-1)
				break
			}
		}
	}
}
