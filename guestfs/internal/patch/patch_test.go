package patch_test

import (
	"bytes"
	"testing"

	"lifeboat/disk"
	"lifeboat/disk/disktest"
	"lifeboat/guestfs/internal/patch"
)

func TestPatchedImage(t *testing.T) {
	const block = 1024
	base := disktest.Random(1, 100*block+300, 0.8)
	blocks := map[int64]patch.Block{
		0:   {Data: bytes.Repeat([]byte{1}, block)},
		7:   {At: 20 * block, Head: []byte("head")},
		8:   {Data: bytes.Repeat([]byte{2}, block)},
		50:  {At: 3*block + 5},
		99:  {Data: bytes.Repeat([]byte{3}, block)},
		500: {Data: bytes.Repeat([]byte{4}, block)},
	}
	content := make([]byte, base.Size())
	if _, err := base.ReadAt(content, 0); err != nil {
		t.Fatal(err)
	}
	want := bytes.Clone(content)
	for n, b := range blocks {
		if n*block >= base.Size() {
			continue
		}
		data := b.Data
		if data == nil {
			data = append(bytes.Clone(b.Head), content[b.At+int64(len(b.Head)):b.At+block]...)
		}
		copy(want[n*block:(n+1)*block], data)
	}
	disktest.RunImage(t, disktest.FromBytes(want), func(*testing.T) disk.Image {
		return closing{patch.New(base, block, blocks), new(bool)}
	})
}

// closing adds what the conformance suite wants of an image that owns something.
type closing struct {
	*patch.Image
	closed *bool
}

func (c closing) Close() error { *c.closed = true; return nil }

func (c closing) ReadAt(p []byte, off int64) (int, error) {
	if *c.closed {
		return 0, bytes.ErrTooLarge
	}
	return c.Image.ReadAt(p, off)
}
