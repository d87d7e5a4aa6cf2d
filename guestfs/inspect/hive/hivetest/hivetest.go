// Package hivetest makes small registry hives, for tests.
package hivetest

import (
	"encoding/binary"
	"slices"
	"strings"
	"unicode/utf16"
)

// Value is a value of a key.
type Value struct {
	Key  string // path from the root, with backslashes
	Name string
	Type uint32
	Data []byte
}

// Text is a value of text.
func Text(key, name, text string) Value { return Value{key, name, 1, utf16le(text + "\x00")} }

// Number is a value of 32 bits.
func Number(key, name string, n uint32) Value {
	return Value{key, name, 4, binary.LittleEndian.AppendUint32(nil, n)}
}

func utf16le(s string) []byte {
	var b []byte
	for _, c := range utf16.Encode([]rune(s)) {
		b = binary.LittleEndian.AppendUint16(b, c)
	}
	return b
}

const (
	baseSize = 4096
	binSize  = 4096
	none     = 0xffffffff
	segment  = 16344
)

// Make makes a hive, version 1.5, whose two sequence numbers are sequence.
func Make(sequence uint32, values ...Value) []byte {
	w := &writer{b: make([]byte, baseSize+32)}
	root := w.key("ROOT", tree(values))
	size := (len(w.b) - baseSize + binSize - 1) / binSize * binSize
	if rest := baseSize + size - len(w.b); rest >= 8 {
		at := len(w.b)
		w.b = append(w.b, make([]byte, rest)...)
		binary.LittleEndian.PutUint32(w.b[at:], uint32(rest)) // a free cell
	}
	le := binary.LittleEndian
	copy(w.b[baseSize:], "hbin")
	le.PutUint32(w.b[baseSize+8:], uint32(size))
	copy(w.b, "regf")
	for at, v := range map[int]uint32{4: sequence, 8: sequence, 20: 1, 24: 5, 32: 1, 36: root, 40: uint32(size), 44: 1} {
		le.PutUint32(w.b[at:], v)
	}
	Seal(w.b)
	return w.b
}

// Seal makes the checksum of a header anew.
func Seal(base []byte) {
	le := binary.LittleEndian
	var sum uint32
	for at := 0; at < 508; at += 4 {
		sum ^= le.Uint32(base[at:])
	}
	switch sum {
	case 0:
		sum = 1
	case 0xffffffff:
		sum = 0xfffffffe
	}
	le.PutUint32(base[508:], sum)
}

// node is a key while the tree is put together.
type node struct {
	names  []string
	below  map[string]*node
	values []Value
}

func tree(values []Value) *node {
	root := &node{below: map[string]*node{}}
	for _, v := range values {
		n := root
		for part := range strings.SplitSeq(v.Key, `\`) {
			if n.below[part] == nil {
				n.below[part] = &node{below: map[string]*node{}}
				n.names = append(n.names, part)
			}
			n = n.below[part]
		}
		n.values = append(n.values, v)
	}
	return root
}

type writer struct{ b []byte }

// cell adds a cell and returns its offset.
func (w *writer) cell(data []byte) uint32 {
	at := uint32(len(w.b) - baseSize)
	size := (len(data) + 4 + 7) &^ 7
	w.b = binary.LittleEndian.AppendUint32(w.b, uint32(-size))
	w.b = append(append(w.b, data...), make([]byte, size-4-len(data))...)
	return at
}

func (w *writer) key(name string, n *node) uint32 {
	le := binary.LittleEndian
	b := make([]byte, 76, 76+len(name))
	copy(b, "nk")
	le.PutUint16(b[2:], 0x20)
	for _, at := range []int{28, 32, 40, 44, 48} {
		le.PutUint32(b[at:], none)
	}
	if len(n.names) > 0 {
		slices.SortFunc(n.names, func(a, b string) int { return strings.Compare(strings.ToUpper(a), strings.ToUpper(b)) })
		list := le.AppendUint16([]byte("lh"), uint16(len(n.names)))
		for _, name := range n.names {
			list = le.AppendUint32(le.AppendUint32(list, w.key(name, n.below[name])), 0)
		}
		le.PutUint32(b[20:], uint32(len(n.names)))
		le.PutUint32(b[28:], w.cell(list))
	}
	if len(n.values) > 0 {
		var list []byte
		for _, v := range n.values {
			list = le.AppendUint32(list, w.value(v))
		}
		le.PutUint32(b[36:], uint32(len(n.values)))
		le.PutUint32(b[40:], w.cell(list))
	}
	le.PutUint16(b[72:], uint16(len(name)))
	return w.cell(append(b, name...))
}

func (w *writer) value(v Value) uint32 {
	le := binary.LittleEndian
	b := make([]byte, 20, 20+len(v.Name))
	copy(b, "vk")
	le.PutUint16(b[2:], uint16(len(v.Name)))
	size := uint32(len(v.Data))
	switch {
	case size <= 4:
		copy(b[8:12], v.Data)
		size |= 1 << 31
	case size > segment:
		le.PutUint32(b[8:], w.big(v.Data))
	default:
		le.PutUint32(b[8:], w.cell(v.Data))
	}
	le.PutUint32(b[4:], size)
	le.PutUint32(b[12:], v.Type)
	le.PutUint16(b[16:], 1)
	return w.cell(append(b, v.Name...))
}

func (w *writer) big(data []byte) uint32 {
	le := binary.LittleEndian
	var list []byte
	n := 0
	for part := range slices.Chunk(data, segment) {
		list = le.AppendUint32(list, w.cell(part))
		n++
	}
	b := le.AppendUint16([]byte("db"), uint16(n))
	return w.cell(le.AppendUint32(b, w.cell(list)))
}

// Log makes a log (of Windows 8.1 and later) of transactions that turn before
// into each of after, in order. hash is Marvin32.
func Log(first uint32, hash func([]byte) uint64, before []byte, after ...[]byte) []byte {
	le := binary.LittleEndian
	log := append([]byte(nil), before[:512]...)
	le.PutUint32(log[4:], first)
	le.PutUint32(log[8:], first)
	le.PutUint32(log[28:], 6)
	Seal(log)
	for i, next := range after {
		var refs, pages []byte
		for at := baseSize; at < len(next); at += 4096 {
			page := next[at : at+4096]
			if at+4096 <= len(before) && string(page) == string(before[at:at+4096]) {
				continue
			}
			refs = le.AppendUint32(le.AppendUint32(refs, uint32(at-baseSize)), 4096)
			pages = append(pages, page...)
		}
		e := make([]byte, 40, 40+len(refs)+len(pages))
		e = append(append(e, refs...), pages...)
		e = append(e, make([]byte, (512-len(e)%512)%512)...)
		copy(e, "HvLE")
		for at, v := range map[int]uint32{4: uint32(len(e)), 12: first + uint32(i), 16: uint32(len(next) - baseSize), 20: uint32(len(refs) / 8)} {
			le.PutUint32(e[at:], v)
		}
		le.PutUint64(e[24:], hash(e[40:]))
		le.PutUint64(e[32:], hash(e[:32]))
		log = append(log, e...)
		before = next
	}
	return log
}
