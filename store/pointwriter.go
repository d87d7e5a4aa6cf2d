package store

import (
	"context"
	"errors"
	"fmt"
	"io/fs"
	"slices"
	"sync"
	"sync/atomic"
	"time"
	"unicode/utf8"

	"lifeboat/store/backend"
	"lifeboat/store/internal/segment"
)

// PointSpec describes a point to be made.
type PointSpec struct {
	VM   string // required
	VMID string
	// Time is when the state was captured; zero means now, or right after the
	// parent where the clock says that it was made later. It is kept in whole
	// microseconds.
	Time time.Time
	// Consistency defaults to CrashConsistent.
	Consistency Consistency
	// Parent is an earlier point of the same VM to compare with, or nil.
	Parent *Point
	// Config are small files (.vmx, .nvram) to keep with the point, by name; at
	// most MaxConfigFile bytes each.
	Config map[string][]byte
	Labels map[string]string
	// Origin is the point that this one is a copy of, or nil.
	Origin *Origin
}

// PointWriter makes one point. AddDisk may be called for several disks at the
// same time; Commit and Abort when all of them have returned.
type PointWriter struct {
	in     *Ingest
	parent *pointRecord // or nil
	holds  pointHolds

	read, fresh, stored atomic.Int64

	mu    sync.Mutex
	rec   pointRecord
	keys  map[int]struct{} // of disks begun
	err   error            // why it cannot be committed
	ended bool
}

// Begin starts a point. Nothing of it is visible before Commit.
func (in *Ingest) Begin(spec PointSpec) (*PointWriter, error) {
	if err := spec.check(); err != nil {
		return nil, err
	}
	w := &PointWriter{in: in, keys: make(map[int]struct{})}
	w.rec = pointRecord{
		VM: spec.VM, VMID: spec.VMID, Time: spec.Time, Consistency: spec.Consistency, Tool: in.opts.Tool, Labels: spec.Labels, Origin: spec.Origin,
	}
	if w.rec.Consistency == "" {
		w.rec.Consistency = CrashConsistent
	}
	if spec.Parent != nil {
		w.holds.parent = spec.Parent.ID
	}
	if err := in.enter(w); err != nil {
		w.Abort()
		return nil, fmt.Errorf("begin a point: %w", err)
	}
	w.stamp()
	if err := w.addConfig(in.ctx, spec.Config); err != nil {
		w.Abort()
		return nil, fmt.Errorf("begin a point: %w", err)
	}
	return w, nil
}

// stamp gives the point its time. The newest point of a VM is what its next
// list of changes is against, so the order of points must survive a clock that
// is set back.
func (w *PointWriter) stamp() {
	if w.rec.Time.IsZero() {
		w.rec.Time = w.in.r.clock()
		if w.parent != nil && !w.rec.Time.After(w.parent.Time) {
			w.rec.Time = w.parent.Time.Add(time.Microsecond)
		}
	}
	w.rec.Time = w.rec.Time.UTC().Truncate(time.Microsecond)
}

func (s PointSpec) check() error {
	if s.VM == "" {
		return errors.New("begin a point: the name of the VM is missing")
	}
	if len(s.VM) > maxName || len(s.VMID) > maxName || !utf8.ValidString(s.VM) || !utf8.ValidString(s.VMID) {
		return fmt.Errorf("begin a point: the VM's name %.40q is not UTF-8 of at most %d bytes", s.VM, maxName)
	}
	if len(s.Config) > maxConfigFiles {
		return fmt.Errorf("begin a point: %d configuration files, at most %d fit", len(s.Config), maxConfigFiles)
	}
	for name, data := range s.Config {
		if name == "" || len(name) > maxName || !utf8.ValidString(name) || len(data) > MaxConfigFile {
			return fmt.Errorf("begin a point: configuration file %.40q of %d bytes: at most %d bytes can be kept", name, len(data), MaxConfigFile)
		}
	}
	return nil
}

// addConfig stores the configuration files, cut into blocks like a disk.
func (w *PointWriter) addConfig(ctx context.Context, files map[string][]byte) error {
	hasher, packer := segment.NewHasher(w.in.r.keys), segment.NewPacker()
	block := make([]byte, w.in.r.blockSize)
	for name, data := range files {
		rec := configRecord{Name: name, Size: int64(len(data)), Blocks: []textAddr{}}
		for part := range slices.Chunk(data, len(block)) {
			clear(block[copy(block, part):])
			addr, err := w.putBlob(ctx, laneMeta, segment.Data, block, hasher, packer)
			if err != nil {
				return fmt.Errorf("configuration file %q: %w", name, err)
			}
			rec.Blocks = append(rec.Blocks, textAddr(addr))
		}
		w.rec.Config = append(w.rec.Config, rec)
	}
	return nil
}

// putBlob stores one blob outside the pipeline of disks.
func (w *PointWriter) putBlob(ctx context.Context, l lane, kind segment.Kind, plain []byte, hasher *segment.Hasher, packer *segment.Packer) (segment.Addr, error) {
	if kind == segment.Data && segment.IsZero(plain) {
		return segment.Hole, nil
	}
	id := hasher.Identity(kind, plain)
	if addr, ok := w.in.find(ctx, id); ok {
		return addr, nil
	}
	packed := packer.Pack(kind, id, plain)
	defer packed.Release()
	addr, fresh, err := w.in.store(ctx, l, packed)
	if fresh {
		w.stored.Add(int64(packed.StoredLen()))
		if kind == segment.Data {
			w.fresh.Add(int64(len(plain)))
		}
	}
	return addr, err
}

