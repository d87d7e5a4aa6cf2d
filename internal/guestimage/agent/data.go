package main

import (
	"errors"
	"fmt"
	"io"
	"math/rand/v2"
	"os"
	"path/filepath"
	"syscall"
	"time"
	"unsafe"
)

// model is a file's content in memory, changed by writes that are derived from
// a seed: whoever knows the seed can tell what must be in the file.
type model struct {
	rng  *rand.Rand
	data []byte
}

func newModel(seed, size int64) *model {
	return &model{rng: rand.New(rand.NewPCG(uint64(seed), 0x6c696665)), data: make([]byte, size)}
}

// next makes one write in the model and returns where it was. Most are small
// and aligned to nothing, some are of whole pages, a few are large.
func (m *model) next() (off int64, p []byte) {
	size := int64(len(m.data))
	length := 1 + m.rng.Int64N(5000)
	switch m.rng.IntN(10) {
	case 0:
		length = 1 + m.rng.Int64N(300_000)
	case 1, 2, 3:
		length = 4096 * (1 + m.rng.Int64N(8))
	}
	length = min(length, size)
	off = m.rng.Int64N(size - length + 1)
	if length%4096 == 0 {
		off &^= 4095
	}
	p = m.data[off : off+length]
	if m.rng.IntN(8) == 0 {
		clear(p)
		return off, p
	}
	for i := 0; i+8 <= len(p); i += 8 {
		*(*uint64)(unsafe.Pointer(&p[i])) = m.rng.Uint64()
	}
	return off, p
}

// random writes to a file at random, sometimes syncing, and reads it all back.
func random(a []string) error {
	n, err := numbers(a[1:]...)
	if err != nil {
		return err
	}
	f, err := os.OpenFile(a[0], os.O_RDWR|os.O_CREATE, 0o644)
	if err != nil {
		return err
	}
	defer f.Close()
	if err := f.Truncate(n[1]); err != nil {
		return err
	}
	m := newModel(n[0], n[1])
	if err := m.apply(f, n[2]); err != nil {
		return err
	}
	return m.check(a[0])
}

func (m *model) apply(f *os.File, writes int64) error {
	for i := range writes {
		off, p := m.next()
		if _, err := f.WriteAt(p, off); err != nil {
			return fmt.Errorf("write %d: %w", i, err)
		}
		if i%50 == 49 {
			if err := f.Sync(); err != nil {
				return fmt.Errorf("fsync after write %d: %w", i, err)
			}
		}
	}
	return f.Sync()
}

// check reads the file from the server: with O_DIRECT the client's cache does
// not answer.
func (m *model) check(path string) error {
	f, err := os.OpenFile(path, os.O_RDONLY|syscall.O_DIRECT, 0)
	if err != nil {
		return err
	}
	defer f.Close()
	st, err := f.Stat()
	if err != nil {
		return err
	}
	if err := equal("size", st.Size(), int64(len(m.data))); err != nil {
		return err
	}
	buf, err := syscall.Mmap(-1, 0, 1<<20, syscall.PROT_READ|syscall.PROT_WRITE, syscall.MAP_PRIVATE|syscall.MAP_ANON)
	if err != nil {
		return err
	}
	defer func() { _ = syscall.Munmap(buf) }()
	for off := 0; off < len(m.data); off += len(buf) {
		part := buf[:min(len(buf), len(m.data)-off)]
		// One call with the whole buffer: other file systems than NFS want
		// offset and length aligned.
		for n := 0; n < len(part); {
			k, err := syscall.Pread(int(f.Fd()), buf[n:], int64(off+n))
			if err != nil || k == 0 {
				return fmt.Errorf("reading at %d: %d bytes, %w", off+n, k, err)
			}
			n += k
		}
		if err := sameBytes(fmt.Sprintf("%s from %d", path, off), part, m.data[off:off+len(part)]); err != nil {
			return err
		}
	}
	return nil
}

