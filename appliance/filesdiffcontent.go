package appliance

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"io"
	"sync"

	"golang.org/x/sync/errgroup"

	"lifeboat/disk"
	"lifeboat/guestfs"
	"lifeboat/guestfs/worker"
)

// contentDiffers compares a part of a file. Of what is compressed it is not known
// what of the content stands there: all of it is compared.
func (v *volumeDiff) contentDiffers(ctx context.Context, o guestfs.Owner) (bool, error) {
	off, length := o.Offset, o.Length
	if o.Encoded {
		off, length = 0, 1<<62
	}
	same, err := sameContent(ctx, v.old, v.now, o.Inode, o.Inode, off, length)
	if err != nil && lastingError(err) {
		return false, err
	}
	if err != nil {
		v.note(fmt.Errorf("inode %d: %w", o.Inode, err))
	}
	return err == nil && !same, nil
}

// lastingError reports whether an error is not one file's own.
func lastingError(err error) bool {
	return !errors.Is(err, guestfs.ErrCorrupt) && !errors.Is(err, guestfs.ErrUnsupported) && !errors.Is(err, guestfs.ErrEncrypted) && !isNotExist(err)
}

// sameContent compares a range of two files.
func sameContent(ctx context.Context, fa, fb guestfs.FS, a, b guestfs.Inode, off, length int64) (bool, error) {
	one, err := fa.Open(ctx, a)
	if err != nil {
		return false, err
	}
	defer one.Close()
	two, err := fb.Open(ctx, b)
	if err != nil {
		return false, err
	}
	defer two.Close()
	if one.Size() != two.Size() {
		return false, nil
	}
	p, q := make([]byte, min(copyChunk, max(0, one.Size()-off))), make([]byte, min(copyChunk, max(0, one.Size()-off)))
	for end := min(one.Size(), off+min(length, one.Size())); off < end; {
		hole, err := sharedHole(ctx, one, two, off)
		if err != nil {
			return false, err
		}
		if off += hole; off >= end {
			break
		}
		n := int(min(int64(len(p)), end-off))
		if err := readBoth(one, two, p[:n], q[:n], off); err != nil {
			return false, err
		}
		if !bytes.Equal(p[:n], q[:n]) {
			return false, nil
		}
		off += int64(n)
		if ctx.Err() != nil {
			return false, context.Cause(ctx)
		}
	}
	return true, nil
}

// sharedHole is how much from off on both images hold nothing.
func sharedHole(ctx context.Context, a, b disk.Image, off int64) (int64, error) {
	length := a.Size() - off
	for _, img := range []disk.Image{a, b} {
		for e, err := range disk.Extents(ctx, img, disk.Extent{Offset: off, Length: length}) {
			if err != nil || !e.Hole {
				return 0, err
			}
			length = e.Length
			break
		}
	}
	return length, nil
}

func readBoth(a, b io.ReaderAt, p, q []byte, off int64) error {
	if n, err := a.ReadAt(p, off); n < len(p) {
		return unexpected(err)
	}
	if n, err := b.ReadAt(q, off); n < len(q) {
		return unexpected(err)
	}
	return nil
}

// Units in which two states of a volume are compared, in bytes: the smallest inode
// that is common, and what most file systems give content in.
const (
	inodeUnit   = 256
	contentUnit = 4096
)

// differing reads ranges of the volume in both states, and keeps what differs, in
// whole units.
func (v *volumeDiff) differing(ctx context.Context, list []disk.Extent, unit int64) ([]disk.Extent, error) {
	old, err := worker.Whole(ctx, v.old)
	if err != nil {
		return nil, err
	}
	defer old.Close()
	now, err := worker.Whole(ctx, v.now)
	if err != nil {
		return nil, err
	}
	defer now.Close()
	const atOnce = 4
	var mu sync.Mutex
	var out []disk.Extent
	g, gctx := errgroup.WithContext(ctx)
	g.SetLimit(atOnce)
	size := min(old.Size(), now.Size())
	for e := range pieces(list, 1<<20) {
		e.Length = min(e.Length, size-e.Offset)
		if e.Length <= 0 {
			continue
		}
		g.Go(func() error {
			if gctx.Err() != nil {
				return context.Cause(gctx)
			}
			p, q := make([]byte, e.Length), make([]byte, e.Length)
			if err := readBoth(old, now, p, q, e.Offset); err != nil {
				return err
			}
			mu.Lock()
			defer mu.Unlock()
			out = append(out, unequal(p, q, e.Offset, unit)...)
			return nil
		})
	}
	err = g.Wait()
	return union(sorted(out), nil), err
}

// unequal are the units in which p and q differ.
func unequal(p, q []byte, at, unit int64) (out []disk.Extent) {
	for off := int64(0); off < int64(len(p)); {
		n := min(unit-(at+off)%unit, int64(len(p))-off)
		if !bytes.Equal(p[off:off+n], q[off:off+n]) {
			out = append(out, disk.Extent{Offset: at + off, Length: n})
		}
		off += n
	}
	return out
}
