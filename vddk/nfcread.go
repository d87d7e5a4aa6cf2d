package vddk

import (
	"bytes"
	"compress/zlib"
	"context"
	"fmt"
	"io"
	"os"
	"time"
)

// watchedReader reads the body of an export at the rate that is allowed, and
// gives up when nothing comes.
type watchedReader struct {
	ctx      context.Context
	body     io.Reader
	limiter  Limiter
	patience time.Duration
	cancel   context.CancelCauseFunc
}

func (r *watchedReader) Read(p []byte) (int, error) {
	if r.limiter != nil {
		if err := r.limiter.Wait(r.ctx, int64(len(p))); err != nil {
			return 0, err
		}
	}
	timer := time.AfterFunc(r.patience, func() {
		r.cancel(fmt.Errorf("%w: nothing came of the export for %v", ErrHung, r.patience))
	})
	defer timer.Stop()
	return r.body.Read(p)
}

// unpacker unpacks grains into the file. It belongs to one worker.
type unpacker struct {
	file   *os.File
	length int64
	in     bytes.Reader
	z      io.ReadCloser
	out    []byte
}

func (u *unpacker) unpack(g grain) error {
	u.in.Reset(g.data)
	var err error
	if u.z == nil {
		u.z, err = zlib.NewReader(&u.in)
	} else {
		err = u.z.(zlib.Resetter).Reset(&u.in, nil)
	}
	if err != nil {
		return streamError("the grain for offset %d: %v", g.off, err)
	}
	want := u.out[:min(int64(len(u.out)), u.length-g.off)]
	if _, err := io.ReadFull(u.z, want); err != nil {
		return streamError("the grain for offset %d: %v", g.off, err)
	}
	// Only at its end does zlib compare its checksum. There may be padding.
	if _, err := io.Copy(io.Discard, io.LimitReader(u.z, int64(len(u.out)))); err != nil {
		return streamError("the grain for offset %d: %v", g.off, err)
	}
	if _, err := u.file.WriteAt(want, g.off); err != nil {
		return fmt.Errorf("temporary file for the disk: %w", err)
	}
	return nil
}
