package nfsserver

import (
	"encoding/binary"
	"errors"
	"fmt"
	"io"
)

const (
	minInput   = 64 << 10  // what an idle connection keeps, bytes
	wideInput  = 256 << 10 // what a busy one may read ahead, bytes
	shrinkWait = 64        // fills of little use before a large buffer is given back

	// maxFragments bounds the fragments of one record: honest clients send one
	// or two, and empty ones would otherwise be read for ever.
	maxFragments = 1024
)

// errRecord marks input that ends its connection: after a bad record mark
// there is no way to find the next record.
var errRecord = errors.New("malformed RPC record")

// recordReader cuts a byte stream into RPC records (RFC 5531 §11). A record of
// one fragment, which is nearly every record, is handed out in place; several
// fragments are joined in a second buffer. The buffers grow only as bytes
// really arrive, never because a record mark says so.
type recordReader struct {
	src  io.Reader
	max  int // largest record, bytes
	buf  []byte
	r, w int // buf[r:w] is input not yet handed out

	joined    []byte // fragments of the record being assembled
	fragments int    // how many of them
	handed    bool   // joined was handed out by the last next
	unused    int    // fills in a row that left a large buffer mostly empty
}

func newRecordReader(src io.Reader, maxRecord int) *recordReader {
	return &recordReader{src: src, max: maxRecord, buf: make([]byte, minInput)}
}

// next returns the next complete record that is in memory, or ok == false when
// more input is needed. The record is valid until the following fill or next.
func (rr *recordReader) next() (rec []byte, ok bool, err error) {
	if rr.handed {
		rr.joined, rr.fragments, rr.handed = rr.joined[:0], 0, false
	}
	for rr.w-rr.r >= 4 {
		mark := binary.BigEndian.Uint32(rr.buf[rr.r:])
		n := int(mark &^ lastFragment)
		if n > rr.max-len(rr.joined) {
			return nil, false, fmt.Errorf("%w: longer than %d bytes", errRecord, rr.max)
		}
		if rr.w-rr.r-4 < n {
			break
		}
		part := rr.buf[rr.r+4 : rr.r+4+n : rr.r+4+n]
		rr.r += 4 + n
		last := mark&lastFragment != 0
		if last && rr.fragments == 0 {
			return part, true, nil
		}
		rr.joined = append(rr.joined, part...)
		if rr.fragments++; rr.fragments > maxFragments {
			return nil, false, fmt.Errorf("%w: more than %d fragments", errRecord, maxFragments)
		}
		if last {
			rr.handed = true
			return rr.joined, true, nil
		}
	}
	return nil, false, nil
}

// fill reads once from the source, blocking until there is something.
func (rr *recordReader) fill() error {
	missing := rr.missing()
	rr.makeRoom(missing)
	room := rr.buf[rr.w:]
	if missing > minInput && missing < len(room) {
		// The rest of a large record and nothing more: what follows would have
		// to be moved out of the way of the next one.
		room = room[:missing]
	}
	n, err := rr.src.Read(room)
	rr.w += n
	rr.adapt(n == len(room))
	if n > 0 {
		return nil
	}
	if err == nil {
		err = io.ErrNoProgress
	}
	return err
}

// missing is how many bytes the fragment at the front of the input still needs.
func (rr *recordReader) missing() int {
	if rr.w-rr.r < 4 {
		return 4 - (rr.w - rr.r)
	}
	n := int(binary.BigEndian.Uint32(rr.buf[rr.r:]) &^ lastFragment)
	return 4 + n - (rr.w - rr.r)
}

// makeRoom sees to it that the read that follows has somewhere to go, if
// possible for all that is missing. The buffer at most doubles, so that a
// client has to send what it wants memory for.
func (rr *recordReader) makeRoom(missing int) {
	switch {
	case rr.r == rr.w:
		rr.r, rr.w = 0, 0
	case len(rr.buf)-rr.w < max(missing, minInput/4):
		rr.w = copy(rr.buf, rr.buf[rr.r:rr.w])
		rr.r = 0
	}
	if rr.w > len(rr.buf)/2 && len(rr.buf)-rr.w < missing {
		rr.resize(2 * len(rr.buf))
	}
}

// adapt grows the buffer of a client that fills it, and gives a large buffer
// back that is of little use any more.
func (rr *recordReader) adapt(filled bool) {
	switch {
	case filled && len(rr.buf) < wideInput:
		rr.resize(2 * len(rr.buf))
	case len(rr.buf) == minInput || rr.w-rr.r > minInput/2:
		rr.unused = 0
	default:
		rr.unused++
	}
	if rr.unused > shrinkWait {
		rr.resize(minInput)
		rr.unused = 0
		if rr.fragments == 0 {
			rr.joined = nil
		}
	}
}

func (rr *recordReader) resize(n int) {
	buf := make([]byte, n)
	rr.w = copy(buf, rr.buf[rr.r:rr.w])
	rr.r, rr.buf = 0, buf
}
