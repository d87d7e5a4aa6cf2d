package appliance

import (
	"bytes"
	"fmt"
	"regexp"
	"strconv"
	"strings"
	"unicode/utf8"
)

// Limits of a .vmx; a real one has some hundred lines and a few KiB.
const (
	maxVMX      = 1 << 20
	maxVMXLines = 20000
)

// vmxFile is a virtual machine's configuration: lines of `key = "value"` in
// their order. What we know nothing of is kept as it is. Keys are compared
// without regard to case, as VMware does.
type vmxFile struct {
	lines []vmxLine
	index map[string]int // lower-case key → line
}

type vmxLine struct {
	key, value string
	raw        string // when key is "": a comment, or what is no assignment
	gone       bool
}

var vmxAssignment = regexp.MustCompile(`^\s*([A-Za-z0-9_.:\-]+)\s*=\s*(?:"([^"]*)"|(\S*))\s*(?:#.*)?$`)

// parseVMX reads a .vmx. It comes from a datastore that others write to: what is
// not an assignment is kept as a comment; of a key that is there twice, which no
// host would take, the first counts.
func parseVMX(data []byte) (*vmxFile, error) {
	if len(data) > maxVMX {
		return nil, fmt.Errorf("configuration file: %d bytes; none has more than %d", len(data), maxVMX)
	}
	v := &vmxFile{index: map[string]int{}}
	text := string(data)
	if !utf8.Valid(data) {
		text = latin1(data)
	}
	for line := range strings.Lines(strings.TrimPrefix(text, "\ufeff")) {
		line = strings.TrimRight(line, "\r\n")
		if len(v.lines) == maxVMXLines {
			return nil, fmt.Errorf("configuration file: more than %d lines", maxVMXLines)
		}
		m := vmxAssignment.FindStringSubmatch(line)
		switch {
		case m == nil:
			line = strings.TrimLeft(vmxPlain(line), " \t")
			if line != "" && !strings.HasPrefix(line, "#") {
				line = "# " + line
			}
			v.lines = append(v.lines, vmxLine{raw: line})
		case v.has(m[1]):
		default:
			v.set(m[1], vmxUnescape(m[2]+m[3]))
		}
	}
	v.set(".encoding", "UTF-8") // as it is written from here on
	return v, nil
}

// latin1 reads bytes that are not UTF-8: a host with another encoding wrote them
// (".encoding"), most likely windows-1252. Only names for people can have such.
func latin1(data []byte) string {
	var b strings.Builder
	for _, c := range data {
		b.WriteRune(rune(c))
	}
	return b.String()
}

// vmxPlain is a line without what no line may have in it.
func vmxPlain(s string) string {
	return strings.Map(func(r rune) rune {
		if r < 0x20 && r != '\t' || r == 0x7f {
			return -1
		}
		return r
	}, s)
}

// vmxUnescape is the inverse of vmxEscape; what is no escape stays.
func vmxUnescape(s string) string {
	if !strings.Contains(s, "|") {
		return s
	}
	var b strings.Builder
	for i := 0; i < len(s); i++ {
		if s[i] == '|' && i+2 < len(s) {
			if n, err := strconv.ParseUint(s[i+1:i+3], 16, 8); err == nil && n < utf8.RuneSelf {
				b.WriteByte(byte(n))
				i += 2
				continue
			}
		}
		b.WriteByte(s[i])
	}
	return b.String()
}

func (v *vmxFile) has(key string) bool {
	i, ok := v.index[strings.ToLower(key)]
	return ok && !v.lines[i].gone
}

// get is the value of a key, "" where it is not set.
func (v *vmxFile) get(key string) string {
	if !v.has(key) {
		return ""
	}
	return v.lines[v.index[strings.ToLower(key)]].value
}

// is reports whether a key is set to TRUE.
func (v *vmxFile) is(key string) bool { return strings.EqualFold(v.get(key), "TRUE") }

func (v *vmxFile) set(key, value string) {
	if i, ok := v.index[strings.ToLower(key)]; ok {
		v.lines[i].value, v.lines[i].gone = value, false
		return
	}
	v.index[strings.ToLower(key)] = len(v.lines)
	v.lines = append(v.lines, vmxLine{key: key, value: value})
}

func (v *vmxFile) drop(keys ...string) {
	for _, key := range keys {
		if i, ok := v.index[strings.ToLower(key)]; ok {
			v.lines[i].gone = true
		}
	}
}

// dropAll drops the keys that match, and says how many there were.
func (v *vmxFile) dropAll(match func(key, value string) bool) (n int) {
	for i := range v.lines {
		l := &v.lines[i]
		if l.key != "" && !l.gone && match(strings.ToLower(l.key), l.value) {
			l.gone = true
			n++
		}
	}
	return n
}

// dropDevice drops everything about a device ("scsi0:1", "floppy0").
func (v *vmxFile) dropDevice(device string) {
	v.dropAll(func(key, _ string) bool { return strings.HasPrefix(key, strings.ToLower(device)+".") })
}

// devices lists those that match pattern, whose first group is the device's
// name, in the order of the file.
func (v *vmxFile) devices(pattern *regexp.Regexp) []string {
	var names []string
	seen := map[string]bool{}
	for _, l := range v.lines {
		if l.key == "" || l.gone {
			continue
		}
		if m := pattern.FindStringSubmatch(strings.ToLower(l.key)); m != nil && !seen[m[1]] {
			seen[m[1]] = true
			names = append(names, m[1])
		}
	}
	return names
}

func (v *vmxFile) encode() []byte {
	var b bytes.Buffer
	for _, l := range v.lines {
		switch {
		case l.gone:
		case l.key == "":
			b.WriteString(l.raw + "\n")
		default:
			fmt.Fprintf(&b, "%s = \"%s\"\n", l.key, vmxEscape(l.value))
		}
	}
	return b.Bytes()
}
