package nfstest

import (
	"encoding/binary"
	"errors"
	"fmt"
	"net"
)

// Load is a client that costs as little as possible, for measuring servers: it
// keeps Depth calls of one kind in flight on one connection, encodes each by
// patching a template, writes what became due in one go, and looks at replies
// only as far as to see that they are successes.
type Load struct {
	Conn  net.Conn
	Depth int
	// Call is a whole record, as from Record. The xid is patched.
	Call []byte
	// Patch, if set, changes call i before it is sent; rec is the record.
	Patch func(rec []byte, i int)
	// Bare: results do not begin with an nfsstat3 (NULL).
	Bare bool

	in []byte
}

// Run performs n calls.
func (l *Load) Run(n int) error {
	if l.in == nil {
		l.in = make([]byte, 2<<20+64<<10)
	}
	sent, received := 0, 0
	out := l.send(nil, &sent, min(n, l.Depth))
	r, w := 0, 0
	for received < n {
		if len(out) > 0 {
			if _, err := l.Conn.Write(out); err != nil {
				return err
			}
		}
		k, err := l.Conn.Read(l.in[w:])
		if err != nil {
			return err
		}
		w += k
		got, err := l.take(&r, w)
		if err != nil {
			return err
		}
		received += got
		w = copy(l.in, l.in[r:w])
		r = 0
		out = l.send(out[:0], &sent, min(got, n-sent))
	}
	return nil
}

func (l *Load) send(out []byte, sent *int, count int) []byte {
	for range count {
		binary.BigEndian.PutUint32(l.Call[4:], uint32(*sent))
		if l.Patch != nil {
			l.Patch(l.Call, *sent)
		}
		out = append(out, l.Call...)
		*sent++
	}
	return out
}

// take consumes the complete replies in l.in[*r:w].
func (l *Load) take(r *int, w int) (n int, err error) {
	for w-*r >= 4 {
		size := int(binary.BigEndian.Uint32(l.in[*r:]) &^ (1 << 31))
		if size+4 > len(l.in) {
			return n, errors.New("nfstest: reply larger than the buffer")
		}
		if w-*r < size+4 {
			break
		}
		rec := l.in[*r+4 : *r+4+size]
		if len(rec) < 24 || binary.BigEndian.Uint32(rec[20:]) != 0 || (!l.Bare && binary.BigEndian.Uint32(rec[24:]) != 0) {
			return n, fmt.Errorf("nfstest: call failed: % x", rec[:min(len(rec), 32)])
		}
		*r += 4 + size
		n++
	}
	return n, nil
}
