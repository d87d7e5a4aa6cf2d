package ntfs

import (
	"context"
	"encoding/binary"
	"errors"
	"fmt"
	"io/fs"
	"iter"
	"math"
	"time"

	"lifeboat/disk"
	"lifeboat/guestfs"
)

// DOS attributes ([MS-FSCC] 2.6).
const (
	dosReadOnly     = 0x1
	dosHidden       = 0x2
	dosSystem       = 0x4
	dosArchive      = 0x20
	dosSparse       = 0x200
	dosReparse      = 0x400
	dosCompressed   = 0x800
	dosOffline      = 0x1000
	dosEncrypted    = 0x4000
	dosRecallOnOpen = 0x40000
	dosRecallOnData = 0x400000
)

// Permissions are made up: Windows has descriptors ([guestfs.SecurityReader]).
const (
	permDir      = 0o755
	permFile     = 0o644
	permReadOnly = 0o444
	permLink     = 0o777
)

// standard is a $STANDARD_INFORMATION attribute.
type standard []byte

func (s standard) time(at int) time.Time { return fileTime(binary.LittleEndian.Uint64(s[at:])) }
func (s standard) flags() uint32         { return binary.LittleEndian.Uint32(s[32:]) }

// securityID is the number of the descriptor in $Secure; 0 where the file has
// its own.
func (s standard) securityID() uint32 {
	if len(s) < 72 {
		return 0
	}
	return binary.LittleEndian.Uint32(s[52:])
}

// fileTime decodes a time in 100 ns since 1601.
func fileTime(t uint64) time.Time {
	const perSecond, epoch = 10_000_000, 11_644_473_600
	n := int64(min(t, math.MaxInt64))
	return time.Unix(n/perSecond-epoch, n%perSecond*100)
}

func (n *node) standard(ctx context.Context) (standard, error) {
	a, err := n.find(ctx, attrStandard, "")
	if err != nil {
		return nil, err
	}
	if a == nil || !a.resident || len(a.value()) < 48 {
		return nil, corrupt("record %d has no standard information", n.base.number)
	}
	return a.value(), nil
}

// Stat implements [guestfs.FS].
func (f *FS) Stat(ctx context.Context, inode guestfs.Inode) (*guestfs.Attr, error) {
	n, err := f.node(ctx, inode)
	if err != nil {
		return nil, err
	}
	std, err := n.standard(ctx)
	if err != nil {
		return nil, err
	}
	point, err := n.reparse(ctx)
	if err != nil {
		return nil, err
	}
	a := &guestfs.Attr{
		Inode: inode, Generation: uint64(n.base.sequence()), Flags: flags(std.flags()),
		Btime: std.time(0), Mtime: std.time(8), Ctime: std.time(16), Atime: std.time(24),
	}
	if err := n.content(ctx, std, point, a); err != nil {
		return nil, err
	}
	a.Links, err = n.links(ctx)
	return a, err
}

// content adds type, size and room to what Stat tells.
func (n *node) content(ctx context.Context, std standard, point *reparsePoint, a *guestfs.Attr) error {
	switch {
	case point.isLink():
		a.Mode, a.Size = guestfs.TypeSymlink|permLink, int64(len(point.target))
		return nil
	case point != nil && point.kind() != 0:
		a.Mode = point.kind() | permFile
		return nil
	}
	if point != nil && !point.isWOF() {
		a.Flags |= guestfs.Reparse
	}
	if n.isDir() {
		a.Mode = guestfs.TypeDir | permDir
		return n.dirSize(ctx, a)
	}
	a.Mode = guestfs.TypeFile | permFile
	if std.flags()&dosReadOnly != 0 {
		a.Mode = guestfs.TypeFile | permReadOnly
	}
	data, err := n.find(ctx, attrData, "")
	if err != nil || data == nil {
		return err
	}
	a.Size, a.Allocated = data.size(), data.allocated()
	if data.flags&flagEncrypted != 0 {
		a.Flags |= guestfs.EncryptedFile
	}
	if point.isWOF() {
		a.Flags = a.Flags&^guestfs.Sparse | guestfs.Compressed
		packed, err := n.find(ctx, attrData, wofStream)
		if err != nil || packed == nil {
			return err
		}
		a.Allocated = packed.allocated()
	}
	return nil
}

// dirSize says how large the blocks of a directory's index are.
func (n *node) dirSize(ctx context.Context, a *guestfs.Attr) error {
	alloc, err := n.find(ctx, attrIndexAlloc, indexNames)
	if err == nil && alloc != nil {
		a.Size, a.Allocated = alloc.size(), alloc.allocated()
	}
	return err
}

// links counts names; one that was made up for DOS is none.
func (n *node) links(ctx context.Context) (count uint32, err error) {
	err = n.each(ctx, attrFileName, func(a *attr) bool {
		if !a.resident {
			return true
		}
		if name, ok := parseFileName(a.value()); ok && name.namespace() != namespaceDOS {
			count++
		}
		return true
	})
	return count, err
}

func flags(dos uint32) (out guestfs.Flags) {
	for _, f := range [...]struct {
		dos  uint32
		flag guestfs.Flags
	}{
		{dosReadOnly, guestfs.ReadOnly},
		{dosHidden, guestfs.Hidden},
		{dosSystem, guestfs.System},
		{dosArchive, guestfs.Archive},
		{dosSparse, guestfs.Sparse},
		{dosCompressed, guestfs.Compressed},
		{dosEncrypted, guestfs.EncryptedFile},
		{dosOffline | dosRecallOnOpen | dosRecallOnData, guestfs.Offline},
	} {
		if dos&f.dos != 0 {
			out |= f.flag
		}
	}
	return out
}

