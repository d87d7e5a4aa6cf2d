package overlay

import (
	"crypto/rand"
	"errors"
	"fmt"
	"io"
	"io/fs"
	"log/slog"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"time"
)

// Open opens the overlay in o.Dir, or makes one there. It replays what the log
// holds, which is bounded by Options.LogBytes. It fails with ErrMismatch,
// ErrDamaged (DamageError) or ErrVersion where the directory holds what it
// must not touch.
func Open(o Options) (*Overlay, error) {
	if err := o.complete(); err != nil {
		return nil, err
	}
	names, err := list(&o)
	if err != nil {
		return nil, fmt.Errorf("overlay %s: %w", o.Dir, err)
	}
	m, err := o.loadMeta(names)
	if err != nil {
		return nil, err
	}
	ov := newOverlay(o, m)
	if err := ov.recover(names); err != nil {
		return nil, errors.Join(err, ov.closeFiles())
	}
	ov.start()
	if ov.frozen != nil {
		ring(ov.wakers.checkpoint)
	}
	return ov, nil
}

// list makes the directory if need be, and returns the names in it that are an
// overlay's. Temporary files, which a crash left behind, are removed.
func list(o *Options) ([]string, error) {
	if err := o.FS.MkdirAll(o.Dir, dirMode); err != nil {
		return nil, err
	}
	// What we find may not be durable yet, and further steps build on it.
	if err := o.FS.SyncDir(o.Dir); err != nil {
		return nil, err
	}
	entries, err := o.FS.ReadDir(o.Dir)
	if err != nil {
		return nil, err
	}
	var names []string
	for _, e := range entries {
		switch {
		case !ours(e.Name()):
		case strings.HasSuffix(e.Name(), tempSuffix):
			if err := o.FS.Remove(filepath.Join(o.Dir, e.Name())); err != nil {
				return nil, err
			}
		default:
			names = append(names, e.Name())
		}
	}
	return names, nil
}

// loadMeta reads the meta file and compares it with what is to be opened. In an
// empty directory it makes one.
func (o *Options) loadMeta(names []string) (meta, error) {
	m, err := readMeta(o.FS, o.Dir)
	switch {
	case err == nil:
		return m, o.match(&m)
	case !errors.Is(err, fs.ErrNotExist):
		return m, fmt.Errorf("overlay %s: %w", o.Dir, err)
	case len(names) > 0:
		return m, &DamageError{File: filepath.Join(o.Dir, metaName), Reason: "it is missing, though there is " + names[0]}
	}
	m = meta{size: o.Base.Size(), baseID: o.BaseID}
	if _, err := rand.Read(m.id[:]); err != nil {
		return m, err
	}
	err = writeAtomic(o.FS, o.Dir, metaName, func(w io.Writer) error {
		_, err := w.Write(m.encode())
		return err
	})
	if err != nil {
		return m, fmt.Errorf("overlay %s: making it: %w", o.Dir, err)
	}
	return m, nil
}

func (o *Options) match(m *meta) error {
	if m.baseID != o.BaseID {
		return fmt.Errorf("overlay %s was made over %q and cannot be used over %q: %w; publish that one, or discard the session",
			o.Dir, m.baseID, o.BaseID, ErrMismatch)
	}
	if m.size != o.Base.Size() {
		return fmt.Errorf("overlay %s was made for %d bytes and cannot be used for a disk of %d: %w; discard the session",
			o.Dir, m.size, o.Base.Size(), ErrMismatch)
	}
	return nil
}

// recover brings back the state of the last process: the last checkpoint and the
// log behind it. It leaves no file that neither counts nor serves.
func (o *Overlay) recover(names []string) error {
	began := time.Now()
	h, err := o.lastCheckpoint(names)
	if err != nil {
		return err
	}
	o.moved = o.state.snapshot()
	if err := o.data.openAll(); err != nil {
		return fmt.Errorf("overlay %s: %w", o.dir, err)
	}
	logs, err := o.openLogs(names, h.file)
	if err != nil {
		return err
	}
	r := &replay{overlay: o, next: h.record, logs: logs}
	if err := r.run(); err != nil {
		return err
	}
	if r.records > 0 {
		o.log.Info("replayed the log", slog.Int64("records", r.records), slog.Int("pages", o.active.n), slog.Duration("took", time.Since(began)))
	}
	o.adopt(r, h)
	return nil
}

