package xfs

import (
	"context"
	"encoding/binary"
	"errors"
	"fmt"
)

// A record holds operations: a header of 12 bytes (transaction, length, client,
// flags) and a piece of a transaction. A transaction is a header and items, an
// item is regions: the first says of which type it is and how many follow. A
// region that did not fit goes on in a later operation. What has no commit did
// not happen.
const (
	opBytes   = 12
	opFlags   = 9
	opStart   = 0x1
	opCommit  = 0x2
	opMore    = 0x4  // it goes on in the next operation
	opWasMore = 0x8  // it goes on with what the one before began
	opEnd     = 0x10 // of what went on

	clientTransaction = 0x69
	clientLog         = 0xaa

	transactionMagic = 0x5452414e // "TRAN"
	transactionHead  = 16

	maxRegions = 257
	// maxPending bounds what transactions take in memory before they are
	// committed, perRegion included. The kernel's own limit is 64 MiB.
	maxPending = 72 << 20
	perRegion  = 40
	maxOpen    = 1 << 12 // transactions
)

// item is what a transaction changed of one thing.
type item struct {
	total   int // regions
	regions [][]byte
}

func (i *item) kind() uint16 { return binary.LittleEndian.Uint16(i.regions[0]) }

// transaction is one that is being read.
type transaction struct {
	lsn   uint64
	head  int // bytes of its header that were seen
	items []item
	bytes int
}

// replayer goes through the log.
type replayer struct {
	log     *xlog
	open    map[uint32]*transaction
	pending int
	commit  func(*transaction) error
}

// overwritten says that a record near the tail was the victim of one at the head.
type overwritten struct{ at int64 }

func (o *overwritten) Error() string {
	return fmt.Sprintf("the record at sector %d of its log is torn", o.at)
}

// run hands over the transactions of all records from tail to head, in the order
// of their commits.
func (l *xlog) run(ctx context.Context, tail, head int64, commit func(*transaction) error) error {
	p := &replayer{log: l, open: map[uint32]*transaction{}, commit: commit}
	for at := tail; at != head; {
		r, data, err := l.read(ctx, at)
		if errors.Is(err, errTorn) {
			return errors.Join(&overwritten{at}, err)
		}
		if err != nil {
			return err
		}
		if err := l.ours(r); err != nil {
			return err
		}
		if l.distance(at, head) < r.header+r.sectors {
			return corrupt("the record at sector %d of its log reaches beyond the last one", at)
		}
		if err := p.operations(r, data); err != nil {
			return err
		}
		at = r.end(l.size)
	}
	return nil
}

// operations goes through those of one record.
func (p *replayer) operations(r *record, data []byte) error {
	be := binary.BigEndian
	for range r.ops {
		if len(data) == 0 {
			return nil
		}
		if len(data) < opBytes {
			return corrupt("the record at sector %d of its log ends in an operation", r.at)
		}
		id, n, client, flags := be.Uint32(data), be.Uint32(data[4:]), data[8], data[opFlags]
		data = data[opBytes:]
		if client != clientTransaction && client != clientLog || int64(n) > int64(len(data)) {
			return corrupt("an operation of %d bytes by %#x in the record at sector %d of its log", n, client, r.at)
		}
		if err := p.operation(id, flags, data[:n], r); err != nil {
			return err
		}
		data = data[n:]
	}
	return nil
}

func (p *replayer) operation(id uint32, flags byte, data []byte, r *record) error {
	t := p.open[id]
	if t == nil {
		if flags&opStart == 0 {
			return nil // it began before the tail
		}
		if len(p.open) >= maxOpen {
			return corrupt("its log holds %d transactions that do not end", maxOpen)
		}
		p.open[id] = &transaction{lsn: r.lsn}
		return nil
	}
	flags &^= opEnd
	if flags&opWasMore != 0 {
		flags &^= opMore
	}
	p.pending += len(data) + perRegion
	t.bytes += len(data) + perRegion
	if p.pending > maxPending {
		return fmt.Errorf("its log holds a transaction of more than %d MiB: %w", maxPending>>20, errUnsupported)
	}
	switch flags {
	case 0, opMore:
		return t.add(data)
	case opWasMore:
		return t.extend(data)
	case opCommit:
		p.pending -= t.bytes
		delete(p.open, id)
		return p.commit(t)
	case opUnmount:
		p.pending -= t.bytes
		delete(p.open, id)
		return nil
	}
	return corrupt("an operation with flags %#x in the record at sector %d of its log", flags, r.at)
}

// add takes a region over, or the header.
func (t *transaction) add(data []byte) error {
	if len(data) == 0 {
		return nil
	}
	if t.head < transactionHead {
		if len(data) > transactionHead || len(data) < 4 || binary.LittleEndian.Uint32(data) != transactionMagic {
			return corrupt("a transaction in its log has no header")
		}
		t.head = len(data)
		return nil
	}
	if len(t.items) == 0 || len(t.items[len(t.items)-1].regions) == t.items[len(t.items)-1].total {
		if len(data) < 4 {
			return corrupt("an item of %d bytes in its log", len(data))
		}
		total := int(binary.LittleEndian.Uint16(data[2:]))
		if total == 0 || total > maxRegions {
			return corrupt("an item of %d regions in its log", total)
		}
		t.items = append(t.items, item{total: total})
	}
	last := &t.items[len(t.items)-1]
	last.regions = append(last.regions, data[:len(data):len(data)])
	return nil
}

// extend goes on with the latest region, or the header.
func (t *transaction) extend(data []byte) error {
	if t.head < transactionHead {
		if t.head == 0 || t.head+len(data) > transactionHead {
			return corrupt("the header of a transaction in its log is of %d bytes", t.head+len(data))
		}
		t.head += len(data)
		return nil
	}
	if len(t.items) == 0 {
		return corrupt("a transaction in its log goes on with nothing")
	}
	last := &t.items[len(t.items)-1]
	region := &last.regions[len(last.regions)-1]
	*region = append(*region, data...)
	return nil
}
