package esxsim

import (
	"bytes"
	"crypto/rand"
	"errors"
	"fmt"
	"maps"
	"sync"
	"sync/atomic"

	"github.com/vmware/govmomi/vim25/types"
)

// vdisk is one virtual disk of a VM. Its size is its top layer's.
type vdisk struct {
	key, controller, unit int32
	label                 string
	mode                  string // VirtualDiskMode
	sharing               string
	thick                 bool
	rdm                   string // "", "physical" or "virtual"
	uuid                  string // ddb.uuid as the API writes it
	contentID             string
	lied                  bool // QueryChangedDiskAreas leaves something out

	// gate: guest I/O reads, who changes top, mirror or track writes.
	gate   sync.RWMutex
	top    *layer
	mirror *mirror
	serial sync.Mutex // writes to a delta, one at a time

	track *tracker
}

// tracker is changed block tracking of one disk. A change ID is "uuid/n": the
// state at the n-th freeze. [VDDK: the ID of a disk that was not tracked from
// the start has another UUID]
type tracker struct {
	mu     sync.Mutex
	on     bool
	uuid   string
	epoch  int64           // of writes that happen now
	blocks map[int64]int64 // block → epoch of its last write
}

func (t *tracker) id() string {
	t.mu.Lock()
	defer t.mu.Unlock()
	if !t.on {
		return ""
	}
	return fmt.Sprintf("%s/%d", t.uuid, t.epoch)
}

// activate begins tracking anew, under a UUID that no older change ID has.
func (t *tracker) activate() {
	t.mu.Lock()
	defer t.mu.Unlock()
	t.on, t.uuid, t.epoch, t.blocks = true, changeUUID(), 1, map[int64]int64{}
}

func (t *tracker) deactivate() {
	t.mu.Lock()
	defer t.mu.Unlock()
	t.on, t.blocks = false, nil
}

func (t *tracker) mark(off, n int64) {
	t.mu.Lock()
	defer t.mu.Unlock()
	if t.on {
		blocksOf(off, n, func(b int64) { t.blocks[b] = t.epoch })
	}
}

// freeze returns the state up to now and begins the next epoch.
func (t *tracker) freeze() frozenTrack {
	t.mu.Lock()
	defer t.mu.Unlock()
	if !t.on {
		return frozenTrack{}
	}
	f := frozenTrack{uuid: t.uuid, epoch: t.epoch, blocks: maps.Clone(t.blocks)}
	t.epoch++
	return f
}

// frozenTrack is what a snapshot knows of a disk's changes.
type frozenTrack struct {
	uuid   string // "": not tracked
	epoch  int64
	blocks map[int64]int64
}

func (f frozenTrack) id() string {
	if f.uuid == "" {
		return ""
	}
	return fmt.Sprintf("%s/%d", f.uuid, f.epoch)
}

// changeUUID is a UUID as change IDs have it: "52 de ad be … -… ef".
func changeUUID() string {
	b := make([]byte, 16)
	_, _ = rand.Read(b)
	b[0] = 0x52
	return spacedHex(b)
}

func spacedHex(b []byte) string {
	var out bytes.Buffer
	for i, c := range b {
		switch {
		case i == len(b)/2:
			out.WriteByte('-')
		case i > 0:
			out.WriteByte(' ')
		}
		fmt.Fprintf(&out, "%02x", c)
	}
	return out.String()
}

func (d *vdisk) independent() bool {
	return d.mode == string(types.VirtualDiskModeIndependent_persistent) || d.mode == string(types.VirtualDiskModeIndependent_nonpersistent)
}

// snapshotted: disks that a snapshot includes.
func (d *vdisk) snapshotted() bool { return !d.independent() && d.rdm != "physical" }

func (d *vdisk) size() int64 {
	d.gate.RLock()
	defer d.gate.RUnlock()
	return d.top.size
}

// ReadAt reads as the guest does.
func (d *vdisk) ReadAt(p []byte, off int64) (int, error) {
	d.gate.RLock()
	defer d.gate.RUnlock()
	return d.top.ReadAt(p, off)
}

// WriteAt writes as the guest does: tracked, and mirrored while the disk moves.
func (d *vdisk) WriteAt(p []byte, off int64) (int, error) {
	d.gate.RLock()
	defer d.gate.RUnlock()
	if off < 0 || off+int64(len(p)) > d.top.size {
		return 0, fmt.Errorf("esxsim: writing %d bytes at %d of a disk of %d", len(p), off, d.top.size)
	}
	d.track.mark(off, int64(len(p)))
	if d.top.delta() {
		d.serial.Lock()
		defer d.serial.Unlock()
	}
	if d.mirror != nil {
		return d.mirror.write(d.top, p, off)
	}
	return d.top.WriteAt(p, off)
}

// Sync makes durable what was written.
func (d *vdisk) Sync() error {
	d.gate.RLock()
	defer d.gate.RUnlock()
	f, err := d.top.handle()
	if err != nil {
		return err
	}
	err = f.Sync()
	if d.mirror != nil {
		err = errors.Join(err, d.mirror.to.Sync())
	}
	return err
}

// mirror is the I/O mirror of a disk that moves [ATC'11 §3.3]: one pass copies
// the disk front to back, and writes to what was copied already go to both.
//
// mu: a guest's write reads, the copy of one piece writes. So no write is
// between the copy's read and its write of the same bytes.
type mirror struct {
	mu   sync.RWMutex
	to   file
	done int64                 // below this the copy is the same as the source
	bad  atomic.Pointer[error] // the last failure to write to the copy; the guest never sees it
}

// write writes to the disk, and what is below done to the copy: the rest comes
// with the pass, which leaves zeros out and so must find nothing there.
func (m *mirror) write(from *layer, p []byte, off int64) (int, error) {
	m.mu.RLock()
	defer m.mu.RUnlock()
	n, err := from.WriteAt(p, off)
	if err != nil || off >= m.done {
		return n, err
	}
	if _, bad := m.to.WriteAt(p[:min(int64(len(p)), m.done-off)], off); bad != nil {
		m.bad.Store(&bad)
	}
	return n, nil
}

func (m *mirror) failed() error {
	if bad := m.bad.Load(); bad != nil {
		return *bad
	}
	return nil
}
