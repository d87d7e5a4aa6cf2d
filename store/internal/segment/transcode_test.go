package segment

import (
	"bytes"
	"errors"
	"math/rand/v2"
	"testing"
)

// TestReadRun: a run of blobs comes back as it went in, and what it was
// compressed to makes the same blobs in another segment, under other keys.
func TestReadRun(t *testing.T) {
	const size = 4 * FrameSize
	b, rng := newMemory(), rand.New(rand.NewPCG(3, 4))
	blobs := make([]blob, 20)
	for i := range blobs {
		blobs[i] = mixed(rng, Data, size)
	}
	write(t, b, 7, WriterOptions{}, blobs)
	r := newTestReader(t, b, ReaderOptions{})
	other := testKeys{shift: 1}
	w, err := NewWriter(t.Context(), b, other, 8, WriterOptions{})
	if err != nil {
		t.Fatal(err)
	}
	got := make([]byte, 18*size)
	reads := b.reads.Load()
	err = r.ReadRun(t.Context(), MakeAddr(7, 1), 18, size, got, func(i int, p *Packed) {
		p.ID = NewHasher(other).Identity(Data, blobs[i+1].plain)
		if _, err := w.Append(p); err != nil {
			t.Fatal(err)
		}
	})
	if err != nil {
		t.Fatal(err)
	}
	// Opening, a page of the table, and the run.
	if n := b.reads.Load() - reads; n > 5 {
		t.Errorf("%d reads for a run", n)
	}
	info, err := w.Commit(t.Context())
	if err != nil {
		t.Fatal(err)
	}
	for i := range 18 {
		if !bytes.Equal(got[i*size:(i+1)*size], blobs[i+1].plain) {
			t.Fatalf("blob %d differs", i)
		}
	}
	// Verify decompresses all of it and checks it against the identities.
	if err := Verify(t.Context(), b, other, info.Name, func(d *DamageError) { t.Error(d) }); err != nil {
		t.Fatal(err)
	}
	var damage *DamageError
	if err := r.ReadRun(t.Context(), MakeAddr(7, 18), 3, size, got, func(int, *Packed) {}); !errors.As(err, &damage) {
		t.Errorf("beyond the last slot: %v", err)
	}
	if err := r.ReadRun(t.Context(), MakeAddr(7, 0), 1, size/2, got, func(int, *Packed) {}); !errors.As(err, &damage) {
		t.Errorf("blobs of another length: %v", err)
	}
}
