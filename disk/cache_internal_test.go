package disk

import (
	"context"
	"encoding/binary"
	"errors"
	"sync"
	"testing"

	"pgregory.net/rapid"
)

// TestCacheBounded: whatever is asked for, the cache gives the right page, and
// holds no more than its limit (or one page, if that is larger).
func TestCacheBounded(t *testing.T) {
	rapid.Check(t, func(t *rapid.T) {
		limit := rapid.Int64Range(1, 5000).Draw(t, "limit")
		c := newPageCache(limit)
		for range rapid.IntRange(1, 200).Draw(t, "gets") {
			key := pageKey{off: rapid.Int64Range(0, 30).Draw(t, "off"), length: rapid.Int64Range(8, 900).Draw(t, "length")}
			page, err := c.get(context.Background(), key, func() ([]byte, error) {
				b := make([]byte, key.length)
				binary.LittleEndian.PutUint64(b, uint64(key.off))
				return b, nil
			})
			if err != nil || int64(len(page)) != key.length || binary.LittleEndian.Uint64(page) != uint64(key.off) {
				t.Fatalf("page of %+v: %d bytes, %v", key, len(page), err)
			}
			var sum int64
			for elem := c.order.Front(); elem != nil; elem = elem.Next() {
				sum += elem.Value.(*cachedPage).cost()
			}
			if sum != c.bytes || len(c.pages) != c.order.Len() || (sum > limit && c.order.Len() > 1) {
				t.Fatalf("%d pages, %d in order, %d bytes, counted %d, limit %d", len(c.pages), c.order.Len(), sum, c.bytes, limit)
			}
		}
	})
}

// TestCacheLoadsOnce: readers that miss one page wait for one load, or for
// their context; an error is told to all who waited and forgotten.
func TestCacheLoadsOnce(t *testing.T) {
	c := newPageCache(1 << 20)
	boom := errors.New("boom")
	for _, outcome := range []error{boom, nil} {
		started, release := make(chan struct{}), make(chan struct{})
		var wg sync.WaitGroup
		wg.Go(func() {
			_, err := c.get(context.Background(), pageKey{off: 1}, func() ([]byte, error) {
				close(started)
				<-release
				return []byte("page"), outcome
			})
			if err != outcome {
				t.Errorf("loader: %v", err)
			}
		})
		<-started
		cancelled, cancel := context.WithCancel(context.Background())
		cancel()
		second := func() ([]byte, error) { t.Error("loaded twice"); return nil, nil }
		if _, err := c.get(cancelled, pageKey{off: 1}, second); !errors.Is(err, context.Canceled) {
			t.Errorf("waiter with a cancelled context: %v", err)
		}
		waiters := make(chan struct{}, 5)
		for range 5 {
			wg.Go(func() {
				waiters <- struct{}{}
				pg, err := c.get(context.Background(), pageKey{off: 1}, func() ([]byte, error) {
					return []byte("page"), outcome // came after the first load had failed
				})
				if err != outcome || (err == nil && string(pg) != "page") {
					t.Errorf("waiter: %q, %v", pg, err)
				}
			})
		}
		for range 5 {
			<-waiters
		}
		close(release)
		wg.Wait()
	}
	if _, err := c.get(context.Background(), pageKey{off: 1}, nil); err != nil {
		t.Errorf("a loaded page: %v", err)
	}
}
