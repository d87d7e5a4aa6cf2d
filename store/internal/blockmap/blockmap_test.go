package blockmap

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"io/fs"
	"maps"
	"slices"
	"sync"
	"testing"

	"pgregory.net/rapid"

	"lifeboat/store/internal/segment"
)

// memory stores nodes, deduplicated as the store does.
type memory struct {
	mu     sync.Mutex
	nodes  map[segment.Addr][]byte
	known  map[string]segment.Addr
	next   int
	writes int // of nodes not known
	reads  int
	err    error
}

func newMemory() *memory {
	return &memory{nodes: map[segment.Addr][]byte{}, known: map[string]segment.Addr{}}
}

func (m *memory) WriteNode(_ context.Context, b []byte) (segment.Addr, error) {
	m.mu.Lock()
	defer m.mu.Unlock()
	if m.err != nil {
		return 0, m.err
	}
	if a, ok := m.known[string(b)]; ok {
		return a, nil
	}
	if len(b) > MaxNodeSize {
		return 0, fmt.Errorf("node of %d bytes", len(b))
	}
	a := segment.MakeAddr(1000+uint64(m.next/5), m.next%5)
	m.next++
	m.writes++
	m.nodes[a], m.known[string(b)] = bytes.Clone(b), a
	return a, nil
}

func (m *memory) ReadFrame(_ context.Context, a segment.Addr, frame int, dst []byte) (int, error) {
	m.mu.Lock()
	defer m.mu.Unlock()
	m.reads++
	b, ok := m.nodes[a]
	if !ok || frame != 0 {
		return 0, fs.ErrNotExist
	}
	return copy(dst, b), nil
}

// model is what a tree should say.
type model struct {
	blocks int64
	at     map[int64]segment.Addr
}

const blockSize = 4096

// build makes the tree of m from its parent by setting the given blocks.
func build(t testing.TB, mem *memory, r *Reader, parent Tree, m model, set []int64) Tree {
	t.Helper()
	b, err := NewBuilder(r, parent, m.blocks*blockSize-blockSize/2*min(1, m.blocks), blockSize, mem)
	if err != nil {
		t.Fatal(err)
	}
	for _, block := range set {
		if err := b.Set(t.Context(), block, m.at[block]); err != nil {
			t.Fatal(err)
		}
	}
	tree, err := b.Finish(t.Context())
	if err != nil {
		t.Fatal(err)
	}
	if err := tree.Check(); err != nil || tree.Blocks() != m.blocks {
		t.Fatalf("%+v: %v", tree, err)
	}
	return tree
}

// draw makes the next state of a disk: another size perhaps, some blocks set.
func draw(rt *rapid.T, old model) (m model, set []int64) {
	sizes := []int64{0, 1, 2, Fanout - 1, Fanout, Fanout + 1, 5*Fanout - 3, Fanout*Fanout - 1, Fanout*Fanout + 1, 3*Fanout*Fanout + 77}
	m = model{blocks: rapid.SampledFrom(append(sizes, old.blocks, old.blocks, old.blocks)).Draw(rt, "blocks"), at: map[int64]segment.Addr{}}
	for b, a := range old.at {
		if b < m.blocks {
			m.at[b] = a
		}
	}
	if m.blocks == 0 {
		return m, nil
	}
	touched := map[int64]bool{}
	for range rapid.IntRange(0, 6).Draw(rt, "runs") {
		start := rapid.Int64Range(0, m.blocks-1).Draw(rt, "start")
		if near := rapid.Bool().Draw(rt, "near"); near {
			start = min(start%(3*Fanout), m.blocks-1)
		}
		n := rapid.Int64Range(1, 40).Draw(rt, "count")
		if rapid.IntRange(0, 5).Draw(rt, "long") == 0 {
			n = 2500
		}
		first := segment.MakeAddr(rapid.Uint64Range(1, 9).Draw(rt, "segment"), rapid.IntRange(0, 30000).Draw(rt, "slot"))
		how := rapid.IntRange(0, 4).Draw(rt, "how")
		for i := range min(n, m.blocks-start) {
			a := first + segment.Addr(i)
			switch how {
			case 0:
				a = segment.Hole
			case 1:
				a = first
			case 2:
				a = segment.Unreadable
			}
			m.at[start+i], touched[start+i] = a, true
		}
	}
	return m, slices.Sorted(maps.Keys(touched))
}

