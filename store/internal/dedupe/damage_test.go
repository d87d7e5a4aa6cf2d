package dedupe

import (
	"context"
	"errors"
	"iter"
	"log/slog"
	"math/rand/v2"
	"slices"
	"strings"
	"sync"
	"testing"

	"lifeboat/store/backend"
	"lifeboat/store/backend/backendtest"
	"lifeboat/store/internal/keyring"
)

// No flipped bit is served, none goes unnoticed, and what is not hit is found.
func TestFlippedBits(t *testing.T) {
	b := backendtest.NewMemory()
	publish(t, openIndex(t, b), entries(0, 1000))
	name := backendtest.Names(t, b, "")[0]
	size := len(backendtest.Get(t, b, name))
	r := rand.New(rand.NewPCG(1, 2))
	bits := []int{0, 8*size - 1}
	for bit := 8 * (size - trailerSize); bit < 8*size; bit++ {
		bits = append(bits, bit)
	}
	for range 300 {
		bits = append(bits, r.IntN(8*size))
	}
	for _, bit := range bits {
		c := b.Clone()
		c.Flip(name, bit)
		damages := verify(t, c)
		if len(damages) != 1 || damages[0].Object != name || !covers(damages[0], bit/8) {
			t.Fatalf("byte %d: %v", bit/8, damages)
		}
		x := openIndex(t, c)
		for n := range uint64(1000) {
			if addr, ok := x.Lookup(identity(n)); ok && addr != address(n) {
				t.Fatalf("byte %d: entry %d is %v", bit/8, n, addr)
			}
		}
	}
}

// covers reports whether the damage names the byte, or the trailer that did
// not lead to it.
func covers(d *DamageError, at int) bool {
	return d.Offset <= int64(at) && int64(at) < d.Offset+d.Length
}

func TestDamagedPageIsAMiss(t *testing.T) {
	b := backendtest.NewMemory()
	publish(t, openIndex(t, b), entries(0, 10*pageEntries))
	name := backendtest.Names(t, b, "")[0]
	b.Flip(name, 8*(3*pageSize+100))
	var log strings.Builder
	x, err := Open(t.Context(), b, testKeys(), Options{Logger: slog.New(slog.NewTextHandler(&log, nil))})
	if err != nil {
		t.Fatal(err)
	}
	defer x.Close()
	missing := 0
	for n := range uint64(10 * pageEntries) {
		if _, ok := x.Lookup(identity(n)); !ok {
			missing++
		}
	}
	if missing != pageEntries {
		t.Errorf("%d entries are missing, want %d", missing, pageEntries)
	}
	if lines := strings.Count(log.String(), "\n"); lines != maxWarnings || !strings.Contains(log.String(), name) {
		t.Errorf("%d lines of log:\n%s", lines, log.String())
	}
}

// A damaged run must survive merging, so that the damage can still be found,
// and take no other run with it.
func TestMergeLeavesDamagedRuns(t *testing.T) {
	for what, at := range map[string]int{"page": 100, "summary": 6*pageSize + 100, "trailer": -1} {
		b := backendtest.NewMemory()
		x := openIndex(t, b)
		publish(t, x, entries(0, 1000))
		name := backendtest.Names(t, b, "")[0]
		if at < 0 {
			at = len(backendtest.Get(t, b, name)) - 1
		}
		b.Flip(name, 8*at)
		for n := uint64(1); n < 10; n++ {
			publish(t, x, entries(n*1000, n*1000+1000))
		}
		x = openIndex(t, b)
		merge(t, x)
		for n := uint64(1000); n < 10_000; n++ {
			if addr, ok := x.Lookup(identity(n)); !ok || addr != address(n) {
				t.Fatalf("%s: entry %d: %v, %v", what, n, addr, ok)
			}
		}
		if d := verify(t, b); len(d) != 1 || d[0].Object != name {
			t.Errorf("%s: Verify: %v", what, d)
		}
		if names := backendtest.Names(t, b, ""); len(names) > 4 {
			t.Errorf("%s: %d runs are left", what, len(names))
		}
		if err := x.Rebuild(t.Context(), sequence(entries(0, 10_000))); err != nil {
			t.Fatal(err)
		}
		wantAll(t, x, 0, 10_000)
		wantNoDamage(t, b)
	}
}

func sequence(entries []Entry) iter.Seq2[Entry, error] {
	return func(yield func(Entry, error) bool) {
		for _, e := range entries {
			if !yield(e, nil) {
				return
			}
		}
	}
}

func TestRebuild(t *testing.T) {
	b := backendtest.NewMemory()
	x := openIndex(t, b)
	publish(t, x, entries(90_000, 91_000)) // of segments that are gone
	backendtest.Put(t, b, Prefix+"rubbish", []byte("rubbish"), backend.Exclusive)
	if d := verify(t, b); len(d) != 1 || d[0].Object != Prefix+"rubbish" {
		t.Errorf("Verify: %v", d)
	}
	broken := errors.New("broken")
	err := x.Rebuild(t.Context(), func(yield func(Entry, error) bool) { yield(Entry{}, broken) })
	if !errors.Is(err, broken) {
		t.Errorf("%v", err)
	}
	if _, ok := x.Lookup(identity(90_000)); !ok {
		t.Error("a rebuild that failed has removed something")
	}
	if err := x.rebuild(t.Context(), sequence(entries(0, 5000)), 100); err != nil {
		t.Fatal(err)
	}
	wantAll(t, x, 0, 5000)
	if _, ok := x.Lookup(identity(90_000)); ok {
		t.Error("an old entry is still there")
	}
	if names := backendtest.Names(t, b, ""); len(names) != x.Stats().Runs || len(names) >= fanIn {
		t.Errorf("left %q", names)
	}
}

