package store

import (
	"context"
	"errors"
	"fmt"
	"math/rand/v2"
	"slices"
	"strings"
	"testing"
	"time"

	"lifeboat/store/backend"
	"lifeboat/store/internal/segment"

	"pgregory.net/rapid"
)

// reads counts what is read of segments, by object.
type reads struct {
	backend.Backend
	bytes map[string]int64
	fail  func(name string) error // asked before an object is opened
}

type readsObject struct {
	backend.Object
	name string
	r    *reads
}

func (b *reads) Open(ctx context.Context, name string) (backend.Object, error) {
	if b.fail != nil {
		if err := b.fail(name); err != nil {
			return nil, err
		}
	}
	o, err := b.Backend.Open(ctx, name)
	return &readsObject{o, name, b}, err
}

func (o *readsObject) ReadAt(p []byte, off int64) (int, error) {
	if strings.HasPrefix(o.name, "segments/") {
		o.r.bytes[o.name] += int64(len(p)) // one worker
	}
	return o.Object.ReadAt(p, off)
}

// counted opens the sample's repository with its reads counted.
func (s *sample) counted(t testing.TB, r *Repository) (*Repository, *reads) {
	t.Helper()
	me := actor{s.w.actors, "counted"}
	b := &reads{Backend: s.w.backend(t, me), bytes: make(map[string]int64)}
	again, err := newRepository(b, r.ring, s.w.options(me))
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { again.Close() })
	return again, b
}

// TestStructureFindsWhatIsMissing: without reading blocks, objects that are gone,
// cut short or damaged in their tables are found, and a damaged block is not.
func TestStructureFindsWhatIsMissing(t *testing.T) {
	s := newSample(t)
	r := s.w.open(t)
	defer r.Close()
	verify := func() *Report {
		again := s.reopened(t, r)
		defer again.Close()
		report, err := again.Verify(t.Context(), VerifyOptions{Level: VerifyStructure})
		if err != nil {
			t.Fatal(err)
		}
		return report
	}
	whole := verify()
	if !whole.OK() || whole.Points != 3 || whole.Level != VerifyStructure {
		t.Fatalf("%+v", whole)
	}
	for _, name := range objects(t, r.backend, "segments/") {
		content, err := getObject(t.Context(), r.backend, name, 1<<30)
		if err != nil {
			t.Fatal(err)
		}
		for what, data := range map[string][]byte{"cut": content[:len(content)-1], "short": content[:len(content)/2], "longer": append(slices.Clone(content), 0), "gone": nil} {
			if err := r.backend.Remove(t.Context(), name); err != nil {
				t.Fatal(err)
			}
			if data != nil {
				if err := putObject(t.Context(), r.backend, name, data, 0); err != nil {
					t.Fatal(err)
				}
			}
			if verify().OK() {
				t.Errorf("%s: %s was not found", name, what)
			}
		}
		if err := putObject(t.Context(), r.backend, name, content, backend.Replace); err != nil {
			t.Fatal(err)
		}
	}
	data := segment.Name(s.points[2].rec.Claim*rangeSize, 0)
	flip(t, s.w.fs, data, 200, 1)
	if !verify().OK() {
		t.Error("a damaged block was found without reading blocks")
	}
	if report, err := r.Verify(t.Context(), VerifyOptions{}); err != nil || report.OK() {
		t.Error("and not found by reading all", err)
	}
}

// TestSamplesCoverEverything: samples of one tenth, one after the other, have
// read every block once.
func TestSamplesCoverEverything(t *testing.T) {
	rapid.Check(t, func(rt *rapid.T) {
		part := rapid.Float64Range(0.02, 1).Draw(rt, "part")
		v := &verification{r: &Repository{id: rapid.StringMatching("[0-9a-f]{32}").Draw(rt, "id")}, opts: VerifyOptions{Sample: part}}
		number := rapid.Uint64Range(256, 1<<40).Draw(rt, "segment")
		seen, most := make(map[int]int), 0
		for turn := range turnsOf(part) {
			v.rec.Turn = turn
			n := 0
			for page := range 256 {
				if v.sampled(number, page) {
					seen[page]++
					n++
				}
			}
			most = max(most, n)
		}
		for page := range 256 {
			if seen[page] != 1 {
				rt.Fatalf("page %d was read %d times in %d turns", page, seen[page], turnsOf(part))
			}
		}
		if expected := 256 * part; float64(most) > 3*expected+12 {
			rt.Fatalf("a turn of %g has %d of 256 pages", part, most)
		}
	})
}

