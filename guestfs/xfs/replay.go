package xfs

import (
	"bytes"
	"context"
	"encoding/binary"
	"errors"
	"fmt"
	"slices"

	"lifeboat/guestfs"
	"lifeboat/guestfs/internal/meta"
	"lifeboat/guestfs/internal/patch"
)

// Types of items (XFS_LI_*).
const (
	itemFree       = 0x1236 // extents to be freed, and done: no reader sees free space
	itemFreed      = 0x1237
	itemUnlink     = 0x1238
	itemInode      = 0x123b
	itemBuffer     = 0x123c
	itemQuota      = 0x123d
	itemQuotaOff   = 0x123e
	itemCreate     = 0x123f
	itemReverse    = 0x1240 // reverse map and reference counts: nor these
	itemReversed   = 0x1241
	itemCount      = 0x1242
	itemCounted    = 0x1243
	itemMap        = 0x1244
	itemMapped     = 0x1245
	itemAttr       = 0x1246
	itemAttred     = 0x1247
	itemExchange   = 0x1248
	itemExchanged  = 0x1249
	maxPatchBytes  = 80 << 20 // what replay may take in memory
	maxIntents     = 1 << 14
	maxIntentBytes = 1 << 10
	maxCancelled   = 1 << 19
	bytesPerSector = sector + 100 // and what it takes to find it
)

// errUnsupported marks what the log holds and this reader cannot replay.
var errUnsupported = &guestfs.UnsupportedError{FS: fsName, What: "what its log holds"}

// place is a buffer: sectors from the start of the volume.
type place struct {
	at    int64
	count int
}

// recovery is what replaying the log makes of the volume.
type recovery struct {
	f         *FS
	cancelled map[place]int           // buffers that were freed, and how often
	sectors   map[int64]*[sector]byte // what was changed, by place
	commits   int
	intents   map[intentKey]intent
	begun     int // intents, ever
	reowned   map[guestfs.Inode]bool

	now, before []byte // the buffer that was loaded last
}

// recover shows the volume as it is after replay.
//
// A log that cannot be replayed is not the end: the kernel would refuse to mount,
// but what is in its place can be read, and the state says what that is worth.
func (f *FS) recover(ctx context.Context) error {
	if f.sb.logStart == 0 {
		f.state, f.note = guestfs.Dirty, "its log is on another device and was not replayed: the latest changes may be missing"
		return nil
	}
	err := f.replay(ctx)
	switch {
	case err == nil:
		return nil
	case errors.Is(err, guestfs.ErrUnsupported):
		f.state, f.note = guestfs.Dirty, fmt.Sprintf("its log was not replayed, the latest changes are missing: %v", err)
	case errors.Is(err, guestfs.ErrCorrupt), errors.Is(err, errTorn):
		f.state, f.note = guestfs.Damaged, fmt.Sprintf("its log was not replayed, the latest changes are missing: %v", err)
	default:
		return fmt.Errorf("xfs: the log: %w", err)
	}
	return nil
}

func (f *FS) replay(ctx context.Context) error {
	at, ok := f.sb.linear(f.sb.logStart, f.sb.logBlocks)
	if !ok || f.sb.logBlocks == 0 {
		return corrupt("its log is %d blocks at %d", f.sb.logBlocks, f.sb.logStart)
	}
	l := &xlog{img: f.disk, base: int64(at) << f.sb.blockLog, size: int64(f.sb.logBlocks) << f.sb.blockLog / sector, v2: f.sb.logV2, uuid: f.sb.uuid}
	tail, head, err := l.tail(ctx)
	if err != nil || tail == head {
		return err
	}
	if unknown := f.sb.logIncompat &^ logIncompatXattrs; unknown != 0 {
		return &guestfs.UnsupportedError{FS: fsName, What: fmt.Sprintf("log feature %#x", unknown)}
	}
	r, err := f.passes(ctx, l, tail, head)
	if err != nil {
		return err
	}
	return f.reopen(ctx, r)
}

// passes goes through the log twice, as some of what is in it was taken back
// later: a buffer that was freed is not replayed, as its blocks may hold a file's
// data by now. A log that was full may have lost the records at its tail, which
// were no longer needed, to those at its head.
func (f *FS) passes(ctx context.Context, l *xlog, tail, head int64) (*recovery, error) {
	for {
		r := &recovery{f: f, cancelled: map[place]int{}, sectors: map[int64]*[sector]byte{}, intents: map[intentKey]intent{}, reowned: map[guestfs.Inode]bool{}}
		err := l.run(ctx, tail, head, r.first)
		if err == nil {
			return r, l.run(ctx, tail, head, func(t *transaction) error { return r.second(ctx, t) })
		}
		var lost *overwritten
		if !errors.As(err, &lost) || l.distance(head, lost.at) > l.window() {
			return nil, err
		}
		next, err := l.after(ctx, lost.at, head)
		if err != nil || next == head {
			return nil, errors.Join(lost, errTorn, err)
		}
		tail = next
	}
}

// after finds the next header behind a sector.
func (l *xlog) after(ctx context.Context, at, head int64) (int64, error) {
	for at = (at + 1) % l.size; at != head; at = (at + 1) % l.size {
		b, err := l.sectors(ctx, at, 1)
		if err != nil {
			return 0, err
		}
		if binary.BigEndian.Uint32(b) == recordMagic {
			break
		}
	}
	return at, nil
}

