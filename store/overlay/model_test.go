package overlay

import (
	"bytes"
	"context"
	"encoding/binary"
	"math/rand/v2"
	"sync"
	"sync/atomic"
	"testing"

	"go.uber.org/goleak"
	"pgregory.net/rapid"

	"lifeboat/disk"
	"lifeboat/disk/disktest"
	"lifeboat/internal/vfs"
	"lifeboat/internal/vfs/crashfs"
)

func TestMain(m *testing.M) { goleak.VerifyTestMain(m) }

func TestConformance(t *testing.T) {
	sizes := map[string]int64{"Default": 0, "Small": testLog}
	for name, logBytes := range sizes {
		t.Run(name, func(t *testing.T) {
			disktest.RunDevice(t, func(t *testing.T, size int64) disk.Device {
				o := mustOpen(t, Options{FS: crashfs.New(1, crashfs.Options{}), Dir: "/o", Base: disktest.NewMemory(size), LogBytes: logBytes, Logger: quiet()})
				t.Cleanup(func() { o.Close() })
				return o
			})
		})
	}
}

// TestConformanceOS runs on the host's file system.
func TestConformanceOS(t *testing.T) {
	disktest.RunDevice(t, func(t *testing.T, size int64) disk.Device {
		o := mustOpen(t, Options{FS: vfs.OS(), Dir: t.TempDir(), Base: disktest.NewMemory(size), LogBytes: 1 << 20, Logger: quiet()})
		t.Cleanup(func() { o.Close() })
		return o
	})
}

// machine is the overlay against a plain byte slice.
type machine struct {
	fsys *crashfs.FS
	o    *Overlay
	now  []byte
	mine []pageState // what the overlay must say that it holds
}

func (m *machine) span(t *rapid.T) (off, n int64) {
	switch rapid.IntRange(0, 2).Draw(t, "shape") {
	case 0:
		page := rapid.Int64Range(0, testPages-2).Draw(t, "page")
		return page * pageSize, pageSize * rapid.Int64Range(1, min(9, testPages-1-page)).Draw(t, "pages")
	case 1:
		off = rapid.Int64Range(0, testSize-1).Draw(t, "off")
		return off, rapid.Int64Range(1, min(testSize-off, 2*pageSize)).Draw(t, "n")
	}
	off = rapid.Int64Range(0, testSize-1).Draw(t, "off")
	return off, testSize - off
}

func (m *machine) note(off, n int64) {
	for page := off / pageSize; page*pageSize < off+n; page++ {
		start, end := page*pageSize, min(testSize, (page+1)*pageSize)
		whole := off <= start && off+n >= end
		if st := &m.mine[page]; whole && allZero(m.now[start:end]) {
			*st = holdsZeros
		} else {
			*st = holdsData
		}
	}
}

func allZero(p []byte) bool { return len(bytes.Trim(p, "\x00")) == 0 }

func (m *machine) Write(t *rapid.T) {
	off, n := m.span(t)
	p := m.now[off : off+n]
	rng := rand.New(rand.NewPCG(rapid.Uint64().Draw(t, "seed"), 0))
	copy(p, randomBytes(rng, n))
	if rapid.Bool().Draw(t, "try") {
		if done, err := m.o.TryWriteAt(p, off); err != nil {
			t.Fatalf("TryWriteAt: %v", err)
		} else if done {
			m.note(off, n)
			return
		}
	}
	if got, err := m.o.WriteAt(p, off); int64(got) != n || err != nil {
		t.Fatalf("WriteAt: %d, %v", got, err)
	}
	m.note(off, n)
}

func (m *machine) Zero(t *rapid.T) {
	off, n := m.span(t)
	clear(m.now[off : off+n])
	if err := m.o.Zero(off, n); err != nil {
		t.Fatalf("Zero: %v", err)
	}
	m.note(off, n)
}

func (m *machine) Read(t *rapid.T) {
	off, n := m.span(t)
	p := make([]byte, n)
	if m.o.ReadCached(p, off) && !bytes.Equal(p, m.now[off:off+n]) {
		t.Fatalf("ReadCached of %d bytes at %d differs", n, off)
	}
	if _, err := m.o.ReadAt(p, off); err != nil || !bytes.Equal(p, m.now[off:off+n]) {
		t.Fatalf("ReadAt of %d bytes at %d differs: %v", n, off, err)
	}
}

func (m *machine) Sync(t *rapid.T) {
	if err := m.o.Sync(); err != nil {
		t.Fatal(err)
	}
}

