package store

import (
	"encoding/hex"
	"errors"
	"math/rand/v2"
	"os"
	"reflect"
	"slices"
	"strings"
	"sync"
	"testing"

	"pgregory.net/rapid"

	"lifeboat/disk/disktest"
	"lifeboat/store/backend/backendtest"
)

// touches is a trace spelt out: disk keys and blocks in the order of a replay.
func touches(t *Trace) []touchedBlock {
	var out []touchedBlock
	for _, take := range t.takes {
		for _, r := range take {
			for i := range r.count {
				out = append(out, touchedBlock{t.keys[r.disk], r.block + i})
			}
		}
	}
	return out
}

// recording is a trace of one recording with those touches.
func recording(blocks ...touchedBlock) *Trace {
	rec := &TraceRecorder{blockSize: testBlock, started: make(chan struct{}), left: maxTraceBytes / testBlock}
	for _, b := range blocks {
		rec.add(b.key, b.block)
	}
	if t := rec.Stop(); t != nil {
		return t
	}
	return &Trace{blockSize: testBlock}
}

var drawTouches = rapid.Custom(func(t *rapid.T) []touchedBlock {
	seen := map[touchedBlock]bool{}
	var out []touchedBlock
	for range rapid.IntRange(0, 12).Draw(t, "runs") {
		b := touchedBlock{rapid.IntRange(-1, 3).Draw(t, "key"), rapid.Int64Range(0, 200).Draw(t, "block")}
		for range rapid.IntRange(1, 9).Draw(t, "count") {
			if !seen[b] {
				seen[b] = true
				out = append(out, b)
			}
			b.block++
		}
	}
	return out
})

func TestTraceSurvivesItsEncoding(t *testing.T) {
	rapid.Check(t, func(t *rapid.T) {
		var want *Trace
		for _, blocks := range rapid.SliceOfN(drawTouches, 1, 6).Draw(t, "recordings") {
			want = recording(blocks...).merged(want)
		}
		got, err := decodeTrace(want.encode(), testBlock)
		if err != nil {
			t.Fatal(err)
		}
		if !slices.Equal(touches(got), touches(want)) || len(got.takes) != len(want.takes) {
			t.Fatalf("%v came back as %v", want, got)
		}
	})
}

// TestTraceMerge: what a boot touched comes first and in its order; what was a
// glance is there too; nothing twice.
func TestTraceMerge(t *testing.T) {
	rapid.Check(t, func(t *rapid.T) {
		var trace *Trace
		ever := map[touchedBlock]bool{}
		for _, blocks := range rapid.SliceOfN(drawTouches, 1, 8).Draw(t, "recordings") {
			now := recording(blocks...)
			boot := trace == nil || len(trace.takes) == 0 || now.blocks() >= blocksIn(trace.takes[0])/glance
			trace = now.merged(trace)
			for _, b := range blocks {
				ever[b] = true
			}
			got := touches(trace)
			if boot && !slices.Equal(got[:len(blocks)], blocks) {
				t.Fatalf("the last boot touched %v, the trace begins with %v", blocks, got)
			}
			seen := map[touchedBlock]bool{}
			for _, b := range got {
				if seen[b] || !ever[b] {
					t.Fatalf("%v is there twice, or was never touched", b)
				}
				seen[b] = true
			}
			for _, b := range blocks {
				if !seen[b] {
					t.Fatalf("%v is missing", b)
				}
			}
		}
	})
}

func TestTraceForgets(t *testing.T) {
	trace := recording(touchedBlock{0, 7}, touchedBlock{0, 8})
	for i := range int64(maxTraceAge) {
		if !slices.Contains(touches(trace), touchedBlock{0, 7}) {
			t.Fatalf("forgotten after %d boots", i)
		}
		trace = recording(touchedBlock{0, 100 + 10*i}, touchedBlock{0, 101 + 10*i}).merged(trace)
	}
	if slices.Contains(touches(trace), touchedBlock{0, 7}) {
		t.Fatalf("%d boots went by without it: %v", maxTraceAge, touches(trace))
	}
}

