package main

import (
	"bytes"
	"encoding/binary"
	"errors"
	"fmt"
	"math/rand/v2"
	"os"
	"strconv"
	"testing"

	"lifeboat/nfsserver/nfstest"
)

// crashRuns is how often the server is killed: a few times in every test run,
// as often as LIFEBOAT_CRASH_RUNS says in `make crash`.
func crashRuns(t *testing.T, standard int) int {
	v := os.Getenv("LIFEBOAT_CRASH_RUNS")
	if v == "" {
		return standard
	}
	n, err := strconv.Atoi(v)
	if err != nil {
		t.Fatalf("LIFEBOAT_CRASH_RUNS=%q: %v", v, err)
	}
	return n
}

func crashSeed(t *testing.T) uint64 {
	seed := rand.Uint64()
	if v := os.Getenv("LIFEBOAT_CRASH_SEED"); v != "" {
		var err error
		if seed, err = strconv.ParseUint(v, 10, 64); err != nil {
			t.Fatal(err)
		}
	}
	t.Logf("LIFEBOAT_CRASH_SEED=%d repeats this run's choices", seed)
	return seed
}

const sectorSize = 512

// model is what a disk may hold. Every write stamps its sectors with its number,
// so that the content of a sector tells which write it came from.
type model struct {
	durable []uint64            // by sector: the last write that must be there; 0 is the backup
	maybe   map[uint64][]uint64 // by sector: later writes that may have arrived
	last    uint64
}

func newModel(sectors int) *model {
	return &model{durable: make([]uint64, sectors), maybe: map[uint64][]uint64{}}
}

// content is what write number id puts into a sector.
func content(id, sector uint64) []byte {
	b := make([]byte, 0, sectorSize)
	for len(b) < sectorSize {
		b = binary.BigEndian.AppendUint64(b, id)
		b = binary.BigEndian.AppendUint64(b, sector*0x9E3779B97F4A7C15+id)
	}
	return b
}

func (m *model) begin(sector, n uint64) (id uint64, data []byte) {
	m.last++
	for s := sector; s < sector+n; s++ {
		m.maybe[s] = append(m.maybe[s], m.last)
		data = append(data, content(m.last, s)...)
	}
	return m.last, data
}

// settled says that the writes to these sectors up to id were acknowledged.
func (m *model) settled(id, sector, n uint64) {
	for s := sector; s < sector+n; s++ {
		m.durable[s] = max(m.durable[s], id)
		var later []uint64
		for _, w := range m.maybe[s] {
			if w > id {
				later = append(later, w)
			}
		}
		if m.maybe[s] = later; later == nil {
			delete(m.maybe, s)
		}
	}
}

// found compares a sector with what it may hold and settles on what it does.
func (m *model) found(sector uint64, data []byte) error {
	candidates := append([]uint64{m.durable[sector]}, m.maybe[sector]...)
	for _, id := range candidates {
		if bytes.Equal(data, content(id, sector)) {
			m.durable[sector] = id
			delete(m.maybe, sector)
			return nil
		}
	}
	return fmt.Errorf("sector %d holds write %d (%x…), may hold %v", sector, binary.BigEndian.Uint64(data), data[:16], candidates)
}

// flight is a write under way.
type flight struct {
	call      *nfstest.Call
	id        uint64
	sector, n uint64
	stable    bool
}

// TestCrashNFS writes over NFS with many calls under way, kills the server at a
// random moment, resumes the session, and reads everything back: every write
// that was acknowledged must be there, the UNSTABLE ones too (only power loss may
// take those), and every other sector must hold something that was written to
// it, whole.
func TestCrashNFS(t *testing.T) {
	const sectors = 64 << 10 // 32 MiB
	rng := rand.New(rand.NewPCG(crashSeed(t), 1))
	w := newWorkspace(t)
	base, err := os.Create(w.path("disk.raw"))
	if err != nil {
		t.Fatal(err)
	}
	for s := range uint64(sectors) {
		if _, err := base.Write(content(0, s)); err != nil {
			t.Fatal(err)
		}
	}
	base.Close()
	w.run("backup", "disk", "--vm", "vm", "disk.raw")
	m := newModel(sectors)
	for run := range crashRuns(t, 4) {
		if err := crashOnce(w, m, rng, sectors); err != nil {
			t.Fatalf("after %d kills: %v", run, err)
		}
	}
}