func (m *machine) Checkpoint(t *rapid.T) {
	if err := m.o.Checkpoint(context.Background()); err != nil {
		t.Fatal(err)
	}
	if s := m.o.Stats(); s.LogBytes != 0 || s.LogFiles != 0 {
		t.Fatalf("after a checkpoint there are %d bytes in %d log files", s.LogBytes, s.LogFiles)
	}
}

// Reopen closes and opens, or loses power right after a sync, or kills the
// process, whose writes the file system has.
func (m *machine) Reopen(t *rapid.T) {
	how := rapid.SampledFrom([]string{"close", "sync and power loss", "sync and kill"}).Draw(t, "how")
	old := m.o
	seed := rapid.Uint64().Draw(t, "crash")
	if how == "close" {
		if err := old.Close(); err != nil {
			t.Fatal(err)
		}
	} else {
		m.Sync(t)
		if how == "sync and kill" {
			seed = seed&^7 | 1 // keeps everything
		}
		was := m.fsys
		m.fsys = was.Crash(seed)
		was.Stop()
		old.Close()
	}
	var err error
	if m.o, err = Open(testOptions(m.fsys)); err != nil {
		t.Fatalf("open after %s: %v", how, err)
	}
}

// Check is run after every step: it must be cheap, so it looks at the map only.
func (m *machine) Check(t *rapid.T) {
	got := make([]pageState, testPages)
	for e, err := range m.o.Changed(context.Background(), disk.Whole(m.o)) {
		if err != nil {
			t.Fatal(err)
		}
		for page := e.Offset / pageSize; page*pageSize < e.End(); page++ {
			got[page] = holdsData
			if e.Hole {
				got[page] = holdsZeros
			}
		}
	}
	var data, zeros int64
	for page, st := range got {
		if st != m.mine[page] {
			t.Fatalf("page %d is %d, should be %d", page, st, m.mine[page])
		}
		switch st {
		case holdsData:
			data++
		case holdsZeros:
			zeros++
		}
	}
	if s := m.o.Stats(); s.DataPages != data || s.ZeroPages != zeros {
		t.Fatalf("counts are %d and %d, should be %d and %d", s.DataPages, s.ZeroPages, data, zeros)
	}
}

func TestModel(t *testing.T) {
	content := newHistory(testBase(), testSize).now
	rapid.Check(t, func(t *rapid.T) {
		fsys := crashfs.New(rapid.Uint64().Draw(t, "fs"), crashfs.Options{})
		o, err := Open(testOptions(fsys))
		if err != nil {
			t.Fatal(err)
		}
		m := &machine{fsys: fsys, o: o, now: bytes.Clone(content), mine: make([]pageState, testPages)}
		defer func() { m.o.Close() }()
		t.Repeat(map[string]func(*rapid.T){
			"": m.Check, "Write": m.Write, "Write2": m.Write, "Zero": m.Zero, "Read": m.Read,
			"Sync": m.Sync, "Checkpoint": m.Checkpoint, "Reopen": m.Reopen,
		})
		got := make([]byte, testSize)
		if _, err := m.o.ReadAt(got, 0); err != nil || !bytes.Equal(got, m.now) {
			t.Fatalf("content differs at the end: %v", err)
		}
		disktest.CheckExtents(noHelper{TB: nil, t: t}, m.o, disk.Whole(m.o))
	})
}

// noHelper lets a testing.TB's users report to rapid.
type noHelper struct {
	testing.TB
	t *rapid.T
}

func (n noHelper) Helper()                        {}
func (n noHelper) Errorf(format string, a ...any) { n.t.Errorf(format, a...) }
func (n noHelper) Fatalf(format string, a ...any) { n.t.Fatalf(format, a...) }
func (n noHelper) Fatal(a ...any)                 { n.t.Fatal(a...) }
func (n noHelper) Error(a ...any)                 { n.t.Error(a...) }

// stamp fills a page with its number and a version, so that a mixture of two
// versions, or another page's content, is seen.
func stamp(p []byte, page int64, version uint64) {
	for i := 0; i+16 <= len(p); i += 16 {
		binary.LittleEndian.PutUint64(p[i:], uint64(page)+1)
		binary.LittleEndian.PutUint64(p[i+8:], version)
	}
}

