package btrfs

import "errors"

var errLZO = errors.New("not as LZO writes it")

// lzo decodes LZO1X (the kernel's Documentation/staging/lzo.rst) into out. What it
// leaves empty stays as it is.
//
// An instruction is a byte and what follows it. It copies a run from what was
// decoded, and then up to three bytes as they stand, whose number is in the two
// lowest bits of the last byte of the distance. Instructions below 16 depend on
// how many bytes were copied as they stand before.
func lzo(out, in []byte) error {
	d := lzoDecoder{in: in, out: out}
	literals := 0 // how many the instruction before copied as they stand; 4: many
	if len(in) > 0 && in[0] > 17 {
		d.next()
		literals = int(in[0]) - 17
		if err := d.literal(literals); err != nil {
			return err
		}
		literals = min(literals, 4)
	}
	for {
		c := d.next()
		var length, distance, more int
		switch {
		case c >= 64: // 1 M M M D D D S, or 0 1 M D D D S S…: length 3 to 8
			length = c>>5 + 1
			distance = d.next()<<3 + c>>2&7 + 1
			more = c & 3
		case c >= 32:
			length = d.length(c&31, 31) + 2
			v := d.next() | d.next()<<8
			distance, more = v>>2+1, v&3
		case c >= 16:
			length = d.length(c&7, 7) + 2
			v := d.next() | d.next()<<8
			distance, more = (c&8)<<11+v>>2, v&3
			if distance == 0 { // the end
				if d.bad || length != 3 {
					return errLZO
				}
				return nil
			}
			distance += 0x4000
		case literals == 0: // a long run as it stands
			if err := d.literal(d.length(c, 15) + 3); err != nil {
				return err
			}
			literals = 4
			continue
		case literals < 4:
			length, distance, more = 2, d.next()<<2+c>>2+1, c&3
		default:
			length, distance, more = 3, d.next()<<2+c>>2+0x801, c&3
		}
		if err := d.copy(length, distance); err != nil {
			return err
		}
		if err := d.literal(more); err != nil {
			return err
		}
		literals = more
	}
}

type lzoDecoder struct {
	in, out []byte
	n       int // decoded
	bad     bool
}

// next is the next byte; where there is none, all that follows is wrong.
func (d *lzoDecoder) next() int {
	if len(d.in) == 0 {
		d.bad = true
		return 0
	}
	c := d.in[0]
	d.in = d.in[1:]
	return int(c)
}

// length is a length of few bits; 0 stands for the sum of what follows.
func (d *lzoDecoder) length(n, most int) int {
	if n > 0 {
		return n
	}
	for n = most; !d.bad; n += 255 {
		if c := d.next(); c != 0 {
			return n + c
		}
	}
	return n
}

func (d *lzoDecoder) literal(n int) error {
	if d.bad || n > len(d.in) || n > len(d.out)-d.n {
		return errLZO
	}
	copy(d.out[d.n:], d.in[:n])
	d.in = d.in[n:]
	d.n += n
	return nil
}

// copy repeats what was decoded, which may be what it is decoding.
func (d *lzoDecoder) copy(n, distance int) error {
	if d.bad || distance > d.n || n > len(d.out)-d.n {
		return errLZO
	}
	from := d.out[d.n-distance:]
	to := d.out[d.n : d.n+n]
	if distance >= n {
		copy(to, from)
	} else {
		for i := range to {
			to[i] = from[i]
		}
	}
	d.n += n
	return nil
}
