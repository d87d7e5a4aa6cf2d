package appliance

import (
	"bytes"
	"context"
	"encoding/binary"
	"errors"
	"fmt"
	"log/slog"
	"time"

	"lifeboat/disk"
	"lifeboat/guestfs"
	"lifeboat/guestfs/lvm"
	"lifeboat/guestfs/ntfs"
	"lifeboat/guestfs/partition"
	"lifeboat/guestfs/probe"
)

// What a guest keeps on its disks only until it is started the next time is not
// worth storing: swap space, and the page files of Windows. It reads as zeros in
// the restore point, but for the first page of swap space, by whose UUID a guest
// finds it and which makes it swap space.
//
// To leave out too little costs room; to leave out too much loses data. So every
// doubt is decided for storing:
//
//   - a partition table with anything odd about it, partitions that overlap, and
//     volumes that look like two things at once leave nothing out;
//   - swap space ends where its own header says, not where the volume does, and
//     swap space that holds a hibernated system does not say that it is swap;
//   - a file is left out by its name only in the root directory, only as a system
//     file, only if the file system vouches that its metadata are up to date, and
//     not if it holds a hibernated system;
//   - of a volume group with thin volumes or snapshots everything stays: what is
//     swap in one volume may be data in another;
//   - the edges of a disk, where partition tables are, always stay;
//   - an error, and a disk that this backup does not read, leave nothing out.
//
// Where zones are may change from one backup to the next, and what the guest does
// not write is in no list of changes. Who makes an incremental therefore reads
// what is in the zones of one of the two points and not of the other (see
// vmdisk.go): a zone that ends brings back what is there.

// skipFinder looks for what need not be stored.
type skipFinder struct {
	// openNTFS reads the file system on a volume; nil: ntfs.Open.
	openNTFS func(context.Context, disk.Image) (guestfs.FS, error)
	log      *slog.Logger
}

// whatever a guest's disk holds, the search for zones ends, and its result is
// small enough to be kept with the point.
const (
	skipTimeout  = time.Minute
	maxSkipRuns  = 4096
	skipEdge     = 64 << 10 // at both ends of a disk
	swapPage     = 4096
	maxPageFiles = 3
)

// guestVolume is what may be swap space or a file system.
type guestVolume struct {
	img  disk.Image
	name string // for the log
}

// flat hides what a disk is made of: the way down from a volume ends there.
type flat struct{ disk.Image }

// find returns per disk what need not be stored. disks are those of one VM, in
// any order. It never fails: what it cannot make out is stored.
func (f skipFinder) find(ctx context.Context, disks []disk.Image) (zones []areas) {
	if f.openNTFS == nil {
		f.openNTFS = func(ctx context.Context, img disk.Image) (guestfs.FS, error) { return ntfs.Open(ctx, img) }
	}
	zones = make([]areas, len(disks))
	ctx, cancel := context.WithTimeout(ctx, skipTimeout)
	defer cancel()
	bottom := make([]*flat, len(disks))
	for i, d := range disks {
		bottom[i] = &flat{d}
	}
	for _, v := range f.volumes(ctx, bottom) {
		runs, err := f.volatile(ctx, v.img)
		var found []areas
		if err == nil && len(runs) > 0 {
			found, err = locate(v.img, runs, bottom)
		}
		if err != nil {
			f.log.Debug("all of a volume is stored, because what could be left out is not sure", "volume", v.name, "reason", err)
			continue
		}
		for i := range found {
			zones[i] = zones[i].union(found[i])
		}
	}
	for i, d := range disks {
		zones[i] = zones[i].without(areas{{Length: skipEdge}, {Offset: max(skipEdge, d.Size()-skipEdge), Length: skipEdge}})
		if len(zones[i]) > maxSkipRuns {
			zones[i] = nil
		}
	}
	return zones
}

// volumes lists what is on the disks: partitions, disks without any, and logical
// volumes.
func (f skipFinder) volumes(ctx context.Context, disks []*flat) []guestVolume {
	var plain []guestVolume
	for i, d := range disks {
		table, err := partition.Read(ctx, d)
		switch {
		case err != nil || len(table.Notes) > 0:
			f.log.Debug("all of a disk is stored, because its partition table is not in order", "disk", i, "error", err)
			continue
		case table.Scheme == partition.None:
			plain = append(plain, guestVolume{d, fmt.Sprintf("disk %d", i)})
		}
		for _, p := range table.Partitions {
			if !overlaps(p, table.Partitions) {
				plain = append(plain, guestVolume{disk.Section(ctx, d, p.Start, p.Size), fmt.Sprintf("disk %d, partition %d", i, p.Number)})
			}
		}
	}
	images := make([]disk.Image, len(plain))
	for i, v := range plain {
		images[i] = v.img
	}
	groups, member, err := lvm.Scan(ctx, images)
	if err != nil {
		f.log.Debug("what is in logical volumes is stored, because they cannot all be read", "error", err)
		groups = nil
	}
	var out []guestVolume
	for i, v := range plain {
		switch {
		case i >= len(member) || !member[i]:
			out = append(out, v)
		case !only(ctx, v.img, probe.LVM):
			groups = nil // it was something else before, or is now
		}
	}
	for _, g := range groups {
		if g.Shared { // what a volume never wrote since it became swap may be a snapshot's
			f.log.Debug("what is in logical volumes is stored, because the group has snapshots", "group", g.Name)
			continue
		}
		for _, lv := range g.Volumes {
			if img, err := lv.Open(ctx); err == nil {
				out = append(out, guestVolume{img, g.Name + "/" + lv.Name})
			}
		}
	}
	return out
}

