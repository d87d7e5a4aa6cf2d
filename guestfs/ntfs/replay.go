package ntfs

import (
	"context"
	"encoding/binary"
	"errors"
	"fmt"

	"lifeboat/disk"
	"lifeboat/guestfs"
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

// apply makes a change. One that does not fit is noted, and the rest goes on:
// what it was for cannot be read, or will be checked.
func (r *replayer) apply(a *action, op uint16, data []byte, lsn uint64) error {
	on, do := operation(op)
	var err error
	switch on {
	case onRecord:
		err = r.applyRecord(a, op, do, data, lsn)
	case onBlock:
		err = r.applyBlock(a, do, data, lsn)
	case onBytes:
		err = r.applyBytes(a, op, data)
	}
	if errors.Is(err, guestfs.ErrCorrupt) && len(r.vol.blocks) < maxScratch {
		if r.failed == nil {
			r.failed = fmt.Errorf("change %#x: %w", lsn, err)
		}
		return nil
	}
	return err
}

// touch notes that a file was changed.
func (r *replayer) touch(number uint64) {
	r.touched[number] = true
	r.changes++
}

// offset is where in its attribute the target of a change begins.
func (r *replayer) offset(a *action) int64 { return a.vcn*r.fs.geo.cluster + a.blockAt*stride }

// access copies between p and what an attribute has at off. Clusters that are no
// longer the attribute's are left out of writing, and read as zeros.
func (r *replayer) access(a *action, p []byte, off int64, write bool) error {
	cluster := r.fs.geo.cluster
	if !write {
		clear(p)
	}
	for len(p) > 0 {
		vcn := off / cluster
		n := min(int64(len(p)), (vcn+1)*cluster-off)
		var lcn uint64
		if page := r.t.page(a.attr, vcn); page != nil {
			lcn = page.lcns[vcn-page.vcn]
		}
		if i := vcn - a.vcn; lcn == 0 && r.undoing && i < int64(len(a.lcns)) {
			lcn = a.lcns[i] // the page was written before the checkpoint
		}
		switch {
		case lcn == gone:
		case lcn >= uint64(r.fs.geo.clusters):
			return cannot("it is behind the end of the volume")
		case lcn != 0:
			if err := r.vol.access(p[:n], int64(lcn)*cluster+off%cluster, write); err != nil {
				return err
			}
		}
		p, off = p[n:], off+n
	}
	return nil
}

// applyRecord changes a record of the MFT.
func (r *replayer) applyRecord(a *action, op uint16, do change, data []byte, lsn uint64) error {
	b := make([]byte, r.fs.geo.recordSize)
	off := r.offset(a)
	if err := r.access(a, b, off, false); err != nil {
		return err
	}
	number := uint64(off) / uint64(len(b))
	_, err := parseRecord(number, b)
	switch {
	case err == nil && lsn != 0 && binary.LittleEndian.Uint64(b[8:]) >= lsn:
		return nil // it was written
	case err != nil && op != opInitRecord:
		return err
	case err != nil: // it was never written, or torn; now it is written whole
		clear(b)
	}
	if err := do(b, a, data); err != nil {
		return fmt.Errorf("record %d: %w", number, err)
	}
	if lsn != 0 {
		binary.LittleEndian.PutUint64(b[8:], lsn)
	}
	if err := refix(b); err != nil {
		return fmt.Errorf("record %d: %w", number, err)
	}
	r.touch(number)
	return r.access(a, b, off, true)
}

// applyBlock changes a block of an index.
func (r *replayer) applyBlock(a *action, do change, data []byte, lsn uint64) error {
	off := r.offset(a) + int64(a.recordAt)
	head := make([]byte, 8)
	if err := r.access(a, head, off, false); err != nil {
		return err
	}
	size := (int(binary.LittleEndian.Uint16(head[6:])) - 1) * stride
	if string(head[:4]) != "INDX" || size < stride || size > maxRecord {
		return cannot("a block of an index begins with something else")
	}
	b := make([]byte, size)
	if err := r.access(a, b, off, false); err != nil {
		return err
	}
	if err := unfix(b); err != nil {
		return fmt.Errorf("a block of an index: %w", err)
	}
	if lsn != 0 && binary.LittleEndian.Uint64(b[8:]) >= lsn {
		return nil // it was written
	}
	if err := do(b, a, data); err != nil {
		return err
	}
	if lsn != 0 {
		binary.LittleEndian.PutUint64(b[8:], lsn)
	}
	if err := refix(b); err != nil {
		return err
	}
	r.touch(r.t.attrs[a.attr].record)
	return r.access(a, b, off, true)
}

// applyBytes changes content that is not made of records.
func (r *replayer) applyBytes(a *action, op uint16, data []byte) error {
	off := r.offset(a) + int64(a.recordAt)
	r.touch(r.t.attrs[a.attr].record)
	if op == opNonresidentValue {
		if r.t.attrs[a.attr].kind == attrIndexAlloc {
			return r.applyIndexBytes(a, off, data)
		}
		return r.access(a, data, off, true)
	}
	if len(data) < 8 {
		return cannot("a range of bits")
	}
	from, n := int64(binary.LittleEndian.Uint32(data)), int64(binary.LittleEndian.Uint32(data[4:]))
	if from+n > 8*int64(maxRecord) {
		return cannot("a range of bits")
	}
	first := from / 8
	b := make([]byte, (from+n+7)/8-first)
	if err := r.access(a, b, off+first, false); err != nil {
		return err
	}
	for i := from; i < from+n; i++ {
		if mask := byte(1) << (i % 8); op == opSetBits {
			b[i/8-first] |= mask
		} else {
			b[i/8-first] &^= mask
		}
	}
	return r.access(a, b, off+first, true)
}

// applyIndexBytes writes to a block of an index, or all of one. What is logged
// is the block as it is in memory, without its update sequence.
func (r *replayer) applyIndexBytes(a *action, off int64, data []byte) error {
	start := r.offset(a)
	size := int64(r.fs.geo.blockSize)
	if len(data) >= 8 && off == start && string(data[:4]) == "INDX" {
		size = (int64(binary.LittleEndian.Uint16(data[6:])) - 1) * stride
	}
	if size < stride || size > maxRecord || off-start+int64(len(data)) > size {
		return cannot("a block of an index")
	}
	b := make([]byte, size)
	if err := r.access(a, b, start, false); err != nil {
		return err
	}
	if string(b[:4]) != "INDX" || unfix(b) != nil {
		if off != start {
			return cannot("a block of an index begins with something else")
		}
		clear(b)
	}
	copy(b[off-start:], data)
	if err := refix(b); err != nil {
		return err
	}
	return r.access(a, b, start, true)
}

// refix is fix for what the log says.
func refix(b []byte) error {
	at, count := int(binary.LittleEndian.Uint16(b[4:])), int(binary.LittleEndian.Uint16(b[6:]))
	if count != len(b)/stride+1 || at < 8 || at%2 != 0 || at+2*count > len(b) {
		return cannot("its update sequence")
	}
	fix(b)
	return nil
}