// TestSamplesTakeTurns: the turn is kept in the repository, so that damage
// anywhere is found by one of the runs.
func TestSamplesTakeTurns(t *testing.T) {
	s := newSample(t)
	r := s.w.open(t)
	defer r.Close()
	flip(t, s.w.fs, segment.Name(s.points[2].rec.Claim*rangeSize, 0), 200, 1)
	found := 0
	for range 4 {
		again := s.reopened(t, r)
		report, err := again.Verify(t.Context(), VerifyOptions{Level: VerifySample, Sample: 0.25, Keep: true})
		again.Close()
		if err != nil || report.Sample != 0.25 {
			t.Fatal(err)
		}
		if !report.OK() {
			found++
		}
	}
	if found != 1 {
		t.Errorf("four quarters found the damage %d times", found)
	}
	if _, err := r.Verify(t.Context(), VerifyOptions{Level: VerifySample}); err == nil {
		t.Error("a sample of nothing")
	}
	if _, err := r.Verify(t.Context(), VerifyOptions{Level: "deep"}); err == nil {
		t.Error("an unknown level")
	}
}

// TestVerifyResumes: what an interrupted verification found good is not read
// again, damage found before is found again, and the result counts for all.
func TestVerifyResumes(t *testing.T) {
	s := newSample(t)
	opened := s.w.open(t)
	defer opened.Close()
	names := objects(t, opened.backend, "segments/")
	flip(t, s.w.fs, names[0], 100, 1)
	r, b := s.counted(t, opened)
	// Segments go by ascending number: the last one fails.
	last := newestOf(infos(t, r, "segments/"), func(string) {})
	stop := last[len(last)-1].Name
	broken := errors.New("the line is cut")
	b.fail = func(name string) error {
		if name == stop {
			return broken
		}
		return nil
	}
	opts := VerifyOptions{Keep: true, Workers: 1}
	if _, err := r.Verify(t.Context(), opts); !errors.Is(err, broken) {
		t.Fatal(err)
	}
	if p, err := r.Point(t.Context(), s.points[0].ID); err != nil || p.Verified != nil {
		t.Error("an interrupted verification counts", err)
	}
	b.fail = nil
	clear(b.bytes)
	opts.Resume = true
	report, err := r.Verify(t.Context(), opts)
	if err != nil || report.Resumed == nil || report.OK() || report.Damages[0].Object != names[0] {
		t.Fatalf("%+v %v", report, err)
	}
	sizes := make(map[string]int64)
	for _, info := range last {
		sizes[info.Name] = info.Size
	}
	whole := func(name string) bool { return b.bytes[name] > sizes[name] }
	if !whole(stop) || !whole(names[0]) {
		t.Errorf("not read again: %v", b.bytes)
	}
	if n := len(last); n < 4 || whole(last[1].Name) && whole(last[2].Name) {
		t.Errorf("what was found good was read again: %v of %v", b.bytes, sizes)
	}
	points, err := r.Points(t.Context())
	if err != nil || points[0].Verified == nil || points[0].Verified.OK || points[0].Verified.Level != VerifyAll {
		t.Errorf("%+v %v", points[0].Verified, err)
	}
	// There is nothing to resume now.
	clear(b.bytes)
	if report, err = r.Verify(t.Context(), opts); err != nil || report.Resumed != nil || !whole(last[1].Name) {
		t.Errorf("%+v %v", report.Resumed, err)
	}
	if n := len(objects(t, r.backend, verifiedPrefix)); n != 1 {
		t.Errorf("%d results are kept", n)
	}
}

func infos(t testing.TB, r *Repository, prefix string) []backend.Info {
	t.Helper()
	var out []backend.Info
	for info, err := range r.backend.List(t.Context(), prefix) {
		if err != nil {
			t.Fatal(err)
		}
		out = append(out, info)
	}
	return out
}

