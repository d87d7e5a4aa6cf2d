package backendtest_test

import (
	"context"
	"errors"
	"io"
	"os"
	"testing"

	"lifeboat/store/backend"
	"lifeboat/store/backend/backendtest"
)

// TestFaultyWithoutFaults: with nothing planned it is a backend like any other.
func TestFaultyWithoutFaults(t *testing.T) {
	backendtest.Run(t, func(*testing.T) backend.Backend { return backendtest.NewFaulty(backendtest.NewMemory(), nil) })
}

func put(ctx context.Context, b backend.Backend, name, data string, mode backend.Mode) error {
	w, err := b.Create(ctx, name, mode)
	if err != nil {
		return err
	}
	defer w.Abort()
	if _, err := io.WriteString(w, data); err != nil {
		return err
	}
	return w.Commit(ctx)
}

func names(t *testing.T, b backend.Backend) (all []string) {
	t.Helper()
	for info, err := range b.List(t.Context(), "") {
		if err != nil {
			t.Fatal(err)
		}
		all = append(all, info.Name)
	}
	return all
}

func TestFaultsDoWhatTheySay(t *testing.T) {
	ctx := t.Context()
	memory := backendtest.NewMemory()
	f := backendtest.NewFaulty(memory, nil)
	if err := put(ctx, f, "a", "old", backend.Exclusive); err != nil {
		t.Fatal(err)
	}
	const commit = 2 // create, write, commit

	for _, fault := range []backendtest.Fault{backendtest.Fail, backendtest.TimeOut, backendtest.Tear} {
		for call := range commit + 1 {
			f.SetPlan(backendtest.At(call, fault))
			err := put(ctx, f, "b", "new", backend.Exclusive)
			if want := map[bool]error{true: os.ErrDeadlineExceeded, false: backendtest.ErrInjected}[fault == backendtest.TimeOut]; !errors.Is(err, want) {
				t.Errorf("%v in call %d: %v, want %v", fault, call, err, want)
			}
		}
	}
	if got := names(t, memory); len(got) != 1 {
		t.Errorf("failed calls left %q", got)
	}

	f.SetPlan(backendtest.At(commit, backendtest.LoseAck))
	if err := put(ctx, f, "b", "new", backend.Exclusive); !errors.Is(err, backend.ErrUncertain) {
		t.Errorf("a lost acknowledgement: %v", err)
	}
	if got := names(t, memory); len(got) != 2 {
		t.Errorf("after a lost acknowledgement there are %q", got)
	}

	f.SetPlan(backendtest.At(0, backendtest.Stale))
	if got := names(t, f); len(got) != 0 {
		t.Errorf("a stale listing shows %q, want what was there before all of it", got)
	}
	f.SetPlan(backendtest.At(0, backendtest.LoseAck))
	if err := f.Remove(ctx, "a"); !errors.Is(err, backendtest.ErrInjected) {
		t.Errorf("remove: %v", err)
	}
	if got := names(t, memory); len(got) != 1 || got[0] != "b" {
		t.Errorf("after a removal whose acknowledgement was lost there are %q", got)
	}

	f.SetPlan(backendtest.At(1, backendtest.Tear))
	o, err := f.Open(ctx, "b")
	if err != nil {
		t.Fatal(err)
	}
	defer o.Close()
	if n, err := o.ReadAt(make([]byte, 2), 0); n != 1 || !errors.Is(err, backendtest.ErrInjected) {
		t.Errorf("a torn read: %d, %v", n, err)
	}
	for fault, n := range f.Injected() {
		if n == 0 || fault == backendtest.None {
			t.Errorf("%v counted %d times", fault, n)
		}
	}
}
