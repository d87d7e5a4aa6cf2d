package nfsserver

import "encoding/binary"

// decoder reads XDR (RFC 4506) from the front of a record, in place. The first
// thing that does not fit sets bad, and everything after that reads as zero, so
// that a procedure decodes all of its arguments and asks once. No length in the
// input is used before it was compared with what is there and with the bound
// that the caller gives: nothing here allocates.
type decoder struct {
	b   []byte
	bad bool
}

func (d *decoder) u32() uint32 {
	if len(d.b) < 4 {
		d.fail()
		return 0
	}
	v := binary.BigEndian.Uint32(d.b)
	d.b = d.b[4:]
	return v
}

func (d *decoder) u64() uint64 {
	if len(d.b) < 8 {
		d.fail()
		return 0
	}
	v := binary.BigEndian.Uint64(d.b)
	d.b = d.b[8:]
	return v
}

// boolean accepts 0 and 1 and nothing else.
func (d *decoder) boolean() bool {
	v := d.u32()
	if v > 1 {
		d.fail()
	}
	return v == 1
}

// opaque reads variable-length opaque data of at most limit bytes; the result
// aliases the record.
func (d *decoder) opaque(limit int) []byte {
	n := d.u32()
	if int64(n) > int64(limit) {
		d.fail()
		return nil
	}
	return d.fixed(int(n))
}

// fixed reads n bytes of opaque data and its padding. The last item of a record
// may come without its padding: some clients leave it out.
func (d *decoder) fixed(n int) []byte {
	if n < 0 || n > len(d.b) {
		d.fail()
		return nil
	}
	v := d.b[:n:n]
	d.b = d.b[min(n+pad(n), len(d.b)):]
	return v
}

func (d *decoder) fail() { d.b, d.bad = nil, true }

// pad is the number of bytes that bring n to a multiple of four.
func pad(n int) int { return -n & 3 }

func appendU32(b []byte, v uint32) []byte { return binary.BigEndian.AppendUint32(b, v) }

func appendU64(b []byte, v uint64) []byte { return binary.BigEndian.AppendUint64(b, v) }

func appendBool(b []byte, v bool) []byte {
	if v {
		return appendU32(b, 1)
	}
	return appendU32(b, 0)
}

func appendOpaque[T ~[]byte | ~string](b []byte, v T) []byte {
	b = appendU32(b, uint32(len(v)))
	b = append(b, v...)
	return appendPad(b, len(v))
}

// appendPad appends the padding that belongs after n bytes of opaque data.
func appendPad(b []byte, n int) []byte {
	for range pad(n) {
		b = append(b, 0)
	}
	return b
}

func putU32(b []byte, v uint32) { binary.BigEndian.PutUint32(b, v) }