func stampOf(t *testing.T, p []byte, page int64) uint64 {
	version := binary.LittleEndian.Uint64(p[8:])
	for i := 0; i+16 <= len(p); i += 16 {
		if n := binary.LittleEndian.Uint64(p[i:]); n != uint64(page)+1 || binary.LittleEndian.Uint64(p[i+8:]) != version {
			t.Errorf("page %d is torn or another's: page %d version %d at %d, version %d at its start", page, int64(n)-1, binary.LittleEndian.Uint64(p[i+8:]), i, version)
			break
		}
	}
	return version
}

// TestConcurrent has readers verify what writers write while checkpoints move
// it: no page is ever torn, goes back, or is lost.
func TestConcurrent(t *testing.T) {
	const (
		pages   = 512
		writers = 3
		rounds  = 1500
	)
	base := disktest.NewMemory(pages * pageSize)
	buf := make([]byte, pageSize)
	for page := range int64(pages) {
		stamp(buf, page, 0)
		base.WriteAt(buf, page*pageSize)
	}
	o := mustOpen(t, Options{Dir: t.TempDir(), Base: base, LogBytes: 512 << 10, Logger: quiet()})
	var written [pages]atomic.Uint64
	var writing, reading sync.WaitGroup
	var over atomic.Bool
	for w := range int64(writers) {
		writing.Go(func() { stampPages(t, o, w, writers, rounds, written[:]) })
	}
	for r := range uint64(2) {
		reading.Go(func() {
			rng := rand.New(rand.NewPCG(r, 9))
			p := make([]byte, 8*pageSize)
			for !over.Load() {
				page, n := rng.Int64N(pages-8), 1+rng.Int64N(8)
				least := make([]uint64, n)
				for i := range least {
					least[i] = written[page+int64(i)].Load()
				}
				part := p[:n*pageSize]
				if !o.ReadCached(part, page*pageSize) {
					if _, err := o.ReadAt(part, page*pageSize); err != nil {
						t.Errorf("ReadAt: %v", err)
						return
					}
				}
				for i := range n {
					if v := stampOf(t, part[i*pageSize:(i+1)*pageSize], page+i); v < least[i] {
						t.Errorf("page %d reads as version %d, %d was there before", page+i, v, least[i])
					}
				}
			}
		})
	}
	writing.Wait()
	over.Store(true)
	reading.Wait()
	if o.Stats().Checkpoints == 0 {
		t.Error("there was no checkpoint")
	}
	if err := o.Close(); err != nil {
		t.Fatal(err)
	}
}

func stampPages(t *testing.T, o *Overlay, w, writers int64, rounds uint64, written []atomic.Uint64) {
	rng := rand.New(rand.NewPCG(uint64(w), 8))
	p := make([]byte, pageSize)
	for version := uint64(1); version <= rounds; version++ {
		page := rng.Int64N(int64(len(written))/writers)*writers + w
		stamp(p, page, version)
		if done, err := o.TryWriteAt(p, page*pageSize); err != nil {
			t.Errorf("TryWriteAt: %v", err)
		} else if !done {
			if _, err := o.WriteAt(p, page*pageSize); err != nil {
				t.Errorf("WriteAt: %v", err)
			}
		}
		written[page].Store(version)
		if version%16 == 0 {
			o.SyncAsync(func(err error) {
				if err != nil {
					t.Errorf("SyncAsync: %v", err)
				}
			})
		}
	}
}

// TestSharedPages has writers of different parts of the same pages, whose
// read-modify-write must not undo each other.
func TestSharedPages(t *testing.T) {
	const pages, writers, part = 24, 4, 1000
	o := mustOpen(t, Options{FS: crashfs.New(3, crashfs.Options{}), Dir: "/o", Base: disktest.Random(5, pages*pageSize, 1), LogBytes: testLog, Logger: quiet()})
	defer o.Close()
	model := make([]byte, pages*pageSize)
	if _, err := o.ReadAt(model, 0); err != nil {
		t.Fatal(err)
	}
	var all sync.WaitGroup
	for w := range int64(writers) {
		all.Go(func() {
			rng := rand.New(rand.NewPCG(uint64(w), 3))
			for range 300 {
				at := rng.Int64N(pages)*pageSize + w*part
				p := model[at : at+part]
				for i := range p {
					p[i] = byte(rng.Uint32())
				}
				if done, err := o.TryWriteAt(p, at); err != nil {
					t.Errorf("TryWriteAt: %v", err)
				} else if !done {
					if _, err := o.WriteAt(p, at); err != nil {
						t.Errorf("WriteAt: %v", err)
					}
				}
			}
		})
	}
	all.Wait()
	disktest.Equal(t, o, disktest.FromBytes(model))
}
