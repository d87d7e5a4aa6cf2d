package segment

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"io/fs"
	"maps"
	"math/rand/v2"
	"os"
	"path/filepath"
	"slices"
	"testing"

	"pgregory.net/rapid"
)

// frames reads each frame of a blob and returns which can be read, a bit for
// each. What can must be right.
func framesRead(t testing.TB, r *Reader, addr Addr, want blob) (readable uint16) {
	t.Helper()
	buf := make([]byte, FrameSize)
	for i := range (len(want.plain) + FrameSize - 1) / FrameSize {
		n, err := r.ReadFrame(t.Context(), addr, i, buf)
		if err == nil {
			if !bytes.Equal(buf[:n], want.plain[i*FrameSize:][:n]) {
				t.Fatalf("%v, frame %d: wrong bytes", addr, i)
			}
			readable |= 1 << i
		} else if !errors.Is(err, ErrDamaged) {
			t.Fatal(err)
		}
	}
	return readable
}

// damageAtRandom flips bits, cuts or removes an object.
func damageAtRandom(m *memory, name string, rng *rand.Rand) {
	b, _ := m.get(name)
	b = bytes.Clone(b)
	for range 1 + rng.IntN(4) {
		switch at := rng.IntN(len(b) + 1); {
		case rng.IntN(8) == 0:
			b = b[:at]
		case rng.IntN(30) == 0:
			_ = m.Remove(context.Background(), name)
			return
		case at < len(b):
			b[at] ^= 1 << rng.IntN(8)
		}
	}
	m.put(name, b)
}

// TestMend: whatever happens to a segment, what could be read afterwards can be
// read from the next generation; what Find knows is back; the rest is marked; and
// nothing else is wrong with it.
func TestMend(t *testing.T) {
	rapid.Check(t, func(rt *rapid.T) {
		rng := rand.New(rand.NewPCG(rapid.Uint64().Draw(rt, "seed"), 1))
		m := newMemory()
		n := 1 + rng.IntN(20)
		if rng.IntN(8) == 0 {
			n += 250 // more than a page of the tables
		}
		blobs := make([]blob, n)
		for i := range blobs {
			blobs[i] = mixed(rng, Data, 1+rng.IntN(FrameSize+FrameSize/2))
		}
		addrs, info := write(t, m, 0x777, WriterOptions{}, blobs)
		salt, _ := m.get(info.Name)
		damageAtRandom(m, info.Name, rng)
		before := make([]uint16, len(blobs))
		rd := newTestReader(t, m, ReaderOptions{})
		for i := range blobs {
			before[i] = framesRead(t, rd, addrs[i], blobs[i])
		}
		known := rng.IntN(2) == 0
		o := MendOptions{
			Number: 0x777, FramesPerSlot: 4, Slots: len(blobs), Needed: func(int) bool { return true },
			Find: func(_ context.Context, slot int, _ *Identity) (Content, bool, error) {
				return Content{Kind: Data, Plain: blobs[slot].plain}, known || slot%3 == 0, nil
			},
		}
		if _, ok := m.get(info.Name); ok {
			o.Objects = []string{info.Name}
		}
		mended, err := Mend(t.Context(), m, testKeys{}, o)
		if errors.Is(err, ErrVersion) {
			return // cut short, and the version of the trailer that is left hit: not ours to touch
		}
		if err != nil {
			t.Fatal(err)
		}
		if got, _ := m.get(mended.Info.Name); bytes.Equal(got[24:56], salt[24:56]) {
			t.Fatal("frames were sealed again under the same key")
		}
		_ = m.Remove(t.Context(), info.Name)
		for _, d := range verify(t, m, mended.Info.Name) {
			if !errors.Is(d, ErrLost) {
				t.Fatalf("what Mend wrote is damaged: %v", d)
			}
		}
		after := newTestReader(t, m, ReaderOptions{})
		lost := map[int]bool{}
		for _, s := range mended.Lost {
			lost[s.Addr.Slot()] = true
		}
		for i := range blobs {
			now := framesRead(t, after, addrs[i], blobs[i])
			whole := now == allFrames(len(blobs[i].plain))
			if now&before[i] != before[i] || !whole && (known || i%3 == 0) || whole == lost[i] {
				t.Fatalf("slot %d: frames %b were readable, now %b; lost: %t", i, before[i], now, lost[i])
			}
			if _, err := after.Identity(t.Context(), addrs[i]); (err == nil) != whole {
				t.Fatalf("slot %d: the identity of a slot that is whole: %t: %v", i, whole, err)
			}
		}
		marked, err := ScanLost(t.Context(), m, testKeys{}, mended.Info.Name)
		if err != nil || len(marked) != len(mended.Lost) {
			t.Fatalf("%d are marked, %d were to be: %v", len(marked), len(mended.Lost), err)
		}
		compactsWith(t, m, mended.Info, addrs, blobs, lost)
	})
}

