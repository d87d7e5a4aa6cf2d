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
		wg.Go(func() { first = g.do(run) })
		synctest.Wait() // the first sync runs
		errs := make([]error, 20)
		for i := range errs {
			wg.Go(func() { errs[i] = g.do(run) })
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
