package zframe

import (
	"bytes"
	"encoding/binary"
	"math/rand/v2"
	"os"
	"testing"

	"github.com/klauspost/compress/zstd"
	"pgregory.net/rapid"
)

// peer is the decoder that reads what is stored. It checks lengths itself.
func peer(t testing.TB) *zstd.Decoder {
	t.Helper()
	d, err := zstd.NewReader(nil, zstd.WithDecoderConcurrency(1), zstd.WithDecoderMaxMemory(MaxInput))
	if err != nil {
		t.Fatal(err)
	}
	return d
}

// check encodes and decodes.
func check(t interface {
	Helper()
	Fatalf(string, ...any)
}, e *Encoder, d *zstd.Decoder, src []byte,
) []byte {
	t.Helper()
	prefix := []byte("before")
	out, ok := e.Append(bytes.Clone(prefix), src, 4*MaxInput)
	if !ok || !bytes.HasPrefix(out, prefix) {
		t.Fatalf("%d bytes: encoded %v", len(src), ok)
	}
	out = out[len(prefix):]
	got, err := d.DecodeAll(out, nil)
	if err != nil {
		t.Fatalf("%d bytes %.40x…: %v", len(src), src, err)
	}
	if !bytes.Equal(got, src) {
		t.Fatalf("%d bytes %.40x… come back as %d bytes %.40x…", len(src), src, len(got), got)
	}
	return out
}

// text makes data as one finds it: words again and again, records of the same
// length, noise and zeros, in parts of any length.
func text(rng *rand.Rand, size int) []byte {
	var out []byte
	words := make([][]byte, 1+rng.IntN(100))
	for i := range words {
		words[i] = make([]byte, 1+rng.IntN(24))
		for k := range words[i] {
			words[i][k] = byte(rng.IntN(1 + rng.IntN(256)))
		}
	}
	for len(out) < size {
		n := 1 + rng.IntN(1+size/4)
		switch rng.IntN(5) {
		case 0:
			out = append(out, make([]byte, n)...)
		case 1:
			for range n {
				out = append(out, byte(rng.Uint32()))
			}
		case 2:
			for i := range n / 4 {
				out = binary.LittleEndian.AppendUint32(out, uint32(i)*rng.Uint32N(5))
			}
		case 3:
			if len(out) > 0 {
				from := rng.IntN(len(out))
				out = append(out, out[from:min(len(out), from+n)]...)
			}
		default:
			for at := len(out); len(out) < at+n; {
				out = append(out, words[rng.IntN(len(words))]...)
			}
		}
	}
	return out[:size]
}

// TestEverySmallSize and every kind of content.
func TestEverySmallSize(t *testing.T) {
	e, d := New(), peer(t)
	rng := rand.New(rand.NewPCG(1, 2))
	for size := 1; size < 700; size++ {
		check(t, e, d, make([]byte, size))
		check(t, e, d, bytes.Repeat([]byte{7}, size))
		check(t, e, d, bytes.Repeat([]byte("abcdefgh!"), size)[:size])
		for range 4 {
			check(t, e, d, text(rng, size))
		}
	}
}

func TestLargeSizes(t *testing.T) {
	e, d := New(), peer(t)
	rng := rand.New(rand.NewPCG(3, 4))
	for i := range 1500 {
		size := MaxInput - rng.IntN(3)
		if i%3 == 0 {
			size = 1 + rng.IntN(MaxInput)
		}
		check(t, e, d, text(rng, size))
	}
	noise := make([]byte, MaxInput)
	for i := range noise {
		noise[i] = byte(rng.Uint32())
	}
	check(t, e, d, noise)
	check(t, e, d, make([]byte, MaxInput))
	check(t, e, d, bytes.Repeat([]byte{1, 2, 3}, MaxInput)[:MaxInput])
	// Sixteen values in no order: nothing but literals, all MaxInput of them.
	for i := range noise {
		noise[i] &= 15
	}
	check(t, e, d, noise)
}

// TestProgram: what real data look like.
func TestProgram(t *testing.T) {
	e, d := New(), peer(t)
	data, err := os.ReadFile(os.Args[0]) // this test's program
	if err != nil {
		t.Fatal(err)
	}
	data = data[:min(len(data), 8<<20)]
	enc, err := zstd.NewWriter(nil, zstd.WithEncoderLevel(zstd.SpeedFastest), zstd.WithSingleSegment(true), zstd.WithEncoderCRC(false))
	if err != nil {
		t.Fatal(err)
	}
	var ours, theirs int
	for len(data) > 0 {
		n := min(MaxInput, len(data))
		ours += len(check(t, e, d, data[:n]))
		theirs += len(enc.EncodeAll(data[:n], nil))
		data = data[n:]
	}
	if ours > theirs {
		t.Errorf("%d bytes; a general encoder at its fastest makes %d of it", ours, theirs)
	}
}

func TestProperty(t *testing.T) {
	e, d := New(), peer(t)
	rapid.Check(t, func(t *rapid.T) {
		check(t, e, d, rapid.SliceOfN(rapid.Byte(), 1, 400).Draw(t, "src"))
	})
}

func TestLimit(t *testing.T) {
	e := New()
	noise := make([]byte, MaxInput)
	rng := rand.New(rand.NewPCG(5, 6))
	for i := range noise {
		noise[i] = byte(rng.Uint32())
	}
	for _, src := range [][]byte{noise, nil, make([]byte, MaxInput+1)} {
		if out, ok := e.Append([]byte("x"), src, MaxInput); ok || string(out) != "x" {
			t.Errorf("%d bytes: %v, %d bytes", len(src), ok, len(out))
		}
	}
	if out, ok := e.Append(nil, make([]byte, 100), 30); !ok || len(out) >= 30 {
		t.Errorf("100 zeros take %d bytes", len(out))
	}
}

func FuzzRoundTrip(f *testing.F) {
	f.Add([]byte("abcabcabcabcabcabcabcabc"))
	f.Add(bytes.Repeat([]byte{0, 1, 2, 3, 4, 5, 6}, 300))
	f.Add(text(rand.New(rand.NewPCG(7, 8)), 5000))
	e, d := New(), peer(f)
	f.Fuzz(func(t *testing.T, src []byte) {
		if len(src) > 0 && len(src) <= MaxInput {
			check(t, e, d, src)
		}
	})
}