// compactsWith checks that compaction carries the marks along.
func compactsWith(t testing.TB, m *memory, info Info, addrs []Addr, blobs []blob, lost map[int]bool) {
	t.Helper()
	next, err := Rewrite(t.Context(), m, testKeys{}, info.Name, func(int) bool { return true }, WriterOptions{})
	if errors.Is(err, ErrNothingLive) {
		return
	} else if err != nil {
		t.Fatal(err)
	}
	_ = m.Remove(t.Context(), info.Name)
	marked, err := ScanLost(t.Context(), m, testKeys{}, next.Name)
	if err != nil || len(marked) != len(lost) {
		t.Fatalf("compaction kept %d of %d marks: %v", len(marked), len(lost), err)
	}
	rd := newTestReader(t, m, ReaderOptions{})
	for i := range blobs {
		if readsRight(t, rd, addrs[i], blobs[i]) == lost[i] {
			t.Fatalf("after compaction slot %d can be read: %t", i, lost[i])
		}
	}
}

// TestMendTakesTheBetterGeneration: what is damaged in one generation and not in
// the other is not lost.
func TestMendTakesTheBetterGeneration(t *testing.T) {
	m := newMemory()
	blobs := goldenBlobs()
	addrs, info := write(t, m, 9, WriterOptions{}, blobs)
	next, err := Rewrite(t.Context(), m, testKeys{}, info.Name, func(int) bool { return true }, WriterOptions{})
	if err != nil {
		t.Fatal(err)
	}
	for name, off := range map[string]int64{info.Name: 90, next.Name: info.Size - int64(2*trailerSize+len(blobs)*(16+16)+2*tagSize) - 5} {
		b, _ := m.get(name)
		b = bytes.Clone(b)
		b[off] ^= 4
		m.put(name, b)
	}
	objects, err := Generations(t.Context(), m, 9)
	if err != nil || !slices.Equal(objects, []string{next.Name, info.Name}) {
		t.Fatal(objects, err)
	}
	mended, err := Mend(t.Context(), m, testKeys{}, MendOptions{Number: 9, Objects: objects, FramesPerSlot: 4})
	if err != nil || len(mended.Lost) > 0 || mended.Info.Generation != 2 {
		t.Fatalf("%+v %v", mended, err)
	}
	for _, name := range objects {
		_ = m.Remove(t.Context(), name)
	}
	rd := newTestReader(t, m, ReaderOptions{})
	for i := range blobs {
		if !readsRight(t, rd, addrs[i], blobs[i]) {
			t.Errorf("slot %d cannot be read", i)
		}
	}
}

// TestMendRefuses: content with another identity is not taken; a failure leaves
// no object; a race has one winner.
func TestMendRefuses(t *testing.T) {
	m := newMemory()
	_, info := write(t, m, 9, WriterOptions{}, goldenBlobs())
	b, _ := m.get(info.Name)
	bad := bytes.Clone(b)
	bad[90] ^= 1
	m.put(info.Name, bad)
	o := MendOptions{
		Number: 9, Objects: []string{info.Name}, FramesPerSlot: 4,
		Find: func(context.Context, int, *Identity) (Content, bool, error) {
			return Content{Kind: Data, Plain: []byte("something else")}, true, nil
		},
	}
	broken := errors.New("broken")
	o.Before = func(context.Context) error { return broken }
	if _, err := Mend(t.Context(), m, testKeys{}, o); !errors.Is(err, broken) {
		t.Error(err)
	}
	if names, _ := Generations(t.Context(), m, 9); len(names) != 1 {
		t.Error("a mend that failed left", names)
	}
	o.Before = nil
	mended, err := Mend(t.Context(), m, testKeys{}, o)
	if err != nil || len(mended.Restored) != 0 || len(mended.Lost) != 1 {
		t.Errorf("%+v %v", mended, err)
	}
	if _, err := Mend(t.Context(), m, testKeys{}, o); !errors.Is(err, fs.ErrExist) {
		t.Error(err)
	}
}

