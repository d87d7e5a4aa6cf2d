// Package segment keeps blobs (blocks of disks and nodes of block maps) in
// large immutable objects.
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
	// TargetSize (the constant).
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
	Slots      int
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

// Slot describes one slot of a segment, as Scan sees it.
type Slot struct {
	Addr     Addr
	Kind     Kind
	Identity Identity
	RawLen   int // bytes of plaintext
	Stored   int // bytes of its sealed frames
}
