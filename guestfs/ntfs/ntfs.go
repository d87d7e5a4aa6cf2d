// Package ntfs reads NTFS as Windows would show it.
//
// There is no specification. What is written where is known from
// documentation that others made (the Linux-NTFS project, Flatcap) and from
// Microsoft's of the pieces that leave the volume: [MS-FSCC] (attributes,
// reparse points), [MS-XCA] (compression), [MS-DTYP] (descriptors). Every
// record is guarded against torn writes by its update sequence, which is
// checked; there are no other checksums, so everything is checked to be
// possible.
//
// The names that Windows makes up for DOS are not listed, but found by Lookup.
// Nor are the files of the file system itself ($MFT, $Extend, …): Lookup finds
// them in the root, so who asks for them by name can read them.
//
// # The log
//
// A backup is a volume in use: what was changed last is in $LogFile. It is
// replayed, in memory, when a volume is opened (see replayer). Nobody but
// Microsoft knows all that the log can hold, so a replay is only used if all of
// its changes fit what they change, and if the files and directories that they
// touch agree with each other afterwards. If not, the volume is read as it is,
// and said to be dirty.
//
// # Links and compression
//
// Symbolic links and junctions are symbolic links whose target is what Windows
// keeps: with backslashes and, where it is absolute, a drive letter or a volume's
// name (`\\?\Volume{…}\`). Files that Windows compresses behind the back of NTFS
// (WOF, "CompactOS") are plain files here. A file whose content another driver
// of the guest keeps elsewhere (deduplication, cloud files that are not there)
// is refused by name.
package ntfs

import (
	"context"
	"fmt"
	"sync"

	"lifeboat/disk"
	"lifeboat/guestfs"
	"lifeboat/guestfs/internal/meta"
)

const (
	fsName = "ntfs"
	// mftBlock is the unit in which the MFT is read and kept, in bytes.
	mftBlock = 64 << 10 / 4
	// cacheBytes bounds how much of the MFT is kept.
	cacheBytes = 12 << 20
)

// FS is an NTFS file system.
type FS struct {
	geo     *geometry
	disk    disk.Image
	mft     *meta.Cache // by blocks of mftBlock bytes of $MFT
	records uint64      // that the MFT has room for
	root    guestfs.Inode
	mftRef  guestfs.Inode // of the MFT itself
	upcase  *upcaseTable
	volume  volume
	blocks  *lru[blockKey, []byte] // of indexes
	sids    *lru[uint32, []byte]   // security descriptors
	used    func() int64
	state   guestfs.State
	note    string
}

var (
	_ guestfs.FS             = (*FS)(nil)
	_ guestfs.Lookuper       = (*FS)(nil)
	_ guestfs.StreamReader   = (*FS)(nil)
	_ guestfs.SecurityReader = (*FS)(nil)
	_ guestfs.Mapped         = (*FS)(nil)
	_ guestfs.Describer      = (*FS)(nil)
)

// Open reads the file system on img, which must stay open as long.
// guestfs.ErrNoFS where there is none.
func Open(ctx context.Context, img disk.Image) (*FS, error) {
	geo, fromCopy, err := readGeometry(img)
	if err != nil {
		return nil, err
	}
	f, err := openVolume(ctx, img, geo)
	if err != nil {
		return nil, err
	}
	if f, err = f.recover(ctx); err != nil {
		return nil, fmt.Errorf("ntfs: $LogFile: %w", err)
	}
	if fromCopy {
		f.damaged("the boot sector is damaged, its copy was used")
	}
	return f, nil
}

// openVolume reads what is needed of every volume.
func openVolume(ctx context.Context, img disk.Image, geo *geometry) (*FS, error) {
	f := &FS{geo: geo, disk: img, state: guestfs.Clean, blocks: newLRU[blockKey, []byte](256), sids: newLRU[uint32, []byte](64)}
	if err := f.openMFT(ctx); err != nil {
		return nil, fmt.Errorf("ntfs: the MFT: %w", err)
	}
	root, err := f.record(ctx, recordRoot)
	if err != nil {
		return nil, fmt.Errorf("ntfs: the root directory: %w", err)
	}
	if root.flags()&(recordInUse|recordDir) != recordInUse|recordDir {
		return nil, corrupt("the root directory is none")
	}
	f.root = root.ref()
	if f.volume, err = f.readVolume(ctx); err != nil {
		return nil, fmt.Errorf("ntfs: $Volume: %w", err)
	}
	if f.volume.flags&volumeDirty != 0 {
		f.damaged("the guest wants it checked (chkdsk)")
	}
	if f.upcase, err = f.readUpcase(ctx); err != nil {
		return nil, fmt.Errorf("ntfs: $UpCase: %w", err)
	}
	f.used = sync.OnceValue(f.countUsed)
	return f, nil
}

