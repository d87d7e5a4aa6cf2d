package ext4

import (
	"context"
	"encoding/binary"
	"errors"
	"fmt"

	"lifeboat/disk"
	"lifeboat/guestfs"
	"lifeboat/guestfs/internal/meta"
	"lifeboat/guestfs/internal/patch"
)

// The journal (JBD2; the kernel's Documentation/filesystems/ext4/journal.rst and
// fs/jbd2/recovery.c). All of it is big-endian. It is a ring of transactions:
// descriptor blocks that say where on the volume the blocks behind them belong,
// revocations of such blocks, and a commit. What follows the last whole commit
// did not happen.
//
// Replay here copies nothing: a block of the volume is shown from where it
// stands in the journal (package patch).
const (
	jbdMagic = 0xc03b3998

	jbdDescriptor = 1
	jbdCommit     = 2
	jbdSuperV1    = 3
	jbdSuperV2    = 4
	jbdRevoke     = 5

	jbdHeader = 12 // magic, type, sequence

	jsBlockSize   = 12
	jsMaxLen      = 16
	jsFirst       = 20
	jsSequence    = 24
	jsStart       = 28
	jsCompat      = 36
	jsIncompat    = 40
	jsUUID        = 48
	jsFastBlocks  = 84
	jsSum         = 252
	jsSize        = 1024
	defaultFast   = 256
	jbdRevokeHead = 16

	jIncompatRevoke   = 0x1
	jIncompat64       = 0x2
	jIncompatAsync    = 0x4
	jIncompatCsum2    = 0x8
	jIncompatCsum3    = 0x10
	jIncompatFast     = 0x20
	jIncompatKnown    = jIncompatRevoke | jIncompat64 | jIncompatAsync | jIncompatCsum2 | jIncompatCsum3 | jIncompatFast
	tagEscaped        = 1
	tagSameUUID       = 2
	tagLast           = 8
	maxJournalEntries = 1 << 26 // blocks in a journal: 256 GiB of 4 KiB
)

// journal is a journal while it is replayed.
type journal struct {
	fs       *FS
	img      disk.Image // content of the journal's inode
	size     int64      // of a block, bytes
	first    uint64     // of the ring
	end      uint64     // of the ring, exclusive
	start    uint64     // where the oldest transaction begins
	sequence uint32     // its number
	incompat uint32
	seed     uint32
	sums     bool
	fast     uint64 // block where fast commits begin, 0: none

	tags    []tag             // in the order of the log
	revoked map[uint64]uint32 // block → the last transaction that revoked it
	commits int
	torn    bool
}

// tag is a block in the log.
type tag struct {
	block    uint64 // on the volume
	log      uint64 // in the journal
	sequence uint32
	escaped  bool
	sum      uint32
}

// recover shows the volume as it is after replay.
func (f *FS) recover(ctx context.Context) error {
	j, err := f.openJournal(ctx)
	var refused *guestfs.UnsupportedError
	if errors.As(err, &refused) {
		f.state, f.note = guestfs.Dirty, fmt.Sprintf("the journal was not replayed (%s): the latest changes are missing", refused.What)
		return nil
	}
	if err != nil {
		return fmt.Errorf("the journal: %w", err)
	}
	if j.start == 0 {
		return nil // empty: the flag outlived an orderly end
	}
	if err := j.scan(ctx); err != nil {
		return fmt.Errorf("the journal: %w", err)
	}
	blocks, err := j.replay(ctx)
	if err != nil {
		return fmt.Errorf("the journal: %w", err)
	}
	return f.reopen(ctx, j, blocks)
}

