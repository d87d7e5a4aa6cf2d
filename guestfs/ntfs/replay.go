package ntfs

import (
	"context"
	"encoding/binary"

	"lifeboat/disk"
	"lifeboat/guestfs/internal/patch"
)

// Replaying does, in memory, what NTFS does when it mounts a volume that was not
// dismounted:
//
//  1. Analysis, from the last checkpoint to the end of the log: which pages may
//     not have been written (with the first change that they may lack), and which
//     transactions had not ended.
//  2. Redo, from the oldest of these changes: everything is done again, in order.
//     A record or block of an index has the LSN of its last change in it, and
//     what is not newer is left out; other content (bitmaps) may be written twice.
//  3. Undo: the changes of transactions that had not ended, from the last to the
//     first.
//
// Every record says at which clusters of the volume it applies, so neither needs
// a file system that is consistent.
type replayer struct {
	fs    *FS
	log   *log
	t     tables
	vol   scratch
	start uint64 // of analysis
	redo  uint64 // of redo; 0: nothing is to be done again

	undoing bool
	touched map[uint64]bool // records of the MFT that were changed
	changes int
	failed  error // the first change that could not be made
}

// maxLogRecords bounds how many records are read, as often as they are.
const maxLogRecords = 1 << 24

// newReplayer reads the last checkpoint; nil where there is none.
func (f *FS) newReplayer(img disk.Image, p *restartPage) (*replayer, error) {
	if p.checkpoint == 0 {
		return nil, nil
	}
	l, err := openLog(img, p)
	if err != nil {
		return nil, err
	}
	r := &replayer{fs: f, log: l, vol: scratch{fs: f, blocks: map[int64]patch.Block{}}, touched: map[uint64]bool{}}
	r.t = tables{
		perPage: max(1, p.pageSize/f.geo.cluster), attrs: map[uint16]openAttr{}, transactions: map[uint32]*transaction{}, pages: map[uint16]map[int64]*dirtyPage{},
	}
	return r, r.checkpoint(p.checkpoint)
}

// checkpoint reads the tables of a checkpoint.
func (r *replayer) checkpoint(lsn uint64) error {
	const header = 64
	le := binary.LittleEndian
	rec, err := r.log.record(lsn)
	if err != nil {
		return err
	}
	if rec == nil || rec.kind != lfsRestart || len(rec.data) < header {
		return corrupt("the log's last checkpoint is missing")
	}
	b := rec.data
	r.t.version = le.Uint32(b)
	if r.start = le.Uint64(b[8:]); r.start == 0 {
		r.start = lsn
	}
	for _, table := range []struct {
		lsn, length int
		load        func([]byte) error
	}{{16, 48, r.t.loadAttrs}, {40, 60, r.t.loadTransactions}, {32, 56, r.t.loadPages}} {
		if le.Uint32(b[table.length:]) == 0 {
			continue
		}
		dump, err := r.log.record(le.Uint64(b[table.lsn:]))
		if err != nil {
			return err
		}
		if dump == nil || len(dump.data) < actionHeader || int(le.Uint16(dump.data[4:])) > len(dump.data) {
			return corrupt("a table of the log's last checkpoint is missing")
		}
		if err := table.load(dump.data[le.Uint16(dump.data[4:]):]); err != nil {
			return err
		}
	}
	return nil
}

// each calls yield with all records of NTFS from one on, to the end of the log.
func (r *replayer) each(ctx context.Context, from uint64, yield func(*logRecord, *action) error) (last uint64, err error) {
	for range maxLogRecords {
		if ctx.Err() != nil {
			return 0, context.Cause(ctx)
		}
		rec, err := r.log.record(from)
		if err != nil {
			return 0, err
		}
		if rec == nil {
			return last, nil
		}
		if rec.next <= rec.lsn {
			return 0, corrupt("the log goes backwards")
		}
		last, from = rec.lsn, rec.next
		if rec.kind != lfsClient {
			continue
		}
		a, err := parseAction(rec.data)
		if err != nil {
			return 0, err
		}
		if err := yield(rec, a); err != nil {
			return 0, err
		}
	}
	return 0, corrupt("a log without an end")
}

