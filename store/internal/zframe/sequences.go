package zframe

import "math/bits"

// sequence is some literals and then a match.
type sequence struct {
	lits  uint16 // number of literals
	match uint16 // length of the match, less 3
	off   uint16 // 1 to 3: a recent offset; else the offset and 3
}

// Distributions that every decoder knows (RFC 8878, 3.1.1.3.2.2).
var (
	defaultLL = [36]int16{4, 3, 2, 2, 2, 2, 2, 2, 2, 2, 2, 2, 2, 1, 1, 1, 2, 2, 2, 2, 2, 2, 2, 2, 2, 3, 2, 1, 1, 1, 1, 1, -1, -1, -1, -1}
	defaultML = [53]int16{
		1, 4, 3, 2, 2, 2, 2, 2, 2, 1, 1, 1, 1, 1, 1, 1, 1, 1, 1, 1, 1, 1, 1, 1, 1, 1, 1, 1, 1, 1, 1, 1,
		1, 1, 1, 1, 1, 1, 1, 1, 1, 1, 1, 1, 1, 1, -1, -1, -1, -1, -1, -1, -1,
	}
	defaultOF = [29]int16{1, 1, 1, 1, 1, 1, 2, 2, 2, 1, 1, 1, 1, 1, 1, 1, 1, 1, 1, 1, 1, 1, 1, 1, -1, -1, -1, -1, -1}
)

// Codes of short lengths; longer ones are the highest bit and a constant.
var (
	llCode = [64]uint8{
		0, 1, 2, 3, 4, 5, 6, 7, 8, 9, 10, 11, 12, 13, 14, 15, 16, 16, 17, 17, 18, 18, 19, 19, 20, 20, 20, 20, 21, 21, 21, 21,
		22, 22, 22, 22, 22, 22, 22, 22, 23, 23, 23, 23, 23, 23, 23, 23, 24, 24, 24, 24, 24, 24, 24, 24, 24, 24, 24, 24, 24, 24, 24, 24,
	}
	mlCode = [128]uint8{
		0, 1, 2, 3, 4, 5, 6, 7, 8, 9, 10, 11, 12, 13, 14, 15, 16, 17, 18, 19, 20, 21, 22, 23, 24, 25, 26, 27, 28, 29, 30, 31,
		32, 32, 33, 33, 34, 34, 35, 35, 36, 36, 36, 36, 37, 37, 37, 37, 38, 38, 38, 38, 38, 38, 38, 38, 39, 39, 39, 39, 39, 39, 39, 39,
		40, 40, 40, 40, 40, 40, 40, 40, 40, 40, 40, 40, 40, 40, 40, 40, 41, 41, 41, 41, 41, 41, 41, 41, 41, 41, 41, 41, 41, 41, 41, 41,
		42, 42, 42, 42, 42, 42, 42, 42, 42, 42, 42, 42, 42, 42, 42, 42, 42, 42, 42, 42, 42, 42, 42, 42, 42, 42, 42, 42, 42, 42, 42, 42,
	}
	llBits = [64]uint8{16: 1, 1, 1, 1, 2, 2, 3, 3, 4, 6, 7, 8, 9, 10, 11, 12, 13, 14, 15, 16}
	mlBits = [64]uint8{32: 1, 1, 1, 1, 2, 2, 3, 3, 4, 4, 5, 7, 8, 9, 10, 11, 12, 13, 14, 15, 16}
)

func literalsCode(n uint16) uint8 {
	if n < 64 {
		return llCode[n]
	}
	return uint8(bits.Len16(n)) - 1 + 19
}

func matchCode(n uint16) uint8 {
	if n < 128 {
		return mlCode[n]
	}
	return uint8(bits.Len16(n)) - 1 + 36
}

// Ways to describe a table.
const (
	tableDefault = 0
	tableRLE     = 1
	tableOwn     = 2
)

