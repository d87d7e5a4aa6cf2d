// Package disk is the waist of Lifeboat: a disk is ReadAt plus Size, and
// everything else wraps one. Restore points, overlays, qcow2 files, sources on
// an ESXi host and guest partitions are all disks.
//
// The two central interfaces are [Image] (read) and [Device] (read and write).
// What a particular disk can do beyond them it says by implementing one of the
// small optional interfaces in this file; a consumer finds out with a type
// assertion and has a correct, slower way when the answer is no:
//
//	Mapper        tells data from holes           otherwise: all of it is data
//	CachedReader  reads without waiting           otherwise: ReadAt on a worker
//	TryWriter     writes without waiting          otherwise: WriteAt on a worker
//	AsyncSyncer   makes durable in groups         otherwise: Sync on a worker
//	AsyncFlusher  hands writes to the system      otherwise: they are safe at once
//	Zeroer        makes a range read as zeros     otherwise: WriteAt of zeros
//	Usage         says how much space it takes    otherwise: Size
//
// [Open] reads image files (raw, qcow2, vmdk) and whatever they stand on;
// [WriteRaw], [WriteQCOW2], [WriteVMDK] and [WriteFlatVMDK] write any Image into
// one; [Descriptor] is the text that makes ESXi take a flat file for a disk.
//
// How an image file is read: a layer is one file's view of the disk. It maps a
// piece of the disk to a place in its file through tables that come page by
// page into a cache with a limit, or says that the layer below decides. A read
// walks the pieces; a map of data and holes walks the same pieces, so the two
// never disagree. Files are untrusted: every number in them is checked against
// the file's size and against a limit before it is used or allocated.
//
// Offsets and lengths are bytes throughout, sizes are constant for the life of
// a disk, and every method is safe for concurrent use unless it says otherwise.
package disk

import (
	"context"
	"errors"
	"io"
	"iter"
)

// SectorSize is the unit in which virtual hardware addresses a disk, in bytes.
// The size of a virtual disk is a multiple of it; the size of a raw file that
// somebody hands us need not be.
const SectorSize = 512

// Image is the content of one virtual disk at one time: random access,
// immutable from the reader's point of view.
//
// ReadAt follows io.ReaderAt (short reads only at the end, with io.EOF) and is
// safe for concurrent use. There is no context in a read so that the standard
// library and every parser fit; the context given when the image was opened
// governs reads in flight, and cancelling it fails them.
type Image interface {
	io.ReaderAt
	io.Closer
	// Size is the virtual size in bytes. It never changes.
	Size() int64
}

// Device is a disk that can be written.
//
// WriteAt makes data visible to every later read at once. It does not make it
// durable: when Sync has returned nil, everything whose WriteAt returned before
// Sync was called survives power loss. Writes beyond Size fail with
// [ErrOutOfRange] and change nothing. No room is an error that matches
// syscall.ENOSPC, reported by WriteAt (or Sync), never after an acknowledgement.
type Device interface {
	Image
	io.WriterAt
	Sync() error
}

// Extent is a run of bytes on a disk.
type Extent struct {
	Offset int64 // bytes from the start of the disk
	Length int64 // bytes, always > 0 in what a Mapper yields
	// Hole says that the run reads as zeros and that nothing is stored for it.
	// In an argument (the range asked about) it has no meaning.
	Hole bool
}

// End is the offset of the first byte after the extent.
func (e Extent) End() int64 { return e.Offset + e.Length }

// Mapper tells data from holes.
type Mapper interface {
	// Extents yields, in ascending order and without gap or overlap, the runs
	// that make up within (clipped to the disk). Neighbouring runs may be of
	// the same kind. Data may read as zeros; a hole always does. After an
	// error the sequence ends.
	Extents(ctx context.Context, within Extent) iter.Seq2[Extent, error]
}

// CachedReader is implemented by disks that can often answer from memory.
type CachedReader interface {
	// ReadCached fills p from off if it can do so without waiting for I/O or
	// for another goroutine's I/O, and reports whether it did. When it reports
	// false the content of p is undefined and the caller uses ReadAt. A range
	// beyond the end of the disk reports false.
	ReadCached(p []byte, off int64) bool
}

// TryWriter is implemented by devices that can often take a write at memory
// speed.
type TryWriter interface {
	// TryWriteAt does what WriteAt does if that needs no waiting for I/O.
	// done == false means nothing was written and the caller must use WriteAt.
	// done == true means that the write was tried and err is its outcome.
	TryWriteAt(p []byte, off int64) (done bool, err error)
}

// AsyncSyncer is implemented by devices that make writes durable in groups.
type AsyncSyncer interface {
	// SyncAsync arranges for done to be called exactly once, with the outcome
	// of a Sync that covers every write that returned before this call. done
	// runs on the device's own goroutine and must return quickly; it may be
	// called before SyncAsync returns.
	SyncAsync(done func(error))
}

// AsyncFlusher is implemented by devices that keep writes in the memory of this
// process for a while.
type AsyncFlusher interface {
	// FlushAsync arranges for done to be called exactly once, when every write
	// that returned before this call would outlive this process, killed at any
	// moment. It promises nothing about power loss: that is what syncing is
	// for. The rules of SyncAsync's callback hold.
	FlushAsync(done func(error))
}

// Zeroer is implemented by devices that can make a range read as zeros without
// writing it.
type Zeroer interface {
	// Zero has the effect, visibility and durability of WriteAt with length
	// zero bytes at off.
	Zero(off, length int64) error
}

// Usage is implemented by disks that know what they occupy.
type Usage interface {
	// Used is the number of bytes of the disk that hold data (not holes), as
	// NFSv3's fattr3.used (RFC 1813 §2.6) wants it. It never exceeds Size by
	// more than rounding to the disk's own block, and is cheap to ask.
	Used() int64
}

// Errors that callers decide on. They arrive wrapped; use errors.Is.
var (
	// ErrOutOfRange: the offset or length lies outside the disk.
	ErrOutOfRange = errors.New("outside the disk")
	// ErrFormat: the file is not what its header says it is, or what it says
	// cannot be. FormatError gives the details.
	ErrFormat = errors.New("not a valid disk image")
	// ErrUnsupported: the image is well formed and uses a feature that we
	// refuse by name rather than read wrongly.
	ErrUnsupported = errors.New("disk image feature not supported")
	// ErrChanged: a source shrank, vanished or changed while it was read.
	ErrChanged = errors.New("disk changed while it was being read")
)

// Extents yields the runs of img inside within: what its Mapper says, or one
// run of data where it has none.
func Extents(ctx context.Context, img Image, within Extent) iter.Seq2[Extent, error] {
	within = clip(within, img.Size())
	if within.Length <= 0 {
		return func(func(Extent, error) bool) {}
	}
	if m, ok := img.(Mapper); ok {
		return m.Extents(ctx, within)
	}
	within.Hole = false
	return func(yield func(Extent, error) bool) { yield(within, nil) }
}

// Whole is the extent of all of img.
func Whole(img Image) Extent { return Extent{Length: img.Size()} }

// clip cuts e to [0, size). Its Length is ≤ 0 when nothing is left.
func clip(e Extent, size int64) Extent {
	if e.Offset < 0 {
		e.Length += e.Offset
		e.Offset = 0
	}
	if e.Offset > size {
		e.Offset = size
	}
	if e.Length > size-e.Offset {
		e.Length = size - e.Offset
	}
	return e
}
