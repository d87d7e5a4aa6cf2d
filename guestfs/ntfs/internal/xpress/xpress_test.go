package xpress_test

import (
	"bytes"
	"testing"

	"lifeboat/guestfs/ntfs/internal/xpress"
)

// TestDocumented: the first example of [MS-XCA] 3.2, the alphabet, whose code
// has 26 letters and an end.
func TestDocumented(t *testing.T) {
	src := make([]byte, 256)
	copy(src[48:], []byte{0x50, 0x55, 0x55, 0x55, 0x55, 0x55, 0x55, 0x55, 0x55, 0x55, 0x55, 0x45, 0x44, 0x04})
	src[128] = 0x04
	src = append(src, 0xd8, 0x52, 0x3e, 0xd7, 0x94, 0x11, 0x5b, 0xe9, 0x19, 0x5f, 0xf9, 0xd6, 0x7c, 0xdf, 0x8d, 0x04, 0, 0, 0, 0)
	dst := make([]byte, 26)
	var d xpress.Decoder
	if err := d.Decode(dst, src); err != nil || !bytes.Equal(dst, []byte("abcdefghijklmnopqrstuvwxyz")) {
		t.Fatalf("%q, %v", dst, err)
	}
}

func FuzzDecode(f *testing.F) {
	f.Add(bytes.Repeat([]byte{0x99}, 400), 4096)
	f.Fuzz(func(_ *testing.T, src []byte, size int) {
		var d xpress.Decoder
		_ = d.Decode(make([]byte, min(max(size, 0), xpress.MaxChunk)), src)
	})
}