func TestTraceIsBounded(t *testing.T) {
	const limit = maxTraceBytes / testBlock
	var trace *Trace
	for i := range int64(3) {
		now := &Trace{blockSize: testBlock, keys: []int{0}, takes: [][]traceRun{{{block: i * limit, count: limit/2 + 1}}}}
		trace = now.merged(trace)
	}
	if trace.Bytes() != maxTraceBytes {
		t.Fatalf("%d bytes, want %d", trace.Bytes(), maxTraceBytes)
	}
	single := &Trace{blockSize: testBlock, keys: []int{1 << 62, -1 << 62}, takes: [][]traceRun{nil}}
	end := int64(maxDiskSize/testBlock - 1)
	for i := range int64(limit) {
		block := i
		if i%2 == 1 {
			block = end - i
		}
		single.takes[0] = append(single.takes[0], traceRun{disk: int(i / 2 % 2), block: block, count: 1})
	}
	if n := len(single.encode()) + 100; n > maxTraceObject {
		t.Fatalf("a trace can take %d bytes, at most %d are read", n, maxTraceObject)
	}
	if _, err := decodeTrace(single.encode(), testBlock); err != nil {
		t.Fatal(err)
	}
}

const goldenTrace = "testdata/trace-v1.txt"

// TestGoldenTrace: this encoding must be read for ever.
func TestGoldenTrace(t *testing.T) {
	want := &Trace{
		blockSize: testBlock, keys: []int{2000, -5},
		takes: [][]traceRun{
			{{0, 0, 1}, {0, 5, 300}, {1, 1 << 33, 2}, {0, 2, 3}, {0, 1000, 1}},
			{{1, 7, 1}},
		},
	}
	if os.Getenv("LIFEBOAT_UPDATE_GOLDEN") == "1" {
		if err := os.WriteFile(goldenTrace, []byte(hex.EncodeToString(want.encode())+"\n"), 0o644); err != nil {
			t.Fatal(err)
		}
	}
	text, err := os.ReadFile(goldenTrace)
	if err != nil {
		t.Fatal(err)
	}
	data, err := hex.DecodeString(strings.TrimSpace(string(text)))
	if err != nil {
		t.Fatal(err)
	}
	got, err := decodeTrace(data, testBlock)
	if err != nil {
		t.Fatal(err)
	}
	if !reflect.DeepEqual(got, want) {
		t.Errorf("read %+v, want %+v", got, want)
	}
	if enc := want.encode(); !slices.Equal(enc, data) {
		t.Errorf("written %x, want %x", enc, data)
	}
	if _, err := decodeTrace(data, 2*testBlock); !errors.Is(err, ErrDamaged) {
		t.Errorf("of another block size: %v", err)
	}
	data[0]++
	if _, err := decodeTrace(data, testBlock); !errors.Is(err, ErrVersion) {
		t.Errorf("of another version: %v", err)
	}
}

func FuzzTrace(f *testing.F) {
	f.Add(recording(touchedBlock{1, 5}, touchedBlock{1, 6}, touchedBlock{0, 1 << 30}).encode())
	f.Add([]byte{1, 16, 1, 0, 1, 1, 0xff, 0xff, 3, 0})
	f.Fuzz(func(t *testing.T, data []byte) {
		trace, err := decodeTrace(data, testBlock)
		if err != nil {
			if !errors.Is(err, ErrDamaged) && !errors.Is(err, ErrVersion) {
				t.Fatal(err)
			}
			return
		}
		if trace.Bytes() > maxTraceBytes || len(trace.takes) > maxTraceAge {
			t.Fatalf("%d bytes in %d recordings", trace.Bytes(), len(trace.takes))
		}
		for _, take := range trace.takes {
			for _, r := range take {
				if r.block < 0 || r.count < 1 || r.disk < 0 || r.disk >= len(trace.keys) {
					t.Fatalf("run %+v of %d disks", r, len(trace.keys))
				}
			}
		}
		again, err := decodeTrace(trace.encode(), testBlock)
		if err != nil || !slices.Equal(touches(again), touches(trace)) {
			t.Fatalf("encoded again it is another (%v)", err)
		}
	})
}

