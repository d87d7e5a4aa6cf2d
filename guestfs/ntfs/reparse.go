package ntfs

import (
	"context"
	"encoding/binary"
	"fmt"
	"strings"

	"lifeboat/guestfs"
	"lifeboat/guestfs/internal/wtf8"
)

// Reparse tags ([MS-FSCC] 2.1.2.1).
const (
	tagMountPoint = 0xa0000003
	tagSymlink    = 0xa000000c
	tagWOF        = 0x80000017
	tagLXSymlink  = 0xa000001d
	tagLXSocket   = 0x80000023
	tagLXFIFO     = 0x80000024
	tagLXChar     = 0x80000025
	tagLXBlock    = 0x80000026

	microsoft = 1 << 31 // a tag without it has a GUID before the data
	maxPoint  = 16 << 10
)

// reparsePoint says that a file is something else than what NTFS makes of it.
// The methods are good for nil: the usual file.
type reparsePoint struct {
	tag    uint32
	target string // of a link
	method uint32 // of WOF
}

func (p *reparsePoint) isLink() bool {
	return p != nil && (p.tag == tagMountPoint || p.tag == tagSymlink || p.tag == tagLXSymlink)
}

func (p *reparsePoint) isWOF() bool { return p != nil && p.tag == tagWOF }

// kind is the type of what the Windows Subsystem for Linux made that is neither
// file, directory nor link.
func (p *reparsePoint) kind() uint32 {
	switch p.tag {
	case tagLXSocket:
		return guestfs.TypeSocket
	case tagLXFIFO:
		return guestfs.TypeFIFO
	case tagLXChar:
		return guestfs.TypeChar
	case tagLXBlock:
		return guestfs.TypeBlock
	}
	return 0
}

// elsewhere names who keeps the content where NTFS does not show it; "" where
// the content is what NTFS says.
func (p *reparsePoint) elsewhere() string {
	switch p.tag {
	case 0x80000007:
		return "Single Instance Storage"
	case 0x80000008:
		return "WIMBoot, in a WIM"
	case 0x80000013:
		return "Data Deduplication"
	case 0xc0000004, 0x80000006:
		return "Hierarchical Storage Management"
	case 0x80000018, 0x9000001c, 0xa000001f, 0x90001018:
		return "Windows Containers or projected file systems, in another place"
	}
	return ""
}

// reparse reads the reparse point of a file; nil where it has none.
func (n *node) reparse(ctx context.Context) (*reparsePoint, error) {
	a, err := n.find(ctx, attrReparse, "")
	if err != nil || a == nil {
		return nil, err
	}
	var b []byte
	if a.resident {
		b = a.value()
	} else {
		s, err := n.stream(a)
		if err != nil {
			return nil, err
		}
		if b, err = readAll(s.image(ctx), maxPoint); err != nil {
			return nil, fmt.Errorf("reparse point of record %d: %w", n.base.number, err)
		}
	}
	const header = 8
	le := binary.LittleEndian
	if len(b) < header || int(le.Uint16(b[4:])) > len(b)-header {
		return nil, corrupt("record %d: a reparse point of %d bytes", n.base.number, len(b))
	}
	p := &reparsePoint{tag: le.Uint32(b)}
	if p.tag&microsoft == 0 {
		return p, nil
	}
	return p, p.parse(n.base.number, b[header:header+int(le.Uint16(b[4:]))])
}

func (p *reparsePoint) parse(number uint64, b []byte) error {
	le := binary.LittleEndian
	switch p.tag {
	case tagMountPoint, tagSymlink:
		paths := 8
		if p.tag == tagSymlink {
			paths = 12
		}
		if len(b) < paths {
			return corrupt("record %d: a link of %d bytes", number, len(b))
		}
		at, n := int(le.Uint16(b)), int(le.Uint16(b[2:]))
		if at+n > len(b)-paths {
			return corrupt("record %d: a link with a target of %d bytes at %d", number, n, at)
		}
		p.target = target(wtf8.DecodeBytes(b[paths+at : paths+at+n]))
	case tagLXSymlink:
		if len(b) < 4 {
			return corrupt("record %d: a link of %d bytes", number, len(b))
		}
		p.target = string(b[4:])
	case tagWOF:
		return p.parseWOF(number, b)
	}
	return nil
}

// parseWOF reads WOF_EXTERNAL_INFO (version 1, provider) and, of the provider
// that keeps the content in a stream, FILE_PROVIDER_EXTERNAL_INFO (version 1,
// method).
func (p *reparsePoint) parseWOF(number uint64, b []byte) error {
	const providerFile = 2
	le := binary.LittleEndian
	if len(b) < 8 || le.Uint32(b) != 1 {
		return unsupported("record %d: a version of WOF", number)
	}
	if le.Uint32(b[4:]) != providerFile {
		p.tag = 0x80000008 // the content is in a WIM, as WIMBoot has it
		return nil
	}
	if len(b) < 16 || le.Uint32(b[8:]) != 1 {
		return unsupported("record %d: a version of compression by WOF", number)
	}
	p.method = le.Uint32(b[12:])
	return nil
}

// target makes what a user would type of a name in the kernel's tree of objects.
func target(name string) string {
	rest, ok := strings.CutPrefix(name, `\??\`)
	switch {
	case !ok:
		return name
	case len(rest) >= 2 && rest[1] == ':':
		return rest
	case strings.HasPrefix(rest, `UNC\`):
		return `\` + rest[len("UNC"):]
	}
	return `\\?\` + rest
}
