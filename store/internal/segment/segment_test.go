package segment

import (
	"bytes"
	"context"
	"errors"
	"io"
	"io/fs"
	"math/rand/v2"
	"sync"
	"syscall"
	"testing"

	"pgregory.net/rapid"
)

func TestRoundTrip(t *testing.T) {
	rapid.Check(t, func(rt *rapid.T) {
		frames := rapid.SampledFrom([]int{1, 4, 16}).Draw(rt, "frames")
		r := rand.New(rand.NewPCG(rapid.Uint64().Draw(rt, "seed"), 0))
		blobs := make([]blob, rapid.IntRange(0, 12).Draw(rt, "blobs"))
		for i := range blobs {
			kind := rapid.SampledFrom([]Kind{Data, MapNode}).Draw(rt, "kind")
			blobs[i] = mixed(r, kind, rapid.IntRange(1, frames*FrameSize).Draw(rt, "length"))
		}
		number := rapid.Uint64Range(1, MaxNumber).Draw(rt, "number")
		m := newMemory()
		addrs, info := write(t, m, number, WriterOptions{FramesPerSlot: frames}, blobs)
		if o, _ := m.get(info.Name); int64(len(o)) != info.Size || info.Slots != len(blobs) {
			rt.Fatalf("%+v, object has %d bytes", info, len(o))
		}
		checkAll(t, m, addrs, blobs)
		if d := verify(t, m, info.Name); d != nil {
			rt.Fatal(d[0])
		}
	})
}

// checkAll reads every blob in every way there is.
func checkAll(t *testing.T, m *memory, addrs []Addr, blobs []blob) {
	t.Helper()
	rd := newTestReader(t, m, ReaderOptions{})
	h := NewHasher(testKeys{})
	dst := make([]byte, FrameSize)
	for i, bl := range blobs {
		if !readsRight(t, rd, addrs[i], bl) {
			t.Fatal("damage in a fresh object")
		}
		for f := 0; f*FrameSize < len(bl.plain); f++ {
			want := bl.plain[f*FrameSize : min(len(bl.plain), (f+1)*FrameSize)]
			n, err := rd.ReadFrame(t.Context(), addrs[i], f, dst)
			if err != nil || !bytes.Equal(dst[:n], want) {
				t.Fatalf("frame %d: %d bytes, %v", f, n, err)
			}
			if _, err = rd.ReadFrame(t.Context(), addrs[i], f, dst[:len(want)-1]); !errors.Is(err, io.ErrShortBuffer) {
				t.Fatalf("short buffer: %v", err)
			}
		}
		if _, err := rd.ReadFrame(t.Context(), addrs[i], (len(bl.plain)-1)/FrameSize+1, dst); err == nil || errors.Is(err, ErrDamaged) {
			t.Fatalf("frame beyond the blob: %v", err)
		}
		s, err := rd.Stat(t.Context(), addrs[i])
		if err != nil || s.Kind != bl.kind || s.RawLen != len(bl.plain) || s.Identity != h.Identity(bl.kind, bl.plain) {
			t.Fatalf("Stat = %+v, %v", s, err)
		}
	}
}

func TestScanYieldsWhatWasWritten(t *testing.T) {
	r := rand.New(rand.NewPCG(1, 2))
	blobs := make([]blob, 700) // three pages
	for i := range blobs {
		blobs[i] = mixed(r, Kind(1+i%2), 1+i%40)
	}
	m := newMemory()
	addrs, info := write(t, m, 0xabcdef, WriterOptions{}, blobs)
	h, i := NewHasher(testKeys{}), 0
	for s, err := range Scan(t.Context(), m, testKeys{}, info.Name) {
		if err != nil {
			t.Fatal(err)
		}
		if s.Addr != addrs[i] || s.Kind != blobs[i].kind || s.RawLen != len(blobs[i].plain) || s.Identity != h.Identity(s.Kind, blobs[i].plain) {
			t.Fatalf("slot %d is %+v", i, s)
		}
		i++
	}
	if i != len(blobs) {
		t.Fatalf("%d slots of %d", i, len(blobs))
	}
}