// TestTraceRecorder: each block that was read is noted once, in the order of first
// touch, and nothing else.
func TestTraceRecorder(t *testing.T) {
	_, r := newRepo(t)
	src := randomDisk(1, 300*testBlock+777)
	p := backup(t, r, "vm", nil, src, nil)
	rec := r.NewTraceRecorder(p)
	img, err := r.OpenDisk(t.Context(), p, 0)
	if err != nil {
		t.Fatal(err)
	}
	defer img.Close()
	m := rec.Image(img, 2000)
	buf := make([]byte, 3*testBlock)
	if _, err := m.ReadAt(buf, 0); err != nil { // before Record: nobody's business
		t.Fatal(err)
	}
	rec.Record()
	seen := map[int64]bool{}
	var want []touchedBlock
	rng := rand.New(rand.NewPCG(1, 2))
	read := func(off int64, n int) {
		if !m.ReadCached(buf[:n], off) {
			if _, err := m.ReadAt(buf[:n], off); err != nil {
				t.Fatal(err)
			}
		}
	}
	for range 150 {
		n := 1 + rng.IntN(len(buf))
		off := rng.Int64N(src.Size() - int64(n))
		read(off, n)
		for b := off / testBlock; b <= (off+int64(n)-1)/testBlock; b++ {
			if !seen[b] {
				want = append(want, touchedBlock{2000, b})
			}
			seen[b] = true
		}
	}
	select {
	case <-rec.Started():
	default:
		t.Error("it does not say that it has started")
	}
	if rec.Waiting() {
		t.Error("nobody waits")
	}
	if got := touches(rec.Stop()); !slices.Equal(got, want) {
		t.Errorf("noted %v, want %v", got, want)
	}
	read(0, 100)
	if rec.Stop() != nil {
		t.Error("it goes on after its end")
	}
}

func TestTraceRecorderManyHands(t *testing.T) {
	_, r := newRepo(t)
	src := disktest.Random(3, 200*testBlock, 1)
	p := backup(t, r, "vm", nil, src, nil)
	rec := r.NewTraceRecorder(p)
	rec.left = 150
	img, err := r.OpenDisk(t.Context(), p, 0)
	if err != nil {
		t.Fatal(err)
	}
	defer img.Close()
	m := rec.Image(img, 7)
	rec.Record()
	var hands sync.WaitGroup
	for seed := range uint64(4) {
		hands.Go(func() {
			rng := rand.New(rand.NewPCG(seed, 2))
			buf := make([]byte, 4096)
			for range 2000 {
				if off := rng.Int64N(src.Size()-4096) &^ 4095; !m.ReadCached(buf, off) {
					if _, err := m.ReadAt(buf, off); err != nil {
						t.Error(err)
						return
					}
				}
			}
		})
	}
	hands.Wait()
	got := touches(rec.Stop())
	seen := map[touchedBlock]bool{}
	for _, b := range got {
		if seen[b] || b.key != 7 || b.block >= 200 {
			t.Fatalf("%v is wrong or there twice", b)
		}
		seen[b] = true
	}
	if len(got) != 150 {
		t.Errorf("%d blocks, want as many as there is room for: 150", len(got))
	}
}

