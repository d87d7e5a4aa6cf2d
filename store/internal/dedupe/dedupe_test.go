package dedupe

import (
	"context"
	"encoding/binary"
	"errors"
	"iter"
	"log/slog"
	"math/rand/v2"
	"slices"
	"strings"
	"sync"
	"testing"
	"time"

	"pgregory.net/rapid"

	"lifeboat/store/backend"
	"lifeboat/store/backend/backendtest"
	"lifeboat/store/internal/keyring"
	"lifeboat/store/internal/segment"
)

func testKeys() Keys { return keyring.NewKeys([keyring.KeySize]byte{1, 2, 3}) }

// identity is the n-th of a fixed sequence of uniform identities.
func identity(n uint64) segment.Identity {
	var id segment.Identity
	x := n + 0x9e3779b97f4a7c15
	for i := range 2 {
		x += 0x9e3779b97f4a7c15
		z := x
		z = (z ^ z>>30) * 0xbf58476d1ce4e5b9
		z = (z ^ z>>27) * 0x94d049bb133111eb
		binary.LittleEndian.PutUint64(id[8*i:], z^z>>31)
	}
	return id
}

func address(n uint64) segment.Addr { return segment.MakeAddr(n/1000+1, int(n%1000)) }

// entries are those number from to number to.
func entries(from, to uint64) []Entry {
	var out []Entry
	for n := from; n < to; n++ {
		out = append(out, Entry{identity(n), address(n)})
	}
	return out
}

func openIndex(t testing.TB, b backend.Backend) *Index {
	t.Helper()
	x, err := Open(context.Background(), b, testKeys(), Options{Now: clock()})
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() {
		if err := x.Close(); err != nil {
			t.Error(err)
		}
	})
	return x
}

// clock is one whose time goes on with every look.
func clock() func() time.Time {
	now := time.Unix(1_800_000_000, 0)
	var mu sync.Mutex
	return func() time.Time {
		mu.Lock()
		defer mu.Unlock()
		now = now.Add(time.Second)
		return now
	}
}

func publish(t testing.TB, x *Index, e []Entry) {
	t.Helper()
	if err := x.Publish(t.Context(), e); err != nil {
		t.Fatal(err)
	}
}

func merge(t testing.TB, x *Index) {
	t.Helper()
	if err := x.Merge(t.Context()); err != nil {
		t.Fatal(err)
	}
}

// wantAll checks that exactly the entries with numbers from to to are known.
func wantAll(t testing.TB, x *Index, from, to uint64) {
	t.Helper()
	step := (to-from)/20_000 + 1 // of very many, a sample
	for n := from; n < to; n += step {
		if addr, ok := x.Lookup(identity(n)); !ok || addr != address(n) {
			t.Fatalf("entry %d: %v, %v, want %v", n, addr, ok, address(n))
		}
	}
	for n := to; n < to+1000; n++ {
		if addr, ok := x.Lookup(identity(n)); ok {
			t.Fatalf("entry %d is known (%v)", n, addr)
		}
	}
}

func verify(t testing.TB, b backend.Backend) []*DamageError {
	t.Helper()
	var damages []*DamageError
	err := Verify(t.Context(), b, testKeys(), func(d *DamageError) { damages = append(damages, d) })
	if err != nil {
		t.Fatal(err)
	}
	return damages
}

func wantNoDamage(t testing.TB, b backend.Backend) {
	t.Helper()
	if d := verify(t, b); len(d) > 0 {
		t.Fatalf("%d damages, the first: %v", len(d), d[0])
	}
}

// All sizes around the edges of pages and partitions, and those that are too
// small for what filters expect.
func TestRunSizes(t *testing.T) {
	sizes := []uint64{1, 2, 3, 4, 5, 10, 33, pageEntries - 1, pageEntries, pageEntries + 1, 2 * pageEntries, 1000, 20_000}
	const part = partitionPages * pageEntries
	if !testing.Short() {
		sizes = append(sizes, part+1)
	}
	for _, n := range sizes {
		b := backendtest.NewMemory()
		x := openIndex(t, b)
		publish(t, x, entries(0, n))
		wantAll(t, x, 0, n)
		again := openIndex(t, b)
		wantAll(t, again, 0, n)
		wantNoDamage(t, b)
		if s := again.Stats(); s.Runs != 1 || s.Entries != int64(n) {
			t.Errorf("%d entries: %+v", n, s)
		}
	}
}

