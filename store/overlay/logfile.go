package overlay

import (
	"context"
	"crypto/rand"
	"encoding/binary"
	"errors"
	"fmt"
	"log/slog"
	"os"
	"path/filepath"
	"strconv"
	"strings"
	"syscall"
	"time"
)

// logFile is one file of the log.
type logFile struct {
	seq   uint64 // its number; 0 while it is a spare
	name  string // path
	f     *localFile
	pages uint32 // its length
	epoch uint64 // random, new for each use

	// filled is how many of its pages were written at some time, from the first
	// on: a write there changes no metadata of the file system, so that
	// committing it costs one write to the device instead of two or three.
	filled uint32
	used   uint32 // pages given to records; under Overlay.mu
}

func (f *logFile) prepared() bool { return f.filled == f.pages }

const (
	logPrefix        = "log-"
	dataPrefix       = "data-"
	checkpointPrefix = "checkpoint-"
	numberDigits     = 16
)

func numbered(prefix string, n uint64) string {
	return fmt.Sprintf("%s%0*x", prefix, numberDigits, n)
}

// numberOf is the reverse of numbered.
func numberOf(prefix, name string) (uint64, bool) {
	digits, ok := strings.CutPrefix(name, prefix)
	if !ok || len(digits) != numberDigits {
		return 0, false
	}
	n, err := strconv.ParseUint(digits, 16, 64)
	return n, err == nil && numbered(prefix, n) == name
}

// ours reports whether name is that of a file of an overlay.
func ours(name string) bool {
	name = strings.TrimSuffix(name, tempSuffix)
	for _, prefix := range []string{logPrefix, dataPrefix, checkpointPrefix} {
		if _, ok := numberOf(prefix, name); ok {
			return true
		}
	}
	return name == metaName
}

// shelf keeps what the writers need next: a log file that is there, durably
// named, with its space allocated and if time allowed filled with zeros. The
// preparing goroutine fills it, from retired files as long as there are any.
// It is under Overlay.mu.
type shelf struct {
	next   *logFile
	spares []*logFile // retired, to be used again under another number
	urgent bool       // a writer waits: hand over what there is
	busy   bool       // an attempt is under way
	tries  uint64     // attempts that have ended
	err    error      // of the last attempt
	failed time.Time  // when it failed
}

const (
	// fillStep is written at a time when a file is filled with zeros, and
	// fillSync synced at a time: small enough not to hold up commits that share
	// the device.
	fillStep = 256 << 10
	fillSync = 4 << 20
	// retryAfter is how long a failed preparation ahead of need, or a failed
	// checkpoint, is left alone.
	retryAfter = time.Second
)

// bulkPages is how much log one sync covers, in pages, from which on filling
// files ahead does not pay: what it saves for each sync is less than what
// writing everything twice costs.
const bulkPages = 128

// bulk reports whether syncs cover much at a time. Caller holds mu, shared at
// least.
func (o *Overlay) bulk() bool {
	return max(o.syncs.usual, o.stats.pages-o.syncs.pages) >= bulkPages
}

// wantFile asks for the next log file if it is time to: filling one takes
// bandwidth from the commits. Caller holds mu.
func (o *Overlay) wantFile() {
	s := &o.shelf
	if o.cur.prepared() && o.cur.used < o.cur.pages/2 {
		return
	}
	if (s.next == nil || !s.next.prepared() && !o.bulk()) &&
		!s.busy && (s.err == nil || time.Since(s.failed) > retryAfter) {
		ring(o.wakers.prepare)
	}
}

// waitFile waits for the next log file. It fails with the error of an attempt
// that began after the call. Caller holds mu, which is released meanwhile.
func (o *Overlay) waitFile() error {
	s := &o.shelf
	enough := s.tries + 1
	if s.busy {
		enough++
	}
	for s.next == nil {
		if err := o.usable(); err != nil {
			return err
		}
		if s.tries >= enough && s.err != nil {
			return s.err
		}
		s.urgent = true
		if !s.busy {
			ring(o.wakers.prepare)
		}
		o.change.Wait()
	}
	return nil
}

// prepare makes the next log file if there is none, or goes on filling it if
// that was broken off.
func (o *Overlay) prepare(ctx context.Context) {
	o.mu.Lock()
	s := &o.shelf
	f, seq := s.next, uint64(0)
	var err error
	if o.closed || o.failed != nil || f != nil && (f.prepared() || o.bulk()) {
		o.mu.Unlock()
		return
	}
	if s.busy, s.next = true, nil; f == nil {
		seq = o.nextFile
		o.nextFile++
		f = s.takeSpare()
	}
	o.mu.Unlock()

	if seq == 0 {
		if err = o.fill(ctx, f); err != nil {
			o.dropFile(f)
		}
	} else {
		f, err = o.makeFile(ctx, seq, f)
	}

	o.mu.Lock()
	defer o.mu.Unlock()
	s.busy, s.err = false, err
	s.tries++
	if err == nil {
		s.next, s.urgent = f, false
	} else {
		s.failed = time.Now()
		o.log.Warn("cannot make the next log file", slog.Any("error", err))
		if s.urgent {
			s.urgent = false // each waiting writer asks again, or gives up
		}
	}
	o.change.Broadcast()
}

