package keyring

import (
	"context"
	"errors"
	"sync"
	"testing"

	"lifeboat/store/backend"
	"lifeboat/store/backend/backendtest"
)

// TestRemoveEachOthersKey: of two who remove each other's key at the same time,
// at most one succeeds, however their steps interleave.
func TestRemoveEachOthersKey(t *testing.T) {
	ctx := t.Context()
	for steps := range 64 {
		b := &lockstep{Backend: backendtest.NewMemory()}
		r := newRepoForTest(t, b)
		second, err := r.AddPassword(ctx, b, []byte("second"), KeyOptions{KDF: CheapKDF()})
		if err != nil {
			t.Fatal(err)
		}
		b.begin(uint(steps))
		var group sync.WaitGroup
		var errs [2]error
		for who, id := range []string{r.KeyID, second} {
			group.Go(func() {
				errs[who] = r.RemoveKey(context.WithValue(ctx, whoKey{}, who), b, id)
				b.leave(who)
			})
		}
		group.Wait()
		infos, err := r.ListKeys(ctx, b)
		if err != nil || len(infos) == 0 {
			t.Fatalf("order %b: %d keys are left (%v); %v", steps, len(infos), err, errs)
		}
		for who, err := range errs {
			if err != nil && !errors.Is(err, ErrLastKey) {
				t.Errorf("order %b: %d: %v", steps, who, err)
			}
		}
		for _, info := range infos {
			if info.Removing {
				t.Errorf("order %b: an announcement was left", steps)
			}
		}
	}
}

type whoKey struct{}

// lockstep lets two callers make one call at a time, in the order of the bits
// of order (from the lowest), then as they come.
type lockstep struct {
	backend.Backend
	mu    sync.Mutex
	cond  *sync.Cond
	order uint
	left  int // bits of order not used up; 0: no order any more
	gone  [2]bool
}

func (l *lockstep) begin(order uint) {
	l.cond, l.order, l.left = sync.NewCond(&l.mu), order, 6
}

func (l *lockstep) leave(who int) {
	l.mu.Lock()
	defer l.mu.Unlock()
	l.gone[who] = true
	l.cond.Broadcast()
}

// turn waits for the caller's turn to change something.
func (l *lockstep) turn(ctx context.Context) {
	who, ok := ctx.Value(whoKey{}).(int)
	if !ok {
		return
	}
	l.mu.Lock()
	defer l.mu.Unlock()
	for l.left > 0 && !l.gone[1-who] && int(l.order&1) != who {
		l.cond.Wait()
	}
	if l.left > 0 {
		l.order, l.left = l.order>>1, l.left-1
	}
	l.cond.Broadcast()
}

func (l *lockstep) Create(ctx context.Context, name string, mode backend.Mode) (backend.Writer, error) {
	l.turn(ctx)
	return l.Backend.Create(ctx, name, mode)
}

func (l *lockstep) Remove(ctx context.Context, name string) error {
	l.turn(ctx)
	return l.Backend.Remove(ctx, name)
}

func TestUnfinishedRemoval(t *testing.T) {
	ctx, b := t.Context(), backendtest.NewMemory()
	r := newRepoForTest(t, b)
	second, err := r.AddPassword(ctx, b, []byte("second"), KeyOptions{KDF: CheapKDF()})
	if err != nil {
		t.Fatal(err)
	}
	backendtest.Put(t, b, announcement(second), nil, backend.Exclusive)
	if err := r.RemoveKey(ctx, b, r.KeyID); !errors.Is(err, ErrLastKey) {
		t.Errorf("the other key is being removed: %v, want ErrLastKey", err)
	}
	if _, err := Open(ctx, b, []byte("second")); err != nil {
		t.Errorf("a key whose removal did not finish: %v", err)
	}
	if err := r.RemoveKey(ctx, b, second); err != nil {
		t.Errorf("finishing it: %v", err)
	}
	if _, err := Open(ctx, b, password); err != nil {
		t.Error(err)
	}
}