// appendSequences appends the sequences section.
func (e *Encoder) appendSequences(dst []byte) []byte {
	n := len(e.seqs)
	if n < 128 {
		dst = append(dst, byte(n))
	} else {
		dst = append(dst, byte(n>>8)+128, byte(n))
	}
	if n == 0 {
		return dst
	}
	var ll, of, ml [maxSymbols]uint32
	e.llCodes, e.ofCodes, e.mlCodes = e.llCodes[:0], e.ofCodes[:0], e.mlCodes[:0]
	for _, s := range e.seqs {
		l, o, m := literalsCode(s.lits), uint8(bits.Len16(s.off))-1, matchCode(s.match)
		ll[l]++
		of[o]++
		ml[m]++
		e.llCodes, e.ofCodes, e.mlCodes = append(e.llCodes, l), append(e.ofCodes, o), append(e.mlCodes, m)
	}
	modes := len(dst)
	dst = append(dst, 0)
	var l, o, m *coder
	var lm, om, mm byte
	l, lm, dst = e.table(dst, &e.ll, &e.defaults[0], &ll, n, 9)
	o, om, dst = e.table(dst, &e.of, &e.defaults[1], &of, n, 8)
	m, mm, dst = e.table(dst, &e.ml, &e.defaults[2], &ml, n, 9)
	dst[modes] = lm<<6 | om<<4 | mm<<2
	return e.appendBits(dst, l, o, m)
}

// table chooses how an alphabet is coded, and appends what the decoder must know
// of it.
func (e *Encoder) table(dst []byte, own, standard *coder, counts *[maxSymbols]uint32, total int, most uint) (*coder, byte, []byte) {
	used := maxSymbols
	for counts[used-1] == 0 {
		used--
	}
	log := min(most, max(uint(bits.Len(uint(total-1)))-min(2, uint(bits.Len(uint(total-1)))), 5, uint(bits.Len(uint(used)))+1))
	own.fit(counts, used, total, log)
	if own.single >= 0 {
		return own, tableRLE, append(dst, byte(own.single))
	}
	if total < 64 && used <= standard.used {
		return standard, tableDefault, dst
	}
	own.build()
	return own, tableOwn, own.appendNorms(dst)
}

// appendBits appends the sequences themselves, the last one first: the decoder
// reads from the end.
func (e *Encoder) appendBits(dst []byte, l, o, m *coder) []byte {
	w := &e.bits
	last := len(e.seqs) - 1
	ls, os, ms := l.begin(e.llCodes[last]), o.begin(e.ofCodes[last]), m.begin(e.mlCodes[last])
	for i := last; i >= 0; i-- {
		s, lc, oc, mc := e.seqs[i], e.llCodes[i], e.ofCodes[i], e.mlCodes[i]
		if i < last {
			os = o.encode(w, os, oc)
			ms = m.encode(w, ms, mc)
			ls = l.encode(w, ls, lc)
		}
		lb, mb := uint(llBits[lc&63]), uint(mlBits[mc&63])
		w.add(uint64(s.lits)&(1<<lb-1), lb)
		dst = w.drain(dst)
		w.add(uint64(s.match)&(1<<mb-1), mb)
		w.add(uint64(s.off)&(1<<oc-1), uint(oc))
		dst = w.drain(dst)
	}
	w.add(uint64(ms)&(1<<m.width()-1), m.width())
	w.add(uint64(os)&(1<<o.width()-1), o.width())
	w.add(uint64(ls)&(1<<l.width()-1), l.width())
	w.add(1, 1)
	return w.finish(dst)
}

// width is the size of a state in bits.
func (c *coder) width() uint {
	if c.single >= 0 {
		return 0
	}
	return c.log
}

// encode writes what the decoder needs to come from the state before to the one
// that s stands for.
func (c *coder) encode(w *bitWriter, state uint32, s uint8) uint32 {
	if c.single >= 0 {
		return 0
	}
	t := &c.tt[s]
	n := (state + t.bits) >> 16
	w.add(uint64(state)&(1<<n-1), uint(n))
	return uint32(c.states[(int32(state>>n)+t.state)&(1<<maxLog-1)])
}
