package overlay

import (
	"encoding/binary"
	"hash/crc32"
)

// The log record (docs/overlay-format.md): one page of header with up to
// recordRuns runs, then the payload pages of its data runs in order. Records
// start on pages. The checksum binds the overlay, the file, the file's epoch and
// the place in it, so that what a recycled file held before never passes for a
// record, and a torn record never for a whole one.
const (
	recordMagic  = "LBovrec1"
	recordFixed  = 64
	runSize      = 12
	recordRuns   = (pageSize - recordFixed) / runSize // 336
	recordPages  = 256                                // payload pages at most: 1 MiB
	maxRunLength = 1<<32 - 1                          // pages
	zeroRunFlag  = 1 << 63
)

// run is a run of pages of the disk in a record.
type run struct {
	page  int64
	count int64
	zero  bool // no payload: the pages read as zeros
}

// recordHeader is what stands before a record's payload.
type recordHeader struct {
	overlay uint64 // first half of the overlay's ID
	file    uint64 // number of the log file
	epoch   uint64 // random, one per use of a log file
	seq     uint64 // number of the record, without gaps from 1
	durable uint64 // all records up to this one were durable when it was written
	at      uint32 // page in the log file
	pages   int    // payload pages
	runs    []run
}

// seal writes the header into the first page of buf, which holds the payload
// behind it, and checksums the whole. len(buf) is the record's.
func (h *recordHeader) seal(buf []byte) {
	copy(buf, recordMagic)
	le := binary.LittleEndian
	le.PutUint16(buf[12:], uint16(len(h.runs)))
	le.PutUint16(buf[14:], uint16(h.pages))
	le.PutUint64(buf[16:], h.overlay)
	le.PutUint64(buf[24:], h.file)
	le.PutUint64(buf[32:], h.epoch)
	le.PutUint64(buf[40:], h.seq)
	le.PutUint64(buf[48:], h.durable)
	le.PutUint32(buf[56:], h.at)
	le.PutUint32(buf[60:], 0)
	p := buf[recordFixed:pageSize]
	for _, r := range h.runs {
		page := uint64(r.page)
		if r.zero {
			page |= zeroRunFlag
		}
		le.PutUint64(p, page)
		le.PutUint32(p[8:], uint32(r.count))
		p = p[runSize:]
	}
	clear(p)
	le.PutUint32(buf[8:], checksum(buf[12:]))
}

// checksum is CRC-32C, which protects every structure of the overlay.
func checksum(p []byte) uint32 { return crc32.Checksum(p, crc32.MakeTable(crc32.Castagnoli)) }

// parseHeader reads the header of a record of a disk of diskPages pages. It
// trusts nothing: a header that could not have been written is refused. The
// checksum is for intact to check, once the payload is there.
func parseHeader(p []byte, diskPages int64) (h recordHeader, ok bool) {
	if len(p) < pageSize || string(p[:8]) != recordMagic {
		return h, false
	}
	le := binary.LittleEndian
	runs := int(le.Uint16(p[12:]))
	h.pages = int(le.Uint16(p[14:]))
	if runs == 0 || runs > recordRuns || h.pages > recordPages {
		return h, false
	}
	h.overlay, h.file, h.epoch = le.Uint64(p[16:]), le.Uint64(p[24:]), le.Uint64(p[32:])
	h.seq, h.durable, h.at = le.Uint64(p[40:]), le.Uint64(p[48:]), le.Uint32(p[56:])
	h.runs = make([]run, 0, runs)
	payload := int64(0)
	for q := p[recordFixed:]; len(h.runs) < runs; q = q[runSize:] {
		first := le.Uint64(q)
		r := run{page: int64(first &^ zeroRunFlag), count: int64(le.Uint32(q[8:])), zero: first&zeroRunFlag != 0}
		if r.count == 0 || r.page > diskPages-r.count {
			return h, false
		}
		if !r.zero {
			payload += r.count
		}
		h.runs = append(h.runs, r)
	}
	return h, payload == int64(h.pages)
}

// size is the record's length in bytes, header and payload.
func (h *recordHeader) size() int { return (1 + h.pages) * pageSize }

// intact reports whether record, header and payload, is what seal wrote.
func intact(record []byte) bool {
	return binary.LittleEndian.Uint32(record[8:]) == checksum(record[12:])
}