// TestSaveTrace: traces are the VM's, add up over its points, and a damaged one
// is replaced.
func TestSaveTrace(t *testing.T) {
	w, r := newRepo(t)
	src := randomDisk(1, 40*testBlock)
	p1 := backup(t, r, "web", nil, src, nil)
	p2 := backup(t, r, "web", p1, src, nil)
	other := backup(t, r, "db", nil, src, nil)
	if _, err := r.Trace(t.Context(), nil, p1); !errors.Is(err, ErrNotFound) {
		t.Fatalf("a trace that nobody made: %v", err)
	}
	save := func(p *Point, blocks ...touchedBlock) {
		t.Helper()
		if err := r.SaveTrace(t.Context(), nil, p, recording(blocks...)); err != nil {
			t.Fatal(err)
		}
	}
	save(p1, touchedBlock{2000, 3}, touchedBlock{2000, 9})
	save(p2, touchedBlock{2000, 9}, touchedBlock{2000, 1})
	save(p2) // nothing
	second := w.open(t)
	defer second.Close()
	got, err := second.Trace(t.Context(), nil, p1)
	if err != nil {
		t.Fatal(err)
	}
	if want := []touchedBlock{{2000, 9}, {2000, 1}, {2000, 3}}; !slices.Equal(touches(got), want) {
		t.Errorf("kept %v, want %v", touches(got), want)
	}
	if _, err := r.Trace(t.Context(), nil, other); !errors.Is(err, ErrNotFound) {
		t.Errorf("the trace of another VM: %v", err)
	}
	if strings.Contains(r.TraceName(p1), "web") {
		t.Errorf("the name %s tells the VM's", r.TraceName(p1))
	}
	elsewhere := backendtest.NewMemory()
	if err := r.SaveTrace(t.Context(), elsewhere, other, recording(touchedBlock{1, 1})); err != nil {
		t.Fatal(err)
	}
	if _, err := r.Trace(t.Context(), elsewhere, other); err != nil {
		t.Errorf("kept elsewhere: %v", err)
	}
	elsewhere.Flip(r.TraceName(other), 400)
	if _, err := r.Trace(t.Context(), elsewhere, other); !errors.Is(err, ErrDamaged) {
		t.Errorf("a damaged trace: %v", err)
	}
	if err := r.SaveTrace(t.Context(), elsewhere, other, recording(touchedBlock{1, 2})); err != nil {
		t.Errorf("over a damaged trace: %v", err)
	}
	if _, err := r.Trace(t.Context(), elsewhere, other); err != nil {
		t.Errorf("after it was replaced: %v", err)
	}
}

// TestPruneSweepsTraces: the trace of a VM goes with its last point.
func TestPruneSweepsTraces(t *testing.T) {
	_, r := newRepo(t)
	src := randomDisk(1, 10*testBlock)
	keep, gone := backup(t, r, "keep", nil, src, nil), backup(t, r, "gone", nil, src, nil)
	for _, p := range []*Point{keep, gone} {
		if err := r.SaveTrace(t.Context(), nil, p, recording(touchedBlock{2000, 1})); err != nil {
			t.Fatal(err)
		}
	}
	if err := r.Forget(t.Context(), gone.ID); err != nil {
		t.Fatal(err)
	}
	if _, err := r.Prune(t.Context(), PruneOptions{Grace: -1}); err != nil {
		t.Fatal(err)
	}
	if got := objects(t, r.backend, tracePrefix); !slices.Equal(got, []string{r.TraceName(keep)}) {
		t.Errorf("left are %v", got)
	}
}

// BenchmarkTraceNote is what recording adds to a read of 4 KiB from memory, of a
// block that was noted before: in the first minutes, and ever after. A READ over
// NFS takes some microseconds.
func BenchmarkTraceNote(b *testing.B) {
	_, r := newRepo(b)
	const size = 1 << 30
	m := disktest.NewMemory(size)
	p := backup(b, r, "vm", nil, m, nil)
	img, err := r.OpenDisk(b.Context(), p, 0)
	if err != nil {
		b.Fatal(err)
	}
	defer img.Close()
	noting, silent := r.NewTraceRecorder(p), r.NewTraceRecorder(p)
	noting.Record()
	for _, c := range []struct {
		name string
		img  *TracedImage
	}{{"noting", noting.Image(img, 1)}, {"silent", silent.Image(img, 1)}} {
		b.Run(c.name, func(b *testing.B) {
			c.img.note(0, size)
			off := int64(0)
			for b.Loop() {
				off = (off + 12345<<12) % size
				c.img.note(off, 4096)
			}
		})
	}
}
