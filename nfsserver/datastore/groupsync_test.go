package datastore

import (
	"errors"
	"sync"
	"sync/atomic"
	"testing"
	"testing/synctest"
)

// Callers that come while a sync runs share the next one, and get the outcome
// of a sync that began after they came.
func TestGroupSyncShares(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		var g groupSync
		var runs atomic.Int32
		gate := make(chan struct{})
		failed := errors.New("failed")
		run := func() error {
			n := runs.Add(1)
			<-gate
			if n == 2 {
				return failed
			}
			return nil
		}
		var first error
		var wg sync.WaitGroup
		wg.Go(func() { first = g.do(nil, run) })
		synctest.Wait() // the first sync runs
		errs := make([]error, 20)
		for i := range errs {
			wg.Go(func() { errs[i] = g.do(nil, run) })
		}
		synctest.Wait() // all the others wait
		if runs.Load() != 1 {
			t.Fatalf("%d syncs at once", runs.Load())
		}
		gate <- struct{}{}
		synctest.Wait()
		if runs.Load() != 2 || first != nil {
			t.Fatal(runs.Load(), first)
		}
		gate <- struct{}{}
		wg.Wait()
		for _, err := range errs {
			if err != failed {
				t.Fatalf("outcome %v of another sync", err)
			}
		}
		if runs.Load() != 2 {
			t.Fatalf("%d syncs for 21 callers", runs.Load())
		}
	})
}

// A leader waits for those who have announced themselves before, not for those
// who come later, and not for one who has changed his mind.
func TestGroupSyncGathers(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		var g groupSync
		var runs atomic.Int32
		run := func() error { runs.Add(1); return nil }
		own, slow, undecided := g.enter(), g.enter(), g.enter()
		var wg sync.WaitGroup
		wg.Go(func() { _ = g.do(own, run) })
		synctest.Wait()
		late := g.enter()
		g.leave(undecided)
		synctest.Wait()
		if runs.Load() != 0 {
			t.Fatal("did not wait for one who was on his way")
		}
		wg.Go(func() { _ = g.do(slow, run) })
		wg.Wait()
		if runs.Load() != 1 {
			t.Fatalf("%d syncs for two who came together", runs.Load())
		}
		_ = g.do(late, run)
		if runs.Load() != 2 {
			t.Fatal("the late one got no sync")
		}
	})
}
