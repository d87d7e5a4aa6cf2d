package ntfs

import (
	"context"

	"lifeboat/guestfs"
)

// Unfix and Fix take the update sequence of a record away and put it back, so
// that a test can change what it guards.
func Unfix(b []byte) error { return unfix(b) }

// Fix is the reverse of Unfix.
func Fix(b []byte) { fix(b) }

// Fixable reports whether a record says where its update sequence is.
func Fixable(b []byte) bool {
	at, count := int(b[4])|int(b[5])<<8, int(b[6])|int(b[7])<<8
	return count == len(b)/stride+1 && at+2*count <= len(b)
}

// AttrRuns is where an attribute is on the volume.
func (f *FS) AttrRuns(ctx context.Context, inode guestfs.Inode, kind uint32, name string) (out []guestfs.PhysicalExtent, err error) {
	n, err := f.node(ctx, inode)
	if err != nil {
		return nil, err
	}
	a, err := n.find(ctx, kind, name)
	if err != nil || a == nil || a.resident {
		return nil, err
	}
	runs, err := f.geo.decodeRuns(a.mapping(), 0)
	for _, r := range runs {
		out = append(out, guestfs.PhysicalExtent{Offset: r.vcn * f.geo.cluster, At: r.lcn * f.geo.cluster, Length: r.count * f.geo.cluster})
	}
	return out, err
}
