package disk

import (
	"bytes"
	"fmt"
	"strconv"
	"strings"
)

const descriptorTitle = "# disk descriptorfile"

// looksLikeDescriptor recognises the text by its title, which may follow blank
// lines and comments.
func looksLikeDescriptor(head []byte) bool {
	for len(head) > 0 {
		line, rest, _ := bytes.Cut(head, []byte("\n"))
		line = bytes.ToLower(bytes.TrimSpace(line))
		if bytes.HasPrefix(line, []byte(descriptorTitle)) {
			return true
		}
		if len(line) > 0 && line[0] != '#' {
			return false
		}
		head = rest
	}
	return false
}

// ParseDescriptor reads the text of a VMDK descriptor. Keys that it does not
// know are passed over; trailing NUL bytes are padding. Errors are
// [FormatError]s that name the line.
func ParseDescriptor(text []byte) (*Descriptor, error) {
	if len(text) > maxDescriptor {
		return nil, descriptorError("text", "%d bytes (at most %d are possible)", len(text), maxDescriptor)
	}
	text, _, _ = bytes.Cut(text, []byte{0})
	if !looksLikeDescriptor(text) {
		return nil, descriptorError("text", `the title "# Disk DescriptorFile" is missing`)
	}
	d := &Descriptor{ParentCID: NoParent, DDB: map[string]string{}}
	p := descriptorParser{Descriptor: d}
	number := 0
	for line := range bytes.Lines(text) {
		number++
		if err := p.parseLine(strings.TrimSpace(string(line))); err != nil {
			return nil, descriptorError(fmt.Sprintf("line %d", number), "%v", err)
		}
	}
	if len(d.Extents) == 0 {
		return nil, descriptorError("text", "no extents")
	}
	return d, nil
}

func descriptorError(where, format string, args ...any) error {
	return &FormatError{Path: "descriptor", Format: FormatVMDK, Where: where, What: fmt.Sprintf(format, args...), Err: ErrFormat}
}

type descriptorParser struct {
	*Descriptor
	sectors int64 // of the extents so far
}

func (d *descriptorParser) parseLine(line string) error {
	if line == "" || line[0] == '#' {
		return nil
	}
	switch access, rest, _ := strings.Cut(line, " "); access {
	case "RW", "RDONLY", "NOACCESS":
		return d.parseExtent(access, rest)
	}
	key, value, ok := strings.Cut(line, "=")
	if !ok {
		return fmt.Errorf("%.80q is neither a setting nor an extent", line)
	}
	return d.set(strings.TrimSpace(key), unquote(strings.TrimSpace(value)))
}

func (d *descriptorParser) set(key, value string) (err error) {
	if name, ok := cutPrefixFold(key, "ddb."); ok {
		if len(d.DDB) >= maxDDBEntries {
			return fmt.Errorf("more than %d entries in the disk data base", maxDDBEntries)
		}
		d.DDB[name] = value
		return nil
	}
	switch strings.ToLower(key) {
	case "version":
		// 1 to 4 are in use; what differs is in extent types and ddb keys.
		if n, err := strconv.Atoi(value); err != nil || n < 1 || n > 4 {
			return fmt.Errorf("version %.20q", value)
		}
	case "cid":
		d.CID, err = parseCID(value)
	case "parentcid":
		d.ParentCID, err = parseCID(value)
	case "createtype":
		d.CreateType = value
	case "parentfilenamehint":
		d.ParentFileName = value
	case "encoding":
		d.Encoding = value
	}
	return err
}

func parseCID(value string) (uint32, error) {
	cid, err := strconv.ParseUint(value, 16, 32)
	if err != nil {
		return 0, fmt.Errorf("content ID %.20q is not a number of up to 8 hexadecimal digits", value)
	}
	return uint32(cid), nil
}

// parseExtent reads `<sectors> <type> ["<file>" [<offset>]]`.
func (d *descriptorParser) parseExtent(access, rest string) error {
	if len(d.Extents) >= maxExtents {
		return fmt.Errorf("more than %d extents", maxExtents)
	}
	count, rest, _ := strings.Cut(strings.TrimSpace(rest), " ")
	sectors, err := strconv.ParseInt(count, 10, 64)
	if err != nil || sectors <= 0 || sectors > maxSectorCount-d.sectors {
		return fmt.Errorf("an extent of %.30q sectors", count)
	}
	kind, rest, _ := strings.Cut(strings.TrimSpace(rest), " ")
	e := DescriptorExtent{Access: access, Sectors: sectors, Type: strings.ToUpper(kind)}
	if rest = strings.TrimSpace(rest); rest != "" {
		if e.File, rest, err = cutQuoted(rest); err != nil {
			return err
		}
	}
	if rest = strings.TrimSpace(rest); rest != "" && e.Type == ExtentFlat {
		// Extents of devices have further words here, which we never need.
		offset, _, _ := strings.Cut(rest, " ")
		if e.Offset, err = strconv.ParseInt(offset, 10, 64); err != nil || e.Offset < 0 || e.Offset > maxSectorCount {
			return fmt.Errorf("an extent at sector %.30q of its file", offset)
		}
	}
	if e.File == "" && e.Type != ExtentZero {
		return fmt.Errorf("an extent of type %.20q without a file", e.Type)
	}
	d.Extents = append(d.Extents, e)
	d.sectors += sectors
	return nil
}

func cutQuoted(s string) (value, rest string, err error) {
	if s[0] != '"' {
		return "", "", fmt.Errorf("%.80q where a name in quotation marks has to be", s)
	}
	value, rest, ok := strings.Cut(s[1:], `"`)
	if !ok {
		return "", "", fmt.Errorf("the name %.80q has no closing quotation mark", s)
	}
	return value, rest, nil
}

func unquote(s string) string {
	if len(s) >= 2 && s[0] == '"' && s[len(s)-1] == '"' {
		return s[1 : len(s)-1]
	}
	return s
}

func cutPrefixFold(s, prefix string) (string, bool) {
	if len(s) < len(prefix) || !strings.EqualFold(s[:len(prefix)], prefix) {
		return s, false
	}
	return s[len(prefix):], true
}