// adopt makes what was replayed the frozen part of the log, for the first
// checkpoint to take in. No file is appended to again: what lies behind its last
// valid record could be mistaken for what follows.
func (o *Overlay) adopt(r *replay, h checkpointHeader) {
	o.nextRec = r.next
	o.durable.Store(r.next - 1)
	fz := &frozenLog{index: o.active, state: o.state.snapshot(), next: r.next, file: h.file}
	var unused []*logFile
	for _, f := range r.logs {
		if f.used == 0 {
			unused = append(unused, f)
			delete(o.files, f.seq)
			continue
		}
		fz.files = append(fz.files, f)
		fz.file = max(fz.file, f.seq+1)
		o.durableEnd = positionOf(f.seq, f.used)
	}
	o.retire(unused)
	if r.records > 0 {
		o.frozen, o.active = fz, newIndex()
	}
}

// lastCheckpoint loads the newest checkpoint, removes older ones, and returns
// where the log goes on.
func (o *Overlay) lastCheckpoint(names []string) (checkpointHeader, error) {
	numbers := numbersOf(names, checkpointPrefix)
	if len(numbers) == 0 {
		return checkpointHeader{file: 1, record: 1}, nil
	}
	o.number = slices.Max(numbers)
	name := filepath.Join(o.dir, numbered(checkpointPrefix, o.number))
	h, err := o.loadCheckpoint(name)
	if err != nil {
		return h, err
	}
	for _, n := range numbers {
		if n == o.number {
			continue
		}
		if err := o.fs.Remove(filepath.Join(o.dir, numbered(checkpointPrefix, n))); err != nil {
			return h, fmt.Errorf("overlay %s: %w", o.dir, err)
		}
	}
	return h, nil
}

func (o *Overlay) loadCheckpoint(name string) (checkpointHeader, error) {
	f, err := o.fs.OpenFile(name, os.O_RDONLY, 0)
	if err != nil {
		return checkpointHeader{}, fmt.Errorf("overlay %s: %w", o.dir, err)
	}
	defer f.Close()
	size, err := f.Size()
	if err != nil {
		return checkpointHeader{}, fmt.Errorf("overlay %s: %w", o.dir, err)
	}
	h, state, err := readCheckpoint(io.NewSectionReader(f, 0, size), o.pages)
	if err == nil && (h.overlay != o.meta.key() || h.number != o.number || h.file == 0 || h.record == 0) {
		err = errFields
	}
	switch err {
	case nil:
		o.state = state
		return h, nil
	case errShort, errMagic, errChecksum, errFields:
		return h, &DamageError{File: name, Reason: err.Error()}
	}
	return h, fmt.Errorf("overlay %s: %w", o.dir, err)
}

// openLogs opens the log files that replay wants, in order, and makes spares of
// those that a checkpoint has taken in.
func (o *Overlay) openLogs(names []string, first uint64) ([]*logFile, error) {
	var logs, old []*logFile
	numbers := numbersOf(names, logPrefix)
	slices.Sort(numbers)
	o.nextFile = first
	for _, n := range numbers {
		f, err := o.openLog(n)
		if err != nil {
			return nil, fmt.Errorf("overlay %s: %w", o.dir, err)
		}
		o.nextFile = max(o.nextFile, n+1)
		if n < first {
			old = append(old, f)
		} else {
			logs = append(logs, f)
			o.files[n] = f // so that they are closed if opening fails
		}
	}
	o.retire(old)
	return logs, nil
}

func (o *Overlay) openLog(n uint64) (*logFile, error) {
	name := filepath.Join(o.dir, numbered(logPrefix, n))
	f, err := o.fs.OpenFile(name, os.O_RDWR, 0)
	if err != nil {
		return nil, err
	}
	size, err := f.Size()
	if err != nil {
		return nil, errors.Join(err, f.Close())
	}
	return &logFile{seq: n, name: name, f: newLocalFile(f), pages: uint32(min(size/pageSize, maxLogPages))}, nil
}

func numbersOf(names []string, prefix string) []uint64 {
	var numbers []uint64
	for _, name := range names {
		if n, ok := numberOf(prefix, name); ok {
			numbers = append(numbers, n)
		}
	}
	return numbers
}
