package store

import (
	"context"
	"errors"
)

// VerifyOptions says what to verify. The zero value is everything.
type VerifyOptions struct {
	// Points limits the check to what these points need: their objects, block
	// maps and blocks. None means every byte of every object.
	Points []*Point
	// Workers is how many objects are read at the same time; 0 means one per
	// CPU.
	Workers int
	// Progress, if not nil, hears of it now and then, from one goroutine at a
	// time.
	Progress func(VerifyProgress)
}

// VerifyProgress is how far a verification has come.
type VerifyProgress struct {
	Done, Total int64 // bytes of objects
	Damages     int
}

// Damage is one thing that is wrong.
type Damage struct {
	// Object is the name of the damaged object.
	Object string `json:"object"`
	// Offset is where in the object, in bytes; -1 when it is all of it.
	Offset int64 `json:"offset"`
	// Length is how many bytes are affected, 0 when that is not known.
	Length int64 `json:"length,omitempty"`
	// Problem says what is wrong.
	Problem string `json:"problem"`
	// Hurts lists what of the restore points cannot be read any more because of
	// it; nothing means that no point needs it.
	Hurts []Hurt `json:"hurts,omitempty"`
}

// Hurt is an area of a disk that cannot be read, or a whole point.
type Hurt struct {
	Point  string `json:"point"`          // ID
	Disk   int    `json:"disk"`           // index, -1 for the whole point
	File   string `json:"file,omitempty"` // configuration file
	Offset int64  `json:"offset"`         // bytes
	Length int64  `json:"length"`         // bytes
}

// Report is the outcome of a verification.
type Report struct {
	Objects int64    `json:"objects"`
	Bytes   int64    `json:"bytes"`
	Points  int      `json:"points"`
	Damages []Damage `json:"damages"`
	// Unexpected names objects that do not belong to a repository. They do no
	// harm.
	Unexpected []string `json:"unexpected,omitempty"`
	// Leftovers names what writers left that did not finish; the next backup
	// removes it.
	Leftovers []string `json:"leftovers,omitempty"`
}

// OK reports whether nothing is damaged.
func (r *Report) OK() bool { return len(r.Damages) == 0 }

// Verify reads and checks. Damage is in the report; the error is for what kept
// it from looking.
func (r *Repository) Verify(ctx context.Context, opts VerifyOptions) (*Report, error) {
	return nil, errors.New("verify: not implemented yet")
}
