package appliance

import (
	"strconv"
	"time"
)

// Fields of a ustar header (POSIX.1-2017, pax): offset and length in bytes.
const (
	ustarName     = 0
	ustarNameLen  = 100
	ustarMode     = 100
	ustarUID      = 108
	ustarGID      = 116
	ustarSize     = 124
	ustarMtime    = 136
	ustarSum      = 148
	ustarType     = 156
	ustarLink     = 157
	ustarMagic    = 257
	ustarDevMajor = 329
	ustarDevMinor = 337
)

// ustar is the header's block. What does not fit its fields goes to records,
// which win.
func (h *tarHeader) ustar(records map[string]string) []byte {
	b := make([]byte, tarBlock)
	text := func(at int, key, s string) {
		n := copy(b[at:at+ustarNameLen], s)
		if n < len(s) || !ascii(s) {
			records[key] = s
		}
	}
	number := func(at, digits int, key string, v int64) {
		if v < 0 || v >= 1<<(3*digits) {
			records[key] = strconv.FormatInt(v, 10)
			v = 0
		}
		octalField(b[at:at+digits+1], v)
	}
	text(ustarName, "path", h.name)
	text(ustarLink, "linkpath", h.link)
	octalField(b[ustarMode:ustarMode+8], int64(h.mode))
	number(ustarUID, 7, "uid", int64(h.attr.UID))
	number(ustarGID, 7, "gid", int64(h.attr.GID))
	number(ustarSize, 11, "size", h.size)
	h.times(records, b)
	b[ustarType] = h.kind
	copy(b[ustarMagic:], "ustar\x0000")
	if h.kind == '3' || h.kind == '4' {
		number(ustarDevMajor, 7, "SCHILY.devmajor", int64(h.attr.Major))
		number(ustarDevMinor, 7, "SCHILY.devminor", int64(h.attr.Minor))
	}
	copy(b[ustarSum:], "        ")
	var sum int64
	for _, c := range b {
		sum += int64(c)
	}
	octalField(b[ustarSum:ustarSum+7], sum)
	return b
}

// times writes the times of a member. An extended header has none of its own.
func (h *tarHeader) times(records map[string]string, b []byte) {
	sec := h.attr.Mtime.Unix()
	if h.attr.Mtime.IsZero() {
		sec = 0
	} else if h.kind != 'x' && (h.attr.Mtime.Nanosecond() != 0 || sec < 0 || sec >= 1<<33) {
		records["mtime"] = paxTime(h.attr.Mtime)
	}
	octalField(b[ustarMtime:ustarMtime+12], max(0, min(sec, 1<<33-1)))
	if h.kind == 'x' || h.kind == '1' {
		return
	}
	for key, at := range map[string]time.Time{"atime": h.attr.Atime, "ctime": h.attr.Ctime} {
		if !at.IsZero() {
			records[key] = paxTime(at)
		}
	}
}

// octalField fills a field with digits and a zero byte.
func octalField(b []byte, v int64) {
	s := strconv.FormatInt(v, 8)
	for i := range len(b) - 1 {
		b[i] = '0'
	}
	copy(b[len(b)-1-len(s):], s)
	b[len(b)-1] = 0
}

func ascii(s string) bool {
	for i := range len(s) {
		if s[i] >= 0x80 || s[i] < ' ' {
			return false
		}
	}
	return true
}
