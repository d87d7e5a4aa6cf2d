package ntfs

import (
	"encoding/binary"
	"errors"
	"fmt"

	"lifeboat/guestfs"
)

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