func TestTreeAgainstMap(t *testing.T) {
	rapid.Check(t, func(rt *rapid.T) {
		mem := newMemory()
		r := NewReader(mem, ReaderOptions{CacheBytes: rapid.SampledFrom([]int64{1, 1 << 20}).Draw(rt, "cache")})
		var trees []Tree
		var models []model
		old, parent := model{at: map[int64]segment.Addr{}}, Tree{}
		for range rapid.IntRange(1, 4).Draw(rt, "generations") {
			m, set := draw(rt, old)
			tree := build(t, mem, r, parent, m, set)
			check(rt, r, tree, m)
			trees, models = append(trees, tree), append(models, m)
			old, parent = m, tree
		}
		for i := range trees {
			check(rt, r, trees[i], models[i]) // later builds changed nothing
			for j := range trees {
				checkDiff(rt, r, trees[i], trees[j], models[i], models[j])
			}
		}
		// The same content from nothing is the same tree.
		last := models[len(models)-1]
		again := build(t, mem, nil, Tree{}, last, slices.Sorted(maps.Keys(last.at)))
		if again != parent {
			rt.Fatalf("built from nothing: %+v, from its parents: %+v", again, parent)
		}
	})
}

func check(rt *rapid.T, r *Reader, tree Tree, m model) {
	ctx := context.Background()
	view, err := r.Open(tree)
	if err != nil {
		rt.Fatal(err)
	}
	used := int64(0)
	for b, want := range m.at {
		if want != segment.Hole {
			used++
		}
		for _, b := range []int64{b, b + 1, b - 1, b + Fanout} {
			want := m.at[b]
			if b < 0 || b >= m.blocks {
				if _, err := view.Lookup(ctx, b); !errors.Is(err, ErrBlock) {
					rt.Fatalf("block %d of %d: %v", b, m.blocks, err)
				}
				continue
			}
			if got, err := view.Lookup(ctx, b); got != want || err != nil {
				rt.Fatalf("block %d is at %v, not %v: %v", b, got, want, err)
			}
			if got, err := r.Lookup(ctx, tree, b); got != want || err != nil {
				rt.Fatalf("block %d is at %v, not %v: %v", b, got, want, err)
			}
			if got, ok := view.LookupCached(b); !ok || got != want {
				rt.Fatalf("cached block %d is at %v %v, not %v", b, got, ok, want)
			}
		}
	}
	if got, err := r.Used(ctx, tree); got != used || err != nil {
		rt.Fatalf("%d blocks used, not %d: %v", got, used, err)
	}
	from := rapid.Int64Range(-1, m.blocks).Draw(rt, "from")
	to := rapid.Int64Range(from, m.blocks+5).Draw(rt, "to")
	checkWalk(rt, r, tree, m, 0, m.blocks)
	checkWalk(rt, r, tree, m, from, to)
}

func checkWalk(rt *rapid.T, r *Reader, tree Tree, m model, from, to int64) {
	got := map[int64]segment.Addr{}
	last := int64(-1)
	for run, err := range r.Walk(context.Background(), tree, from, to) {
		if err != nil || run.Block <= last || run.Count < 1 {
			rt.Fatalf("%+v after block %d: %v", run, last, err)
		}
		for i := range run.Count {
			got[run.Block+i] = run.Addr + segment.Addr(i)
		}
		last = run.Block + run.Count - 1
	}
	want := maps.Clone(m.at)
	maps.DeleteFunc(want, func(b int64, a segment.Addr) bool { return a == segment.Hole || b < from || b >= to })
	if !maps.Equal(got, want) {
		rt.Fatalf("walk of [%d,%d) yields %d blocks, not %d", from, to, len(got), len(want))
	}
}

func checkDiff(rt *rapid.T, r *Reader, ta, tb Tree, a, b model) {
	got, last := map[int64]bool{}, int64(-2)
	for d, err := range r.Diff(context.Background(), ta, tb) {
		if err != nil || d.Block <= last+1 && last >= 0 || d.Count < 1 {
			rt.Fatalf("%+v after %d: %v", d, last, err)
		}
		for i := range d.Count {
			got[d.Block+i] = true
		}
		last = d.Block + d.Count - 1
	}
	want := map[int64]bool{}
	for block := range a.at {
		if a.at[block] != b.at[block] {
			want[block] = true
		}
	}
	for block := range b.at {
		if a.at[block] != b.at[block] {
			want[block] = true
		}
	}
	if !maps.Equal(got, want) {
		rt.Fatalf("diff yields %d blocks, not %d", len(got), len(want))
	}
}

const tib = 1 << 40