// Writers, mergers and readers at once; the race detector looks on.
func TestConcurrentUse(t *testing.T) {
	b := backendtest.NewMemory()
	now := clock()
	var wg sync.WaitGroup
	shared := openIndex(t, b)
	const writers, rounds, step = 3, 12, 200
	for w := range uint64(writers) {
		wg.Go(func() {
			x, err := Open(context.Background(), b, testKeys(), Options{Now: now})
			if err != nil {
				t.Error(err)
				return
			}
			defer x.Close()
			for round := range uint64(rounds) {
				from := (w*rounds + round) * step
				for _, x := range []*Index{x, shared} {
					if err := x.Publish(context.Background(), entries(from, from+step/2)); err != nil {
						t.Error(err)
					}
					from += step / 2
				}
				if err := x.Merge(context.Background()); err != nil {
					t.Error(err)
				}
				if _, ok := shared.Lookup(identity(from - 1)); !ok {
					t.Errorf("entry %d is not known", from-1)
				}
			}
		})
	}
	wg.Wait()
	merge(t, shared)
	wantAll(t, shared, 0, writers*rounds*step)
	wantAll(t, openIndex(t, b), 0, writers*rounds*step)
	wantNoDamage(t, b)
}

func TestOtherKeyOpensNothing(t *testing.T) {
	b := backendtest.NewMemory()
	publish(t, openIndex(t, b), entries(0, 100))
	x, err := Open(t.Context(), b, keyring.NewKeys([keyring.KeySize]byte{9}), Options{})
	if err != nil {
		t.Fatal(err)
	}
	defer x.Close()
	if s := x.Stats(); s.Runs != 0 {
		t.Errorf("%+v", s)
	}
}

// A run under another name is refused: it could resurrect what was replaced.
func TestRenamedRunIsRefused(t *testing.T) {
	b := backendtest.NewMemory()
	publish(t, openIndex(t, b), entries(0, 100))
	name := backendtest.Names(t, b, "")[0]
	other := Prefix + "0123456789abcdef"
	backendtest.Put(t, b, other, backendtest.Get(t, b, name), backend.Exclusive)
	if d := verify(t, b); len(d) != 1 || d[0].Object != other {
		t.Errorf("%v", d)
	}
}

func TestNames(t *testing.T) {
	for _, name := range []string{"index/", "index/0", "index/0123456789ABCDEF", "index/0123456789abcdef0", "0123456789abcdef"} {
		if _, ok := parseName(name); ok {
			t.Errorf("%q was accepted", name)
		}
	}
	if id, ok := parseName("index/0123456789abcdef"); !ok || id != 0x0123456789abcdef {
		t.Errorf("%x, %v", id, ok)
	}
}

// resealed is a run made of parts that an attacker with the key, or a bug,
// could write.
func FuzzRun(f *testing.F) {
	b := backendtest.NewMemory()
	x := openIndex(f, b)
	publish(f, x, entries(0, 400))
	publish(f, x, entries(400, 500))
	for _, name := range backendtest.Names(f, b, "") {
		f.Add(backendtest.Get(f, b, name))
	}
	f.Add([]byte{})
	f.Add(make([]byte, trailerSize))
	const id = runID(1)
	f.Fuzz(func(t *testing.T, data []byte) {
		b := backendtest.NewMemory()
		backendtest.Put(t, b, id.object(), data, backend.Exclusive)
		r, err := openRun(t.Context(), b, testKeys(), id, opening{damaged: func(*DamageError) {}})
		if err == nil {
			r.lookup(identity(0), filterKey(identity(0)))
			r.obj.Close()
		}
		// What is inside the seals, as it is.
		(&run{}).parseDirectory(append(make([]byte, directoryHead), data...), int64(len(data)))
		for _, pages := range []int{1, 3} {
			p, err := decodePartition(data, pages, pages*pageEntries, true)
			if err != nil {
				continue
			}
			for n := range uint64(100) {
				p.filter.Contains(n * 0x9e3779b97f4a7c15)
				if from, to := p.candidates(uint32(n << 25)); from < 0 || to >= pages {
					t.Fatalf("candidates %d to %d of %d pages", from, to, pages)
				}
			}
		}
	})
}

func TestSummaryBounds(t *testing.T) {
	b := backendtest.NewMemory()
	for _, n := range []uint64{1, 170, 5000} {
		publish(t, openIndex(t, b), entries(0, n))
	}
	for _, r := range *openIndex(t, b).runs.Load() {
		p := r.parts[0]
		text := p.encode()
		if len(text)+tagSize > maxSummary(p.entries) {
			t.Errorf("%d entries: a summary of %d bytes is above the limit", p.entries, len(text)+tagSize)
		}
		back, err := decodePartition(text, p.pages(), p.entries, true)
		if err != nil || !slices.Equal(back.fences, p.fences) || !slices.Equal(back.filter.Fingerprints, p.filter.Fingerprints) {
			t.Errorf("%d entries: %v", p.entries, err)
		}
		for i := range summaryFixed { // each field, made absurd
			bad := slices.Clone(text)
			bad[i] ^= 0x80
			if q, err := decodePartition(bad, p.pages(), p.entries, true); err == nil {
				q.filter.Contains(12345)
			}
		}
	}
}
