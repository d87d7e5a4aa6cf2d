// Package backend is where a repository's objects live: a local directory
// today, a bucket of S3-compatible storage tomorrow. An object is a named,
// immutable run of bytes; the few that change are replaced whole.
//
// Names are slash separated, relative, of the characters [a-z0-9._-] and at
// most 200 bytes. A name that ends in "/" is a prefix. A backend knows nothing
// of what objects mean; every promise the repository makes about crashes and
// concurrent writers rests on the four methods below.
package backend

import (
	"context"
	"io"
	"iter"
	"time"
)

// Backend stores objects. All methods are safe for concurrent use, by several
// processes and hosts too.
type Backend interface {
	// Create starts a new object. Nothing is visible under name until Commit
	// of the returned writer returned nil, and then the whole object is, and
	// it survives power loss.
	Create(ctx context.Context, name string, mode Mode) (Writer, error)
	// Open opens an object for random reading. It fails with fs.ErrNotExist
	// where there is none. Cancelling ctx fails reads in flight.
	Open(ctx context.Context, name string) (Object, error)
	// List yields the objects whose name starts with prefix, in ascending
	// order of name. Objects created or removed meanwhile may or may not be
	// among them.
	List(ctx context.Context, prefix string) iter.Seq2[Info, error]
	// Remove removes an object, durably. Removing what is not there is no
	// error. Readers that have the object open may fail from then on.
	Remove(ctx context.Context, name string) error
}

// Mode says what Create does about an object that exists already.
type Mode int

const (
	// Exclusive: Commit fails with fs.ErrExist if name exists by then. Of two
	// writers racing for a name, exactly one wins.
	Exclusive Mode = iota
	// Replace: Commit atomically takes the place of what is there.
	Replace
)

// Writer takes an object's bytes, in order. It is for one goroutine.
type Writer interface {
	io.Writer
	// Commit makes the object durable and visible. After Commit or Abort the
	// writer is spent; Abort after Commit does nothing.
	Commit(ctx context.Context) error
	// Abort drops what was written. It leaves nothing behind.
	Abort()
}

// Object is an open object. ReadAt follows io.ReaderAt and is safe for
// concurrent use.
type Object interface {
	io.ReaderAt
	io.Closer
	Size() int64
}

// NoWaitReader is implemented by objects that can be read without waiting.
type NoWaitReader interface {
	// ReadAtNoWait fills p from off if it need not wait, and reports whether
	// it did.
	ReadAtNoWait(p []byte, off int64) bool
}

// Info describes an object in a listing.
type Info struct {
	Name     string
	Size     int64     // bytes
	Modified time.Time // by the backend's clock
}

// Prober is implemented by backends that cannot promise Exclusive by
// themselves: whether a bucket keeps it depends on the server behind it.
type Prober interface {
	// ProbeExclusive finds out by trying whether Exclusive holds. A nil error
	// and false mean that two writers could both win.
	ProbeExclusive(ctx context.Context) (bool, error)
}

// Locker is implemented by backends that can refuse, by themselves and to
// everybody, to remove or replace an object before a time (S3 object lock in
// compliance mode).
type Locker interface {
	// LockSupport says why objects cannot be locked here; nil means that they
	// can.
	LockSupport(ctx context.Context) error
	// Lock keeps an object until then. A lock is only ever extended: an earlier
	// time than the one that is set changes nothing.
	Lock(ctx context.Context, name string, until time.Time) error
	// LockedUntil is how long the object is kept; the zero time where it is not.
	LockedUntil(ctx context.Context, name string) (time.Time, error)
}
