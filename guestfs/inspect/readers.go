package inspect

import (
	"context"

	"lifeboat/disk"
	"lifeboat/guestfs"
	"lifeboat/guestfs/btrfs"
	"lifeboat/guestfs/exfat"
	"lifeboat/guestfs/ext4"
	"lifeboat/guestfs/fat"
	"lifeboat/guestfs/iso9660"
	"lifeboat/guestfs/ntfs"
	"lifeboat/guestfs/probe"
	"lifeboat/guestfs/xfs"
)

// NativeReaders are the readers in Go, one line each.
func NativeReaders() Readers {
	return Readers{
		probe.Ext:   reader(ext4.Open),
		probe.NTFS:  reader(ntfs.Open),
		probe.XFS:   reader(xfs.Open),
		probe.Btrfs: openBtrfs,
		probe.FAT:   reader(fat.Open),
		probe.ExFAT: reader(exfat.Open),
		probe.ISO:   reader(iso9660.Open),
	}
}

// reader makes a Reader of a package's own Open.
func reader[FS guestfs.FS](open func(context.Context, disk.Image) (FS, error)) Reader {
	return func(ctx context.Context, img disk.Image, _ ...disk.Image) (guestfs.FS, error) {
		fsys, err := open(ctx, img)
		if err != nil {
			return nil, err
		}
		return fsys, nil
	}
}

// openBtrfs opens a device alone, and with its namesakes only where it is not
// whole without them: those could as well be copies of it.
func openBtrfs(ctx context.Context, img disk.Image, namesakes ...disk.Image) (guestfs.FS, error) {
	alone, err := btrfs.Open(ctx, img)
	if len(namesakes) > 0 && (err != nil || alone.Info().State == guestfs.Damaged) {
		if all, allErr := btrfs.Open(ctx, img, namesakes...); allErr == nil {
			return all, nil
		}
	}
	if err != nil {
		return nil, err
	}
	return alone, nil
}