func TestZeroAndNoiseFrames(t *testing.T) {
	noise := make([]byte, FrameSize)
	r := rand.New(rand.NewPCG(3, 4))
	for i := range noise {
		noise[i] = byte(r.Uint32())
	}
	p := NewPacker()
	for _, c := range []struct {
		name   string
		plain  []byte
		stored int
	}{
		{"zeros", make([]byte, 4*FrameSize), 0},
		{"noise", bytes.Repeat(noise, 4), 4 * maxSealed},
		{"noise among zeros", append(make([]byte, 3*FrameSize), noise...), maxSealed},
		{"one byte", []byte{1}, 1 + tagSize},
	} {
		packed := p.Pack(Data, Identity{}, c.plain)
		if packed.StoredLen() != c.stored || packed.RawLen() != len(c.plain) {
			t.Errorf("%s: %d bytes stored, not %d", c.name, packed.StoredLen(), c.stored)
		}
		packed.Release()
	}
}

func TestIsZero(t *testing.T) {
	for _, n := range []int{0, 1, 7, 8, 9, FrameSize, FrameSize + 1, 5 * FrameSize} {
		b := make([]byte, n)
		if !IsZero(b) {
			t.Errorf("%d zeros are not zero", n)
		}
		for _, i := range []int{0, 1, 6, n / 2, n - 1} {
			if i >= 0 && i < n {
				b[i] = 1
				if IsZero(b) {
					t.Errorf("a 1 at %d of %d was missed", i, n)
				}
				b[i] = 0
			}
		}
	}
}

func TestWriterLimits(t *testing.T) {
	m, p := newMemory(), NewPacker()
	for _, n := range []uint64{0, MaxNumber + 1} {
		if _, err := NewWriter(t.Context(), m, testKeys{}, n, WriterOptions{}); err == nil {
			t.Errorf("segment number %x was taken", n)
		}
	}
	w, err := NewWriter(t.Context(), m, testKeys{}, 1, WriterOptions{FramesPerSlot: 1, TargetSize: 4000})
	if err != nil {
		t.Fatal(err)
	}
	for _, bad := range [][]byte{nil, make([]byte, FrameSize+1), make([]byte, MaxFrames*FrameSize+1)} {
		if _, err := w.Append(p.Pack(MapNode, Identity{}, bad)); err == nil {
			t.Errorf("a blob of %d bytes was taken", len(bad))
		}
	}
	if _, err := w.Append(p.Pack(9, Identity{}, []byte{1})); err == nil {
		t.Error("a blob of kind 9 was taken")
	}
	for !w.Full() {
		if _, err := w.Append(p.Pack(MapNode, Identity{}, []byte("x"))); err != nil {
			t.Fatal(err)
		}
	}
	if w.Stored() < 4000 || w.Stored() > 4100 {
		t.Errorf("full at %d bytes", w.Stored())
	}
	if _, err := w.Commit(t.Context()); err != nil {
		t.Fatal(err)
	}
	if _, err := w.Commit(t.Context()); err == nil {
		t.Error("committed twice")
	}
	w.Abort()
	if _, ok := m.get(Name(1, 0)); !ok {
		t.Error("Abort after Commit dropped the object")
	}
}

func TestWriterFullBySlots(t *testing.T) {
	m, p := newMemory(), NewPacker()
	w, err := NewWriter(t.Context(), m, testKeys{}, 7, WriterOptions{FramesPerSlot: 1})
	if err != nil {
		t.Fatal(err)
	}
	packed := p.Pack(Data, Identity{}, []byte("x"))
	var last Addr
	for !w.Full() {
		if last, err = w.Append(packed); err != nil {
			t.Fatal(err)
		}
	}
	if w.Slots() != MaxSlots || last.Slot() != MaxSlots-1 {
		t.Fatalf("full at %d slots, last %v", w.Slots(), last)
	}
	if _, err := w.Append(packed); err == nil {
		t.Error("slot 65535 was given out")
	}
	info, err := w.Commit(t.Context())
	if err != nil {
		t.Fatal(err)
	}
	if !readsRight(t, newTestReader(t, m, ReaderOptions{}), last, blob{Data, []byte("x")}) {
		t.Error("the last slot cannot be read")
	}
	// The longest tables there are must be within the search for the copy.
	b, _ := m.get(info.Name)
	b[len(b)-1] ^= 1
	if !readsRight(t, newTestReader(t, m, ReaderOptions{}), last, blob{Data, []byte("x")}) {
		t.Error("the first trailer was not found")
	}
}

