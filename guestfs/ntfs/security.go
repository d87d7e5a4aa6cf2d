package ntfs

import (
	"context"
	"encoding/binary"
	"fmt"
	"math/bits"

	"lifeboat/guestfs"
)

// Descriptors are kept once in $Secure: the index $SII finds them by number in
// the stream $SDS, which has every piece of 256 KiB twice.
const (
	indexSII      = "$SII"
	streamSDS     = "$SDS"
	sdsHeader     = 20 // hash, number, place, length
	sdsPiece      = 256 << 10
	maxDescriptor = 64 << 10
	minDescriptor = 20
)

// SecurityDescriptor implements [guestfs.SecurityReader].
func (f *FS) SecurityDescriptor(ctx context.Context, inode guestfs.Inode) ([]byte, error) {
	n, err := f.node(ctx, inode)
	if err != nil {
		return nil, err
	}
	std, err := n.standard(ctx)
	if err != nil {
		return nil, err
	}
	if id := std.securityID(); id != 0 {
		return f.sharedDescriptor(ctx, id)
	}
	a, err := n.find(ctx, attrSecurity, "")
	if err != nil || a == nil {
		return nil, err
	}
	if a.resident {
		return a.value(), nil
	}
	s, err := n.stream(a)
	if err != nil {
		return nil, err
	}
	return readAll(s.image(ctx), maxDescriptor)
}

// sharedDescriptor finds a descriptor in $Secure.
func (f *FS) sharedDescriptor(ctx context.Context, id uint32) ([]byte, error) {
	if b, ok := f.sids.get(id); ok {
		return b, nil
	}
	r, err := f.record(ctx, recordSecure)
	if err != nil {
		return nil, err
	}
	n, err := f.nodeOf(ctx, r)
	if err != nil {
		return nil, err
	}
	at, size, err := n.findDescriptor(ctx, id)
	if err != nil {
		return nil, err
	}
	b, err := n.readDescriptor(ctx, id, at, size)
	if err == nil {
		f.sids.put(id, b)
	}
	return b, err
}

// findDescriptor looks a number up in $SII.
func (n *node) findDescriptor(ctx context.Context, id uint32) (at int64, size int, err error) {
	le := binary.LittleEndian
	ix, err := n.index(ctx, indexSII)
	if err != nil {
		return 0, 0, err
	}
	if ix == nil {
		return 0, 0, corrupt("$Secure has no index")
	}
	defer ix.close()
	c := ix.cursor()
	if err := c.seek(func(e *entry) (bool, error) {
		if len(e.key()) != 4 {
			return false, corrupt("$Secure: a key of %d bytes", len(e.key()))
		}
		return le.Uint32(e.key()) < id, nil
	}); err != nil {
		return 0, 0, err
	}
	e, err := c.next()
	if err != nil {
		return 0, 0, err
	}
	if e == nil || len(e.key()) != 4 || le.Uint32(e.key()) != id {
		return 0, 0, corrupt("$Secure has no descriptor %d", id)
	}
	d := e.data()
	if len(d) < sdsHeader || le.Uint32(d[4:]) != id {
		return 0, 0, corrupt("$Secure: the entry of descriptor %d", id)
	}
	at, size = int64(le.Uint64(d[8:])), int(le.Uint32(d[16:]))
	if at < 0 || size < sdsHeader+minDescriptor || size > sdsHeader+maxDescriptor {
		return 0, 0, corrupt("$Secure: descriptor %d has %d bytes at %d", id, size, at)
	}
	return at, size, nil
}

// readDescriptor reads a descriptor or, where that is damaged, its copy.
func (n *node) readDescriptor(ctx context.Context, id uint32, at int64, size int) ([]byte, error) {
	a, err := n.find(ctx, attrData, streamSDS)
	if err != nil {
		return nil, err
	}
	if a == nil {
		return nil, corrupt("$Secure has no descriptors")
	}
	img, err := n.open(ctx, a)
	if err != nil {
		return nil, err
	}
	defer img.Close()
	b := make([]byte, size)
	for _, off := range []int64{at, at + sdsPiece} {
		if m, readErr := img.ReadAt(b, off); m < len(b) {
			err = fmt.Errorf("ntfs: $Secure: read descriptor %d: %w", id, readErr)
			continue
		}
		le := binary.LittleEndian
		if le.Uint32(b[4:]) == id && int(le.Uint32(b[16:])) == size && le.Uint32(b) == hashDescriptor(b[sdsHeader:]) {
			return b[sdsHeader:], nil
		}
		err = corrupt("$Secure: descriptor %d", id)
	}
	return nil, err
}

// hashDescriptor is the hash that $Secure keeps of a descriptor.
func hashDescriptor(b []byte) (h uint32) {
	for ; len(b) >= 4; b = b[4:] {
		h = binary.LittleEndian.Uint32(b) + bits.RotateLeft32(h, 3)
	}
	return h
}