// reopen reads the superblock again, as the journal left it.
func (f *FS) reopen(ctx context.Context, j *journal, blocks map[int64]patch.Block) error {
	img := patch.New(f.disk, f.sb.blockSize, blocks)
	after, err := open(img)
	if err != nil {
		return fmt.Errorf("after replay of the journal: %w", err)
	}
	if after.sb.blockSize != f.sb.blockSize {
		return corrupt("the journal changes the block size")
	}
	f.sb, f.disk, f.meta = after.sb, img, meta.New(img, after.sb.blockSize, cacheBytes)
	f.state, f.note = guestfs.Replayed, fmt.Sprintf("%d transactions of its journal were replayed", j.commits)
	if j.torn {
		f.note += "; a later one was not complete"
	}
	fast, err := j.fastCommits()
	if err != nil {
		return err
	}
	if fast {
		f.state, f.note = guestfs.Dirty, f.note+"; its fast commits, the latest changes, are not replayed by this reader"
	}
	return ctx.Err()
}

func (f *FS) openJournal(ctx context.Context) (*journal, error) {
	if f.sb.journalInode == 0 {
		return nil, &guestfs.UnsupportedError{FS: fsName, What: "a journal on another device"}
	}
	in, err := f.inode(ctx, guestfs.Inode(f.sb.journalInode))
	if err != nil {
		return nil, err
	}
	img, err := f.content(ctx, in)
	if err != nil {
		return nil, err
	}
	b := make([]byte, jsSize)
	if n, err := img.ReadAt(b, 0); n < len(b) {
		return nil, fmt.Errorf("read its superblock: %w", err)
	}
	be := binary.BigEndian
	kind := be.Uint32(b[4:])
	if be.Uint32(b) != jbdMagic || kind != jbdSuperV1 && kind != jbdSuperV2 {
		return nil, corrupt("it has no superblock")
	}
	j := &journal{
		fs: f, img: img, size: int64(be.Uint32(b[jsBlockSize:])), end: uint64(be.Uint32(b[jsMaxLen:])), first: uint64(be.Uint32(b[jsFirst:])),
		sequence: be.Uint32(b[jsSequence:]), start: uint64(be.Uint32(b[jsStart:])), revoked: map[uint64]uint32{},
	}
	if kind == jbdSuperV2 {
		j.incompat = be.Uint32(b[jsIncompat:])
		j.seed = crc(^uint32(0), b[jsUUID:jsUUID+16])
	}
	return j, j.check(b)
}

// check refuses what cannot be and what is not known.
func (j *journal) check(b []byte) error {
	be := binary.BigEndian
	if unknown := j.incompat &^ jIncompatKnown; unknown != 0 {
		return &guestfs.UnsupportedError{FS: fsName, What: fmt.Sprintf("journal feature %#x", unknown)}
	}
	if j.sums = j.incompat&(jIncompatCsum2|jIncompatCsum3) != 0; j.sums {
		sum := be.Uint32(b[jsSum:])
		clear(b[jsSum : jsSum+4])
		if crc(^uint32(0), b) != sum {
			return corrupt("its superblock has a wrong checksum")
		}
	}
	if j.incompat&jIncompatFast != 0 {
		n := uint64(be.Uint32(b[jsFastBlocks:]))
		if n == 0 {
			n = defaultFast
		}
		if n >= j.end {
			return corrupt("%d of its %d blocks are for fast commits", n, j.end)
		}
		j.end -= n
		j.fast = j.end
	}
	switch {
	case j.size != int64(j.fs.sb.blockSize):
		return corrupt("its blocks are of %d bytes", j.size)
	case j.end > maxJournalEntries || int64(j.end)*j.size > j.img.Size() || j.first == 0 || j.first >= j.end:
		return corrupt("its ring is blocks %d to %d of %d", j.first, j.end, j.img.Size()/j.size)
	case j.start != 0 && (j.start < j.first || j.start >= j.end):
		return corrupt("it begins at block %d", j.start)
	}
	return nil
}

func (j *journal) next(at uint64) uint64 {
	if at++; at >= j.end {
		return j.first
	}
	return at
}

