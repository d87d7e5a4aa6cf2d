package s3

import (
	"context"
	"errors"
	"fmt"
	"io/fs"
	"strings"
	"time"

	"github.com/minio/minio-go/v7"

	"lifeboat/store/backend"
)

// checkFree looks whether the name of an Exclusive is taken, as long as it is
// not known that the server itself sees to it. Where it does not, this leaves
// a gap in which two writers can both win; and that is what ProbeExclusive is
// for.
func (w *writer) checkFree(ctx context.Context) error {
	if w.mode != backend.Exclusive || w.b.exclusive.Load() == exclusiveYes {
		return nil
	}
	taken, err := w.b.exists(ctx, w.b.key(w.name))
	if err == nil && taken {
		err = fs.ErrExist
	}
	return err
}

// settle sends the request that makes the object visible until it is known what
// came of it. send returns the version that was written, where the bucket keeps
// versions.
func (w *writer) settle(ctx context.Context, limit time.Duration, send func(*pulse) (string, error)) error {
	doubt := false // an earlier try may have worked
	for n := 1; ; n++ {
		var version string
		err := w.b.once(ctx, limit, func(p *pulse) (err error) {
			version, err = send(p)
			return err
		})
		if err == nil {
			w.b.noteVersion(ctx, w.name, w.mode, version)
			return nil
		}
		v := judge(err)
		doubt = doubt || v.doubt || ctx.Err() != nil
		if ctx.Err() == nil && w.b.again(err, n) {
			w.b.log.Debug("writing an object again", "object", w.name, "try", n+1, "error", err)
			if w.b.pause(ctx, n) == nil {
				continue
			}
		}
		if ctx.Err() != nil {
			err = ctx.Err()
		}
		return w.decide(ctx, err, doubt)
	}
}

// decide says what came of a commit that ended in err, of which an earlier try
// may have worked.
func (w *writer) decide(ctx context.Context, err error, doubt bool) error {
	taken := isPrecondition(err)
	if !taken && !doubt {
		return w.b.explain(err)
	}
	switch holder := w.holder(ctx); {
	case holder == holderSelf:
		return nil
	case taken && holder == holderOther, taken && !doubt:
		return fs.ErrExist
	default:
		return fmt.Errorf("%w: %w", backend.ErrUncertain, w.b.explain(err))
	}
}

// holder is whose object has the name.
type holder int

const (
	holderUnknown holder = iota
	holderSelf
	holderOther
	holderNone
)

// lookLimit bounds how long a commit that was cancelled takes to find out what
// came of it.
const lookLimit = 5 * time.Second

func (w *writer) holder(ctx context.Context) holder {
	if ctx.Err() != nil {
		var cancel context.CancelFunc
		ctx, cancel = context.WithTimeout(context.WithoutCancel(ctx), lookLimit)
		defer cancel()
	}
	info, err := w.b.stat(ctx, w.b.key(w.name))
	switch {
	case errors.Is(err, fs.ErrNotExist):
		return holderNone
	case err != nil:
		return holderUnknown
	}
	switch nonceOf(info) {
	case "":
		return holderUnknown // not by this program, or the server keeps no metadata
	case w.nonce:
		return holderSelf
	}
	return holderOther
}

func nonceOf(info minio.ObjectInfo) string {
	for key, value := range info.UserMetadata {
		if strings.EqualFold(key, nonceKey) {
			return value
		}
	}
	return ""
}