// analyze brings the tables up to date.
func (r *replayer) analyze(ctx context.Context) error {
	first := uint64(0)
	last, err := r.each(ctx, r.start, func(rec *logRecord, a *action) error {
		if rec.lsn == r.start { // the tables know it
			return nil
		}
		if first == 0 {
			first = rec.lsn
		}
		return r.note(rec, a)
	})
	if err != nil {
		return err
	}
	if last == 0 {
		return corrupt("the log does not have the record that its last checkpoint begins at")
	}
	if err := r.log.checkEnd(last); err != nil {
		return err
	}
	r.redo = first
	for _, pages := range r.t.pages {
		for _, p := range pages {
			if p.oldest != 0 && (r.redo == 0 || p.oldest < r.redo) {
				r.redo = p.oldest
			}
		}
	}
	if r.t.count == 0 {
		r.redo = 0
	}
	return nil
}

// note takes a record into the tables.
func (r *replayer) note(rec *logRecord, a *action) error {
	t := r.t.transactions[rec.transaction]
	if t == nil {
		t = &transaction{active: true, first: rec.lsn}
		r.t.transactions[rec.transaction] = t
	}
	t.undoNext = rec.lsn
	if a.undoOp == opCompensation {
		t.undoNext = rec.undoNext
	}
	switch a.redoOp {
	case opDeleteDirtyClusters:
		return r.t.forget(a.redo)
	case opOpenAttr:
		attr, err := r.t.parseAttr(a.redo)
		r.t.attrs[a.attr] = attr
		return err
	case opHotFix:
		if p := r.t.page(a.attr, a.vcn); p != nil && len(a.lcns) > 0 && p.known(a.vcn) {
			p.lcns[a.vcn-p.vcn] = a.lcns[0]
		}
	case opEndTopLevel:
		t.undoNext = rec.undoNext
	case opPrepare, opCommit:
		t.active = false
	case opForget:
		delete(r.t.transactions, rec.transaction)
	case opNoop, opCompensation, opDumpAttrs, opDumpNames, opDumpPages, opDumpTransactions:
	default:
		if on, _ := operation(a.redoOp); on == onNothing {
			return unsupported("operation %#x in the log", a.redoOp)
		}
		return r.t.touch(a, rec.lsn)
	}
	return nil
}

// redoAll does everything again that may not have been written.
func (r *replayer) redoAll(ctx context.Context) error {
	if r.redo == 0 {
		return nil
	}
	_, err := r.each(ctx, r.redo, func(rec *logRecord, a *action) error {
		if on, _ := operation(a.redoOp); on == onNothing || len(a.lcns) == 0 {
			return nil
		}
		p := r.t.page(a.attr, a.vcn)
		if p == nil || rec.lsn < p.oldest || !p.known(a.vcn) {
			return nil // it was written; or the clusters are another file's by now
		}
		return r.apply(a, a.redoOp, a.redo, rec.lsn)
	})
	return err
}

// undoAll takes back what transactions did that had not ended.
func (r *replayer) undoAll(ctx context.Context) error {
	r.undoing = true
	for _, t := range r.t.transactions {
		for at := t.undoNext; t.active && at != 0; {
			if ctx.Err() != nil {
				return context.Cause(ctx)
			}
			rec, err := r.log.record(at)
			if err != nil {
				return err
			}
			if rec == nil || rec.undoNext >= at {
				return corrupt("the log does not have all of a transaction that had not ended")
			}
			a, err := parseAction(rec.data)
			if err != nil {
				return err
			}
			if on, _ := operation(a.undoOp); on != onNothing {
				if err := r.apply(a, a.undoOp, a.undo, 0); err != nil {
					return err
				}
			}
			at = rec.undoNext
		}
	}
	return nil
}