func overlaps(p partition.Partition, all []partition.Partition) bool {
	for _, o := range all {
		if o.Number != p.Number && o.Start < p.Start+p.Size && p.Start < o.Start+o.Size {
			return true
		}
	}
	return false
}

// only reports whether a volume is of that kind, and would be nothing else
// without the bytes that say so.
func only(ctx context.Context, img disk.Image, kind string) bool {
	info, err := probe.Volume(ctx, img)
	if err != nil || info.Type != kind {
		return false
	}
	var signature areas
	switch kind {
	case probe.Swap:
		signature = areas{{Offset: int64(swapMagicAt), Length: int64(len(swapMagic))}}
	case probe.LVM: // in one of the first four sectors
		for at := range int64(4) {
			signature = append(signature, disk.Extent{Offset: at * 512, Length: 8})
		}
	}
	_, err = probe.Volume(ctx, &masked{Image: img, holes: signature, zero: true})
	return errors.Is(err, guestfs.ErrNoFS)
}

// volatile returns what of a volume need not be stored.
func (f skipFinder) volatile(ctx context.Context, img disk.Image) (areas, error) {
	info, err := probe.Volume(ctx, img)
	switch {
	case errors.Is(err, guestfs.ErrNoFS):
		return nil, nil
	case err != nil:
		return nil, err
	case info.Type == probe.Swap:
		return swapZone(ctx, img)
	case info.Type == probe.NTFS:
		return f.pageFiles(ctx, img)
	}
	return nil, nil
}

// Of the header of swap space (union swap_header in the kernel's
// include/linux/swap.h), version 1 with pages of 4 KiB.
const (
	swapMagic    = "SWAPSPACE2"
	swapMagicAt  = swapPage - len(swapMagic)
	swapVersion  = 1024
	swapLastPage = 1028
	swapBadPages = 1032
	swapPadding  = 1068 // behind UUID and label, zeros up to the list of bad pages
	swapBadList  = 1536
)

// swapZone is swap space without its first page.
func swapZone(ctx context.Context, img disk.Image) (areas, error) {
	header := make([]byte, swapPage)
	if img.Size() < 2*swapPage {
		return nil, nil
	}
	if n, err := img.ReadAt(header, 0); n < len(header) {
		return nil, fmt.Errorf("read the header of swap space: %w", err)
	}
	le := binary.LittleEndian
	last, bad := le.Uint32(header[swapLastPage:]), le.Uint32(header[swapBadPages:])
	end := (int64(last) + 1) * swapPage
	switch {
	case string(header[swapMagicAt:]) != swapMagic, le.Uint32(header[swapVersion:]) != 1, last == 0, int(bad) > (swapMagicAt-swapBadList)/4,
		len(bytes.TrimLeft(header[swapPadding:swapBadList], "\x00")) > 0, end > img.Size():
		return nil, errors.New("the header of its swap space is not one that mkswap makes")
	case !only(ctx, img, probe.Swap):
		return nil, errors.New("it looks like swap space, and like something else")
	}
	return areas{{Offset: swapPage, Length: end - swapPage}}, nil
}

// locate says where on the disks runs of a volume are.
func locate(volume disk.Image, runs areas, disks []*flat) ([]areas, error) {
	found, pieces := make([][]disk.Extent, len(disks)), 0
	for _, run := range runs {
		for at := run.Offset; at < run.End(); {
			pc, err := disk.Trace(volume, at)
			if err != nil {
				return nil, err
			}
			n := min(pc.Length, run.End()-at)
			if pieces++; n <= 0 || pieces > maxSkipRuns {
				return nil, fmt.Errorf("it is in more than %d pieces", maxSkipRuns)
			}
			i := indexOf(disks, pc.From)
			if i < 0 {
				return nil, errors.New("part of it is on none of the disks")
			}
			found[i] = append(found[i], disk.Extent{Offset: pc.At, Length: n})
			at += n
		}
	}
	out := make([]areas, len(disks))
	for i, runs := range found {
		out[i] = areasOf(runs, disks[i].Size())
	}
	return out, nil
}

func indexOf(disks []*flat, img disk.Image) int {
	for i, d := range disks {
		if img == disk.Image(d) {
			return i
		}
	}
	return -1
}