func TestFullDiskIsReportedOnceAndForAll(t *testing.T) {
	m, p := newMemory(), NewPacker()
	w, err := NewWriter(t.Context(), m, testKeys{}, 1, WriterOptions{})
	if err != nil {
		t.Fatal(err)
	}
	noise := mixed(rand.New(rand.NewPCG(1, 1)), Data, 4*FrameSize)
	for i := range noise.plain {
		noise.plain[i] = byte(rand.Uint32())
	}
	packed := p.Pack(Data, Identity{}, noise.plain)
	m.writeErr = syscall.ENOSPC
	for err == nil && w.Slots() < 1000 {
		_, err = w.Append(packed)
	}
	m.writeErr = nil
	if !errors.Is(err, syscall.ENOSPC) {
		t.Fatalf("Append: %v", err)
	}
	if _, err = w.Append(packed); !errors.Is(err, syscall.ENOSPC) {
		t.Errorf("next Append: %v", err)
	}
	if _, err = w.Commit(t.Context()); !errors.Is(err, syscall.ENOSPC) {
		t.Errorf("Commit: %v", err)
	}
	w.Abort()
}

func TestSecondWriterOfANumberLoses(t *testing.T) {
	m := newMemory()
	write(t, m, 5, WriterOptions{}, []blob{{Data, []byte("first")}})
	w, err := NewWriter(t.Context(), m, testKeys{}, 5, WriterOptions{})
	if err == nil {
		_, err = w.Commit(t.Context())
	}
	if !errors.Is(err, fs.ErrExist) {
		t.Fatalf("second writer: %v", err)
	}
}

func TestNames(t *testing.T) {
	if got := Name(0x1234, 7); got != "segments/34/000000001234.7" {
		t.Error(got)
	}
	for _, good := range []string{Name(1, 0), Name(MaxNumber, 1<<32-1), Name(255, 12)} {
		n, g, err := ParseName(good)
		if err != nil || Name(n, g) != good {
			t.Errorf("%s: %x %d %v", good, n, g, err)
		}
	}
	for _, bad := range []string{
		"", "segments/", "segments/01/000000000001", "segments/02/000000000001.0", "segments/00/000000000000.0",
		"segments/01/000000000001.00", "segments/01/000000000001.-1", "segments/01/000000000001.4294967296",
		"segments/01/00000000000A.0", "x/segments/01/000000000001.0", "segments/01/000000000001.0/", "segments/01/+00000000001.0",
	} {
		if _, _, err := ParseName(bad); err == nil {
			t.Errorf("%q was taken for a name", bad)
		}
	}
}

func TestAddresses(t *testing.T) {
	a := MakeAddr(MaxNumber, MaxSlots-1)
	if a.Segment() != MaxNumber || a.Slot() != MaxSlots-1 || !a.Stored() {
		t.Error(a)
	}
	for _, a := range []Addr{Hole, Unreadable, 2, MakeAddr(3, MaxSlots)} {
		if a.Stored() {
			t.Errorf("%v counts as stored", a)
		}
		if _, err := NewReader(newMemory(), testKeys{}, ReaderOptions{}).ReadFrame(t.Context(), a, 0, nil); !errors.Is(err, errAddr) {
			t.Errorf("reading %v: %v", a, err)
		}
	}
}

