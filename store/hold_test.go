package store

import (
	"context"
	"encoding/json"
	"errors"
	"os"
	"slices"
	"strings"
	"testing"
	"time"

	"lifeboat/disk/disktest"
	"lifeboat/store/backend"
)

// meeting is a backend that stops at one call until another party has come.
type meeting struct {
	backend.Backend
	before func(name string) // of Remove
	after  func(name string) // of Open
}

func (b *meeting) Remove(ctx context.Context, name string) error {
	if b.before != nil {
		b.before(name)
	}
	return b.Backend.Remove(ctx, name)
}

func (b *meeting) Open(ctx context.Context, name string) (backend.Object, error) {
	obj, err := b.Backend.Open(ctx, name)
	if b.after != nil {
		b.after(name)
	}
	return obj, err
}

// TestHoldWhilePointGoes: a prune that has decided to remove a point does so while
// somebody who puts up a hold is looking for it. The hold must fail, whatever the
// reader saw first.
func TestHoldWhilePointGoes(t *testing.T) {
	for name, take := range map[string]func(r *Repository, p *Point) error{
		"hold": func(r *Repository, p *Point) error {
			_, err := r.Hold(t.Context(), []*Point{p}, HoldOptions{})
			return err
		},
		"parent": func(r *Repository, p *Point) error {
			in, err := r.NewIngest(t.Context(), IngestOptions{})
			if err != nil {
				return err
			}
			defer in.Close()
			_, err = in.Begin(PointSpec{VM: "vm", Parent: p})
			return err
		},
	} {
		w, r := newRepo(t)
		point := backup(t, r, "vm", nil, randomDisk(1, 1<<20), nil)
		mustForget(t, r, point.ID)
		pruner := w.open(t)
		decided, goOn, gone := make(chan struct{}), make(chan struct{}), make(chan struct{})
		pruner.backend = &meeting{Backend: pruner.backend, before: func(name string) {
			if name == pointName(point.ID) {
				close(decided)
				<-goOn
			}
		}}
		go func() {
			defer close(gone)
			if _, err := pruner.Prune(t.Context(), PruneOptions{Grace: -1}); err != nil {
				t.Error(err)
			}
		}()
		<-decided
		reader := w.open(t)
		looked := false
		reader.backend = &meeting{Backend: reader.backend, after: func(name string) {
			if !looked && (name == pointName(point.ID) || name == tombstoneName(point.ID)) {
				looked = true
				close(goOn)
				<-gone
			}
		}}
		if err := take(reader, point); !errors.Is(err, ErrNotFound) {
			t.Errorf("%s: %v", name, err)
		}
		if !looked {
			t.Fatalf("%s: nobody looked", name)
		}
		pruner.Close()
		reader.Close()
	}
}

// TestHoldRenewal: a hold is renewed as long as it is open, and notices when it was
// too late.
func TestHoldRenewal(t *testing.T) {
	w, r := newRepo(t)
	var points []*Point
	for range fewPoints + 1 {
		points = append(points, backup(t, r, "vm", nil, disktest.NewMemory(0), nil))
	}
	me := actor{w.actors, "reader"}
	b := &counting{Backend: w.backend(t, me), replaced: make(chan string, 100)}
	reader, err := Open(t.Context(), b, testPassword, w.options(me))
	if err != nil {
		t.Fatal(err)
	}
	defer reader.Close()
	h, err := reader.Hold(t.Context(), points, HoldOptions{Lease: 20 * time.Millisecond, Purpose: "test"})
	if err != nil {
		t.Fatal(err)
	}
	for range 3 {
		if name := <-b.replaced; name != holdName(h.ID()) {
			t.Fatalf("replaced %s", name)
		}
	}
	if err := h.Close(); err != nil || h.Err() != nil {
		t.Fatal(err, h.Err())
	}
	if names := objects(t, r.backend, holdPrefix); len(names) != 0 {
		t.Fatalf("left: %v", names)
	}
	// One that is looked at late finds out what happened meanwhile.
	if h, err = reader.Hold(t.Context(), points, HoldOptions{}); err != nil {
		t.Fatal(err)
	}
	mustForget(t, r, points[3].ID)
	if err := h.check(t.Context()); !errors.Is(err, ErrNotFound) {
		t.Fatal(err)
	}
	h.lose(errors.New("late"))
	<-h.Lost()
	if err := h.Close(); err != nil || h.Err() == nil {
		t.Fatal(err, h.Err())
	}
}