func (j *journal) read(b []byte, at uint64) error {
	if n, err := j.img.ReadAt(b, int64(at)*j.size); n < len(b) {
		return fmt.Errorf("read its block %d: %w", at, err)
	}
	return nil
}

// scan goes through the log from the oldest transaction and takes over the tags
// and revocations of each that was committed. It ends at the first block that
// does not go on with the sequence, and after one round at the latest.
func (j *journal) scan(ctx context.Context) error {
	var (
		be      = binary.BigEndian
		b       = make([]byte, j.size)
		at      = j.start
		pending []tag    // of the transaction that is being read
		revokes []uint64 // of it
	)
	for steps := uint64(0); steps < j.end-j.first; steps++ {
		if ctx.Err() != nil {
			return context.Cause(ctx)
		}
		if err := j.read(b, at); err != nil {
			return err
		}
		if be.Uint32(b) != jbdMagic || be.Uint32(b[8:]) != j.sequence {
			break
		}
		at = j.next(at)
		switch be.Uint32(b[4:]) {
		case jbdDescriptor:
			tags, ok := j.descriptor(b)
			if !ok {
				j.torn = true // what was written before it is whole
				return nil
			}
			for i := range tags {
				tags[i].log = at
				at = j.next(at)
				steps++
			}
			pending = append(pending, tags...)
		case jbdRevoke:
			list, ok := j.revocations(b)
			if !ok {
				j.torn = true
				return nil
			}
			revokes = append(revokes, list...)
		case jbdCommit:
			if !j.committed(b) {
				j.torn = true
				return nil
			}
			for _, n := range revokes {
				j.revoked[n] = j.sequence
			}
			j.tags = append(j.tags, pending...)
			pending, revokes = nil, nil
			j.commits++
			j.sequence++
		default:
			j.torn = true
			return nil
		}
	}
	j.torn = len(pending) > 0 || len(revokes) > 0
	return nil
}

// blockSum verifies the checksum in the last four bytes of a block of the log.
func (j *journal) blockSum(b []byte) bool {
	if !j.sums {
		return true
	}
	sum := crc(crc(j.seed, b[:len(b)-4]), make([]byte, 4))
	return sum == binary.BigEndian.Uint32(b[len(b)-4:])
}

// descriptor reads the tags of a descriptor block, and reports false where it is
// not as it was written.
func (j *journal) descriptor(b []byte) ([]tag, bool) {
	if !j.blockSum(b) {
		return nil, false
	}
	size := 8
	switch {
	case j.incompat&jIncompatCsum3 != 0:
		size = 16
	case j.incompat&jIncompat64 != 0:
		size = 12
	}
	if j.incompat&jIncompatCsum2 != 0 && j.incompat&jIncompatCsum3 == 0 {
		size += 2
	}
	end := len(b)
	if j.sums {
		end -= 4
	}
	var tags []tag
	be := binary.BigEndian
	for off := jbdHeader; off+size <= end; {
		p := b[off:]
		t := tag{block: uint64(be.Uint32(p)), sequence: j.sequence}
		var flags uint32
		if j.incompat&jIncompatCsum3 != 0 {
			flags, t.sum = be.Uint32(p[4:]), be.Uint32(p[12:])
		} else {
			flags, t.sum = uint32(be.Uint16(p[6:])), uint32(be.Uint16(p[4:]))
		}
		if j.incompat&jIncompat64 != 0 {
			t.block |= uint64(be.Uint32(p[8:])) << 32
		}
		t.escaped = flags&tagEscaped != 0
		tags = append(tags, t)
		off += size
		if flags&tagSameUUID == 0 {
			off += 16
		}
		if flags&tagLast != 0 {
			return tags, true
		}
	}
	return tags, true
}

