// Package hive reads values of Windows registry hives. A hive of a machine that
// was running is not whole without its logs: what they hold is applied, in memory.
//
// The format is described in "Windows registry file format specification" by
// Maxim Suhanov. Everything is checked against the size of the hive; nothing
// recurses, and no list is longer than a limit.
package hive

import (
	"encoding/binary"
	"errors"
	"fmt"
	"io/fs"
	"strings"
	"unicode/utf16"
)

const (
	baseSize = 4096 // of the header
	maxList  = 1 << 16
	maxDepth = 64 // keys in a path
	maxKeys  = 1 << 20
	// maxValue bounds what is read of a value, in bytes.
	maxValue = 1 << 20
	noCell   = 0xffffffff
)

// ErrFormat says that it is no hive, or a damaged one.
var ErrFormat = errors.New("not a registry hive, or a damaged one")

func bad(format string, args ...any) error {
	return fmt.Errorf("%w: %s", ErrFormat, fmt.Sprintf(format, args...))
}

// Hive is a registry hive in memory. It is immutable.
type Hive struct {
	cells []byte // what follows the header: cells, whose offsets count from here
	root  uint32
	// Replayed says that changes were taken from the logs; Dirty that there are
	// some which could not be.
	Replayed, Dirty bool
}

// Open reads a hive, and its logs (.LOG, or .LOG1 and .LOG2) where there are any.
// It keeps the memory that it is given.
func Open(data []byte, logs ...[]byte) (*Hive, error) {
	if len(data) < baseSize || string(data[:4]) != "regf" {
		return nil, ErrFormat
	}
	h := &Hive{}
	if dirty(data) {
		data = append([]byte(nil), data...)
		var ok bool
		data, ok = replay(data, logs)
		h.Replayed, h.Dirty = ok, !ok
	}
	h.cells, h.root = data[baseSize:], u32(data, 36)
	if _, err := h.key(h.root); err != nil {
		return nil, err
	}
	return h, nil
}

// dirty reports whether a hive was written when it was copied: its two sequence
// numbers differ, or its header is torn.
func dirty(base []byte) bool { return u32(base, 4) != u32(base, 8) || !sumOK(base) }

// sumOK checks the header: the XOR of all words before the sum.
func sumOK(base []byte) bool {
	var sum uint32
	for at := 0; at < 508; at += 4 {
		sum ^= u32(base, at)
	}
	switch sum {
	case 0:
		sum = 1
	case 0xffffffff:
		sum = 0xfffffffe
	}
	return sum == u32(base, 508)
}

func u16(b []byte, at int) uint16 { return binary.LittleEndian.Uint16(b[at:]) }
func u32(b []byte, at int) uint32 { return binary.LittleEndian.Uint32(b[at:]) }

// cell is the content of an allocated cell, of at least n bytes.
func (h *Hive) cell(at uint32, n int) ([]byte, error) {
	off := int64(at)
	if at == noCell || off+4 > int64(len(h.cells)) {
		return nil, bad("a cell at %#x", at)
	}
	size := -int64(int32(u32(h.cells, int(at))))
	if size < int64(4+n) || off+size > int64(len(h.cells)) {
		return nil, bad("a cell of %d bytes at %#x", size, at)
	}
	return h.cells[off+4 : off+size], nil
}

// Fields of a key node.
const (
	nkFlags    = 2
	nkSubkeys  = 20
	nkSubList  = 28
	nkValues   = 36
	nkValList  = 40
	nkNameLen  = 72
	nkName     = 76
	nkASCII    = 0x20
	vkNameLen  = 2
	vkSize     = 4
	vkData     = 8
	vkType     = 12
	vkFlags    = 16
	vkName     = 20
	vkASCII    = 1
	vkInline   = 1 << 31
	bigSegment = 16344
)

func (h *Hive) key(at uint32) ([]byte, error) {
	b, err := h.cell(at, nkName)
	if err != nil {
		return nil, err
	}
	if b[0] != 'n' || b[1] != 'k' || nkName+int(u16(b, nkNameLen)) > len(b) {
		return nil, bad("a key at %#x", at)
	}
	return b, nil
}

// name decodes a name, which is in Latin-1 or UTF-16.
func name(b []byte, latin bool) string {
	if latin {
		r := make([]rune, len(b))
		for i, c := range b {
			r[i] = rune(c)
		}
		return string(r)
	}
	return UTF16(b)
}

// UTF16 decodes little-endian UTF-16, up to the first zero.
func UTF16(b []byte) string {
	var u []uint16
	for ; len(b) >= 2; b = b[2:] {
		c := u16(b, 0)
		if c == 0 {
			break
		}
		u = append(u, c)
	}
	return string(utf16.Decode(u))
}