// Identities need not be uniform for lookups to be right.
func TestPoorIdentities(t *testing.T) {
	rapid.Check(t, func(t *rapid.T) {
		n := rapid.IntRange(1, 3000).Draw(t, "n")
		zeros := rapid.IntRange(0, 14).Draw(t, "leading zeros")
		want := map[segment.Identity]segment.Addr{}
		r := rand.New(rand.NewPCG(rapid.Uint64().Draw(t, "seed"), 0))
		for i := range n {
			var id segment.Identity
			for j := zeros; j < 16; j++ {
				id[j] = byte(r.Uint32())
			}
			want[id] = address(uint64(i))
		}
		x, err := Open(context.Background(), backendtest.NewMemory(), testKeys(), Options{})
		if err != nil {
			t.Fatal(err)
		}
		defer x.Close()
		var list []Entry
		for id, addr := range want {
			list = append(list, Entry{id, addr})
		}
		if err := x.Publish(context.Background(), list); err != nil {
			t.Fatal(err)
		}
		for id, addr := range want {
			if got, ok := x.Lookup(id); !ok || got != addr {
				t.Fatalf("%v: %v, %v, want %v", id, got, ok, addr)
			}
			id[15] ^= 1
			if _, known := want[id]; !known {
				if _, ok := x.Lookup(id); ok {
					t.Fatalf("%v is known", id)
				}
			}
		}
	})
}

// Publish, merge, reopen and refresh in any order, by several writers, against
// a map.
func TestAgainstAMap(t *testing.T) {
	rapid.Check(t, func(t *rapid.T) {
		b := backendtest.NewMemory()
		now := clock()
		open := func() *Index {
			x, err := Open(context.Background(), b, testKeys(), Options{Now: now})
			if err != nil {
				t.Fatal(err)
			}
			return x
		}
		writers := []*Index{open(), open(), open()}
		defer func() {
			for _, x := range writers {
				x.Close()
			}
		}()
		want := map[segment.Identity]segment.Addr{}
		next := uint64(0)
		check := func(err error) {
			if err != nil {
				t.Fatal(err)
			}
		}
		t.Repeat(map[string]func(*rapid.T){
			"publish": func(t *rapid.T) {
				var list []Entry
				for range rapid.IntRange(0, 100).Draw(t, "n") {
					e := Entry{identity(rapid.Uint64Range(0, 250).Draw(t, "id")), address(next)}
					if _, twice := want[e.ID]; !twice || !slices.ContainsFunc(list, func(o Entry) bool { return o.ID == e.ID }) {
						list = append(list, e)
						want[e.ID] = e.Addr
					}
					next++
				}
				check(writers[rapid.IntRange(0, 2).Draw(t, "writer")].Publish(context.Background(), list))
			},
			"merge": func(t *rapid.T) { check(writers[rapid.IntRange(0, 2).Draw(t, "writer")].Merge(context.Background())) },
			"compact": func(t *rapid.T) {
				check(writers[rapid.IntRange(0, 2).Draw(t, "writer")].Compact(context.Background(), nil))
			},
			"reopen": func(t *rapid.T) {
				i := rapid.IntRange(0, 2).Draw(t, "writer")
				check(writers[i].Close())
				writers[i] = open()
			},
			"": func(t *rapid.T) {
				x := writers[rapid.IntRange(0, 2).Draw(t, "reader")]
				check(x.Refresh(context.Background()))
				for n := range uint64(251) {
					id := identity(n)
					addr, ok := x.Lookup(id)
					wanted, known := want[id]
					if ok != known || addr != wanted {
						t.Fatalf("%d: %v, %v, want %v, %v", n, addr, ok, wanted, known)
					}
				}
			},
		})
	})
}