// revocations reads the blocks that a transaction takes back.
func (j *journal) revocations(b []byte) ([]uint64, bool) {
	if !j.blockSum(b) {
		return nil, false
	}
	size, used := 4, int(binary.BigEndian.Uint32(b[jbdHeader:]))
	if j.incompat&jIncompat64 != 0 {
		size = 8
	}
	if used < jbdRevokeHead || used > len(b) {
		return nil, false
	}
	var out []uint64
	for p := b[jbdRevokeHead:used]; len(p) >= size; p = p[size:] {
		if size == 8 {
			out = append(out, binary.BigEndian.Uint64(p))
		} else {
			out = append(out, uint64(binary.BigEndian.Uint32(p)))
		}
	}
	return out, true
}

// committed verifies a commit block.
func (j *journal) committed(b []byte) bool {
	if !j.sums {
		return true
	}
	const sumAt = 16
	want := binary.BigEndian.Uint32(b[sumAt:])
	sum := crc(crc(j.seed, b[:sumAt]), make([]byte, 4))
	return crc(sum, b[sumAt+4:]) == want
}

// replay finds, for each block that the log holds and nobody revoked later, its
// latest copy.
func (j *journal) replay(ctx context.Context) (map[int64]patch.Block, error) {
	out := make(map[int64]patch.Block)
	b := make([]byte, j.size)
	for _, t := range j.tags {
		if ctx.Err() != nil {
			return nil, context.Cause(ctx)
		}
		// Sequence numbers wrap around; they differ by less than half their range.
		if r, ok := j.revoked[t.block]; ok && int32(r-t.sequence) >= 0 {
			delete(out, int64(t.block))
			continue
		}
		if t.block >= j.fs.sb.blocks {
			return nil, corrupt("transaction %d writes block %d of %d", t.sequence, t.block, j.fs.sb.blocks)
		}
		if j.sums {
			if err := j.read(b, t.log); err != nil {
				return nil, err
			}
			if !j.tagSum(t, b) {
				return nil, corrupt("transaction %d: its copy of block %d has a wrong checksum", t.sequence, t.block)
			}
		}
		at, err := j.place(ctx, t.log)
		if err != nil {
			return nil, err
		}
		p := patch.Block{At: at}
		if t.escaped {
			p.Head = binary.BigEndian.AppendUint32(nil, jbdMagic)
		}
		out[int64(t.block)] = p
	}
	return out, nil
}

func (j *journal) tagSum(t tag, b []byte) bool {
	sum := crc(crc(j.seed, binary.BigEndian.AppendUint32(nil, t.sequence)), b)
	if j.incompat&jIncompatCsum3 != 0 {
		return sum == t.sum
	}
	return uint16(sum) == uint16(t.sum)
}

// place is where on the volume a block of the journal stands.
func (j *journal) place(ctx context.Context, at uint64) (int64, error) {
	in, err := j.fs.inode(ctx, guestfs.Inode(j.fs.sb.journalInode))
	if err != nil {
		return 0, err
	}
	off := int64(at) * j.size
	var pc disk.Piece
	if in.flags()&flagExtents != 0 {
		pc, err = j.fs.extentPiece(ctx, in, off)
	} else {
		pc, err = j.fs.indirectPiece(ctx, in, off)
	}
	if err == nil && pc.From == nil {
		err = corrupt("block %d of the journal is a hole", at)
	}
	return pc.At + off - pc.Offset, err
}

// fastCommits reports whether the area of fast commits holds any that follow the
// last transaction. It begins with a tag HEAD (10): type and length of 16 bits,
// features and transaction number of 32 bits, little-endian.
func (j *journal) fastCommits() (bool, error) {
	if j.fast == 0 {
		return false, nil
	}
	const head = 10
	b := make([]byte, 12)
	if n, err := j.img.ReadAt(b, int64(j.fast)*j.size); n < len(b) {
		return false, fmt.Errorf("the journal: read its fast commits: %w", err)
	}
	le := binary.LittleEndian
	return le.Uint16(b) == head && le.Uint32(b[8:]) == j.sequence, nil
}
