package segment

import (
	"errors"
	"fmt"
)

// ErrDamaged is matched by every DamageError.
var ErrDamaged = errors.New("damaged segment")

// ErrRemoved is in the chain of the DamageError for a slot that compaction
// found unused and dropped.
var ErrRemoved = errors.New("slot was removed by compaction")

// ErrLost is in the chain of the DamageError for a frame that a repair marked,
// because its content could be found nowhere.
var ErrLost = errors.New("its content was lost, and a repair marked it so")

// ErrVersion: the segment was written by a newer version of Lifeboat.
var ErrVersion = errors.New("unknown segment format version")

// DamageError says which bytes of the repository are not what was written.
// What is damaged is never served.
type DamageError struct {
	Object string // name of the object in the backend
	Part   Part   // which part of the object
	Addr   Addr   // the blob, where one is concerned, else 0
	Frame  int    // the frame of the blob, or -1
	Page   int    // the table page (slots Page*256 …), or -1
	Offset int64  // start of the damaged range, bytes from the start of the object
	Length int64  // its length in bytes, 0 where unknown
	Err    error  // why
}

// Part is a part of a segment object.
type Part string

// The parts of a segment object, in the order in which they stand in it.
const (
	PartObject        Part = "object" // as a whole: missing, misnamed, cut short
	PartHeader        Part = "header"
	PartFrame         Part = "frame"
	PartGap           Part = "unclaimed bytes" // between frames; nothing is lost
	PartTrailerCopy   Part = "first trailer"   // nothing is lost while the other is good
	PartIdentityTable Part = "identity table"
	PartLocationTable Part = "location table"
	PartTrailer       Part = "trailer"
)

// Error names the object, the part and the offset.
func (e *DamageError) Error() string {
	what := string(e.Part)
	if e.Page >= 0 {
		what = fmt.Sprintf("%s page %d", what, e.Page)
	}
	if e.Addr != 0 {
		what = fmt.Sprintf("%s of %v", what, e.Addr)
	}
	if e.Frame >= 0 {
		what = fmt.Sprintf("%s, frame %d", what, e.Frame)
	}
	return fmt.Sprintf("%s: %s at offset %d is damaged: %v", e.Object, what, e.Offset, e.Err)
}

// Unwrap returns the cause.
func (e *DamageError) Unwrap() error { return e.Err }

// Is reports that every DamageError is ErrDamaged.
func (e *DamageError) Is(target error) bool { return target == ErrDamaged }
