package appliance

import (
	"context"
	"errors"
	"fmt"
	"math/rand/v2"
	"sync"
	"sync/atomic"
	"testing"
	"testing/synctest"
	"time"

	"pgregory.net/rapid"
)

func TestBandwidthIsKeptByAll(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		b, began := newBandwidth(10<<20), time.Now()
		var group sync.WaitGroup
		for range 10 {
			group.Go(func() {
				for range 5 {
					if err := b.Wait(t.Context(), 1<<20); err != nil {
						t.Error(err)
					}
				}
			})
		}
		group.Wait()
		if took := time.Since(began); took < 4700*time.Millisecond || took > 5*time.Second {
			t.Errorf("50 MiB at 10 MiB/s took %v", took)
		}
		ctx, cancel := context.WithTimeout(t.Context(), time.Second)
		defer cancel()
		if err := b.Wait(ctx, 1<<30); !errors.Is(err, context.DeadlineExceeded) {
			t.Errorf("a wait that was cancelled: %v", err)
		}
	})
}

func TestThrottleNeitherExceedsNorBlocks(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		limits := Limits{PerHost: 3, PerDatastore: 2, Repository: 4}
		th := newThrottle(limits)
		var all, most atomic.Int64
		perHost := make([]atomic.Int64, 3)
		perDatastore := make([]atomic.Int64, 3)
		var group sync.WaitGroup
		for vm := range 60 {
			group.Go(func() {
				rng := rand.New(rand.NewPCG(uint64(vm), 1))
				host := rng.IntN(3)
				var names []string
				for range 1 + rng.IntN(9) {
					names = append(names, fmt.Sprint(rng.IntN(3)))
				}
				for _, batch := range th.batches(names) {
					var on []string
					for _, i := range batch {
						on = append(on, names[i])
					}
					release, err := th.acquire(t.Context(), fmt.Sprint(host), on)
					if err != nil {
						t.Error(err)
						return
					}
					n := int64(len(on))
					if h, a := perHost[host].Add(n), all.Add(n); h > 3 || a > 4 {
						t.Errorf("%d on a host, %d in all", h, a)
					} else if a > most.Load() {
						most.Store(a)
					}
					for _, ds := range on {
						if d := perDatastore[ds[0]-'0'].Add(1); d > 2 {
							t.Errorf("%d on a datastore", d)
						}
					}
					time.Sleep(time.Second)
					for _, ds := range on {
						perDatastore[ds[0]-'0'].Add(-1)
					}
					perHost[host].Add(-n)
					all.Add(-n)
					release()
					release()
				}
			})
		}
		group.Wait()
		if most.Load() < 3 {
			t.Errorf("never more than %d at once", most.Load())
		}
	})
}

func TestThrottleGivesBackWhatAnEndedContextTook(t *testing.T) {
	th := newThrottle(Limits{PerHost: 2, PerDatastore: 1})
	release, err := th.acquire(t.Context(), "h", []string{"b"})
	if err != nil {
		t.Fatal(err)
	}
	ctx, cancel := context.WithCancel(t.Context())
	cancel()
	if _, err := th.acquire(ctx, "h", []string{"b"}); !errors.Is(err, context.Canceled) {
		t.Fatalf("it got %v", err)
	}
	release()
	if release, err = th.acquire(t.Context(), "h", []string{"a", "b"}); err != nil {
		t.Fatal(err)
	}
	release()
}

func TestBatchesHoldEveryDiskOnce(t *testing.T) {
	rapid.Check(t, func(t *rapid.T) {
		th := newThrottle(Limits{PerHost: rapid.IntRange(1, 8).Draw(t, "host"), PerDatastore: rapid.IntRange(1, 5).Draw(t, "ds")})
		names := rapid.SliceOfN(rapid.SampledFrom([]string{"a", "b", "c"}), 0, 20).Draw(t, "disks")
		next := 0
		for _, batch := range th.batches(names) {
			on := map[string]int{}
			for _, i := range batch {
				if i != next {
					t.Fatalf("disk %d after %d", i, next-1)
				}
				next++
				on[names[i]]++
			}
			for ds, n := range on {
				if n > th.limits.PerDatastore || len(batch) > th.limits.PerHost {
					t.Fatalf("%d disks, %d on %s", len(batch), n, ds)
				}
			}
		}
		if next != len(names) {
			t.Fatalf("%d of %d disks", next, len(names))
		}
	})
}

// TestPacerBacksOff has a datastore that is slow as soon as more than four reads
// are under way.
func TestPacerBacksOff(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		p := newPacer(50 * time.Millisecond)
		var under, widest atomic.Int64
		var group sync.WaitGroup
		for range 32 {
			group.Go(func() {
				for i := range 40 {
					if err := p.enter(t.Context()); err != nil {
						t.Error(err)
						return
					}
					began, n := time.Now(), under.Add(1)
					time.Sleep(time.Duration(n) * 12 * time.Millisecond)
					if i > 30 && n > widest.Load() {
						widest.Store(n)
					}
					under.Add(-1)
					p.leave(began)
				}
			})
		}
		group.Wait()
		if w := widest.Load(); w < 2 || w > 8 {
			t.Errorf("in the end up to %d reads at once", w)
		}
		for range 2 * maxWindow * maxWindow { // it recovers
			if err := p.enter(t.Context()); err != nil {
				t.Fatal(err)
			}
			p.leave(time.Now())
		}
		if p.width() != maxWindow {
			t.Errorf("the window is %d when all is fast again", p.width())
		}
		ctx, cancel := context.WithCancel(t.Context())
		cancel()
		for range maxWindow {
			if err := p.enter(t.Context()); err != nil {
				t.Fatal(err)
			}
		}
		if err := p.enter(ctx); !errors.Is(err, context.Canceled) {
			t.Errorf("a wait that was cancelled: %v", err)
		}
	})
}
