package iso9660

import (
	"context"
	"encoding/binary"
	"strings"
	"time"

	"lifeboat/guestfs"
)

// rock is what the Rock Ridge entries of a record say.
type rock struct {
	name        string
	target      string // of a symbolic link
	hasMode     bool
	mode, links uint32
	uid, gid    uint32
	major       uint32
	minor       uint32
	mtime       time.Time
	atime       time.Time
	ctime       time.Time
	btime       time.Time
	child       int64  // CL: where the directory really is
	relocated   bool   // RE: it is shown elsewhere
	unsupported string // why its content cannot be read

	nameDone   bool
	linkJoined bool // the next component goes on with the last
	linkAny    bool
}

const (
	maxContinuations = 32
	maxNameBytes     = 255

	// zisofs: the content is compressed.
	zisofs = "zisofs compression"
)

// findRockRidge looks at the "." record of the root directory: SP says that
// there are system use entries and how many bytes stand in front of them, and a
// PX or an RR that they are Rock Ridge's.
func (f *FS) findRockRidge(ctx context.Context) (bool, error) {
	root, err := f.record(ctx, f.root)
	if err != nil {
		return false, err
	}
	dot, err := f.record(ctx, guestfs.Inode(root.parts[0].at))
	if err != nil {
		return false, nil //nolint:nilerr // reading the root directory will tell
	}
	su := dot.system()
	if len(su) < 7 || su[0] != 'S' || su[1] != 'P' || su[4] != 0xbe || su[5] != 0xef {
		return false, nil
	}
	f.skip = int(su[6])
	found := false
	err = f.entries(ctx, su, func(kind string, _ []byte) {
		found = found || kind == "PX" || kind == "RR"
	})
	return found && err == nil, nil
}

// entries walks system use entries and their continuations.
func (f *FS) entries(ctx context.Context, su []byte, each func(kind string, e []byte)) error {
	le := binary.LittleEndian
	for range maxContinuations {
		var more []byte
		for len(su) >= 4 {
			n := int(su[2])
			if n < 4 || n > len(su) {
				break // padding, or a record of somebody else's
			}
			kind, e := string(su[:2]), su[:n]
			su = su[n:]
			if kind == "ST" {
				break
			}
			if kind == "CE" && n >= 28 {
				b, err := f.read(ctx, int64(le.Uint32(e[4:]))*f.block+int64(le.Uint32(e[12:])), min(int64(le.Uint32(e[20:])), 8*sectorSize))
				if err != nil {
					return err
				}
				more = b
				continue
			}
			each(kind, e)
		}
		if more == nil {
			return nil
		}
		su = more
	}
	return corrupt("entries of Rock Ridge that have no end")
}

// rockRidge reads the entries of a record.
func (f *FS) rockRidge(ctx context.Context, r *record, su []byte) error {
	if r.at == int64(f.root) { // the root's own record has no room for them: its "." has them
		dot, err := f.one(ctx, r.parts[0].at)
		if err != nil {
			return err
		}
		su = (&record{raw: dot}).system()
	} else {
		su = su[min(f.skip, len(su)):]
	}
	rr := &r.rr
	if err := f.entries(ctx, su, rr.take); err != nil {
		return err
	}
	if rr.child != 0 {
		rr.child *= f.block
	}
	if len(rr.target) > guestfs.MaxSymlink {
		return corrupt("a symbolic link of %d bytes", len(rr.target))
	}
	return nil
}

// take reads one entry: kind (2), length (1), version (1), and its own.
func (rr *rock) take(kind string, e []byte) {
	le := binary.LittleEndian
	switch {
	case kind == "PX" && len(e) >= 36:
		rr.hasMode = true
		rr.mode, rr.links, rr.uid, rr.gid = le.Uint32(e[4:])&0o177777, le.Uint32(e[12:]), le.Uint32(e[20:]), le.Uint32(e[28:])
	case kind == "PN" && len(e) >= 20:
		high, low := le.Uint32(e[4:]), le.Uint32(e[12:])
		if high != 0 {
			rr.major, rr.minor = high, low
		} else {
			rr.major, rr.minor = low>>8&0xfff, low&0xff|low>>12&0xfff00
		}
	case kind == "NM" && len(e) >= 5:
		rr.takeName(e[4], e[5:])
	case kind == "SL" && len(e) >= 5:
		rr.takeLink(e[5:])
	case kind == "TF" && len(e) >= 5:
		rr.takeTimes(e[4], e[5:])
	case kind == "CL" && len(e) >= 12:
		rr.child = int64(le.Uint32(e[4:]))
	case kind == "RE":
		rr.relocated = true
	case kind == "ZF":
		rr.unsupported = zisofs
	case kind == "SF":
		rr.unsupported = "a sparse file of Rock Ridge"
	}
}

func (rr *rock) takeName(flags byte, part []byte) {
	const goesOn, current, parent = 1, 2, 4
	if rr.nameDone || flags&(current|parent) != 0 || len(rr.name)+len(part) > maxNameBytes {
		return
	}
	rr.name += string(part)
	rr.nameDone = flags&goesOn == 0
}

// takeLink reads the components of a symbolic link's target.
func (rr *rock) takeLink(components []byte) {
	const goesOn, current, parent, root = 1, 2, 4, 8
	for len(components) >= 2 && len(rr.target) <= guestfs.MaxSymlink {
		flags, n := components[0], int(components[1])
		if n > len(components)-2 {
			return
		}
		if rr.linkAny && !rr.linkJoined && !strings.HasSuffix(rr.target, "/") {
			rr.target += "/"
		}
		switch {
		case flags&current != 0:
			rr.target += "."
		case flags&parent != 0:
			rr.target += ".."
		case flags&root != 0:
			rr.target = "/"
		default:
			rr.target += string(components[2 : 2+n])
		}
		rr.linkAny, rr.linkJoined = true, flags&goesOn != 0
		components = components[2+n:]
	}
}

// takeTimes reads the times that there are, in this order: creation,
// modification, access, attributes, and others that nobody shows.
func (rr *rock) takeTimes(flags byte, b []byte) {
	size, decode := 7, shortTime
	if flags&0x80 != 0 {
		size, decode = 17, longTime
	}
	for i, to := range []*time.Time{&rr.btime, &rr.mtime, &rr.atime, &rr.ctime} {
		if flags&(1<<i) == 0 {
			continue
		}
		if len(b) < size {
			return
		}
		*to = decode(b)
		b = b[size:]
	}
}
