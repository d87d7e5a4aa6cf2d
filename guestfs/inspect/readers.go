package inspect

import (
	"context"

	"lifeboat/disk"
	"lifeboat/guestfs"
	"lifeboat/guestfs/ext4"
	"lifeboat/guestfs/ntfs"
	"lifeboat/guestfs/probe"
)

// NativeReaders are the readers in Go, one line each.
func NativeReaders() Readers {
	return Readers{
		probe.Ext:  reader(ext4.Open),
		probe.NTFS: reader(ntfs.Open),
	}
}

// reader makes a Reader of a package's own Open.
func reader[FS guestfs.FS](open func(context.Context, disk.Image) (FS, error)) Reader {
	return func(ctx context.Context, img disk.Image) (guestfs.FS, error) {
		fsys, err := open(ctx, img)
		if err != nil {
			return nil, err
		}
		return fsys, nil
	}
}