// Open implements [guestfs.FS].
func (f *FS) Open(ctx context.Context, inode guestfs.Inode) (disk.Image, error) {
	n, err := f.node(ctx, inode)
	if err != nil {
		return nil, err
	}
	point, err := n.reparse(ctx)
	if err != nil {
		return nil, err
	}
	switch {
	case point.isLink():
		return disk.Bytes(ctx, []byte(point.target)), nil
	case n.isDir():
		return nil, fmt.Errorf("ntfs: record %d is a directory", n.base.number)
	case point != nil && point.kind() != 0:
		return nil, fmt.Errorf("ntfs: record %d is not a file", n.base.number)
	}
	if err := n.here(ctx, point); err != nil {
		return nil, err
	}
	data, err := n.find(ctx, attrData, "")
	if err != nil {
		return nil, err
	}
	if data == nil {
		return disk.Bytes(ctx, nil), nil
	}
	if point.isWOF() {
		return n.openWOF(ctx, point, data.size())
	}
	return n.open(ctx, data)
}

// here refuses a file whose content is not, or not all, on this volume or in its
// place.
func (n *node) here(ctx context.Context, point *reparsePoint) error {
	if point == nil {
		return nil
	}
	if by := point.elsewhere(); by != "" {
		return unsupported("record %d: a file whose content is kept by %s", n.base.number, by)
	}
	std, err := n.standard(ctx)
	if err != nil {
		return err
	}
	if std.flags()&(dosOffline|dosRecallOnOpen|dosRecallOnData) != 0 {
		return unsupported("record %d: a file whose content is not on this volume (reparse tag %#x)", n.base.number, point.tag)
	}
	return nil
}

// open opens the content of an attribute.
func (n *node) open(ctx context.Context, a *attr) (disk.Image, error) {
	if a.flags&flagEncrypted != 0 {
		return nil, fmt.Errorf("ntfs: record %d: %w by the guest (EFS)", n.base.number, guestfs.ErrEncrypted)
	}
	if a.resident {
		return disk.Bytes(ctx, a.value()), nil
	}
	s, err := n.stream(a)
	if err != nil {
		return nil, err
	}
	if s.unit > 0 {
		return newCompressed(ctx, s), nil
	}
	return s.image(ctx), nil
}

// Streams implements [guestfs.StreamReader].
func (f *FS) Streams(ctx context.Context, inode guestfs.Inode) ([]guestfs.Stream, error) {
	n, err := f.node(ctx, inode)
	if err != nil {
		return nil, err
	}
	point, err := n.reparse(ctx)
	if err != nil {
		return nil, err
	}
	var out []guestfs.Stream
	err = n.each(ctx, attrData, func(a *attr) bool {
		if a.name != "" && (a.name != wofStream || !point.isWOF()) {
			out = append(out, guestfs.Stream{Name: a.name, Size: a.size()})
		}
		return true
	})
	return out, err
}

// OpenStream implements [guestfs.StreamReader].
func (f *FS) OpenStream(ctx context.Context, inode guestfs.Inode, name string) (disk.Image, error) {
	n, err := f.node(ctx, inode)
	if err != nil {
		return nil, err
	}
	a, err := n.find(ctx, attrData, name)
	if err != nil {
		return nil, err
	}
	if a == nil || name == "" {
		return nil, fmt.Errorf("ntfs: record %d: stream %q: %w", n.base.number, name, fs.ErrNotExist)
	}
	return n.open(ctx, a)
}

// PhysicalExtents implements [guestfs.Mapped].
func (f *FS) PhysicalExtents(ctx context.Context, inode guestfs.Inode) iter.Seq2[guestfs.PhysicalExtent, error] {
	return func(yield func(guestfs.PhysicalExtent, error) bool) {
		if err := f.physical(ctx, inode, func(e guestfs.PhysicalExtent) bool { return yield(e, nil) }); err != nil {
			yield(guestfs.PhysicalExtent{}, err)
		}
	}
}

func (f *FS) physical(ctx context.Context, inode guestfs.Inode, yield func(guestfs.PhysicalExtent) bool) error {
	n, err := f.node(ctx, inode)
	if err != nil {
		return err
	}
	point, err := n.reparse(ctx)
	if err != nil {
		return err
	}
	name, wof := "", point.isWOF()
	if wof {
		name = wofStream
	}
	a, err := n.find(ctx, attrData, name)
	if err != nil || a == nil || a.resident {
		return err
	}
	s, err := n.stream(a)
	if err != nil {
		return err
	}
	encoded := wof || s.unit > 0 || a.flags&flagEncrypted != 0
	for off := int64(0); off < s.init; {
		if ctx.Err() != nil {
			return context.Cause(ctx)
		}
		p, err := s.piece(ctx, off)
		if err != nil {
			return err
		}
		if p.Length <= 0 {
			return errors.New("ntfs: an empty piece")
		}
		off = p.Offset + p.Length
		e := guestfs.PhysicalExtent{Offset: p.Offset, At: p.At, Length: p.Length, Encoded: encoded}
		if wof {
			e.Offset = 0
		}
		if p.From != nil && !yield(e) {
			return nil
		}
	}
	return nil
}
