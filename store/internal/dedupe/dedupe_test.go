package dedupe

import (
	"context"
	"encoding/binary"
	"math/rand/v2"
	"slices"
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
