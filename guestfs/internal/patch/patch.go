// Package patch shows a volume as it will be when its journal has been replayed:
// some of its blocks come from elsewhere.
package patch

import (
	"io"
	"maps"
	"slices"
	"sort"

	"lifeboat/disk"
)

// Block is what takes a block's place: bytes in memory, or a block of the same
// size that begins at At, of which Head replaces the first bytes.
type Block struct {
	Data []byte
	At   int64
	Head []byte
}

// Image is a volume some of whose blocks are replaced. Close closes nothing.
type Image struct {
	img    disk.Image
	size   int64
	order  []int64 // block numbers, ascending
	blocks map[int64]Block
}

// New replaces blocks of blockSize bytes, by number. Blocks beyond the end of
// the volume are ignored.
func New(img disk.Image, blockSize int, blocks map[int64]Block) *Image {
	m := &Image{img: img, size: int64(blockSize), blocks: blocks}
	m.order = slices.Sorted(maps.Keys(blocks))
	return m
}

// Size implements [disk.Image].
func (m *Image) Size() int64 { return m.img.Size() }

// Close implements [disk.Image].
func (m *Image) Close() error { return nil }

// ReadAt implements [disk.Image].
func (m *Image) ReadAt(p []byte, off int64) (int, error) {
	if off < 0 || off >= m.Size() || len(p) == 0 {
		return m.img.ReadAt(p, off)
	}
	var short error
	if int64(len(p)) > m.Size()-off {
		p, short = p[:m.Size()-off], io.EOF
	}
	done := 0
	for done < len(p) {
		at := off + int64(done)
		n, err := m.run(p[done:], at)
		done += n
		if err != nil {
			return done, err
		}
	}
	return done, short
}

// run reads up to the next border between what is replaced and what is not.
func (m *Image) run(p []byte, off int64) (int, error) {
	number := off / m.size
	i := sort.Search(len(m.order), func(i int) bool { return m.order[i] >= number })
	if i == len(m.order) || m.order[i] > number {
		if i < len(m.order) {
			p = p[:min(int64(len(p)), m.order[i]*m.size-off)]
		}
		return full(m.img, p, off)
	}
	within := off - number*m.size
	p = p[:min(int64(len(p)), m.size-within)]
	b := m.blocks[number]
	if b.Data != nil {
		return copy(p, b.Data[within:]), nil
	}
	n, err := full(m.img, p, b.At+within)
	if within < int64(len(b.Head)) {
		copy(p[:n], b.Head[within:])
	}
	return n, err
}

func full(img disk.Image, p []byte, off int64) (int, error) {
	n, err := img.ReadAt(p, off)
	if n == len(p) {
		return n, nil
	}
	if err == nil || err == io.EOF {
		err = io.ErrUnexpectedEOF
	}
	return n, err
}