// TestVerifiedInfo: what counts of several runs.
func TestVerifiedInfo(t *testing.T) {
	run := func(day int, level VerifyLevel, hurt ...string) *verifyRecord {
		rec := &verifyRecord{ID: newPointID(), Level: level, Complete: true, Points: []string{"a", "b"}, Hurt: hurt}
		rec.Time = time.Date(2026, 1, day, 0, 0, 0, 0, time.UTC)
		return rec
	}
	for _, c := range []struct {
		runs []*verifyRecord
		want string
	}{
		{[]*verifyRecord{run(1, VerifyAll), run(2, VerifyStructure)}, "1 all true"},
		{[]*verifyRecord{run(1, VerifyAll), run(2, VerifyStructure, "a")}, "2 structure false"},
		{[]*verifyRecord{run(1, VerifyAll, "a"), run(2, VerifyStructure)}, "1 all false"},
		{[]*verifyRecord{run(1, VerifyAll, "a"), run(2, VerifyAll)}, "2 all true"},
		{[]*verifyRecord{run(1, VerifyStructure, "a"), run(2, VerifySample)}, "2 sample true"},
		{[]*verifyRecord{run(1, VerifyAll, "b"), run(2, VerifySample)}, "1 all true"},
	} {
		infos, _ := verified(c.runs)
		if got := fmt.Sprintf("%d %s %t", infos["a"].Time.Day(), infos["a"].Level, infos["a"].OK); got != c.want {
			t.Errorf("%v: want %s", got, c.want)
		}
	}
}

// TestPairs: sets of numbers survive as pairs.
func TestPairs(t *testing.T) {
	rapid.Check(t, func(rt *rapid.T) {
		set, all := make(map[uint64]struct{}), make(map[uint64]bool)
		var before []uint64
		for range rapid.IntRange(1, 3).Draw(rt, "rounds") {
			clear(set)
			for _, n := range rapid.SliceOf(rapid.Uint64Range(1, 60)).Draw(rt, "numbers") {
				set[n], all[n] = struct{}{}, true
			}
			before = pairs(set, before)
		}
		rec := &verifyRecord{Done: before}
		for n := range uint64(62) {
			if rec.has(n) != all[n] {
				rt.Fatalf("%d in %v: %t", n, before, rec.has(n))
			}
		}
	})
}

// TestPace: reads are spread over time.
func TestPace(t *testing.T) {
	p := &pace{rate: 10 << 20}
	began := time.Now()
	for range 4 {
		if err := p.wait(t.Context(), 1<<20); err != nil {
			t.Fatal(err)
		}
	}
	if took := time.Since(began); took < 290*time.Millisecond {
		t.Errorf("4 MiB at 10 MiB/s began within %v", took)
	}
	ctx, cancel := context.WithCancel(t.Context())
	cancel()
	p.next = time.Now().Add(time.Hour)
	if err := p.wait(ctx, 1); !errors.Is(err, context.Canceled) {
		t.Error(err)
	}
}

// FuzzVerified: records of verifications and of lost slots are input that is not
// to be trusted.
func FuzzVerified(f *testing.F) {
	f.Add([]byte(`{"format":1,"id":"00112233445566ff","level":"sample","sample":0.05,"turn":3,"done":[1,5,9,9]}`))
	f.Add([]byte(`{"format":1,"segments":[256,257],"slots":[[0,4,9,9],[3,3]]}`))
	rng := rand.New(rand.NewPCG(1, 1))
	f.Fuzz(func(t *testing.T, data []byte) {
		if rec, err := decodeVerified(data, "00112233445566ff"); err == nil {
			rec.has(rng.Uint64())
			pairs(map[uint64]struct{}{7: {}}, rec.Done)
			verified([]*verifyRecord{rec})
		}
		var lost lostRecord
		if err := decodeStrict(data, &lost); err == nil && lost.check() == nil {
			for i := range lost.Segments {
				n := 0
				for pair := range slices.Chunk(lost.Slots[i], 2) {
					n += int(pair[1]-pair[0]) + 1
				}
				if n > segment.MaxSlots {
					t.Fatalf("%d slots in a segment", n)
				}
			}
		}
	})
}
