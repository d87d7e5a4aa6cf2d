package disk

import (
	"context"
	"iter"
)

// WithClose is img with something more to do when it is closed.
func WithClose(img Image, also func()) Image { return &withClose{img, also} }

type withClose struct {
	Image
	also func()
}

func (w *withClose) Close() error {
	defer w.also()
	return w.Image.Close()
}

// Extents implements [Mapper].
func (w *withClose) Extents(ctx context.Context, within Extent) iter.Seq2[Extent, error] {
	return Extents(ctx, w.Image, within)
}
