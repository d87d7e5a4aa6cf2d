// Package segment keeps blobs (blocks of disks and nodes of block maps) in
// large immutable objects, compressed and sealed, and reads them back one
// 16 KiB frame at a time.
//
// # An object
//
//	header            magic, number, generation, salts; in the clear
//	frames            sealed, slot after slot, without gaps
//	trailer           a first copy
//	identity table    16 bytes a slot, in sealed pages of 256 slots
//	location table    offset, kind, lengths, in sealed pages of 256 slots
//	trailer           where everything is; fixed size, at the very end
//
// docs/repository-format.md specifies every byte. What the arrangement is for:
//
//   - A frame costs one small read, one AES-GCM open and one decompression. Its
//     place is found in one table page, which is read once and kept.
//   - Every byte is covered. Frames, table pages and trailers carry GCM tags,
//     the header repeats what the trailer authenticates, the frames leave no
//     gap, and the trailer states the length of the object. Number, generation,
//     slot, frame and kind are bound, so that nothing can change places.
//   - Damage stays where it is. A bad frame hides 16 KiB, a bad page 256 slots,
//     a bad header nothing, and a bad trailer, or bytes added or cut at the end
//     of the object, nothing as long as the first copy is whole.
//   - Addresses are logical. Compaction ([Rewrite]) copies the sealed frames of
//     the slots still in use into the next generation of the object; slot
//     numbers, and so addresses, frame key and nonces, stay.
//   - What was damaged is mended ([Mend]) by writing the next generation with
//     content from elsewhere, or with a mark where there is none: reading that
//     is an error there, and nowhere else.
//
// # Nonces
//
// The frame key is derived from the frame salt, 32 random bytes drawn when the
// segment is created; the nonce is slot and frame number. A Writer gives each
// slot number to one blob, and a crashed Writer's salt is never seen again, so
// that no nonce seals two texts. Rewrite seals no frame. Mend, which has other
// bytes for some, draws a new frame salt and seals every frame again. The tables are sealed
// under a key from the footer salt, drawn for each object written; the two
// copies of the trailer are the same bytes.
package segment

import (
	"io"
	"log/slog"
)

// KeySource gives the keys that segments need. keyring.Keys is one.
type KeySource interface {
	// SubKey derives a key from the master key: HKDF-SHA256 with purpose as
	// the info and salt as the salt.
	SubKey(purpose string, salt []byte) [32]byte
	// IdentityKey is the key of blob identities, one per repository.
	IdentityKey() [32]byte
}

// TargetSize is the stored size at which a segment is full, in bytes.
const TargetSize = 64 << 20

// WriterOptions configures a Writer. The zero value is right for data
// segments of 64 KiB blocks.
type WriterOptions struct {
	// FramesPerSlot is the number of frames of the largest blob that the
	// segment will hold: block size / FrameSize, or 1 for map nodes. 0 means 4.
	FramesPerSlot int
	// TargetSize is the stored size in bytes at which Full turns true. 0 means
	// TargetSize (the constant); at most 1 GiB.
	TargetSize int64
	// Rand is where salts come from. nil means crypto/rand. Only tests that
	// pin bytes set it: a salt used twice would break the encryption.
	Rand io.Reader
}

// Info describes a committed segment.
type Info struct {
	Name       string
	Number     uint64
	Generation uint32
	Size       int64 // bytes of the object
	Slots      int   // slot numbers in use, those dropped by compaction included
}

// ReaderOptions configures a Reader. The zero value is useful.
type ReaderOptions struct {
	// MaxOpen bounds the open segment objects. 0 means 512.
	MaxOpen int
	// TableBytes bounds the memory for pages of segment tables, in bytes. 0
	// means 16 MiB, enough to find any block of 64 GiB of data with one read.
	TableBytes int64
	// Logger is told of damage that could be worked around. nil means
	// slog.Default().
	Logger *slog.Logger
}

// Slot describes one slot of a segment.
type Slot struct {
	Addr     Addr
	Kind     Kind
	Identity Identity
	RawLen   int // bytes of plaintext
	Stored   int // bytes of its sealed frames
	// Lost is the frames that a repair marked as lost, a bit for each.
	Lost uint16
	// Generation is of the object that was looked at. Stat alone tells it.
	Generation uint32
}