func TestMergeKeepsRunsFew(t *testing.T) {
	b := backendtest.NewMemory()
	x := openIndex(t, b)
	const n, step = 60_000, 500
	most := 0
	for from := uint64(0); from < n; from += step {
		publish(t, x, entries(from, from+step))
		if x.NeedsMerge() {
			merge(t, x)
		}
		if x.NeedsMerge() {
			t.Fatal("Merge has left something to merge")
		}
		most = max(most, x.Stats().Runs)
	}
	wantAll(t, x, 0, n)
	wantNoDamage(t, b)
	if limit := 3 * (tier(n) + 1); most > limit {
		t.Errorf("%d runs at once, want at most %d", most, limit)
	}
	if names := backendtest.Names(t, b, Prefix); len(names) != x.Stats().Runs {
		t.Errorf("%d objects for %d runs", len(names), x.Stats().Runs)
	}
	if err := x.Compact(t.Context(), nil); err != nil {
		t.Fatal(err)
	}
	wantAll(t, openIndex(t, b), 0, n)
	if names := backendtest.Names(t, b, Prefix); len(names) != 1 {
		t.Errorf("%d objects after Compact", len(names))
	}
}

func TestCompactDropsWhatIsGone(t *testing.T) {
	b := backendtest.NewMemory()
	x := openIndex(t, b)
	publish(t, x, entries(0, 5000))
	publish(t, x, entries(5000, 10_000))
	keep := func(a segment.Addr) bool { return a.Segment()%2 == 0 }
	if err := x.Compact(t.Context(), keep); err != nil {
		t.Fatal(err)
	}
	for _, x := range []*Index{x, openIndex(t, b)} {
		for n := range uint64(10_000) {
			if _, ok := x.Lookup(identity(n)); ok != keep(address(n)) {
				t.Fatalf("entry %d: %v", n, ok)
			}
		}
	}
	if err := x.Compact(t.Context(), func(segment.Addr) bool { return false }); err != nil {
		t.Fatal(err)
	}
	if names := backendtest.Names(t, b, ""); len(names) != 0 || x.Stats().Runs != 0 {
		t.Errorf("left %q, %+v", names, x.Stats())
	}
}

// Of an identity that was published twice the later one counts, before and
// after a merge: the earlier address may be of a segment that was lost.
func TestLaterEntryCounts(t *testing.T) {
	b := backendtest.NewMemory()
	x := openIndex(t, b)
	for n := range uint64(6) {
		publish(t, x, []Entry{{identity(0), address(n)}})
		if addr, _ := x.Lookup(identity(0)); addr != address(n) {
			t.Fatalf("%v, want %v", addr, address(n))
		}
	}
	merge(t, x)
	for _, x := range []*Index{x, openIndex(t, b)} {
		if addr, _ := x.Lookup(identity(0)); addr != address(5) {
			t.Errorf("%v, want %v", addr, address(5))
		}
	}
}

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
		r, err := openRun(t.Context(), b, testKeys(), id, func(*DamageError) {})
		if err == nil {
			r.lookup(identity(0), filterKey(identity(0)))
			r.obj.Close()
		}
		// What is inside the seals, as it is.
		(&run{}).parseDirectory(append(make([]byte, directoryHead), data...), int64(len(data)))
		for _, pages := range []int{1, 3} {
			p, err := decodePartition(data, pages, pages*pageEntries)
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
		back, err := decodePartition(text, p.pages(), p.entries)
		if err != nil || !slices.Equal(back.fences, p.fences) || !slices.Equal(back.filter.Fingerprints, p.filter.Fingerprints) {
			t.Errorf("%d entries: %v", p.entries, err)
		}
		for i := range summaryFixed { // each field, made absurd
			bad := slices.Clone(text)
			bad[i] ^= 0x80
			if q, err := decodePartition(bad, p.pages(), p.entries); err == nil {
				q.filter.Contains(12345)
			}
		}
	}
}