// first notes which buffers a transaction frees.
func (r *recovery) first(t *transaction) error {
	for _, it := range t.items {
		if it.kind() != itemBuffer {
			continue
		}
		b, err := r.buffer(it)
		if err != nil {
			return err
		}
		if b.flags&bufferCancel == 0 {
			continue
		}
		if r.cancelled[b.place]++; len(r.cancelled) > maxCancelled {
			return fmt.Errorf("it frees more than %d buffers: %w", maxCancelled, errUnsupported)
		}
	}
	return nil
}

// second replays a transaction: buffers first, as inodes may stand in them, then
// all else, and at last which buffers it freed.
func (r *recovery) second(ctx context.Context, t *transaction) error {
	if ctx.Err() != nil {
		return context.Cause(ctx)
	}
	r.commits++
	for _, step := range []func(context.Context, *transaction, item) error{r.buffers, r.others, r.frees} {
		for _, it := range t.items {
			if err := step(ctx, t, it); err != nil {
				return err
			}
		}
	}
	if len(r.sectors)*bytesPerSector > maxPatchBytes {
		return fmt.Errorf("it changes more than %d MiB: %w", maxPatchBytes>>20, errUnsupported)
	}
	return nil
}

func (r *recovery) frees(_ context.Context, _ *transaction, it item) error {
	if it.kind() != itemBuffer {
		return nil
	}
	b, err := r.buffer(it)
	if err != nil || b.flags&bufferCancel == 0 {
		return err
	}
	if r.cancelled[b.place]--; r.cancelled[b.place] <= 0 {
		delete(r.cancelled, b.place)
	}
	return nil
}

func (r *recovery) others(_ context.Context, t *transaction, it item) error {
	if len(it.regions) < it.total {
		return corrupt("an item of type %#x in its log has %d regions of %d", it.kind(), len(it.regions), it.total)
	}
	switch it.kind() {
	case itemInode:
		return r.inode(t, it)
	case itemCreate:
		return r.create(it.regions[0])
	case itemMap, itemAttr, itemExchange:
		return r.begin(it)
	case itemMapped, itemAttred, itemExchanged:
		return r.done(it)
	case itemBuffer, itemFree, itemFreed, itemUnlink, itemQuota, itemQuotaOff, itemReverse, itemReversed, itemCount, itemCounted:
		return nil
	}
	return fmt.Errorf("an item of type %#x: %w", it.kind(), errUnsupported)
}

// load reads a buffer as it is by now. It is good until the next one is loaded.
func (r *recovery) load(p place) ([]byte, error) {
	r.now = slices.Grow(r.now[:0], p.count*sector)[:p.count*sector]
	missing := false
	for i := range p.count {
		if s := r.sectors[p.at+int64(i)]; s == nil {
			missing = true
			break
		}
	}
	if missing {
		if n, err := r.f.disk.ReadAt(r.now, p.at*sector); n < len(r.now) {
			return nil, fmt.Errorf("read sector %d: %w", p.at, err)
		}
	}
	for i := range p.count {
		if s := r.sectors[p.at+int64(i)]; s != nil {
			copy(r.now[i*sector:], s[:])
		}
	}
	r.before = append(r.before[:0], r.now...)
	return r.now, nil
}

// store keeps those sectors of the buffer that was loaded last that were changed
// since.
func (r *recovery) store(p place) {
	for i := range p.count {
		now := r.now[i*sector : (i+1)*sector]
		if bytes.Equal(now, r.before[i*sector:(i+1)*sector]) {
			continue
		}
		s := r.sectors[p.at+int64(i)]
		if s == nil {
			s = new([sector]byte)
			r.sectors[p.at+int64(i)] = s
		}
		copy(s[:], now)
	}
}

// reopen reads the superblock again, as the log left it.
func (f *FS) reopen(ctx context.Context, r *recovery) error {
	blocks := make(map[int64]patch.Block, len(r.sectors))
	for at, s := range r.sectors {
		blocks[at] = patch.Block{Data: s[:]}
	}
	img := patch.New(f.disk, sector, blocks)
	sb, err := readSuper(img)
	if err != nil {
		return fmt.Errorf("after replay of its log: %w", err)
	}
	if sb.blockSize != f.sb.blockSize || sb.agBlockLog != f.sb.agBlockLog || sb.inodeSize != f.sb.inodeSize || sb.v5 != f.sb.v5 {
		return corrupt("its log changes the block size")
	}
	f.sb, f.disk, f.meta = sb, img, meta.New(img, sb.blockSize, cacheBytes)
	f.state, f.note = guestfs.Replayed, fmt.Sprintf("%d transactions of its log were replayed", r.commits)
	f.reowned = r.reowned
	f.finish(r.intents)
	return f.countFree(ctx)
}

// maxCounted bounds the groups that are asked how much of them is free.
const maxCounted = 4096

// countFree asks the groups, as the total in the superblock is only right after
// an orderly end.
func (f *FS) countFree(ctx context.Context) error {
	if !f.sb.lazy || f.sb.agCount > maxCounted {
		return nil
	}
	var free uint64
	be := binary.BigEndian
	b := make([]byte, 512)
	for ag := range f.sb.agCount {
		if ctx.Err() != nil {
			return context.Cause(ctx)
		}
		if n, err := f.disk.ReadAt(b, int64(ag*f.sb.agBlocks)<<f.sb.blockLog+int64(f.sb.sectorSize)); n < len(b) {
			return fmt.Errorf("read the header of group %d: %w", ag, err)
		}
		if string(b[:4]) != "XAGF" {
			return nil // the total is as good as any
		}
		free += uint64(be.Uint32(b[48:])) + uint64(be.Uint32(b[52:])) + uint64(be.Uint32(b[60:]))
	}
	f.sb.freeBlocks = free
	return nil
}