// verify: the file is what random (or disk) with the same arguments left.
func verify(a []string) error {
	n, err := numbers(a[1:]...)
	if err != nil {
		return err
	}
	m := newModel(n[0], n[1])
	for range n[2] {
		m.next()
	}
	return m.check(a[0])
}

// disk is random on a virtual disk, all zeros before: its size cannot change.
func disk(a []string) error {
	n, err := numbers(a[1:]...)
	if err != nil {
		return err
	}
	f, err := os.OpenFile(a[0], os.O_RDWR, 0)
	if err != nil {
		return err
	}
	defer f.Close()
	m := newModel(n[0], n[1])
	if err := m.check(a[0]); err != nil {
		return fmt.Errorf("before anything was written: %w", err)
	}
	if err := m.apply(f, n[2]); err != nil {
		return err
	}
	if f.Truncate(n[1]-512) == nil {
		return errors.New("a virtual disk could be made smaller")
	}
	if err := f.Truncate(n[1]); err != nil {
		return fmt.Errorf("setting a virtual disk's size to what it is: %w", err)
	}
	if _, err := f.WriteAt([]byte("x"), n[1]); err == nil && f.Sync() == nil {
		return errors.New("a virtual disk could be written beyond its end")
	}
	return m.check(a[0])
}

// sparse: a file beyond 4 GiB that is almost all hole.
func sparse(a []string) error {
	path := filepath.Join(a[0], "sparse")
	f, err := os.OpenFile(path, os.O_CREATE|os.O_RDWR, 0o644)
	if err != nil {
		return err
	}
	defer f.Close()
	const size = 6<<30 + 7
	marks := []int64{0, 1<<31 - 3, 1<<31 + 100, 1<<32 - 5, 1<<32 + 100, 5<<30 + 12345, size - 7}
	for i, off := range marks {
		if _, err := f.WriteAt([]byte(fmt.Sprintf("mark %02d", i)), off); err != nil {
			return fmt.Errorf("writing at %d: %w", off, err)
		}
	}
	if err := f.Sync(); err != nil {
		return err
	}
	st, err := stat(path)
	if err := first(err, equal("size", st.Size, size)); err != nil {
		return err
	}
	if st.Blocks*512 > 1<<20 {
		return fmt.Errorf("a sparse file occupies %d bytes", st.Blocks*512)
	}
	g, err := os.Open(path)
	if err != nil {
		return err
	}
	defer g.Close()
	for i, off := range marks {
		buf := make([]byte, 64)
		n, err := g.ReadAt(buf, off-min(off, 16))
		if err != nil && err != io.EOF {
			return err
		}
		expected := fmt.Sprintf("mark %02d", i)
		got := string(buf[min(off, 16):n])
		if len(got) > 7 {
			got = got[:7]
		}
		if err := equal(fmt.Sprintf("content at %d", off), got, expected); err != nil {
			return err
		}
	}
	hole := make([]byte, 1<<16)
	if _, err := g.ReadAt(hole, 3<<30); err != nil {
		return err
	}
	return first(sameBytes("a hole", hole, make([]byte, len(hole))), os.Remove(path))
}

// unsupported: NFSv3 cannot punch or reserve; the client must be told so, not
// believe that it was done.
func unsupported(a []string) error {
	f, err := os.OpenFile(a[0], os.O_CREATE|os.O_RDWR, 0o644)
	if err != nil {
		return err
	}
	defer f.Close()
	return first(
		want("fallocate", syscall.Fallocate(int(f.Fd()), 0, 0, 1<<20), syscall.EOPNOTSUPP),
		os.Remove(a[0]))
}

