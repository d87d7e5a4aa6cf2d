package crashfs

import (
	"math/bits"
	"syscall"
	"time"
)

const (
	pageSize       = 4096
	sectorsPerPage = pageSize / SectorSize
)

// page is 4 KiB of a file. A nil array is zeros.
type page struct {
	now   *[pageSize]byte
	old   *[pageSize]byte // what is durable of the dirty sectors
	dirty uint8           // sectors, one bit each, that differ from the durable ones
	stuck uint8           // of those, the ones that a failed Sync has given up on
	times uint32          // written
	freed bool            // its space is given back by the next Sync
}

func sector(p *[pageSize]byte, i int) []byte {
	return p[i*SectorSize : (i+1)*SectorSize]
}

// ensure makes an array of its own for *p.
func ensure(p **[pageSize]byte) *[pageSize]byte {
	if *p == nil {
		*p = new([pageSize]byte)
	}
	return *p
}

// set puts data at off, which lies in one page.
func (f *FS) set(n *node, number int64, p *page, off int, data []byte) {
	for i := off / SectorSize; i*SectorSize < off+len(data); i++ {
		f.soil(n, number, p, i)
	}
	n.soil[number] = p
	p.freed = false
	copy(ensure(&p.now)[off:], data)
}

// soil notes that sector i of a page is about to be written. If it is dirty
// already, what it holds may have reached the disk by now.
func (f *FS) soil(n *node, number int64, p *page, i int) {
	bit := uint8(1) << i
	p.times++
	written := p.dirty&bit != 0 && draw(f.seed, n.id, uint64(number), uint64(i), uint64(p.times))%4 == 0
	if p.dirty&bit == 0 || written {
		if p.now != nil {
			copy(sector(ensure(&p.old), i), sector(p.now, i))
		} else if p.old != nil {
			clear(sector(p.old, i))
		}
	}
	p.dirty |= bit
	p.stuck &^= bit
}

// write is pwrite(2): with too little room it writes what fits.
func (f *FS) write(n *node, data []byte, off int64) (int, error) {
	done := 0
	for done < len(data) {
		number, in := (off+int64(done))/pageSize, int((off+int64(done))%pageSize)
		chunk := data[done:min(len(data), done+pageSize-in)]
		p, err := f.page(n, number)
		if err != nil {
			f.grow(n, off+int64(done))
			return done, err
		}
		f.set(n, number, p, in, chunk)
		done += len(chunk)
	}
	if done > 0 {
		f.grow(n, off+int64(done))
	}
	return done, nil
}

// page allocates a page unless it is there.
func (f *FS) page(n *node, number int64) (*page, error) {
	if p := n.pages[number]; p != nil {
		return p, nil
	}
	if f.capacity > 0 && f.used+pageSize > f.capacity {
		return nil, syscall.ENOSPC
	}
	f.used += pageSize
	p := new(page)
	n.pages[number] = p
	return p, nil
}

func (f *FS) grow(n *node, size int64) {
	n.modified = time.Now()
	if size > n.size {
		n.setSize(size)
	}
}

func (n *node) setSize(size int64) {
	n.size = size
	if n.sizes[len(n.sizes)-1] != size {
		n.sizes = append(n.sizes, size)
	}
	// Enough to choose from; the durable one stays first.
	if len(n.sizes) > 16 {
		n.sizes = append(n.sizes[:1], n.sizes[2:]...)
	}
}

// read fills p, which lies inside the file.
func (n *node) read(p []byte, off int64) {
	for len(p) > 0 {
		in := int(off % pageSize)
		chunk := p[:min(len(p), pageSize-in)]
		if pg := n.pages[off/pageSize]; pg != nil && pg.now != nil {
			copy(chunk, pg.now[in:])
		} else {
			clear(chunk)
		}
		p, off = p[len(chunk):], off+int64(len(chunk))
	}
}

func (f *FS) truncate(n *node, size int64) {
	n.modified = time.Now()
	if size < n.size {
		f.zero(n, size, n.size)
		for number := range n.pages {
			if number*pageSize >= size {
				f.drop(n, number)
			}
		}
	}
	n.setSize(size)
}

// zero makes [from, to) read as zeros and frees the pages inside.
func (f *FS) zero(n *node, from, to int64) {
	first, last := from/pageSize, (to-1)/pageSize
	if last-first < int64(len(n.pages)) {
		for number := first; number <= last; number++ {
			f.zeroPage(n, number, from, to)
		}
		return
	}
	for number := range n.pages {
		f.zeroPage(n, number, from, to)
	}
}

func (f *FS) zeroPage(n *node, number, from, to int64) {
	var zeros [pageSize]byte
	p := n.pages[number]
	start, end := max(from-number*pageSize, 0), min(to-number*pageSize, pageSize)
	if p == nil || start >= end {
		return
	}
	f.set(n, number, p, int(start), zeros[start:end])
	if start == 0 && end == pageSize {
		f.drop(n, number)
	}
}

// drop frees a page that reads as zeros. It stays known, and its space taken,
// while power loss could bring its old content back.
func (f *FS) drop(n *node, number int64) {
	p := n.pages[number]
	p.now = nil
	if p.dirty != 0 && p.old != nil {
		p.freed = true
		n.soil[number] = p
		return
	}
	f.used -= pageSize
	delete(n.pages, number)
	delete(n.soil, number)
}

// allocate is fallocate(2).
func (f *FS) allocate(n *node, off, length int64) error {
	for number := off / pageSize; number*pageSize < off+length; number++ {
		if _, err := f.page(n, number); err != nil {
			return err
		}
	}
	f.grow(n, off+length)
	return nil
}

// flush is fdatasync(2).
func (f *FS) flush(n *node) {
	for number, p := range n.soil {
		p.dirty &= p.stuck
		if p.dirty != 0 {
			continue
		}
		p.old = nil
		delete(n.soil, number)
		if p.freed {
			f.drop(n, number)
		}
	}
	n.sizes = []int64{n.size}
}

// giveUp is what a failed fdatasync(2) leaves: the kernel takes the pages for
// clean, and no later one writes them.
func (n *node) giveUp() {
	for _, p := range n.soil {
		p.stuck = p.dirty
	}
}

// survive is what power loss leaves of a file's content.
func (n *node) survive(c chance) *node {
	size := n.sizes[c.below(len(n.sizes), n.id)]
	out := &node{id: n.id, modified: n.modified, size: size, sizes: []int64{size}, pages: map[int64]*page{}, soil: map[int64]*page{}}
	for number, p := range n.pages {
		if number*pageSize >= size {
			continue
		}
		if content := p.survive(c, n.id, uint64(number)); content != nil {
			clear(content[min(size-number*pageSize, pageSize):])
			out.pages[number] = &page{now: content}
		} else {
			out.pages[number] = &page{}
		}
	}
	return out
}

func (p *page) survive(c chance, id, number uint64) *[pageSize]byte {
	if p.now == nil && p.old == nil {
		return nil
	}
	out := new([pageSize]byte)
	if p.now != nil {
		*out = *p.now
	}
	for left := p.dirty; left != 0; left &= left - 1 {
		i := bits.TrailingZeros8(left)
		if c.kept(id, number, uint64(i)) {
			continue
		}
		if p.old != nil {
			copy(sector(out, i), sector(p.old, i))
		} else {
			clear(sector(out, i))
		}
	}
	return out
}