// TestLastingHold: it outlives its process, is taken up again by its ID, and names
// its session to those who want to forget the point.
func TestLastingHold(t *testing.T) {
	w, r := newRepo(t)
	p := backup(t, r, "vm", nil, randomDisk(1, 1<<20), nil)
	first := w.open(t)
	opts := HoldOptions{Purpose: `session "web"`, Lasting: true, ID: "00112233445566aa"}
	h, err := first.Hold(t.Context(), []*Point{p}, opts)
	if err != nil {
		t.Fatal(err)
	}
	if err := h.Close(); err != nil {
		t.Fatal(err)
	}
	if h, err = w.open(t).Hold(t.Context(), []*Point{p}, opts); err != nil {
		t.Fatal(err)
	}
	var held *HeldError
	if err := r.Forget(t.Context(), p.ID); !errors.As(err, &held) || held.Hold.Purpose != opts.Purpose {
		t.Fatal(err)
	}
	holds, err := r.Holds(t.Context())
	if err != nil || len(holds) != 1 || !slices.Equal(holds[0].Points, []string{p.ID}) || !holds[0].Lasting {
		t.Fatal(holds, err)
	}
	if err := h.Release(t.Context()); err != nil {
		t.Fatal(err)
	}
	mustForget(t, r, p.ID)
}

// TestDamagedHoldKeepsEverything: whose points it is on is not known.
func TestDamagedHoldKeepsEverything(t *testing.T) {
	w, r := newRepo(t)
	a := backup(t, r, "vm", nil, randomDisk(1, 1<<20), nil)
	b := backup(t, r, "vm", nil, randomDisk(2, 1<<20), nil)
	h, err := w.open(t).Hold(t.Context(), []*Point{b}, HoldOptions{})
	if err != nil {
		t.Fatal(err)
	}
	flip(t, w.fs, holdName(h.ID()), 70, 1)
	mustForget(t, r, a.ID)
	if got := mustPrune(t, r, PruneOptions{Grace: -1}); got.PointsRemoved != 0 || got.Removed != 0 || len(got.Pending) != 1 {
		t.Fatalf("%+v", got)
	}
	if err := h.put(t.Context()); err != nil { // its owner mends it
		t.Fatal(err)
	}
	if got := mustPrune(t, r, PruneOptions{Grace: -1}); got.PointsRemoved != 1 || got.Removed == 0 {
		t.Fatalf("%+v", got)
	}
	h.Close()
}

// TestPruneRecordsGolden: the small objects of prunes are read as they were written
// by this version of the format, and written the same.
func TestPruneRecordsGolden(t *testing.T) {
	data, err := os.ReadFile("testdata/prune-records-v1.txt")
	if err != nil {
		t.Fatal(err)
	}
	for line := range strings.Lines(string(data)) {
		kind, text, _ := strings.Cut(strings.TrimSuffix(line, "\n"), " ")
		var rec any
		switch kind {
		case "forgotten":
			stone := new(tombstoneRecord)
			rec, err = stone, decodeStrict([]byte(text), stone)
		case "hold":
			rec, err = decodeHold([]byte(text))
		case "claim":
			rec, err = decodeClaim([]byte(text), 7)
		case "condemned":
			rec, err = decodeCondemned([]byte(text))
		}
		if err != nil || rec == nil {
			t.Fatalf("%s: %v", kind, err)
		}
		if again, err := json.Marshal(rec); err != nil || string(again) != text {
			t.Errorf("%s: %v\n%s\n%s", kind, err, text, again)
		}
	}
	c, _ := decodeCondemned([]byte(`{"format":1,"segments":[5],"since":[6]}`))
	if c == nil || c.Sequence != 0 || len(c.Batches) != 0 {
		t.Errorf("the list of an earlier version: %+v", c)
	}
}

// FuzzPruneRecords: what the small objects of prunes say is not trusted, and what
// is taken is taken the same again.
func FuzzPruneRecords(f *testing.F) {
	f.Add([]byte(`{"format":1,"points":["00112233445566aa"],"owner":{"host":"h","process":"p","nonce":"00112233445566aa"},"lease_ms":1000}`))
	f.Add([]byte(`{"format":2,"sequence":9,"stale":1,"batches":[{"sequence":9,"since":5,"clear":6,"segments":[256],"parts":[{"segment":257,"dead":"BQ=="}]}]}`))
	f.Add([]byte(`{"format":1,"segments":[5],"since":[6]}`))
	f.Add([]byte(`{"format":1,"number":7,"kind":"writer","owner":{"nonce":"00112233445566aa"},"parents":["00112233445566aa"],"seen":3,"from":2,"kept":1792,"lease_ms":5}`))
	f.Fuzz(func(_ *testing.T, data []byte) {
		if h, err := decodeHold(data); err == nil && h.lease() <= 0 {
			panic("a lease of nothing")
		}
		if c, err := decodeClaim(data, 7); err == nil && (c.From > 7 || len(c.Parents) > maxParents) {
			panic("a claim that cannot be")
		}
		c, err := decodeCondemned(data)
		if err != nil {
			return
		}
		var set *condemnedSet
		set = set.with(c).with(c)
		for _, b := range c.Batches {
			for _, p := range b.Parts {
				for slot := range 8 * len(p.Dead) {
					if set.sequence != c.Sequence || deadSlot(p.Dead, slot) && set.dead[p.Segment] != nil && !deadSlot(set.dead[p.Segment], slot) {
						panic("a condemned slot was lost")
					}
				}
			}
		}
	})
}
