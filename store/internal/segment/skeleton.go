package segment

import (
	"context"
	"errors"
	"iter"

	"lifeboat/store/backend"
)

var errSkeleton = errors.New("segment: not there yet")

// Identity names a blob by its content.
type Identity [16]byte

// Hasher computes identities. One per goroutine.
type Hasher struct{}

// NewHasher returns a Hasher for the repository's identity key.
func NewHasher(keys KeySource) *Hasher { return &Hasher{} }

// Identity is the identity of a blob.
func (h *Hasher) Identity(kind Kind, plain []byte) Identity { return Identity{} }

// Packer compresses blobs. One per goroutine.
type Packer struct{}

// NewPacker returns a Packer.
func NewPacker() *Packer { return &Packer{} }

// Pack compresses plain. The result does not refer to plain.
func (p *Packer) Pack(kind Kind, id Identity, plain []byte) *Packed { return nil }

// Packed is a compressed blob, not sealed yet.
type Packed struct {
	Kind Kind
	ID   Identity
}

// RawLen is the length of the plaintext in bytes.
func (p *Packed) RawLen() int { return 0 }

// StoredLen is what the blob will take in the segment, in bytes.
func (p *Packed) StoredLen() int { return 0 }

// Release gives the memory back. Append does not do so.
func (p *Packed) Release() {}

// IsZero reports whether b is all zeros.
func IsZero(b []byte) bool { return false }

// Writer writes one segment. It is for one goroutine.
type Writer struct{}

// NewWriter starts segment number (1…MaxNumber), generation 0.
func NewWriter(ctx context.Context, b backend.Backend, keys KeySource, number uint64, o WriterOptions) (*Writer, error) {
	return nil, errSkeleton
}

// Append seals and writes a blob and returns its address.
func (w *Writer) Append(p *Packed) (Addr, error) { return 0, errSkeleton }

// Stored is the number of bytes written so far.
func (w *Writer) Stored() int64 { return 0 }

// Slots is the number of blobs so far.
func (w *Writer) Slots() int { return 0 }

// Full reports that the next blob belongs in another segment.
func (w *Writer) Full() bool { return false }

// Commit writes the tables and publishes the object, durably.
func (w *Writer) Commit(ctx context.Context) (Info, error) { return Info{}, errSkeleton }

// Abort drops the segment. After Commit it does nothing.
func (w *Writer) Abort() {}

// Reader reads blobs. Safe for concurrent use.
type Reader struct{}

// NewReader returns a Reader of all segments in b.
func NewReader(b backend.Backend, keys KeySource, o ReaderOptions) *Reader { return &Reader{} }

// ReadFrame reads one frame of a blob into dst, which must have room for it,
// and returns its length: FrameSize, or less for the last frame of a blob.
func (r *Reader) ReadFrame(ctx context.Context, addr Addr, frame int, dst []byte) (int, error) {
	return 0, errSkeleton
}

// ReadBlock reads a whole blob with one I/O.
func (r *Reader) ReadBlock(ctx context.Context, addr Addr, dst []byte) (int, error) {
	return 0, errSkeleton
}

// Stat describes the blob at addr.
func (r *Reader) Stat(ctx context.Context, addr Addr) (Slot, error) { return Slot{}, errSkeleton }

// Identity is the identity of the blob at addr.
func (r *Reader) Identity(ctx context.Context, addr Addr) (Identity, error) {
	return Identity{}, errSkeleton
}

// Forget closes what is cached of a segment.
func (r *Reader) Forget(number uint64) {}

// Close closes all open objects.
func (r *Reader) Close() error { return nil }

// Scan yields the live slots of an object in order. A damaged table page is
// yielded as a *DamageError and the scan goes on with the next page.
func Scan(ctx context.Context, b backend.Backend, keys KeySource, object string) iter.Seq2[Slot, error] {
	return func(yield func(Slot, error) bool) { yield(Slot{}, errSkeleton) }
}

// Verify checks every byte of an object and reports each damage found. The
// error is of the check itself (object cannot be read, ctx cancelled).
func Verify(ctx context.Context, b backend.Backend, keys KeySource, object string, report func(*DamageError)) error {
	return errSkeleton
}