// TestVerifyPart: of the slots that are not chosen nothing is read, and damage in
// tables is found nevertheless.
func TestVerifyPart(t *testing.T) {
	m := newMemory()
	rng := rand.New(rand.NewPCG(3, 3))
	blobs := make([]blob, 700)
	for i := range blobs {
		blobs[i] = mixed(rng, Data, 4*FrameSize)
	}
	_, info := write(t, m, 9, WriterOptions{}, blobs)
	good, _ := m.get(info.Name)
	found := func(at int64, slots func(int) bool) bool {
		b := bytes.Clone(good)
		b[at] ^= 1
		m.put(info.Name, b)
		hit := false
		if err := VerifyPart(t.Context(), m, testKeys{}, info.Name, VerifyOptions{Slots: slots}, func(*DamageError) { hit = true }); err != nil {
			t.Fatal(err)
		}
		return hit
	}
	none := func(int) bool { return false }
	second := func(slot int) bool { return slot >= 256 && slot < 512 }
	framesEnd := info.Size - int64(2*trailerSize+700*(16+16)+2*3*tagSize)
	if found(headerSize+10, none) || found(headerSize+10, second) || !found(headerSize+10, nil) {
		t.Error("the first slot's frames")
	}
	if found(framesEnd/2, none) || !found(framesEnd/2, second) {
		t.Error("the middle slots' frames")
	}
	for at := framesEnd; at < info.Size; at += 997 {
		if !found(at, none) {
			t.Errorf("damage at %d of %d was not found by looking at the structure", at, info.Size)
		}
	}
	if !found(50, none) {
		t.Error("the header")
	}
}

// TestGoldenLost pins the mark of lost frames.
func TestGoldenLost(t *testing.T) {
	file := filepath.Join("testdata", "v1-lost.segment")
	m := newMemory()
	addrs, info := write(t, m, 0x0102030405, WriterOptions{Rand: new(countingReader)}, goldenBlobs())
	b, _ := m.get(info.Name)
	b = bytes.Clone(b)
	b[headerSize+5] ^= 1 // frame 0 of slot 0
	m.put(info.Name, b)
	mended, err := Mend(t.Context(), m, testKeys{}, MendOptions{
		Number: info.Number, Objects: []string{info.Name}, FramesPerSlot: 4, Slots: 6,
		Identity: func(slot int) (Identity, bool) { return Identity{9}, slot == 4 },
		Writer:   WriterOptions{Rand: new(countingReader)},
	})
	if err != nil {
		t.Fatal(err)
	}
	got, _ := m.get(mended.Info.Name)
	if *update {
		if err := os.WriteFile(file, got, 0o644); err != nil {
			t.Fatal(err)
		}
	}
	want, err := os.ReadFile(file)
	if err != nil {
		t.Fatal(err)
	}
	if !bytes.Equal(got, want) {
		t.Errorf("%s: the writer's bytes have changed (at %d)", file, differsAt(got, want))
	}
	_ = m.Remove(t.Context(), info.Name)
	m.put(mended.Info.Name, want)
	rd := newTestReader(t, m, ReaderOptions{})
	readable := map[int]uint16{}
	for i, bl := range goldenBlobs() {
		readable[i] = framesRead(t, rd, addrs[i], bl)
	}
	if want := (map[int]uint16{0: 0b1110, 1: 1, 2: 0b1111, 3: 1}); !maps.Equal(readable, want) {
		t.Errorf("frames that can be read: %v, want %v", readable, want)
	}
	lost, err := ScanLost(t.Context(), m, testKeys{}, mended.Info.Name)
	if err != nil || fmt.Sprint(lost[1].Identity, lost[1].Lost, len(lost)) != fmt.Sprint(Identity{9}, 15, 2) {
		t.Errorf("%+v %v", lost, err)
	}
	if _, err := rd.Stat(t.Context(), MakeAddr(info.Number, 5)); !errors.Is(err, ErrRemoved) {
		t.Errorf("a slot of which nothing was known: %v", err)
	}
}