func crashOnce(w workspace, m *model, rng *rand.Rand, sectors uint64) error {
	p := w.publish("vm@latest", "--session", "crash", "--nfs-port", "0", "--mount-port", "0", "--portmap", "off")
	defer p.kill()
	c, h, err := p.dial()
	if err != nil {
		return err
	}
	defer c.Close()
	if err := readBack(c, h, m, sectors); err != nil {
		return err
	}
	acknowledged := 0
	killAt := 1 + rng.IntN(600)
	var under []flight
	for acknowledged < killAt || len(under) == 0 {
		for len(under) < 16 {
			under = append(under, launch(c, h, m, rng, sectors, under))
		}
		f := under[0]
		under = under[1:]
		if err := land(c, h, m, rng, f); err != nil {
			return err
		}
		acknowledged++
	}
	p.kill() // with writes under way: they stay in m.maybe
	return nil
}

// launch starts a write that overlaps none under way: the order of those would
// not be known.
func launch(c *nfstest.Client, h nfstest.Handle, m *model, rng *rand.Rand, sectors uint64, under []flight) flight {
	for {
		f := flight{n: 1 + rng.Uint64N(40), stable: rng.IntN(3) > 0}
		f.sector = rng.Uint64N(sectors - f.n)
		if rng.IntN(2) == 0 { // page aligned, as guests write
			f.sector, f.n = f.sector&^7, (f.n+7)&^7
		}
		free := f.sector+f.n <= sectors
		for _, o := range under {
			free = free && (f.sector+f.n <= o.sector || o.sector+o.n <= f.sector)
		}
		if !free {
			continue
		}
		how := nfstest.Unstable
		if f.stable {
			how = nfstest.FileSync
		}
		id, data := m.begin(f.sector, f.n)
		f.id, f.call = id, c.GoWrite(h, f.sector*sectorSize, data, how)
		return f
	}
}

// land waits for a write's reply, and now and then commits.
func land(c *nfstest.Client, h nfstest.Handle, m *model, rng *rand.Rand, f flight) error {
	r, err := f.call.WriteResult()
	if err != nil {
		return err
	}
	if uint64(r.Count) != f.n*sectorSize {
		return fmt.Errorf("a write of %d bytes took %d", f.n*sectorSize, r.Count)
	}
	if !f.stable && rng.IntN(4) == 0 {
		if _, _, err := c.Commit(h); err != nil {
			return err
		}
	}
	m.settled(f.id, f.sector, f.n)
	return nil
}

func (p *publisher) dial() (*nfstest.Client, nfstest.Handle, error) {
	mount, err := nfstest.Dial(p.ready.Mount)
	if err != nil {
		return nil, nil, err
	}
	defer mount.Close()
	if len(p.ready.Folders) == 0 {
		return nil, nil, errors.New("nothing is published")
	}
	dir, err := mount.Mount(p.ready.Folders[0].Path)
	if err != nil {
		return nil, nil, err
	}
	c, err := nfstest.Dial(p.ready.NFS)
	if err != nil {
		return nil, nil, err
	}
	h, _, err := c.Lookup(dir, p.ready.Folders[0].Disks[0])
	return c, h, err
}

func readBack(c *nfstest.Client, h nfstest.Handle, m *model, sectors uint64) error {
	const chunk = 1 << 20
	var bad []error
	for off := uint64(0); off < sectors*sectorSize; off += chunk {
		r, err := c.Read(h, off, chunk)
		if err != nil {
			return err
		}
		if len(r.Data) != chunk {
			return fmt.Errorf("read of %d bytes at %d returned %d", chunk, off, len(r.Data))
		}
		for i := uint64(0); i < chunk; i += sectorSize {
			if err := m.found((off+i)/sectorSize, r.Data[i:i+sectorSize]); err != nil && len(bad) < 5 {
				bad = append(bad, err)
			}
		}
	}
	return errors.Join(bad...)
}