// mapped: a file written through memory, and read through it.
func mapped(a []string) error {
	const size = 1 << 20
	f, err := os.OpenFile(a[0], os.O_CREATE|os.O_RDWR, 0o644)
	if err != nil {
		return err
	}
	defer f.Close()
	if err := f.Truncate(size); err != nil {
		return err
	}
	mem, err := syscall.Mmap(int(f.Fd()), 0, size, syscall.PROT_READ|syscall.PROT_WRITE, syscall.MAP_SHARED)
	if err != nil {
		return err
	}
	m := newModel(42, size)
	for range 40 {
		off, p := m.next()
		copy(mem[off:], p)
	}
	_, _, no := syscall.Syscall(syscall.SYS_MSYNC, uintptr(unsafe.Pointer(&mem[0])), size, syscall.MS_SYNC)
	if no != 0 {
		return fmt.Errorf("msync: %w", no)
	}
	return first(m.check(a[0]), syscall.Munmap(mem), os.Remove(a[0]))
}

// appendLines: many small synced appends, then all are there in order.
func appendLines(a []string) error {
	count, err := number(a[1])
	if err != nil {
		return err
	}
	path := filepath.Join(a[0], "append")
	f, err := os.OpenFile(path, os.O_CREATE|os.O_WRONLY|os.O_APPEND|os.O_SYNC, 0o644)
	if err != nil {
		return err
	}
	var all string
	for i := range count {
		line := fmt.Sprintf("line %d\n", i)
		all += line
		if _, err := f.WriteString(line); err != nil {
			return err
		}
	}
	return first(f.Close(), content(path, all), os.Remove(path))
}

// hold keeps files open for some seconds, across a restart of the server: one
// that it writes to, synced, all the time and renames half-way, and one that
// was removed after it was opened. At the end everything is there. It prints
// how many writes there were and the longest that one took.
func hold(a []string) error {
	seconds, err := number(a[1])
	if err != nil {
		return err
	}
	removed, err := holdRemoved(filepath.Join(a[0], "hold-removed"))
	if err != nil {
		return err
	}
	path, later := filepath.Join(a[0], "hold"), filepath.Join(a[0], "hold-later")
	f, err := os.OpenFile(path, os.O_CREATE|os.O_RDWR|os.O_TRUNC, 0o644)
	if err != nil {
		return err
	}
	defer f.Close()
	m := newModel(7, 4<<20)
	if err := f.Truncate(4 << 20); err != nil {
		return err
	}
	fmt.Println("holding")
	var longest time.Duration
	var writes int
	half, end := time.Now().Add(time.Duration(seconds)*time.Second/2), time.Now().Add(time.Duration(seconds)*time.Second)
	for ; time.Now().Before(end); writes++ {
		begin := time.Now()
		if err := m.apply(f, 1); err != nil {
			return err
		}
		longest = max(longest, time.Since(begin))
		if !half.IsZero() && begin.After(half) {
			half = time.Time{}
			if err := os.Rename(path, later); err != nil {
				return err
			}
		}
	}
	if err := first(m.check(later), removed(), os.Remove(later)); err != nil {
		return err
	}
	fmt.Printf("writes %d longest %.3f\n", writes, longest.Seconds())
	return nil
}

// holdRemoved makes a file, removes it while it is open, and returns what
// checks, past the client's cache, that it is still there for who has it open.
func holdRemoved(path string) (check func() error, err error) {
	f, err := os.OpenFile(path, os.O_CREATE|os.O_RDWR|syscall.O_DIRECT, 0o600)
	if err != nil {
		return nil, err
	}
	page, err := syscall.Mmap(-1, 0, 4096, syscall.PROT_READ|syscall.PROT_WRITE, syscall.MAP_PRIVATE|syscall.MAP_ANON)
	if err != nil {
		return nil, err
	}
	copy(page, "removed, not gone")
	if _, err := f.WriteAt(page, 0); err != nil {
		return nil, err
	}
	return func() error {
		clear(page)
		if _, err := f.ReadAt(page, 0); err != nil {
			return fmt.Errorf("reading a removed file: %w", err)
		}
		return first(equal("content of a removed file", string(page[:17]), "removed, not gone"), f.Close())
	}, os.Remove(path)
}
