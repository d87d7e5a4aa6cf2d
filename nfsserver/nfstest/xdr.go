package nfstest

import (
	"encoding/binary"
	"errors"
)

// Enc is XDR being written: e = e.U32(1).Str("x").
type Enc []byte

// U32 appends words.
func (e Enc) U32(vs ...uint32) Enc {
	for _, v := range vs {
		e = binary.BigEndian.AppendUint32(e, v)
	}
	return e
}

// U64 appends double words.
func (e Enc) U64(vs ...uint64) Enc {
	for _, v := range vs {
		e = binary.BigEndian.AppendUint64(e, v)
	}
	return e
}

// Bytes appends variable-length opaque data.
func (e Enc) Bytes(b []byte) Enc { return e.U32(uint32(len(b))).Fixed(b) }

// Fixed appends fixed-length opaque data.
func (e Enc) Fixed(b []byte) Enc {
	e = append(e, b...)
	return append(e, make([]byte, (4-len(b)%4)%4)...)
}

// Str appends a string.
func (e Enc) Str(s string) Enc { return e.Bytes([]byte(s)) }

// Opt32 appends an optional word.
func (e Enc) Opt32(v *uint32) Enc {
	if v == nil {
		return e.U32(0)
	}
	return e.U32(1, *v)
}

// Dec is XDR being read. After the first error everything reads as zero.
type Dec struct {
	B   []byte
	bad bool
}

// Err reports whether something did not fit.
func (d *Dec) Err() error {
	if d.bad {
		return errors.New("nfstest: reply too short")
	}
	return nil
}

// End reports an error also if something is left over.
func (d *Dec) End() error {
	if len(d.B) > 0 {
		return errors.New("nfstest: reply too long")
	}
	return d.Err()
}

func (d *Dec) take(n int) []byte {
	if n < 0 || n > len(d.B) {
		d.bad, d.B = true, nil
		return nil
	}
	v := d.B[:n]
	d.B = d.B[n:]
	return v
}

// U32 reads a word.
func (d *Dec) U32() uint32 {
	if v := d.take(4); v != nil {
		return binary.BigEndian.Uint32(v)
	}
	return 0
}

// U64 reads a double word.
func (d *Dec) U64() uint64 {
	if v := d.take(8); v != nil {
		return binary.BigEndian.Uint64(v)
	}
	return 0
}

// Bool reads a bool.
func (d *Dec) Bool() bool {
	v := d.U32()
	if v > 1 {
		d.bad = true
	}
	return v == 1
}

// Opaque reads variable-length opaque data. The padding must be there, and zero.
func (d *Dec) Opaque() []byte {
	n := int(d.U32())
	v := d.take(n)
	for _, b := range d.take((4 - n%4) % 4) {
		if b != 0 {
			d.bad = true
		}
	}
	return v
}

// Str reads a string.
func (d *Dec) Str() string { return string(d.Opaque()) }