// openMFT finds all of the MFT. Its first record says where it is; where that
// does not suffice, the rest is in records which what is known by then leads to.
func (f *FS) openMFT(ctx context.Context) error {
	b := make([]byte, f.geo.recordSize)
	if n, err := f.disk.ReadAt(b, f.geo.mft*f.geo.cluster); n < len(b) {
		return fmt.Errorf("read its first record: %w", err)
	}
	r, err := parseRecord(recordMFT, b)
	if err != nil {
		if r, err = f.mirror(recordMFT, err); err != nil {
			return err
		}
		f.damaged("the first record of the MFT is damaged, its copy was used")
	}
	var data *attr
	if err := r.attrs(func(a *attr) bool {
		if a.kind == attrData && a.name == "" && !a.resident && a.lowest() == 0 {
			data = a
		}
		return data == nil
	}); err != nil {
		return err
	}
	if data == nil {
		return corrupt("the MFT has no content")
	}
	s, err := f.streamOf(r, data)
	if err != nil {
		return err
	}
	f.mftRef = r.ref()
	f.useMFT(ctx, s)
	n, err := f.nodeOf(ctx, r)
	if err != nil || n.list == nil {
		return err
	}
	return f.extendMFT(ctx, n, s)
}

// extendMFT adds the parts of the MFT's map that are not in its first record.
// Each is in a part of the MFT that those before it tell about.
func (f *FS) extendMFT(ctx context.Context, n *node, s *stream) error {
	runs := s.parts[0].runs
	for i := range n.list {
		e := &n.list[i]
		if e.kind != attrData || e.name != "" || e.lowest == 0 {
			continue
		}
		a, err := n.listedAttr(ctx, e)
		if err != nil {
			return err
		}
		if end := runs[len(runs)-1]; a.resident || e.lowest != end.vcn+end.count {
			return corrupt("the parts of the MFT do not follow each other")
		}
		more, err := f.geo.decodeRuns(a.mapping(), e.lowest)
		if err != nil {
			return err
		}
		runs = append(runs, more...)
		grown := &stream{fs: f, size: s.size, init: s.init, parts: []part{{runs: runs}}}
		f.useMFT(ctx, grown)
	}
	return nil
}

// useMFT reads records from a stream from now on. What is behind its end reads
// as zeros, up to a full block.
func (f *FS) useMFT(ctx context.Context, s *stream) {
	f.records = uint64(s.init) / uint64(f.geo.recordSize)
	padded := (s.init + mftBlock - 1) / mftBlock * mftBlock
	img := disk.Assemble(context.WithoutCancel(ctx), padded, func(off int64) (disk.Piece, error) {
		if off >= s.init {
			return disk.Piece{Offset: s.init, Length: padded - s.init}, nil
		}
		return s.piece(ctx, off)
	})
	f.mft = meta.New(img, mftBlock, cacheBytes)
}

// damaged notes what is wrong with the volume.
func (f *FS) damaged(what string) {
	f.state = guestfs.Damaged
	f.note = join(f.note, what)
}

func join(a, b string) string {
	if a == "" {
		return b
	}
	return a + "; " + b
}

// Root implements [guestfs.FS].
func (f *FS) Root() guestfs.Inode { return f.root }

// Info implements [guestfs.Describer].
func (f *FS) Info() guestfs.Info {
	return guestfs.Info{
		Type: fsName, Label: f.volume.label, UUID: fmt.Sprintf("%016X", f.geo.serial), Size: f.geo.clusters * f.geo.cluster,
		Used: f.used(), State: f.state, Note: f.note,
	}
}

func unsupported(format string, args ...any) error {
	return &guestfs.UnsupportedError{FS: fsName, What: fmt.Sprintf(format, args...)}
}
