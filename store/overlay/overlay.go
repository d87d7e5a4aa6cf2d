package overlay

import (
	"context"
	"errors"
	"fmt"
	"io/fs"
	"log/slog"
	"path/filepath"
	"sync"
	"sync/atomic"

	"lifeboat/disk"
	"lifeboat/internal/vfs"
)

const (
	// maxSize bounds the size of a disk, in bytes: 1 PiB.
	maxSize = 1 << 50

	defaultLogBytes = 256 << 20
	maxLogFile      = 64 << 20
	minLogFile      = 16 * pageSize

	// maxBuffers bounds the memory of records that have not reached the
	// file yet: writers wait when all are in use.
	maxBuffers = 8
	// keptBuffers are kept for reuse when nothing is waiting to be written.
	keptBuffers = 2
)

// Options says which overlay to open and over what.
type Options struct {
	// FS holds Dir. Default: the host's file system.
	FS vfs.FS
	// Dir is the overlay's own directory; it is made where it does not exist.
	// One process at a time may have it open: the caller sees to that.
	Dir string
	// Base is the image below. It stays the caller's: Close does not close it,
	// and it must stay open until Close has returned.
	Base disk.Image
	// BaseID names Base's content for good, such as a restore point's ID and
	// disk number. An overlay opens only over the base it was made for.
	// At most 4096 bytes.
	BaseID string
	// LogBytes is how much is logged before a checkpoint starts; the log never
	// grows much beyond twice that. It bounds disk space, the time Open takes
	// to replay, and the index (about 8 bytes of memory per KiB). Default
	// 256 MiB.
	LogBytes int64
	// Logger gets what an operator should know. Default: slog.Default().
	Logger *slog.Logger
}

func (o *Options) complete() error {
	if o.Base == nil || o.Dir == "" {
		return errors.New("overlay: Options need Base and Dir")
	}
	if size := o.Base.Size(); size < 0 || size > maxSize {
		return fmt.Errorf("overlay: a disk of %d bytes: %w: at most 1 PiB", size, disk.ErrUnsupported)
	}
	if len(o.BaseID) > maxBaseID {
		return fmt.Errorf("overlay: BaseID has %d bytes, at most %d are possible", len(o.BaseID), maxBaseID)
	}
	if o.FS == nil {
		o.FS = vfs.OS()
	}
	if o.LogBytes <= 0 {
		o.LogBytes = defaultLogBytes
	}
	if o.Logger == nil {
		o.Logger = slog.Default()
	}
	o.Logger = o.Logger.With(slog.String("overlay", o.Dir))
	return nil
}

// Overlay is a writable disk over an immutable image. It implements
// disk.Device and every optional interface of package disk. See the package
// comment for how it works; lock order and invariants stand there too.
type Overlay struct {
	fs        vfs.FS
	dir       string
	base      disk.Image
	log       *slog.Logger
	meta      meta
	size      int64 // bytes
	pages     int64
	logBytes  int64 // checkpoint threshold
	filePages uint32
	recPages  int // payload pages of a record at most

	cached  disk.CachedReader // base, if it can
	edges   sync.Pool         // of *edges
	data    *dataFiles
	gate    readGate
	durable atomic.Uint64 // every record up to this one is durable; rises only

	ckptMu sync.Mutex // held while a checkpoint runs
	number uint64     // of the last checkpoint; under ckptMu

	writeMu  sync.Mutex // held by whoever writes records out
	lastFile *logFile   // that the last record went to; nil: it is durable; under writeMu
	lastSeq  uint64     // number of that record; under writeMu
	lastEnd  position   // where it ends; under writeMu

	mu     sync.RWMutex
	change sync.Cond // on mu: broadcast when room, a file, a checkpoint's end or the end comes

	// All below is under mu.
	state      *pageMap
	active     *index     // places of the pages written since the last rotation
	frozen     *frozenLog // what a checkpoint is to move; nil: nothing
	moved      *pageMap   // state at the last checkpoint
	files      map[uint64]*logFile
	nextFile   uint64 // number of the log file to be made next
	nextRec    uint64 // number of the next record
	cur        *logFile
	logged     int64 // bytes of log behind active
	open       *group
	queue      []*group // sealed, not yet written; in order
	buffers    int      // in use, of maxBuffers
	free       []*group
	shelf      shelf
	syncs      syncQueue
	flushes    []func(error) // who waits for what is written so far to reach the file
	ckpt       ckptState
	failed     error    // matches ErrFailed
	durableEnd position // everything in the log before it is durable
	closed     bool
	stats      counters

	stop   context.CancelFunc // ends the goroutines
	tasks  sync.WaitGroup
	wakers wakers
}

// wakers are the doorbells of the overlay's goroutines, each with room for one
// ring.
type wakers struct{ sync, write, prepare, checkpoint chan struct{} }

func ring(c chan struct{}) {
	select {
	case c <- struct{}{}:
	default:
	}
}

