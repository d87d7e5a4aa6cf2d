package dedupe

import (
	"context"
	"crypto/rand"
	"encoding/binary"
	"fmt"

	"github.com/FastFilter/xorfilter"

	"lifeboat/store/backend"
	"lifeboat/store/internal/segment"
)

// builder makes filters. It keeps the memory for one partition's, some 23 MB,
// and is for one goroutine.
type builder struct {
	fuse xorfilter.BinaryFuseBuilder
	keys []uint64
}

// runWriter writes a run from entries that come in order. Its memory does not
// depend on their number.
type runWriter struct {
	w        backend.Writer
	id       runID
	seal     seal
	salt     [saltSize]byte
	build    *builder
	buf      []byte // the page that is being filled
	out      []byte // sealed, not written yet
	offset   int64  // of what is written next, out included
	part     *partition
	pages    int // complete ones
	places   []place
	entries  int
	last     segment.Identity
	replaces []runID
	stamp    int64
}

const writeChunk = 1 << 20

func newRunWriter(ctx context.Context, b backend.Backend, keys Keys, build *builder, stamp int64, replaces []runID) (*runWriter, error) {
	var random [8 + saltSize]byte
	rand.Read(random[:]) // never fails (crypto/rand)
	w := &runWriter{
		id: runID(binary.LittleEndian.Uint64(random[:])), salt: [saltSize]byte(random[8:]),
		build: build, stamp: stamp, replaces: replaces,
	}
	return w, w.start(ctx, b, keys)
}

func (w *runWriter) start(ctx context.Context, b backend.Backend, keys Keys) (err error) {
	if w.seal, err = newSeal(keys, w.salt[:]); err != nil {
		return err
	}
	w.w, err = b.Create(ctx, w.id.object(), backend.Exclusive)
	return err
}

// add takes the next entry. An identity that has been added already is
// skipped: the first one counts.
func (w *runWriter) add(e Entry) error {
	if w.entries > 0 {
		if c := bytesCompare(w.last, e.ID); c == 0 {
			return nil
		} else if c > 0 {
			return fmt.Errorf("dedupe index: entry %v comes after %v", e.ID, w.last)
		}
	}
	if len(w.buf) == 0 {
		w.startPage(e.ID)
	}
	w.buf = append(w.buf, make([]byte, entrySize)...)
	putEntry(w.buf[len(w.buf)-entrySize:], e)
	w.build.keys = append(w.build.keys, filterKey(e.ID))
	w.last = e.ID
	w.entries++
	w.part.entries++
	if len(w.buf) < pageEntries*entrySize {
		return nil
	}
	if err := w.finishPage(); err != nil || len(w.part.fences) < partitionPages {
		return err
	}
	return w.finishPartition()
}

func (w *runWriter) startPage(first segment.Identity) {
	if w.part == nil {
		w.part = &partition{first: first, fences: make([]uint32, 0, partitionPages)}
		w.build.keys = w.build.keys[:0]
	}
	w.part.fences = append(w.part.fences, fence(first))
}

func (w *runWriter) finishPage() error {
	w.buf = append(w.buf, make([]byte, pageEntries*entrySize-len(w.buf))...)
	err := w.emit(pageKind, w.pages, w.buf, nil)
	w.buf = w.buf[:0]
	w.pages++
	return err
}

func (w *runWriter) finishPartition() error {
	fuse, err := xorfilter.BuildBinaryFuse[uint8](&w.build.fuse, w.build.keys)
	if err != nil {
		return fmt.Errorf("dedupe index: filter of %d entries: %w", len(w.build.keys), err)
	}
	w.part.filter = &filter{fuse}
	summary := w.part.encode()
	if err := w.emit(summaryKind, len(w.places), summary, nil); err != nil {
		return err
	}
	w.places = append(w.places, place{len(w.part.fences), w.part.entries, len(summary) + tagSize})
	w.part = nil
	return nil
}

// emit seals and writes, through a buffer.
func (w *runWriter) emit(k kind, number int, plain, additional []byte) error {
	before := len(w.out)
	w.out = w.seal.seal(w.out, k, number, plain, additional)
	w.offset += int64(len(w.out) - before)
	if len(w.out) < writeChunk {
		return nil
	}
	return w.flush()
}

func (w *runWriter) flush() error {
	_, err := w.w.Write(w.out)
	w.out = w.out[:0]
	return err
}

// commit makes the run durable and visible. There must be an entry in it.
func (w *runWriter) commit(ctx context.Context) error {
	if len(w.buf) > 0 {
		if err := w.finishPage(); err != nil {
			return err
		}
	}
	if w.part != nil {
		if err := w.finishPartition(); err != nil {
			return err
		}
	}
	dir := w.directory()
	trailer := w.trailer(len(dir) + tagSize)
	if err := w.emit(directoryKind, 0, dir, append(trailer, w.id.object()...)); err != nil {
		return err
	}
	w.out = append(w.out, trailer[:trailerSize]...)
	if err := w.flush(); err != nil {
		return err
	}
	return w.w.Commit(ctx)
}

func (w *runWriter) directory() []byte {
	b := binary.LittleEndian.AppendUint64(nil, uint64(w.stamp))
	b = binary.LittleEndian.AppendUint64(b, uint64(w.entries))
	b = binary.LittleEndian.AppendUint32(b, uint32(len(w.places)))
	b = binary.LittleEndian.AppendUint32(b, uint32(len(w.replaces)))
	for _, p := range w.places {
		for _, n := range []int{p.pages, p.entries, p.summary} {
			b = binary.LittleEndian.AppendUint32(b, uint32(n))
		}
	}
	for _, id := range w.replaces {
		b = binary.LittleEndian.AppendUint64(b, uint64(id))
	}
	return b
}

func (w *runWriter) trailer(directory int) []byte {
	b := append(make([]byte, 0, trailerSize+len(Prefix)+16), w.salt[:]...)
	b = binary.LittleEndian.AppendUint64(b, uint64(w.offset))
	b = binary.LittleEndian.AppendUint32(b, uint32(directory))
	b = binary.LittleEndian.AppendUint32(b, version)
	b = binary.LittleEndian.AppendUint64(b, 0)
	return append(b, magic...)
}

func (w *runWriter) abort() { w.w.Abort() }
