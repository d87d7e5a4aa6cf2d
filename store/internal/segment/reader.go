package segment

import (
	"context"
	"errors"
	"fmt"
	"io"
	"io/fs"
	"log/slog"
	"math/bits"
	"strconv"
	"sync"
	"syscall"

	"golang.org/x/sync/singleflight"

	"lifeboat/store/backend"
)

// Reader reads blobs of all segments of a repository. It keeps objects open
// and table pages in memory, both bounded. Safe for concurrent use.
//
// mu guards the maps and reference counts and is held for a few of their
// operations only, never during I/O.
type Reader struct {
	b      backend.Backend
	keys   KeySource
	log    *slog.Logger
	ctx    context.Context // governs open objects, which outlive the call that opened them
	cancel context.CancelFunc
	opens  singleflight.Group
	coders sync.Pool // of *decoder
	// distrust makes a cache that b is forget an object; nil: it is none.
	distrust func(name string)

	mu     sync.Mutex
	closed bool
	open   *lru[uint64, *handle]
	pages  *lru[pageKey, []byte]
}

// handle is an open object in the Reader's cache. It is closed when it was
// evicted and nobody reads from it any more.
type handle struct {
	*object
	refs    int // guarded by Reader.mu
	evicted bool
}

// pageKey is of a generation: another has other offsets.
type pageKey struct {
	number     uint64
	generation uint32
	table      table
	page       uint16
}

// pageOverhead is what a cached page costs beyond its bytes, about.
const pageOverhead = 160

// NewReader returns a Reader of all segments in b.
func NewReader(b backend.Backend, keys KeySource, o ReaderOptions) *Reader {
	if o.MaxOpen <= 0 {
		o.MaxOpen = 512
	}
	if o.TableBytes <= 0 {
		o.TableBytes = 16 << 20
	}
	if o.Logger == nil {
		o.Logger = slog.Default()
	}
	r := &Reader{b: b, keys: keys, log: o.Logger}
	if c, ok := b.(interface{ Forget(name string) }); ok {
		r.distrust = c.Forget
	}
	r.ctx, r.cancel = context.WithCancel(context.Background())
	r.coders.New = func() any { return newDecoder() }
	r.open = newLRU[uint64](int64(o.MaxOpen), r.evict)
	r.pages = newLRU[pageKey, []byte](o.TableBytes, nil)
	return r
}

// ReadFrame reads one frame of a blob into dst, which must have room for it,
// and returns its length: FrameSize, or less for the last frame of a blob.
// Bytes of dst beyond that may be overwritten. Damage is a *DamageError; the
// content of dst is then undefined.
func (r *Reader) ReadFrame(ctx context.Context, addr Addr, frame int, dst []byte) (int, error) {
	d := r.coders.Get().(*decoder)
	defer r.coders.Put(d)
	return r.with(ctx, addr, &d.entry, func(o *object, e *entry) (int, error) {
		if frame < 0 || frame >= e.frameCount() {
			return 0, fmt.Errorf("segment: %v has no frame %d", addr, frame)
		}
		return d.read(o, addr.Slot(), e, frame, frame+1, dst)
	})
}

// ReadBlock reads a whole blob with one I/O into dst, which must have room for
// it, and returns its length. Bytes of dst beyond that may be overwritten.
// Damage is a *DamageError; the content of dst is then undefined.
func (r *Reader) ReadBlock(ctx context.Context, addr Addr, dst []byte) (int, error) {
	d := r.coders.Get().(*decoder)
	defer r.coders.Put(d)
	return r.with(ctx, addr, &d.entry, func(o *object, e *entry) (int, error) {
		return d.read(o, addr.Slot(), e, 0, e.frameCount(), dst)
	})
}

// Stat describes the blob at addr, from the tables alone.
func (r *Reader) Stat(ctx context.Context, addr Addr) (Slot, error) {
	s := Slot{Addr: addr}
	_, err := r.with(ctx, addr, new(entry), func(o *object, e *entry) (int, error) {
		page, err := r.page(o, identities, addr.Slot()/pageSlots)
		if err != nil {
			return 0, err
		}
		s.Generation = o.lay.generation
		s.Kind, s.RawLen, s.Stored, s.Lost = e.kind, e.rawLen, e.stored(), e.lost()
		copy(s.Identity[:], page[addr.Slot()%pageSlots*identitySize:])
		return 0, nil
	})
	return s, err
}

// Identity is the identity of the blob at addr. A blob that was lost in part is
// a *DamageError: nothing may count on it.
func (r *Reader) Identity(ctx context.Context, addr Addr) (Identity, error) {
	s, err := r.Stat(ctx, addr)
	if err == nil && s.Lost != 0 {
		err = s.Damage()
	}
	return s.Identity, err
}

// Damage describes the first lost frame, or all of the blob.
func (s Slot) Damage() *DamageError {
	frame := bits.TrailingZeros16(s.Lost)
	if s.Lost == allFrames(s.RawLen) {
		frame = -1
	}
	return &DamageError{
		Object: Prefix(s.Addr.Segment()), Part: PartFrame, Addr: s.Addr, Frame: frame, Page: -1, Offset: -1, Err: ErrLost,
	}
}

var errAddr = errors.New("not the address of a blob")