// begin reserves a disk's key, or says why the disk cannot be added.
func (w *PointWriter) begin(key int, size int64) error {
	w.mu.Lock()
	defer w.mu.Unlock()
	switch {
	case w.ended:
		return fmt.Errorf("the point is %w", ErrClosed)
	case w.err != nil:
		return fmt.Errorf("the point has failed already: %w", w.err)
	case size < 0 || size > maxDiskSize:
		return fmt.Errorf("a size of %d bytes is out of range", size)
	case len(w.keys) == maxDisks:
		return fmt.Errorf("a point has at most %d disks", maxDisks)
	}
	if _, ok := w.keys[key]; ok {
		return fmt.Errorf("there is a disk with key %d already", key)
	}
	w.keys[key] = struct{}{}
	return nil
}

// end takes a disk into the point, or remembers why it failed.
func (w *PointWriter) end(d diskRecord, err error) {
	w.mu.Lock()
	defer w.mu.Unlock()
	if err != nil {
		if w.err == nil {
			w.err = err
		}
		return
	}
	w.rec.Disks = append(w.rec.Disks, d)
}

// Commit makes the point durable and visible, in one step. On error there is no
// point, with one exception that the message names: when the outcome of the step
// itself is unknown.
func (w *PointWriter) Commit(ctx context.Context) (*Point, error) {
	w.mu.Lock()
	defer w.mu.Unlock()
	if w.ended {
		return nil, fmt.Errorf("commit: the point is %w", ErrClosed)
	}
	if w.err != nil {
		return nil, fmt.Errorf("commit: the point has failed: %w", w.err)
	}
	if len(w.keys) != len(w.rec.Disks) {
		return nil, errors.New("commit: a disk is still being added")
	}
	ctx, stop := w.in.bind(ctx)
	defer stop()
	w.rec.ReadBytes, w.rec.NewBytes, w.rec.StoredBytes = w.read.Load(), w.fresh.Load(), w.stored.Load()
	if err := w.in.commit(ctx, w); err != nil {
		w.err = err
		return nil, fmt.Errorf("commit: %w", err)
	}
	w.ended = true
	w.in.leave(w)
	if err := w.in.r.lockObjects(ctx, &w.rec); err != nil {
		w.in.r.log.Error("the restore point is made, but the storage has not locked all that it needs; the next backup of the VM tries again",
			"point", w.rec.ID, "error", err)
	}
	return w.rec.public(), nil
}

// Abort drops the point. After Commit it does nothing.
func (w *PointWriter) Abort() {
	w.mu.Lock()
	defer w.mu.Unlock()
	if w.ended {
		return
	}
	w.ended = true
	w.in.leave(w)
}

// leave takes a point off the list. When it was the last, everything written
// since the last checkpoint is needed by nobody and removed: as long as there is
// another, it may refer to what the aborted one wrote.
func (in *Ingest) leave(w *PointWriter) {
	in.app.mu.Lock()
	defer in.app.mu.Unlock()
	in.mu.Lock()
	delete(in.active, w)
	idle := len(in.active) == 0 && !in.closed
	in.mu.Unlock()
	if !idle {
		return
	}
	if err := in.app.drop(context.WithoutCancel(in.ctx)); err != nil {
		in.r.log.Warn("could not remove what an aborted point wrote; the next backup does", "error", err)
	}
}

// bind makes a context that ends with ctx and with the ingest.
func (in *Ingest) bind(ctx context.Context) (context.Context, func()) {
	ctx, cancel := context.WithCancelCause(ctx)
	stop := context.AfterFunc(in.ctx, func() { cancel(context.Cause(in.ctx)) })
	return ctx, func() {
		stop()
		cancel(nil)
	}
}

// commit follows the order in claim.go.
func (in *Ingest) commit(ctx context.Context, w *PointWriter) error {
	rec := &w.rec
	in.app.mu.Lock()
	defer in.app.mu.Unlock()
	if ctx.Err() != nil {
		return context.Cause(ctx)
	}
	through, err := in.app.flush(in.ctx)
	if err != nil {
		return err
	}
	for i := range rec.Disks {
		d := &rec.Disks[i]
		blocks, err := in.r.maps.Used(ctx, d.tree(in.r.blockSize))
		if err != nil {
			if fenced := in.lostClaim(ctx); fenced != nil {
				return fenced // that is why
			}
			return fmt.Errorf("read back the map of disk %d: %w", d.Key, damaged(err))
		}
		d.Used = blocks << in.r.shift
	}
	c := in.claim.record()
	rec.ID, rec.Claim, rec.Through = c.Pending, c.Number, through
	if err := in.r.stampLock(ctx, rec); err != nil {
		return err
	}
	data, err := rec.encode()
	if err != nil {
		return err
	}
	if err := in.createPoint(ctx, rec.ID, data); err != nil {
		return err
	}
	// The point is there, come what may.
	after := context.WithoutCancel(ctx)
	in.letGo(w)
	if err := in.keep(after, through, newPointID()); err != nil {
		// Nobody removes what the point needs, but this claim must not be used
		// any more: its pending point exists.
		in.r.log.Warn("could not renew the claim after a commit; begin another backup", "point", rec.ID, "error", err)
		in.app.abandon(err)
		return nil
	}
	in.publish(after)
	return nil
}

// createPoint takes the step that is the commit.
func (in *Ingest) createPoint(ctx context.Context, id string, data []byte) error {
	err := in.r.putSealed(ctx, pointName(id), data, backend.Exclusive)
	switch {
	case err == nil:
		return nil
	case errors.Is(err, fs.ErrExist):
		err = fmt.Errorf("%w: another process took this backup for dead; run it again", ErrFenced)
		in.cancel(err)
		return err
	case errors.Is(err, backend.ErrUncertain):
		// The point may be there, so what it needs has to stay.
		in.app.abandon(err)
		return fmt.Errorf("%w: look for point %s before running the backup again", err, id)
	}
	return err
}
