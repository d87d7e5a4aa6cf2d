package s3

import (
	"context"
	"errors"
	"fmt"
	"io/fs"

	"lifeboat/store/backend"
)

var _ backend.SizedOpener = (*Bucket)(nil)

// OpenSized implements [backend.SizedOpener]. Without a request there is no ETag
// to pin: it is for objects that never change.
func (b *Bucket) OpenSized(ctx context.Context, name string, size int64) (backend.Object, error) {
	if err := backend.CheckName(name); err != nil {
		return nil, err
	}
	if size < 0 || size > maxObject {
		return nil, fmt.Errorf("open %s: %d bytes is no size", name, size)
	}
	return sizedObject{&object{b: b, ctx: ctx, name: name, size: size}}, ctx.Err()
}

// sizedObject is one that somebody saw earlier. If there is another under the
// name now, that one is gone.
type sizedObject struct{ *object }

func (o sizedObject) ReadAt(p []byte, off int64) (int, error) {
	n, err := o.object.ReadAt(p, off)
	if errors.Is(err, ErrReplaced) {
		err = fmt.Errorf("%w (%w)", fs.ErrNotExist, err)
	}
	return n, err
}