// with finds addr and runs do on it and its entry, for which e is the room. When
// the object went away meanwhile (compaction wrote its next generation and
// removed it), it looks again.
//
// Damage may be that of a copy that a cache keeps, or of an object that was
// repaired since: before it is believed, the object is read once more from
// where it is stored.
func (r *Reader) with(ctx context.Context, addr Addr, e *entry, do func(*object, *entry) (int, error)) (int, error) {
	if !addr.Stored() {
		return 0, fmt.Errorf("segment: %v: %w", addr, errAddr)
	}
	believe := r.distrust == nil
	for try := 0; ; try++ {
		n, err := r.once(ctx, addr, e, do)
		if err == nil {
			return n, nil
		}
		switch object, damage := suspect(err); {
		case damage:
			if believe || object == "" {
				return n, err
			}
			believe = true
			r.distrust(object)
		case !gone(err) || try == openTries:
			return n, err
		}
		r.Forget(addr.Segment())
	}
}

// suspect reports whether an error is damage, and of which object; none where
// reading again cannot help.
func suspect(err error) (object string, damage bool) {
	var d *DamageError
	if !errors.As(err, &d) {
		return "", false
	}
	if errors.Is(err, ErrLost) || errors.Is(err, ErrRemoved) {
		return "", true
	}
	return d.Object, true
}

// gone reports whether an error means that an object was removed while it was
// open here: by its name, or by its handle on a network file system.
func gone(err error) bool {
	return errors.Is(err, fs.ErrNotExist) || errors.Is(err, syscall.ESTALE)
}

func (r *Reader) once(ctx context.Context, addr Addr, e *entry, do func(*object, *entry) (int, error)) (int, error) {
	h, err := r.acquire(ctx, addr.Segment())
	if err != nil {
		return 0, concerning(addr, err)
	}
	defer r.release(h)
	if *e, err = r.entry(h.object, addr); err != nil {
		return 0, err
	}
	return do(h.object, e)
}

func (r *Reader) entry(o *object, addr Addr) (entry, error) {
	slot := addr.Slot()
	if slot >= o.lay.slots {
		d := o.damage(PartObject, 0, 0, fmt.Errorf("it has %d slots only", o.lay.slots))
		d.Addr = addr
		return entry{}, d
	}
	page, err := r.page(o, locations, slot/pageSlots)
	if err != nil {
		return entry{}, concerning(addr, err)
	}
	e, err := o.entry(page, slot)
	if err == nil && e.kind == 0 {
		d := o.damage(PartObject, 0, 0, ErrRemoved)
		d.Addr = addr
		return e, d
	}
	return e, err
}

// concerning says which blob damage keeps from being read. err may be shared
// with other readers.
func concerning(addr Addr, err error) error {
	var d *DamageError
	if !errors.As(err, &d) {
		return err
	}
	mine := *d
	mine.Addr = addr
	return &mine
}

// page returns a page of a table. Two that miss at once both read it.
func (r *Reader) page(o *object, t table, page int) ([]byte, error) {
	k := pageKey{number: o.lay.number, generation: o.lay.generation, table: t, page: uint16(page)}
	r.mu.Lock()
	b, ok := r.pages.get(k)
	r.mu.Unlock()
	if ok {
		return b, nil
	}
	b, err := o.tablePage(t, page)
	if err != nil {
		return nil, err
	}
	r.mu.Lock()
	r.pages.add(k, b, int64(cap(b)+pageOverhead))
	r.mu.Unlock()
	return b, nil
}

// acquire returns the open segment; release gives it back.
func (r *Reader) acquire(ctx context.Context, number uint64) (*handle, error) {
	for {
		if err := ctx.Err(); err != nil {
			return nil, err
		}
		if h, err := r.lookup(number); h != nil || err != nil {
			return h, err
		}
		opened := r.opens.DoChan(strconv.FormatUint(number, 16), func() (any, error) {
			return nil, r.load(number)
		})
		select {
		case res := <-opened:
			if res.Err != nil {
				return nil, res.Err
			}
		case <-ctx.Done():
			return nil, ctx.Err()
		}
	}
}

func (r *Reader) lookup(number uint64) (*handle, error) {
	r.mu.Lock()
	defer r.mu.Unlock()
	if r.closed {
		return nil, fmt.Errorf("segment: reader: %w", fs.ErrClosed)
	}
	h, ok := r.open.get(number)
	if !ok {
		return nil, nil
	}
	h.refs++
	return h, nil
}

// load opens a segment and puts it in the cache.
func (r *Reader) load(number uint64) error {
	o, err := openSegment(r.ctx, r.b, r.keys, number, r.log)
	if err != nil {
		return err
	}
	r.mu.Lock()
	defer r.mu.Unlock()
	if r.closed {
		_ = o.obj.Close()
		return fmt.Errorf("segment: reader: %w", fs.ErrClosed)
	}
	r.open.add(number, &handle{object: o}, 1)
	return nil
}

func (r *Reader) release(h *handle) {
	r.mu.Lock()
	defer r.mu.Unlock()
	h.refs--
	if h.evicted && h.refs == 0 {
		_ = h.obj.Close()
	}
}

// evict runs under mu.
func (r *Reader) evict(h *handle) {
	h.evicted = true
	if h.refs == 0 {
		_ = h.obj.Close()
	}
}

// Forget closes what is cached of a segment, so that the next read finds its
// newest generation.
func (r *Reader) Forget(number uint64) {
	r.mu.Lock()
	defer r.mu.Unlock()
	r.open.remove(number)
}

// Close closes all open objects, those being read from as soon as that ends or
// fails.
func (r *Reader) Close() error {
	r.cancel()
	r.mu.Lock()
	defer r.mu.Unlock()
	r.closed = true
	r.open.clear()
	r.pages.clear()
	return nil
}

// shortBuffer is a mistake of the caller, not damage.
func shortBuffer(have, want int) error {
	return fmt.Errorf("segment: %d bytes of room for %d: %w", have, want, io.ErrShortBuffer)
}
