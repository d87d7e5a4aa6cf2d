package appliance

import "errors"

// Kinds of failure that a caller decides on; the command line turns each into
// its own exit code. Everything else is "failed".
var (
	// ErrNotFound: no such point, session, disk or VM.
	ErrNotFound = errors.New("not found")
	// ErrUsage: what was asked for makes no sense, whatever the state is.
	ErrUsage = errors.New("wrong usage")
	// ErrBusy: somebody else has what is needed.
	ErrBusy = errors.New("in use")
	// ErrDamaged: stored data is not what was stored.
	ErrDamaged = errors.New("damaged data found")
	// ErrPartial: done, but something was left out.
	ErrPartial = errors.New("done with warnings")
)
