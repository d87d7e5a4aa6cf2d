package store

import (
	"context"
	"errors"
	"fmt"
	"testing"
	"time"

	"lifeboat/store/backend"
)

// asleep is a backend whose user falls asleep right before it replaces its claim:
// meanwhile happens then, once.
type asleep struct {
	backend.Backend
	meanwhile func(claim string)
}

func (b *asleep) Create(ctx context.Context, name string, mode backend.Mode) (backend.Writer, error) {
	if _, ok := parseClaimName(name); ok && mode == backend.Replace && b.meanwhile != nil {
		meanwhile := b.meanwhile
		b.meanwhile = nil
		meanwhile(name)
	}
	return b.Backend.Create(ctx, name, mode)
}

// TestFence: a writer that was taken for dead between the moment when it made sure
// that its claim is its own and the moment when it replaced it notices.
func TestFence(t *testing.T) {
	w, r := newRepo(t)
	for name, change := range map[string]func(in *Ingest) error{
		"checkpoint": func(in *Ingest) error { return in.checkpoint(t.Context()) },
		"commit":     func(in *Ingest) error { return in.keep(t.Context(), in.app.next-1, newPointID()) },
		"new claim":  func(in *Ingest) error { return in.nextClaim(t.Context()) },
	} {
		writer, in, _ := abandoned(t, w)
		rec := in.claim.record()
		writer.backend = &asleep{writer.backend, func(claim string) {
			was := r.backend
			r.backend = &late{Backend: was, age: map[string]time.Duration{claim: DefaultLease + time.Minute}}
			defer func() { r.backend = was }()
			if err := r.Sweep(t.Context()); err != nil {
				t.Error(err)
			}
			if segmentsOf(t, r, rec.Number) != 0 {
				t.Error("not swept")
			}
		}}
		if err := change(in); !errors.Is(err, ErrFenced) {
			t.Errorf("%s: %v", name, err)
		}
	}
}

// TestWorking: what a writer adds to is left alone, with the segments of earlier
// claims that its unfinished points have.
func TestWorking(t *testing.T) {
	w := &crew{highest: 9, claims: []openClaim{
		{claimRecord: claimRecord{Number: 4}},
		{claimRecord: claimRecord{Number: 8, From: 6}},
	}}
	var got string
	for claim := range uint64(12) {
		if w.working(claim*rangeSize) != w.working(claim*rangeSize+rangeSize-1) {
			t.Errorf("claim %d", claim)
		}
		if w.working(claim * rangeSize) {
			got += fmt.Sprint(claim, " ")
		}
	}
	if got != "4 6 7 8 10 11 " {
		t.Error(got)
	}
}

// TestClaimsSayWhatPointsNeed: parents, the claim from which on a point has
// segments, and the list that the oldest point respects.
func TestClaimsSayWhatPointsNeed(t *testing.T) {
	_, r := newRepo(t)
	parent := backup(t, r, "vm", nil, randomDisk(1, 1<<20), nil)
	in, err := r.NewIngest(t.Context(), IngestOptions{})
	if err != nil {
		t.Fatal(err)
	}
	defer in.Close()
	first := in.claim.record().Number
	begin := func(p *Point) *PointWriter {
		t.Helper()
		w, err := in.Begin(PointSpec{VM: "vm", Parent: p})
		if err != nil {
			t.Fatal(err)
		}
		return w
	}
	stored := func() claimRecord {
		t.Helper()
		c, err := r.getClaim(t.Context(), in.claim.record().Number)
		if err != nil {
			t.Fatal(err)
		}
		return c
	}
	a := begin(parent)
	if c := stored(); len(c.Parents) != 1 || c.Parents[0] != parent.ID || c.From != 0 || c.Seen != 0 {
		t.Fatalf("%+v", c)
	}
	if err := r.putCondemned(t.Context(), &condemnedRecord{Sequence: 5}); err != nil {
		t.Fatal(err)
	}
	b := begin(nil)
	in.app.mu.Lock()
	err = in.nextClaim(t.Context())
	in.app.mu.Unlock()
	if err != nil {
		t.Fatal(err)
	}
	if c := stored(); len(c.Parents) != 1 || c.From != first || c.Number == first || c.Seen != 0 {
		t.Fatalf("%+v", c)
	}
	if _, err := a.Commit(t.Context()); err != nil {
		t.Fatal(err)
	}
	if c := stored(); len(c.Parents) != 0 || c.From != first || c.Seen != 5 {
		t.Fatalf("%+v", c)
	}
	if _, err := b.Commit(t.Context()); err != nil {
		t.Fatal(err)
	}
	if c := stored(); c.From != 0 || c.Seen != 5 {
		t.Fatalf("%+v", c)
	}
}