// TestHugeSparseDisk: what is empty costs nothing, whatever the size.
func TestHugeSparseDisk(t *testing.T) {
	mem := newMemory()
	r := NewReader(mem, ReaderOptions{})
	const size, bs = 62 * tib, 64 << 10
	b, err := NewBuilder(nil, Tree{}, size, bs, mem)
	if err != nil {
		t.Fatal(err)
	}
	none, err := b.Finish(t.Context())
	if err != nil || none.Root != segment.Hole || none.Levels != 3 || mem.writes != 0 {
		t.Fatalf("%+v, %d nodes written, %v", none, mem.writes, err)
	}
	last := none.Blocks() - 1
	b, _ = NewBuilder(r, none, size, bs, mem)
	for _, block := range []int64{0, 1, last} {
		if err := b.Set(t.Context(), block, segment.MakeAddr(1, int(block&7))); err != nil {
			t.Fatal(err)
		}
	}
	few, err := b.Finish(t.Context())
	if err != nil || mem.writes != 5 { // two leaves, two above, the root
		t.Fatalf("%d nodes written, %v", mem.writes, err)
	}
	for run, err := range r.Walk(t.Context(), few, 0, last+1) {
		if err != nil {
			t.Fatal(run, err)
		}
	}
	var ranges []Range
	for d, err := range r.Diff(t.Context(), none, few) {
		if err != nil {
			t.Fatal(err)
		}
		ranges = append(ranges, d)
	}
	if want := []Range{{0, 2}, {last, 1}}; !slices.Equal(ranges, want) {
		t.Errorf("diff: %v", ranges)
	}
	if mem.reads > 5 {
		t.Errorf("%d nodes read of 5", mem.reads)
	}
}

// TestIncrementalSharesNodes: a change of one block writes one node a level and
// reads no more; a diff reads both paths only.
func TestIncrementalSharesNodes(t *testing.T) {
	mem := newMemory()
	const blocks = 300 * Fanout
	m := model{blocks: blocks, at: map[int64]segment.Addr{}}
	all := make([]int64, blocks)
	for i := range all {
		all[i] = int64(i)
		m.at[int64(i)] = segment.MakeAddr(uint64(1+i/2500), i%2500)
	}
	full := build(t, mem, nil, Tree{}, m, all)
	if mem.writes != 301 {
		t.Fatalf("%d nodes", mem.writes)
	}
	mem.writes, mem.reads = 0, 0
	r := NewReader(mem, ReaderOptions{})
	m.at[77777] = segment.MakeAddr(9999, 1)
	next := build(t, mem, r, full, m, []int64{3, 77777}) // block 3 as it was
	if mem.writes != 2 || mem.reads != 3 {
		t.Errorf("%d nodes written, %d read", mem.writes, mem.reads)
	}
	mem.reads = 0
	fresh := NewReader(mem, ReaderOptions{})
	for d, err := range fresh.Diff(t.Context(), full, next) {
		if err != nil || d != (Range{77777, 1}) {
			t.Error(d, err)
		}
	}
	if mem.reads != 4 {
		t.Errorf("diff read %d nodes", mem.reads)
	}
	if same := build(t, mem, r, next, m, nil); same != next {
		t.Errorf("nothing set, and %+v became %+v", next, same)
	}
}

func TestVisit(t *testing.T) {
	mem := newMemory()
	r := NewReader(mem, ReaderOptions{})
	m := model{blocks: 3 * Fanout, at: map[int64]segment.Addr{}}
	for i := range m.blocks {
		m.at[i] = segment.MakeAddr(1, int(i))
	}
	tree := build(t, mem, r, Tree{}, m, slices.Sorted(maps.Keys(m.at)))
	seen := map[segment.Addr]bool{}
	enter := func(a segment.Addr) bool { defer func() { seen[a] = true }(); return !seen[a] }
	var blocks []int64
	visit := func(n Node) error {
		if n.Level == 0 {
			blocks = append(blocks, n.Block)
		}
		return n.Err
	}
	if err := r.Visit(t.Context(), tree, enter, visit); err != nil || !slices.Equal(blocks, []int64{0, Fanout, 2 * Fanout}) {
		t.Fatal(blocks, err)
	}
	if err := r.Visit(t.Context(), tree, enter, func(Node) error { return errors.New("seen before") }); err != nil {
		t.Error(err)
	}
	// A node that is gone is shown, and its siblings too.
	root, err := r.node(t.Context(), tree.Root, 1)
	if err != nil {
		t.Fatal(err)
	}
	delete(mem.nodes, root.entries[1])
	lost, good := 0, 0
	err = NewReader(mem, ReaderOptions{}).Visit(t.Context(), tree, func(segment.Addr) bool { return true }, func(n Node) error {
		if errors.Is(n.Err, fs.ErrNotExist) && n.Block == Fanout && n.Blocks() == Fanout {
			lost++
		} else if n.Err == nil {
			good++
		}
		return nil
	})
	if lost != 1 || good != 3 || err != nil {
		t.Errorf("%d lost, %d good, %v", lost, good, err)
	}
	// A walk yields what comes before it, then says so.
	var runs int64
	for run, e := range NewReader(mem, ReaderOptions{}).Walk(t.Context(), tree, 0, tree.Blocks()) {
		runs += run.Count
		err = e
	}
	if runs != Fanout || !errors.Is(err, fs.ErrNotExist) {
		t.Errorf("walk: %d blocks, then %v", runs, err)
	}
}

