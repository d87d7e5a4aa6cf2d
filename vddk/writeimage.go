package vddk

import (
	"context"
	"errors"
	"fmt"
	"io"
	"sync"

	"golang.org/x/sync/errgroup"

	"lifeboat/disk"
)

// ImageOptions are choices for [WriteImage]. The zero value is good.
type ImageOptions struct {
	Options
	// Fresh says that the disk is new and reads as zeros: holes of the image
	// are not written.
	Fresh bool
	// Progress gets bytes of the disk; nil = nobody.
	Progress func(done, total int64)
}

// WriteImage writes all of img to the disk that req describes, whatever that
// held before, and returns the transport by which it did. Transports are those
// of [OpenWrite], where folder sends the disk once and as it comes, and nfc,
// which takes a disk of a VM that a lease has just made. As with Open, another
// one is tried only if nothing has been written yet.
func WriteImage(ctx context.Context, req Request, img disk.Image, opts ImageOptions) (transport string, err error) {
	opts.Options = opts.withDefaults()
	if img.Size() != req.Size {
		return "", fmt.Errorf("%w: %d bytes of image for a disk of %d", ErrSize, img.Size(), req.Size)
	}
	rungs := []rung[target]{
		{File, imageWriter(req, opts, writeFile)},
		{HotAdd, imageWriter(req, opts, writeHotAdd)},
		{VDDK, imageWriter(req, opts, libraryWriter(""))},
		{Folder, func(ctx context.Context, cancel context.CancelCauseFunc) (target, error) {
			p, up, path, err := folderTarget(ctx, req, opts.Options)
			if err != nil {
				return nil, err
			}
			return &uploadTarget{p, up, path}, nil
		}},
		{NFC, func(ctx context.Context, _ context.CancelCauseFunc) (target, error) { return openImport(ctx, req) }},
	}
	rungs, err = choose(opts.Transport, rungs, func(modes string) rung[target] {
		return rung[target]{modes, imageWriter(req, opts, libraryWriter(modes))}
	})
	if err != nil {
		return "", err
	}
	t, err := climb(ctx, req, opts.Options, rungs)
	if err != nil {
		return "", err
	}
	if err = t.fill(ctx, img, opts); err != nil {
		err = fmt.Errorf("write %s through %s: %w", req.name(), t.Transport(), err)
	}
	return t.Transport(), errors.Join(err, t.Close())
}

// target is a place for a whole image.
type target interface {
	opened
	Transport() string
	// fill writes the image, and returns when it is durable.
	fill(ctx context.Context, img disk.Image, opts ImageOptions) error
}

// imageWriter makes a target of a transport that writes at random.
func imageWriter(req Request, opts ImageOptions, open func(context.Context, Request, Options) (writePort, error)) func(context.Context, context.CancelCauseFunc) (target, error) {
	device := writes(req, opts.Options, open)
	return func(ctx context.Context, cancel context.CancelCauseFunc) (target, error) {
		d, err := device(ctx, cancel)
		if err != nil {
			return nil, err
		}
		return &deviceTarget{d}, nil
	}
}

// deviceTarget is a disk that is written piece by piece.
type deviceTarget struct{ WritableDisk }

func (t *deviceTarget) fill(ctx context.Context, img disk.Image, opts ImageOptions) error {
	group, ctx := errgroup.WithContext(ctx)
	group.SetLimit(2 * opts.Buffers) // as many are read while as many are written
	var mu sync.Mutex
	var done int64
	for ext, err := range disk.Extents(ctx, img, disk.Whole(img)) {
		if err != nil {
			return errors.Join(err, group.Wait())
		}
		for ext.Length > 0 && ctx.Err() == nil {
			piece := ext
			piece.Length = min(ext.Length, requestBytes-ext.Offset%requestBytes)
			if ext.Hole && opts.Fresh {
				piece.Length = ext.Length
			}
			ext.Offset, ext.Length = piece.End(), ext.Length-piece.Length
			group.Go(func() error {
				if err := t.piece(img, piece, opts.Fresh); err != nil {
					return err
				}
				if opts.Progress != nil {
					mu.Lock()
					defer mu.Unlock()
					done += piece.Length
					opts.Progress(done, img.Size())
				}
				return nil
			})
		}
	}
	if err := group.Wait(); err != nil {
		return err
	}
	return t.Sync()
}