func TestReaderBoundsOpenObjects(t *testing.T) {
	m := newMemory()
	r := rand.New(rand.NewPCG(5, 6))
	var addrs []Addr
	var blobs []blob
	for n := uint64(1); n <= 12; n++ {
		bl := []blob{mixed(r, Data, 3*FrameSize), mixed(r, Data, 100)}
		a, _ := write(t, m, n, WriterOptions{}, bl)
		addrs, blobs = append(addrs, a...), append(blobs, bl...)
	}
	rd := newTestReader(t, m, ReaderOptions{MaxOpen: 3, TableBytes: 1})
	var wg sync.WaitGroup
	for g := range 4 {
		wg.Go(func() {
			rnd := rand.New(rand.NewPCG(uint64(g), 0))
			for range 300 {
				i := rnd.IntN(len(addrs))
				if !readsRight(t, rd, addrs[i], blobs[i]) {
					t.Error("damage in a fresh object")
					return
				}
			}
		})
	}
	wg.Wait()
	// Three in the cache, plus one evicted in each goroutine's hands, plus one being opened.
	if most := m.openMax.Load(); most > 3+4+4 {
		t.Errorf("%d objects open at once", most)
	}
	_ = rd.Close()
	if now := m.openNow.Load(); now != 0 {
		t.Errorf("%d objects left open", now)
	}
	if _, err := rd.ReadFrame(t.Context(), addrs[0], 0, make([]byte, FrameSize)); !errors.Is(err, fs.ErrClosed) {
		t.Errorf("after Close: %v", err)
	}
}

func TestReadOfKnownPlaceIsOneIO(t *testing.T) {
	m := newMemory()
	bl := mixed(rand.New(rand.NewPCG(7, 8)), Data, 4*FrameSize)
	bl.plain[0], bl.plain[FrameSize] = 1, 1
	addrs, _ := write(t, m, 1, WriterOptions{}, []blob{bl})
	rd := newTestReader(t, m, ReaderOptions{})
	dst := make([]byte, 4*FrameSize)
	for i, read := range []func() (int, error){
		func() (int, error) { return rd.ReadFrame(t.Context(), addrs[0], 0, dst) },
		func() (int, error) { return rd.ReadFrame(t.Context(), addrs[0], 1, dst) },
		func() (int, error) { return rd.ReadBlock(t.Context(), addrs[0], dst) },
	} {
		before := m.reads.Load()
		if _, err := read(); err != nil {
			t.Fatal(err)
		}
		if got, want := m.reads.Load()-before, int64(1); i > 0 && got != want {
			t.Errorf("read %d took %d I/Os", i, got)
		}
	}
	if n := testing.AllocsPerRun(100, func() { _, _ = rd.ReadFrame(context.Background(), addrs[0], 0, dst) }); n >= 1 && !raceEnabled {
		t.Errorf("%v allocations per read", n)
	}
}

func TestCancelledReadFails(t *testing.T) {
	m := newMemory()
	addrs, _ := write(t, m, 1, WriterOptions{}, []blob{{Data, []byte("x")}})
	ctx, cancel := context.WithCancel(t.Context())
	cancel()
	if _, err := newTestReader(t, m, ReaderOptions{}).ReadFrame(ctx, addrs[0], 0, make([]byte, 9)); !errors.Is(err, context.Canceled) {
		t.Error(err)
	}
}

// TestLooksRandom: no data that zstd makes smaller may be taken for random,
// unless by a hair.
func TestLooksRandom(t *testing.T) {
	r := rand.New(rand.NewPCG(1, 1))
	noise := make([]byte, FrameSize)
	for range 200 {
		for i := range noise {
			noise[i] = byte(r.Uint32())
		}
		if !looksRandom(noise) {
			t.Fatal("noise was not seen to be noise")
		}
	}
	for name, fill := range map[string]func(i int) byte{
		"seven bits":      func(int) byte { return byte(r.Uint32()) & 0x7f },
		"a third of zero": func(i int) byte { return byte(r.Uint32()) * byte(i%3&1) },
		"16 bit numbers":  func(i int) byte { return byte(r.Uint32() >> 24 >> (7 * (i & 1))) },
		"text":            func(i int) byte { return "lorem ipsum dolor sit amet"[i%26] },
		"a quarter text":  func(i int) byte { return map[bool]byte{true: ' ' + byte(i%64), false: byte(r.Uint32())}[i>>9&3 == 0] },
	} {
		for i := range noise {
			noise[i] = fill(i)
		}
		if looksRandom(noise) {
			t.Errorf("%s was taken for noise", name)
		}
	}
	if looksRandom(noise[:100]) {
		t.Error("a short frame was judged")
	}
}
