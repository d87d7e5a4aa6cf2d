package agent

import (
	"encoding/binary"
	"errors"
	"fmt"
	"io"
	"os"
	"unsafe"

	"golang.org/x/sys/unix"
)

// scanBtrfs makes the disks known to btrfs, which finds those that belong
// together (BTRFS_IOC_SCAN_DEV, linux/btrfs.h).
func scanBtrfs(devices []string) error {
	const scanDev = 0x50009404 // _IOW(0x94, 4, struct btrfs_ioctl_vol_args)
	f, err := os.OpenFile("/dev/btrfs-control", os.O_RDWR, 0)
	if err != nil {
		return err
	}
	defer f.Close()
	for _, dev := range devices {
		var args struct {
			fd   int64
			name [4088]byte
		}
		copy(args.name[:], dev)
		if _, _, e := unix.Syscall(unix.SYS_IOCTL, f.Fd(), scanDev, uintptr(unsafe.Pointer(&args))); e != 0 && !errors.Is(e, unix.EINVAL) {
			return fmt.Errorf("btrfs: scan %s: %w", dev, e)
		}
	}
	return nil
}

// ioctls of the md driver (linux/raid/md_u.h).
const (
	mdSetArrayInfo = 0x40480923
	mdAddNewDisk   = 0x40140921
	mdRunArray     = 0x400c0930
)

// mdArrayInfo is struct mdu_array_info_s; for superblocks of version 1 only the
// version is wanted, the rest is found on the disks.
type mdArrayInfo struct {
	major, minor, patch int32
	ctime               uint32
	rest                [14]int32
}

// mdDiskInfo is struct mdu_disk_info_s.
type mdDiskInfo struct {
	number, major, minor, raidDisk, state int32
}

// assembleMD makes an array of Linux software RAID of its members, without
// starting any repair of it, and returns its device.
func assembleMD(l *loader, devices []string) (string, error) {
	for _, module := range []string{"md_mod", "linear", "raid0", "raid1", "raid10", "raid456"} {
		if err := l.load(module); err != nil {
			return "", err
		}
	}
	// Nothing is written of its own accord: neither a repair nor a superblock.
	if err := os.WriteFile("/sys/module/md_mod/parameters/start_ro", []byte("1"), 0); err != nil {
		return "", err
	}
	version, err := mdVersion(devices[0])
	if err != nil {
		return "", err
	}
	const node = "/dev/md127"
	if err := unix.Mknod(node, unix.S_IFBLK|0o600, int(unix.Mkdev(9, 127))); err != nil && !errors.Is(err, unix.EEXIST) {
		return "", err
	}
	md, err := os.OpenFile(node, os.O_RDWR, 0)
	if err != nil {
		return "", fmt.Errorf("md: %w", err)
	}
	defer md.Close()
	call := func(request uintptr, arg unsafe.Pointer) error {
		if _, _, e := unix.Syscall(unix.SYS_IOCTL, md.Fd(), request, uintptr(arg)); e != 0 {
			return e
		}
		return nil
	}
	if err := call(mdSetArrayInfo, unsafe.Pointer(&mdArrayInfo{major: version.major, minor: version.minor})); err != nil {
		return "", fmt.Errorf("md: begin an array of version %d.%d: %w", version.major, version.minor, err)
	}
	added := 0
	var last error
	for _, dev := range devices {
		var st unix.Stat_t
		if err := unix.Stat(dev, &st); err != nil {
			return "", err
		}
		info := mdDiskInfo{major: int32(unix.Major(st.Rdev)), minor: int32(unix.Minor(st.Rdev))}
		if last = call(mdAddNewDisk, unsafe.Pointer(&info)); last == nil {
			added++
		}
	}
	if added == 0 {
		return "", fmt.Errorf("md: none of %d disks is a member: %w", len(devices), last)
	}
	if err := call(mdRunArray, nil); err != nil {
		return "", fmt.Errorf("md: start the array of %d disks: %w", added, err)
	}
	return node, nil
}

// superblock is where an md superblock stands.
type superblock struct{ major, minor int32 }

const mdMagic = 0xa92b4efc

// mdVersion finds a member's superblock: at its end (0.90, 1.0), its start (1.1),
// or 4 KiB behind it (1.2).
func mdVersion(dev string) (superblock, error) {
	f, err := os.Open(dev)
	if err != nil {
		return superblock{}, err
	}
	defer f.Close()
	size, err := f.Seek(0, io.SeekEnd)
	if err != nil {
		return superblock{}, err
	}
	const sector = 512
	for _, v := range []struct {
		at    int64
		major int32
		minor int32
	}{
		{8 * sector, 1, 2},
		{0, 1, 1},
		{(size/sector - 16) &^ 7 * sector, 1, 0},
		{size&^(64<<10-1) - 64<<10, 0, 90},
	} {
		var b [8]byte
		if v.at < 0 || v.at+8 > size {
			continue
		}
		if _, err := f.ReadAt(b[:], v.at); err != nil {
			return superblock{}, err
		}
		major := int32(binary.LittleEndian.Uint32(b[4:]))
		if binary.LittleEndian.Uint32(b[:]) == mdMagic && (major == v.major) {
			return superblock{v.major, v.minor}, nil
		}
	}
	return superblock{}, fmt.Errorf("md: %s is no member of an array", dev)
}