// piece writes one piece.
func (t *deviceTarget) piece(img disk.Image, piece disk.Extent, fresh bool) error {
	if piece.Hole && fresh {
		return nil
	}
	p := make([]byte, piece.Length)
	if !piece.Hole {
		if n, err := img.ReadAt(p, piece.Offset); n < len(p) {
			return fmt.Errorf("read %d bytes at %d of the image: %w", len(p), piece.Offset, err)
		}
	}
	_, err := t.WriteAt(p, piece.Offset)
	return err
}

// uploadTarget is a flat file that is replaced through /folder.
type uploadTarget struct {
	*folderPort
	up   FileWriter
	path string
}

func (t *uploadTarget) Size() int64       { return t.size() }
func (t *uploadTarget) Close() error      { return nil }
func (t *uploadTarget) Transport() string { return Folder }

func (t *uploadTarget) fill(ctx context.Context, img disk.Image, opts ImageOptions) error {
	return pump(ctx, opts.Limiter, func(ctx context.Context, w io.Writer) error {
		return disk.WriteRawTo(ctx, w, img, opts.Progress)
	}, func(ctx context.Context, r io.Reader) error {
		return t.up.Upload(ctx, t.path, r, t.size())
	})
}

// importTarget is a disk of a VM that a lease has made.
type importTarget struct {
	lease ImportLease
	ctx   context.Context
	key   int32
	size  int64
	why   error // of its end
}

func openImport(ctx context.Context, req Request) (target, error) {
	if req.Import == nil {
		return nil, unavailable("there is no lease to import the disk")
	}
	lease, err := req.Import.Import(ctx)
	if err != nil {
		return nil, fmt.Errorf("lease to import the disk: %w", err)
	}
	return &importTarget{lease: lease, ctx: ctx, key: req.Key, size: req.Size, why: errUnused}, nil
}

var errUnused = errors.New("nothing was imported")

func (t *importTarget) Size() int64       { return t.size }
func (t *importTarget) Transport() string { return NFC }

func (t *importTarget) fill(ctx context.Context, img disk.Image, opts ImageOptions) error {
	percent := -1
	told := disk.VMDKOptions{Progress: func(done, total int64) {
		if now := int(done / (total/100 + 1)); now > percent {
			percent = now
			t.lease.Progress(now)
		}
		if opts.Progress != nil {
			opts.Progress(done, total)
		}
	}}
	t.why = pump(ctx, opts.Limiter, func(ctx context.Context, w io.Writer) error {
		return disk.WriteVMDK(ctx, w, img, told)
	}, func(ctx context.Context, r io.Reader) error {
		return t.lease.Upload(ctx, t.key, r)
	})
	return t.why
}

func (t *importTarget) Close() error {
	ctx, cancel := context.WithTimeout(context.WithoutCancel(t.ctx), closeTimeout)
	defer cancel()
	if err := t.lease.Close(ctx, t.why); err != nil {
		return fmt.Errorf("end the lease: %w", err)
	}
	return nil
}

// pump connects who makes a stream with who sends it, at the rate that is
// allowed. If either fails, so does the other, and the one that failed first
// is heard.
func pump(ctx context.Context, limiter Limiter, produce func(context.Context, io.Writer) error, send func(context.Context, io.Reader) error) error {
	r, w := io.Pipe()
	group, ctx := errgroup.WithContext(ctx)
	group.Go(func() error {
		err := produce(ctx, &limitedWriter{ctx, w, limiter})
		w.CloseWithError(err)
		return err
	})
	group.Go(func() error {
		err := send(ctx, r)
		r.CloseWithError(errors.Join(err, io.ErrClosedPipe))
		return err
	})
	return group.Wait()
}

// limitedWriter asks the limiter before it writes.
type limitedWriter struct {
	ctx     context.Context
	to      io.Writer
	limiter Limiter
}

func (w *limitedWriter) Write(p []byte) (int, error) {
	if w.limiter != nil {
		if err := w.limiter.Wait(w.ctx, int64(len(p))); err != nil {
			return 0, err
		}
	}
	return w.to.Write(p)
}
