package vddk

import (
	"context"
	"errors"
	"fmt"
	"io"
	"os"
	"sync"
)

// folderWriter makes a disk writable of which files can only be replaced as a
// whole: what is written goes into a sparse temporary file, and sync sends the
// disk as it is then. It is dear, and right: what sync has covered is at the
// server, whole.
//
// mu guards dirty and failed, and is held for writing while the blocks of a
// write that are not whole are fetched, and for reading by all else.
type folderWriter struct {
	*folderPort
	up    FileWriter
	path  string // of the flat file
	spool *os.File

	mu    sync.RWMutex
	dirty bitmap // blocks whose content is in spool
	sent  bool   // nothing was written since the last sync
}

// spoolBlock is the unit in which folderWriter remembers what was written.
const spoolBlock = 64 << 10

func writeFolder(ctx context.Context, req Request, opts Options) (writePort, error) {
	p, up, path, err := folderTarget(ctx, req, opts)
	if err != nil {
		return nil, err
	}
	f, err := spool(opts.Spool, p.size())
	if err != nil {
		return nil, err
	}
	return &folderWriter{folderPort: p, up: up, path: path, spool: f, sent: true}, nil
}

// folderTarget finds the one flat file that a disk to be written consists of.
func folderTarget(ctx context.Context, req Request, opts Options) (*folderPort, FileWriter, string, error) {
	up, ok := req.Files.(FileWriter)
	if !ok {
		return nil, nil, "", unavailable("there is no way to write the datastore's files")
	}
	p, err := folderOf(ctx, req, opts)
	if err != nil {
		return nil, nil, "", err
	}
	path, err := p.flatTarget(req.Path)
	return p, up, path, err
}

func (w *folderWriter) write(ctx context.Context, b []byte, off int64) error {
	w.mu.Lock()
	defer w.mu.Unlock()
	end := off + int64(len(b))
	for _, edge := range []int64{off / spoolBlock, (end - 1) / spoolBlock} {
		if err := w.fill(ctx, edge, off, end); err != nil {
			return err
		}
	}
	w.sent = false
	if _, err := w.spool.WriteAt(b, off); err != nil {
		return fmt.Errorf("temporary file for the disk: %w", err)
	}
	for n := off / spoolBlock; n*spoolBlock < end; n++ {
		w.dirty.set(n)
	}
	return nil
}

// fill fetches block n if [from, to) covers only part of it.
func (w *folderWriter) fill(ctx context.Context, n, from, to int64) error {
	start := n * spoolBlock
	end := min(start+spoolBlock, w.size())
	if w.dirty.has(n) || from <= start && to >= end {
		return nil
	}
	block := make([]byte, end-start)
	if err := w.folderPort.read(ctx, block, start); err != nil {
		return err
	}
	if _, err := w.spool.WriteAt(block, start); err != nil {
		return fmt.Errorf("temporary file for the disk: %w", err)
	}
	w.dirty.set(n)
	return nil
}

func (w *folderWriter) read(ctx context.Context, b []byte, off int64) error {
	w.mu.RLock()
	defer w.mu.RUnlock()
	for len(b) > 0 {
		n := min(int64(len(b)), spoolBlock-off%spoolBlock)
		var err error
		if w.dirty.has(off / spoolBlock) {
			_, err = w.spool.ReadAt(b[:n], off)
		} else {
			for n < int64(len(b)) && !w.dirty.has((off+n)/spoolBlock) {
				n = min(n+spoolBlock, int64(len(b)))
			}
			err = w.folderPort.read(ctx, b[:n], off)
		}
		if err != nil {
			return err
		}
		b, off = b[n:], off+n
	}
	return nil
}

// sync sends the disk. Writes wait meanwhile: half of one must not be sent.
//
// Once an upload has begun, the file at the server is no more what blocks that
// were not written could be read from; so those are fetched first.
func (w *folderWriter) sync(ctx context.Context) error {
	w.mu.Lock()
	defer w.mu.Unlock()
	if w.sent {
		return nil
	}
	for n := int64(0); n*spoolBlock < w.size(); n++ {
		if err := w.fill(ctx, n, 0, 0); err != nil {
			return err
		}
	}
	if err := w.up.Upload(ctx, w.path, io.NewSectionReader(w.spool, 0, w.size()), w.size()); err != nil {
		return fmt.Errorf("upload %s: %w", w.path, lost(err))
	}
	w.sent = true
	return nil
}

// close drops what was not synced.
func (w *folderWriter) close() error {
	return errors.Join(w.spool.Close(), w.folderPort.close())
}