// takeSpare takes a spare off the shelf, best a prepared one.
func (s *shelf) takeSpare() *logFile {
	if len(s.spares) == 0 {
		return nil
	}
	best := len(s.spares) - 1
	for i, f := range s.spares {
		if f.prepared() {
			best = i
		}
	}
	f := s.spares[best]
	s.spares = append(s.spares[:best], s.spares[best+1:]...)
	return f
}

// makeFile makes log file seq, from spare if that is not nil. When it returns,
// the file's name is durable and its space is allocated: a record written
// there cannot meet a full disk.
func (o *Overlay) makeFile(ctx context.Context, seq uint64, spare *logFile) (*logFile, error) {
	f := spare
	name := filepath.Join(o.dir, numbered(logPrefix, seq))
	var err error
	if f == nil {
		f, err = o.createFile(name)
	} else {
		err = o.fs.Rename(f.name, name)
	}
	if err != nil {
		o.dropFile(spare)
		return nil, fmt.Errorf("overlay: log file %s: %w", name, err)
	}
	f.name, f.seq, f.used = name, seq, 0
	if f.epoch, err = randomNumber(); err == nil {
		err = o.fs.SyncDir(o.dir)
	}
	if err == nil {
		err = o.fill(ctx, f)
	}
	if err != nil {
		o.dropFile(f)
		return nil, fmt.Errorf("overlay: log file %s: %w", name, err)
	}
	return f, nil
}

// createFile makes a file with its space allocated. Where there is no room for
// a full one it takes a smaller one, so that the last of the disk can be used.
func (o *Overlay) createFile(name string) (*logFile, error) {
	file, err := o.fs.OpenFile(name, os.O_RDWR|os.O_CREATE|os.O_TRUNC, fileMode)
	if err != nil {
		return nil, err
	}
	f := &logFile{name: name, f: newLocalFile(file), pages: o.filePages}
	for {
		err = file.Allocate(0, int64(f.pages)*pageSize)
		if !errors.Is(err, syscall.ENOSPC) || f.pages/2 < uint32(o.recPages)+1 {
			break
		}
		f.pages /= 2
		if err = file.Truncate(0); err != nil {
			break
		}
	}
	if err == nil {
		err = file.Sync() // the allocation is metadata: now, not at the first commit
	}
	if err != nil {
		o.dropFile(f)
		return nil, err
	}
	return f, nil
}

// fill writes zeros to the pages of f that were never written, unless a writer
// cannot wait so long, or it does not pay.
func (o *Overlay) fill(ctx context.Context, f *logFile) error {
	var zeros []byte
	for synced := f.filled; f.filled < f.pages; {
		if o.hurried(ctx) {
			break
		}
		if zeros == nil {
			zeros = make([]byte, fillStep)
		}
		n := min(fillStep/pageSize, f.pages-f.filled)
		if _, err := f.f.WriteAt(zeros[:n*pageSize], int64(f.filled)*pageSize); err != nil {
			return err
		}
		f.filled += n
		if f.filled-synced >= fillSync/pageSize || f.prepared() {
			if err := f.f.Sync(); err != nil {
				return err
			}
			synced = f.filled
		}
	}
	return nil
}

func (o *Overlay) hurried(ctx context.Context) bool {
	o.mu.RLock()
	defer o.mu.RUnlock()
	return o.shelf.urgent || ctx.Err() != nil || o.bulk()
}

// dropFile closes and removes a file that holds nothing; f may be nil.
func (o *Overlay) dropFile(f *logFile) {
	if f == nil {
		return
	}
	if err := errors.Join(f.f.Close(), o.fs.Remove(f.name)); err != nil {
		o.log.Warn("cannot remove a log file that is not needed", slog.String("file", f.name), slog.Any("error", err))
	}
}

// retire takes files that no reader and no replay needs any more: as many as
// are worth keeping become spares. Caller does not hold mu.
func (o *Overlay) retire(files []*logFile) {
	o.mu.Lock()
	room := int(o.logBytes/(int64(o.filePages)*pageSize)) - len(o.shelf.spares)
	var drop []*logFile
	for _, f := range files {
		f.filled = max(f.filled, f.used)
		if f.pages == o.filePages && room > 0 {
			o.shelf.spares = append(o.shelf.spares, f)
			room--
		} else {
			drop = append(drop, f)
		}
	}
	o.mu.Unlock()
	for _, f := range drop {
		o.dropFile(f)
	}
}

// dropSpares gives back the space of the files that hold nothing; while the
// overlay is open, without those that the writers will take next.
func (o *Overlay) dropSpares() (dropped bool) {
	o.mu.Lock()
	spares := o.shelf.spares
	o.shelf.spares = nil
	if o.closed {
		if next := o.shelf.next; next != nil {
			spares, o.shelf.next = append(spares, next), nil
		}
		for seq, f := range o.files {
			if f.used == 0 {
				spares = append(spares, f)
				delete(o.files, seq)
			}
		}
	}
	o.mu.Unlock()
	for _, f := range spares {
		o.dropFile(f)
	}
	return len(spares) > 0
}

func randomNumber() (uint64, error) {
	var b [8]byte
	_, err := rand.Read(b[:])
	return binary.LittleEndian.Uint64(b[:]), err
}
