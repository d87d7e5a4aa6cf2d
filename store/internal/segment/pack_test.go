package segment

import (
	"bytes"
	"testing"
)

// lying is an encoder that now and then makes frames that read as something
// else, or not at all.
type lying struct {
	encoder
	calls int
}

func (l *lying) EncodeAll(src, dst []byte) []byte {
	l.calls++
	switch begin := len(dst); l.calls % 3 {
	case 0:
		other := bytes.Clone(src)
		other[len(other)/2] ^= 1
		return l.encoder.EncodeAll(other, dst)
	case 1:
		dst = l.encoder.EncodeAll(src, dst)
		dst[begin+len(dst[begin:])/2] ^= 0x40
		return dst
	}
	return l.encoder.EncodeAll(src, dst)
}

// TestNothingIsStoredThatDoesNotRead: whatever the encoder gets wrong, what is
// stored reads as what was to be stored.
func TestNothingIsStoredThatDoesNotRead(t *testing.T) {
	m := newMemory()
	w, err := NewWriter(t.Context(), m, testKeys{}, 1, WriterOptions{})
	if err != nil {
		t.Fatal(err)
	}
	p := NewPacker()
	liar := &lying{encoder: p.enc}
	p.enc = liar
	h := NewHasher(testKeys{})
	plain := bytes.Repeat([]byte("what is to be kept, again and again. "), 4*FrameSize/30)[:4*FrameSize]
	var addrs []Addr
	for i := range 30 {
		plain[0] = byte(i)
		packed := p.Pack(Data, h.Identity(Data, plain), plain)
		addr, err := w.Append(packed)
		if err != nil {
			t.Fatal(err)
		}
		packed.Release()
		addrs = append(addrs, addr)
	}
	if _, err := w.Commit(t.Context()); err != nil {
		t.Fatal(err)
	}
	rd := newTestReader(t, m, ReaderOptions{})
	got := make([]byte, len(plain))
	for i, addr := range addrs {
		plain[0] = byte(i)
		if n, err := rd.ReadBlock(t.Context(), addr, got); err != nil || !bytes.Equal(got[:n], plain) {
			t.Errorf("blob %d: %d bytes, %v", i, n, err)
		}
	}
	if liar.calls < 100 {
		t.Errorf("the encoder was asked %d times only", liar.calls)
	}
}