// subkeys yields the cells of a key's subkeys, until one is taken.
func (h *Hive) subkeys(list uint32, depth int, take func(at uint32) (bool, error)) (done bool, err error) {
	b, err := h.cell(list, 4)
	if err != nil {
		return true, err
	}
	kind, n := string(b[:2]), int(u16(b, 2))
	step := 4
	if kind == "lf" || kind == "lh" {
		step = 8
	} else if kind != "li" && kind != "ri" {
		return true, bad("a list of keys at %#x", list)
	}
	if 4+n*step > len(b) {
		return true, bad("a list of %d keys at %#x", n, list)
	}
	for i := range n {
		at := u32(b, 4+i*step)
		if kind == "ri" {
			if depth > 0 {
				return true, bad("a list of lists of lists at %#x", list)
			}
			done, err = h.subkeys(at, depth+1, take)
		} else {
			done, err = take(at)
		}
		if done || err != nil {
			return true, err
		}
	}
	return false, nil
}

// find walks a path of keys, separated by backslashes, without case.
func (h *Hive) find(path string) ([]byte, error) {
	at := h.root
	parts := strings.Split(path, `\`)
	if len(parts) > maxDepth {
		return nil, bad("a path of %d keys", len(parts))
	}
	for _, part := range parts {
		key, err := h.key(at)
		if err != nil {
			return nil, err
		}
		next := uint32(noCell)
		if u32(key, nkSubkeys) > 0 {
			seen := 0
			_, err = h.subkeys(u32(key, nkSubList), 0, func(sub uint32) (bool, error) {
				if seen++; seen > maxKeys {
					return true, bad("more than %d keys in a key", maxKeys)
				}
				k, err := h.key(sub)
				if err != nil {
					return true, err
				}
				if strings.EqualFold(name(k[nkName:nkName+int(u16(k, nkNameLen))], u16(k, nkFlags)&nkASCII != 0), part) {
					next = sub
				}
				return next != noCell, nil
			})
		}
		if err != nil {
			return nil, err
		}
		if next == noCell {
			return nil, fmt.Errorf("key %s: %w", path, fs.ErrNotExist)
		}
		at = next
	}
	return h.key(at)
}

// Value is a value of a key.
type Value struct {
	Name string
	Type uint32 // 1: text, 3: bytes, 4: number, …
	Data []byte
}

// Text is the value as text.
func (v Value) Text() string { return UTF16(v.Data) }

// Number is the value as a number, 0 where it is none.
func (v Value) Number() uint32 {
	if len(v.Data) < 4 {
		return 0
	}
	return u32(v.Data, 0)
}

// Values are the values of a key. fs.ErrNotExist where there is no such key.
func (h *Hive) Values(path string) ([]Value, error) {
	key, err := h.find(path)
	if err != nil {
		return nil, err
	}
	n := int(u32(key, nkValues))
	if n == 0 {
		return nil, nil
	}
	if n < 0 || n > maxList {
		return nil, bad("key %s has %d values", path, n)
	}
	list, err := h.cell(u32(key, nkValList), 4*n)
	if err != nil {
		return nil, err
	}
	var out []Value
	for i := range n {
		v, err := h.value(u32(list, 4*i))
		if err != nil {
			return nil, fmt.Errorf("key %s: %w", path, err)
		}
		out = append(out, v)
	}
	return out, nil
}

func (h *Hive) value(at uint32) (Value, error) {
	b, err := h.cell(at, vkName)
	if err != nil {
		return Value{}, err
	}
	n := int(u16(b, vkNameLen))
	if b[0] != 'v' || b[1] != 'k' || vkName+n > len(b) {
		return Value{}, bad("a value at %#x", at)
	}
	v := Value{Name: name(b[vkName:vkName+n], u16(b, vkFlags)&vkASCII != 0), Type: u32(b, vkType)}
	size := u32(b, vkSize)
	switch {
	case size&vkInline != 0:
		v.Data = b[vkData : vkData+min(4, size&^vkInline)]
	case size > maxValue:
		return v, bad("value %s has %d bytes", v.Name, size)
	case size > bigSegment:
		v.Data, err = h.big(u32(b, vkData), int(size))
	case size > 0:
		v.Data, err = h.cell(u32(b, vkData), int(size))
		v.Data = v.Data[:min(len(v.Data), int(size))]
	}
	return v, err
}

// big reads a value that is kept in segments.
func (h *Hive) big(at uint32, size int) ([]byte, error) {
	b, err := h.cell(at, 8)
	if err != nil {
		return nil, err
	}
	n := int(u16(b, 2))
	if string(b[:2]) != "db" {
		// Hives before version 1.4 have it in one piece.
		b, err = h.cell(at, size)
		return b[:min(len(b), size)], err
	}
	list, err := h.cell(u32(b, 4), 4*n)
	if err != nil {
		return nil, err
	}
	out := make([]byte, 0, size)
	for i := 0; i < n && len(out) < size; i++ {
		want := min(bigSegment, size-len(out))
		part, err := h.cell(u32(list, 4*i), want)
		if err != nil {
			return nil, err
		}
		out = append(out, part[:want]...)
	}
	if len(out) < size {
		return nil, bad("a value of %d bytes at %#x has only %d", size, at, len(out))
	}
	return out, nil
}