func newOverlay(o Options, m meta) *Overlay {
	ov := &Overlay{
		fs: o.FS, dir: o.Dir, base: o.Base, log: o.Logger, meta: m, size: m.size,
		pages: (m.size + pageSize - 1) / pageSize, logBytes: max(o.LogBytes, 2*minLogFile),
		files: map[uint64]*logFile{}, nextFile: 1, nextRec: 1, active: newIndex(),
	}
	ov.filePages = uint32(min(max(ov.logBytes/4, minLogFile), maxLogFile) / pageSize)
	ov.recPages = min(recordPages, int(ov.filePages)/4)
	ov.state = newPageMap(ov.pages)
	ov.cached, _ = o.Base.(disk.CachedReader)
	ov.edges.New = func() any { return new(edges) }
	ov.change.L = &ov.mu
	ov.gate.wake = make(chan struct{}, 1)
	ov.data = newDataFiles(o.FS, o.Dir, ov.pages)
	ov.wakers = wakers{make(chan struct{}, 1), make(chan struct{}, 1), make(chan struct{}, 1), make(chan struct{}, 1)}
	return ov
}

// start runs the overlay's goroutines until Close.
func (o *Overlay) start() {
	ctx, cancel := context.WithCancel(context.Background())
	o.stop = cancel
	task := func(wake chan struct{}, run func(context.Context)) {
		o.tasks.Go(func() {
			for {
				select {
				case <-ctx.Done():
					return
				case <-wake:
					run(ctx)
				}
			}
		})
	}
	task(o.wakers.sync, func(context.Context) { o.runSyncs() })
	task(o.wakers.write, func(context.Context) { o.runFlushes() })
	task(o.wakers.prepare, o.prepare)
	task(o.wakers.checkpoint, o.backgroundCheckpoint)
}

// Size implements disk.Image.
func (o *Overlay) Size() int64 { return o.size }

// usable says why nothing can be written. Caller holds mu.
func (o *Overlay) usable() error {
	if o.closed {
		return o.errClosed()
	}
	return o.failed
}

func (o *Overlay) errClosed() error {
	return fmt.Errorf("overlay %s: %w", o.dir, fs.ErrClosed)
}

// fail makes the overlay take no more writes because of cause. What is in
// memory stays there, for reads.
func (o *Overlay) fail(cause error) error {
	o.mu.Lock()
	defer o.mu.Unlock()
	if o.failed == nil {
		o.failed = fmt.Errorf("overlay %s: %w: %w; reads go on; see to the disk, then publish the session again", o.dir, ErrFailed, cause)
		o.log.Error("overlay has failed", slog.Any("error", cause))
		o.change.Broadcast()
	}
	return o.failed
}

// Close makes everything durable, checkpoints it and ends the overlay's work.
// Calls in flight end first; later ones fail with fs.ErrClosed. The error is
// that of the last Sync: a checkpoint that fails loses nothing and is only
// logged.
func (o *Overlay) Close() error {
	o.mu.Lock()
	if o.closed {
		o.mu.Unlock()
		return nil
	}
	o.closed = true
	o.change.Broadcast()
	o.mu.Unlock()

	err := o.flush()
	o.stop()
	o.tasks.Wait()
	o.endFlushes(err)
	if err == nil {
		if cerr := o.checkpointAll(context.Background()); cerr != nil {
			o.log.Warn("checkpoint at close failed; the log is kept and replayed when the overlay is opened again", slog.Any("error", cerr))
		}
	}
	o.mu.Lock()
	slot := o.gate.flip()
	o.mu.Unlock()
	o.gate.drain(slot)
	o.dropSpares()
	return errors.Join(err, o.closeFiles())
}

func (o *Overlay) closeFiles() error {
	o.mu.Lock()
	defer o.mu.Unlock()
	err := o.data.close()
	for _, f := range o.files {
		err = errors.Join(err, f.f.Close())
	}
	for _, f := range o.shelf.spares {
		err = errors.Join(err, f.f.Close())
	}
	return err
}

// Remove deletes the overlay in dir with all it holds. The overlay must not be
// open. Removing what is not there is no error. The meta file goes first, so
// that Open refuses what a crash in between leaves, until Remove is called again.
func Remove(fsys vfs.FS, dir string) error {
	if fsys == nil {
		fsys = vfs.OS()
	}
	entries, err := fsys.ReadDir(dir)
	if errors.Is(err, fs.ErrNotExist) {
		return nil
	}
	if err != nil {
		return fmt.Errorf("overlay: remove %s: %w", dir, err)
	}
	err = fsys.Remove(filepath.Join(dir, metaName))
	if err == nil {
		err = fsys.SyncDir(dir)
	}
	for _, e := range entries {
		if (err == nil || errors.Is(err, fs.ErrNotExist)) && ours(e.Name()) && e.Name() != metaName {
			err = fsys.Remove(filepath.Join(dir, e.Name()))
		}
	}
	if err != nil && !errors.Is(err, fs.ErrNotExist) {
		return fmt.Errorf("overlay: remove %s: %w", dir, err)
	}
	if err := fsys.Remove(dir); err != nil {
		return fmt.Errorf("overlay: remove %s: %w; it holds files that are not the overlay's", dir, err)
	}
	return fsys.SyncDir(filepath.Dir(dir))
}
