package lznt1_test

import (
	"encoding/hex"
	"testing"

	"lifeboat/guestfs/ntfs/internal/lznt1"
)

// TestDocumented: the example of [MS-XCA] 3.3.
func TestDocumented(t *testing.T) {
	const packed = "38b08846232000204720410010a24701a045204400084501507900c045200524138805b4024a44ef0358028c091601484500be009e000401189000"
	const want = "F# F# G A A G F# E D D E F# F# E E F# F# G A A G F# E D D E F# E D D E E F# D E F# G F# D E F# G F# E D E A F# F# G A A G F# E D D E F# E D D\x00"
	src, err := hex.DecodeString(packed)
	if err != nil {
		t.Fatal(err)
	}
	dst := make([]byte, 4096)
	n, err := lznt1.Decode(dst, src)
	if err != nil || string(dst[:len(want)]) != want {
		t.Fatalf("%q, %d, %v", dst[:len(want)], n, err)
	}
}

func FuzzDecode(f *testing.F) {
	f.Add([]byte("\x38\xb0\x88F# \x00 G A\x00"), 8192)
	f.Add([]byte("\x02\x30abc\x00\x00"), 5000)
	f.Fuzz(func(t *testing.T, src []byte, size int) {
		dst := make([]byte, min(max(size, 0), 1<<16))
		if n, err := lznt1.Decode(dst, src); n > len(dst) || n < 0 {
			t.Fatalf("%d of %d bytes, %v", n, len(dst), err)
		}
	})
}
