package lzx_test

import (
	"bytes"
	"encoding/binary"
	"testing"

	"lifeboat/guestfs/ntfs/internal/lzx"
)

// TestUncompressed: a chunk of two blocks that are not compressed, which wimlib
// never makes; the first has an odd length, and is padded.
func TestUncompressed(t *testing.T) {
	le := binary.LittleEndian
	var src []byte
	for _, data := range []string{"an odd number of bytes!", "and an even one."} {
		// Three bits of type (3), one that the size follows (0), 16 bits of size.
		bits := uint32(3)<<29 | uint32(len(data))<<12
		src = le.AppendUint16(src, uint16(bits>>16))
		src = le.AppendUint16(src, uint16(bits))
		for range 3 {
			src = le.AppendUint32(src, 1)
		}
		src = append(src, data...)
		if len(data)%2 == 1 {
			src = append(src, 0)
		}
	}
	want := []byte("an odd number of bytes!and an even one.")
	dst := make([]byte, len(want))
	var d lzx.Decoder
	if err := d.Decode(dst, src); err != nil || !bytes.Equal(dst, want) {
		t.Fatalf("%q, %v", dst, err)
	}
}

func FuzzDecode(f *testing.F) {
	f.Add(bytes.Repeat([]byte{0x20, 0x10, 0x55}, 200), 4096)
	f.Fuzz(func(_ *testing.T, src []byte, size int) {
		var d lzx.Decoder
		_ = d.Decode(make([]byte, min(max(size, 0), lzx.ChunkSize)), src)
	})
}