func TestBuilderRefuses(t *testing.T) {
	mem := newMemory()
	b, err := NewBuilder(nil, Tree{}, 10*blockSize, blockSize, mem)
	if err != nil {
		t.Fatal(err)
	}
	a := segment.MakeAddr(1, 1)
	if err := b.Set(t.Context(), 5, a); err != nil {
		t.Fatal(err)
	}
	for _, block := range []int64{5, 4, -1, 10} {
		if err := b.Set(t.Context(), block, a); !errors.Is(err, ErrBlock) {
			t.Errorf("block %d: %v", block, err)
		}
	}
	if err := b.Set(t.Context(), 6, 77); err == nil {
		t.Error("an address that cannot be was taken")
	}
	mem.err = errors.New("full")
	if _, err := b.Finish(t.Context()); !errors.Is(err, mem.err) {
		t.Errorf("sink failed: %v", err)
	}
	if _, err := NewBuilder(nil, Tree{}, -1, blockSize, mem); !errors.Is(err, ErrTree) {
		t.Errorf("negative size: %v", err)
	}
	parent := Tree{Size: 100, BlockSize: 512, Levels: 1}
	if _, err := NewBuilder(nil, parent, 100, 1024, mem); !errors.Is(err, ErrTree) {
		t.Errorf("other block size: %v", err)
	}
}

func TestTreeCheck(t *testing.T) {
	good := Tree{Size: 62 * tib, BlockSize: 64 << 10, Levels: 3, Root: segment.MakeAddr(1, 1)}
	if err := good.Check(); err != nil {
		t.Error(err)
	}
	for i, change := range []func(*Tree){
		func(t *Tree) { t.Size = -1 }, func(t *Tree) { t.BlockSize = 0 }, func(t *Tree) { t.BlockSize = 3 << 14 },
		func(t *Tree) { t.Levels = 2 }, func(t *Tree) { t.Levels = 1 << 40 }, func(t *Tree) { t.Root = segment.Unreadable },
		func(t *Tree) { t.BlockSize = -65536 }, func(t *Tree) { t.Size, t.BlockSize, t.Levels = 1<<63-1, 1, 7 },
	} {
		bad := good
		change(&bad)
		if err := bad.Check(); !errors.Is(err, ErrTree) {
			t.Errorf("%d: %+v: %v", i, bad, err)
		}
		if _, err := NewReader(newMemory(), ReaderOptions{}).Open(bad); !errors.Is(err, ErrTree) {
			t.Errorf("%d: opened: %v", i, err)
		}
	}
}

func TestMalformedNodesAreDamage(t *testing.T) {
	mem := newMemory()
	a := segment.MakeAddr(1, 0)
	tree := Tree{Size: 5 * blockSize, BlockSize: blockSize, Levels: 1, Root: a}
	leaf := &node{used: 1}
	leaf.entries[3] = segment.MakeAddr(2, 2)
	good := appendNode(nil, leaf)
	for i, bad := range [][]byte{
		nil,
		{1},
		{2, 0, 0},
		{1, 1, 0},
		good[:len(good)-1], append(bytes.Clone(good), 0),
		{1, 0, 1},
		{1, 0, 0, 1<<opBits | 3, 2},
		append(bytes.Clone(good), 0xff, 0xff, 0xff, 0xff, 0x7f),
	} {
		mem.nodes[a] = bad
		_, err := NewReader(mem, ReaderOptions{}).Lookup(t.Context(), tree, 3)
		if !errors.Is(err, ErrNode) || !errors.Is(err, segment.ErrDamaged) {
			t.Errorf("%d: %v", i, err)
		}
	}
	// A node that is its own child would make an endless tree.
	loop := &node{level: 1, used: 1}
	loop.entries[0] = a
	mem.nodes[a] = appendNode(nil, loop)
	deep := Tree{Size: 5000 * blockSize, BlockSize: blockSize, Levels: 2, Root: a}
	if _, err := NewReader(mem, ReaderOptions{}).Lookup(t.Context(), deep, 3); !errors.Is(err, ErrNode) {
		t.Errorf("loop: %v", err)
	}
}
