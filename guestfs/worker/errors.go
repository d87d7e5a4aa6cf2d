package worker

import (
	"context"
	"errors"
	"fmt"
	"io/fs"

	"lifeboat/guestfs"
)

// ErrWorker says that the worker died, hung, ran out of memory or answered with
// nonsense. FailureError has the reason.
var ErrWorker = errors.New("the reader of the guest's file systems failed")

// FailureError is why the worker failed. It matches ErrWorker.
type FailureError struct {
	Reason string // "it died: panic: …"
	Final  bool   // the session has ended; before that, the next request starts a new worker
}

func (e *FailureError) Error() string {
	text := fmt.Sprintf("%v: %s; the file system may be damaged, or made to do harm", ErrWorker, e.Reason)
	if e.Final {
		text += "; it failed too often and is not started again"
	}
	return text
}

// Is reports whether target is ErrWorker.
func (e *FailureError) Is(target error) bool { return target == ErrWorker }

// kinds are the errors that callers decide on, by their code.
func kinds() map[byte]error {
	return map[byte]error{
		codeNotExist: fs.ErrNotExist, codeCorrupt: guestfs.ErrCorrupt, codeUnsupported: guestfs.ErrUnsupported,
		codeEncrypted: guestfs.ErrEncrypted, codeNotDir: guestfs.ErrNotDir, codeCanceled: context.Canceled,
	}
}

// maxErrorText bounds what is believed of an error, in bytes.
const maxErrorText = 2000

func encodeError(err error) (byte, string) {
	if err == nil {
		return codeOK, ""
	}
	text := err.Error()
	text = text[:min(len(text), maxErrorText)]
	for code := codeNotExist; code <= codeCanceled; code++ {
		if errors.Is(err, kinds()[code]) {
			return code, text
		}
	}
	return codeOther, text
}

func decodeError(code byte, text string) error {
	if code == codeOK {
		return nil
	}
	return &remoteError{kind: kinds()[code], text: text[:min(len(text), maxErrorText)]}
}

// remoteError is an error of the worker's side, with the kind that it had there.
type remoteError struct {
	kind error // nil: none that anybody decides on
	text string
}

func (e *remoteError) Error() string { return e.text }

func (e *remoteError) Unwrap() error { return e.kind }
