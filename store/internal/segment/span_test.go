package segment

import (
	"bytes"
	"errors"
	"math/rand/v2"
	"testing"

	"pgregory.net/rapid"
)

// TestBatchReadsWhatReadBlockReads: any of a segment's blobs, located at once and
// read with one request, are what they are one by one.
func TestBatchReadsWhatReadBlockReads(t *testing.T) {
	rapid.Check(t, func(rt *rapid.T) {
		r := rand.New(rand.NewPCG(rapid.Uint64().Draw(rt, "seed"), 0))
		blobs := make([]blob, rapid.IntRange(1, 60).Draw(rt, "blobs"))
		for i := range blobs {
			blobs[i] = mixed(r, Data, 1+r.IntN(3*FrameSize))
		}
		m := newMemory()
		addrs, _ := write(t, m, 3, WriterOptions{}, blobs)
		rd := newTestReader(t, m, ReaderOptions{})
		want := map[Addr]blob{}
		var asked []Addr
		for _, i := range r.Perm(len(blobs))[:1+r.IntN(len(blobs))] {
			want[addrs[i]] = blobs[i]
			asked = append(asked, addrs[i])
		}
		spans, err := rd.Locate(t.Context(), asked)
		if err != nil || len(spans) != len(asked) {
			rt.Fatalf("%d of %d located: %v", len(spans), len(asked), err)
		}
		before := m.reads.Load()
		batch, err := rd.Fetch(t.Context(), spans, nil)
		if err != nil {
			rt.Fatal(err)
		}
		if n := m.reads.Load() - before; n > 1 {
			rt.Fatalf("%d reads", n)
		}
		dst := make([]byte, 4*FrameSize)
		for i := range batch.Len() {
			n, err := batch.Open(i, dst)
			if err != nil || !bytes.Equal(dst[:n], want[batch.Addr(i)].plain) {
				rt.Fatalf("%v: %v", batch.Addr(i), err)
			}
			delete(want, batch.Addr(i))
		}
		if len(want) > 0 {
			rt.Fatalf("%d are missing", len(want))
		}
	})
}

// TestBatchFindsDamage: a flipped bit in a batch hurts the blob that it is in.
func TestBatchFindsDamage(t *testing.T) {
	r := rand.New(rand.NewPCG(1, 1))
	blobs := make([]blob, 20)
	for i := range blobs {
		blobs[i] = mixed(r, Data, 4*FrameSize)
		blobs[i].plain[0] |= 1
	}
	m := newMemory()
	addrs, info := write(t, m, 3, WriterOptions{}, blobs)
	rd := newTestReader(t, m, ReaderOptions{})
	spans, err := rd.Locate(t.Context(), addrs)
	if err != nil {
		t.Fatal(err)
	}
	object, _ := m.get(info.Name)
	object = bytes.Clone(object)
	object[spans[7].Offset+3] ^= 1
	m.put(info.Name, object)
	rd.Forget(3)
	batch, err := rd.Fetch(t.Context(), spans, nil)
	if err != nil {
		t.Fatal(err)
	}
	dst := make([]byte, 4*FrameSize)
	for i := range batch.Len() {
		_, err := batch.Open(i, dst)
		var d *DamageError
		if hurt := errors.As(err, &d); hurt != (i == 7) || hurt && d.Addr != spans[7].Addr {
			t.Errorf("blob %d: %v", i, err)
		}
	}
	if _, err := batch.Open(0, dst[:10]); err == nil {
		t.Error("opened into too little room")
	}
}

// TestBatchAfterCompaction: what was located before is not read from another
// generation, and can be located again.
func TestBatchAfterCompaction(t *testing.T) {
	r := rand.New(rand.NewPCG(1, 1))
	blobs := make([]blob, 20)
	for i := range blobs {
		blobs[i] = mixed(r, Data, FrameSize)
		blobs[i].plain[0] |= 1
	}
	m := newMemory()
	addrs, info := write(t, m, 3, WriterOptions{}, blobs)
	rd := newTestReader(t, m, ReaderOptions{})
	spans, err := rd.Locate(t.Context(), addrs)
	if err != nil {
		t.Fatal(err)
	}
	if _, err := Rewrite(t.Context(), m, testKeys{}, info.Name, func(slot int) bool { return slot != 5 }, WriterOptions{}); err != nil {
		t.Fatal(err)
	}
	if err := m.Remove(t.Context(), info.Name); err != nil {
		t.Fatal(err)
	}
	for try := range 2 { // with the old object open, and with the new one
		if _, err := rd.Fetch(t.Context(), spans, nil); !errors.Is(err, ErrMoved) {
			t.Errorf("try %d: %v", try, err)
		}
		if _, err := rd.ReadFrame(t.Context(), addrs[0], 0, make([]byte, FrameSize)); err != nil {
			t.Fatal(err)
		}
	}
	spans, err = rd.Locate(t.Context(), addrs)
	if len(spans) != len(blobs)-1 || !errors.Is(err, ErrRemoved) {
		t.Fatalf("%d located again, %v", len(spans), err)
	}
	if _, err := rd.Fetch(t.Context(), spans, nil); err != nil {
		t.Error(err)
	}
}
