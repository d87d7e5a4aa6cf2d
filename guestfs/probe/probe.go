// Package probe tells what is on a volume by its magic numbers: which file
// system, or container of others. It reads a few sectors and trusts none of
// them further than to print a name.
package probe

import (
	"bytes"
	"context"
	"encoding/binary"
	"errors"
	"fmt"
	"io"
	"strings"
	"unicode/utf8"

	"lifeboat/disk"
	"lifeboat/guestfs"
)

// Types of what may be on a volume, named as blkid names them.
const (
	Ext       = "ext" // ext2, ext3 or ext4: their reader tells them apart
	XFS       = "xfs"
	Btrfs     = "btrfs"
	NTFS      = "ntfs"
	FAT       = "vfat"
	ExFAT     = "exfat"
	ISO       = "iso9660"
	Squash    = "squashfs"
	ReFS      = "ReFS"
	HFSPlus   = "hfsplus"
	APFS      = "apfs"
	VMFS      = "VMFS"
	F2FS      = "f2fs"
	Swap      = "swap"
	LVM       = "LVM2_member"
	MD        = "linux_raid_member"
	ZFS       = "zfs_member"
	LUKS      = "crypto_LUKS"
	BitLocker = "BitLocker"
)

// head is how much of the beginning of a volume is read: the superblock of Btrfs
// is the last that is looked for.
const head = 0x10000 + 0x1000

// signature is how a type is recognised.
type signature struct {
	kind   string
	offset int // from the beginning of the volume; negative: from its end
	magic  string
	// describe, if not nil, takes the bytes from offset on, and the whole head.
	describe func(b, head []byte) (label, uuid string, ok bool)
}

// signatures in the order in which they are tried: containers before what could
// be in them, and what a format leaves alone after what overwrites it.
func signatures() []signature {
	return []signature{
		{LUKS, 0, "LUKS\xba\xbe", luks},
		{BitLocker, 3, "-FVE-FS-", nil},
		{BitLocker, 3, "MSWIN4.1", bitlockerToGo},
		{LVM, 0, "LABELONE", lvmLabel},
		{LVM, 512, "LABELONE", lvmLabel},
		{LVM, 1024, "LABELONE", lvmLabel},
		{LVM, 1536, "LABELONE", lvmLabel},
		{MD, 4096, "\xfc\x4e\x2b\xa9", md},
		{MD, 0, "\xfc\x4e\x2b\xa9", md},
		{XFS, 0, "XFSB", xfs},
		{NTFS, 3, "NTFS    ", ntfs},
		{ExFAT, 3, "EXFAT   ", exfat},
		{ReFS, 3, "ReFS\x00\x00\x00\x00", nil},
		{APFS, 32, "NXSB", nil},
		{Squash, 0, "hsqs", nil},
		{Btrfs, 0x10040, "_BHRfS_M", btrfs},
		{F2FS, 1024, "\x10\x20\xf5\xf2", nil},
		{HFSPlus, 1024, "H+\x00\x04", nil},
		{HFSPlus, 1024, "HX\x00\x05", nil},
		{ISO, 0x8001, "CD001", iso},
		{Swap, 4086, "SWAPSPACE2", swap},
		{Ext, 1024 + 56, "\x53\xef", ext},
		{FAT, 510, "\x55\xaa", fat},
	}
}

// Volume tells what is on img. guestfs.ErrNoFS where nothing is recognised; other
// errors come from the disk. State is Unsupported or Encrypted where that is sure
// already, and empty otherwise: that is for the reader to say.
func Volume(ctx context.Context, img disk.Image) (guestfs.Info, error) {
	b := make([]byte, min(head, img.Size()))
	if n, err := img.ReadAt(b, 0); n < len(b) {
		if err == nil || errors.Is(err, io.EOF) {
			err = io.ErrUnexpectedEOF
		}
		return guestfs.Info{}, fmt.Errorf("read the first sectors: %w", err)
	}
	if ctx.Err() != nil {
		return guestfs.Info{}, context.Cause(ctx)
	}
	for _, s := range signatures() {
		if s.offset > len(b) || !bytes.HasPrefix(b[s.offset:], []byte(s.magic)) {
			continue
		}
		info := guestfs.Info{Type: s.kind, Size: img.Size(), Used: -1, State: state(s.kind)}
		if s.describe != nil {
			var ok bool
			if info.Label, info.UUID, ok = s.describe(b[s.offset:], b); !ok {
				continue
			}
		}
		return info, nil
	}
	return guestfs.Info{Size: img.Size(), Used: -1, State: guestfs.Unsupported}, guestfs.ErrNoFS
}

func state(kind string) guestfs.State {
	switch kind {
	case LUKS, BitLocker:
		return guestfs.Encrypted
	case ReFS, APFS, HFSPlus, F2FS, VMFS, ZFS, Squash, Swap:
		return guestfs.Unsupported
	}
	return ""
}

// has reports whether b is long enough.
func has(b []byte, n int) bool { return len(b) >= n }

// text is a label as it may be shown: up to the first zero, valid, without
// trailing blanks.
func text(b []byte) string {
	b, _, _ = bytes.Cut(b, []byte{0})
	return strings.TrimRight(strings.ToValidUTF8(string(b), string(utf8.RuneError)), " ")
}

func uuid(b []byte) string {
	return fmt.Sprintf("%x-%x-%x-%x-%x", b[:4], b[4:6], b[6:8], b[8:10], b[10:16])
}

func ext(_, head []byte) (label, id string, ok bool) {
	s := head[1024:]
	if !has(s, 1024) || binary.LittleEndian.Uint32(s[24:]) > 6 || binary.LittleEndian.Uint32(s[32:]) == 0 {
		return "", "", false
	}
	return text(s[120:136]), uuid(s[104:]), true
}

func xfs(b, _ []byte) (label, id string, ok bool) {
	if !has(b, 256) {
		return "", "", false
	}
	return text(b[108:120]), uuid(b[32:]), true
}

// btrfs begins at the magic, 64 bytes into the superblock.
func btrfs(_, head []byte) (label, id string, ok bool) {
	s := head[0x10000:]
	if !has(s, 0x12b+256) {
		return "", "", false
	}
	return text(s[0x12b : 0x12b+256]), uuid(s[32:]), true
}

func ntfs(_, head []byte) (label, id string, ok bool) {
	if !has(head, 512) || head[510] != 0x55 || head[511] != 0xaa {
		return "", "", false
	}
	return "", fmt.Sprintf("%016X", binary.LittleEndian.Uint64(head[72:])), true // the label is in $Volume
}

func exfat(_, head []byte) (label, id string, ok bool) {
	if !has(head, 512) || head[510] != 0x55 || head[511] != 0xaa {
		return "", "", false
	}
	n := binary.LittleEndian.Uint32(head[100:])
	return "", fmt.Sprintf("%04X-%04X", n>>16, n&0xffff), true // the label is in the root directory
}

// fat checks the BIOS parameter block of a FAT, since every boot sector ends
// like one.
func fat(_, head []byte) (label, id string, ok bool) {
	le := binary.LittleEndian
	sector, cluster, reserved, fats := le.Uint16(head[11:]), head[13], le.Uint16(head[14:]), head[16]
	media := head[21]
	if sector < 512 || sector > 4096 || sector&(sector-1) != 0 || cluster == 0 || cluster&(cluster-1) != 0 || reserved == 0 ||
		fats == 0 || fats > 2 || media != 0xf0 && media < 0xf8 {
		return "", "", false
	}
	at := 39 // of FAT12 and FAT16: serial number, and the label after it
	if le.Uint16(head[22:]) == 0 {
		at = 67
	}
	n := le.Uint32(head[at:])
	if label = text(head[at+4 : at+15]); label == "NO NAME" {
		label = ""
	}
	return label, fmt.Sprintf("%04X-%04X", n>>16, n&0xffff), true
}

func iso(_, head []byte) (label, id string, ok bool) {
	d := head[0x8000:]
	if !has(d, 882) {
		return "", "", false
	}
	date := d[813:829] // of creation, or of modification where it has one: digits
	if d[830] != '0' || d[831] != '0' {
		date = d[830:846]
	}
	for _, c := range date {
		if c < '0' || c > '9' {
			return text(d[40:72]), "", true
		}
	}
	s := string(date)
	return text(d[40:72]), fmt.Sprintf("%s-%s-%s-%s-%s-%s-%s", s[:4], s[4:6], s[6:8], s[8:10], s[10:12], s[12:14], s[14:16]), true
}

func swap(_, head []byte) (label, id string, ok bool) {
	return text(head[1052:1068]), uuid(head[1036:]), true
}

func luks(b, _ []byte) (label, id string, ok bool) {
	if !has(b, 512) {
		return "", "", false
	}
	if binary.BigEndian.Uint16(b[6:]) == 2 {
		label = text(b[24:72])
	}
	return label, text(b[168:208]), true
}

// bitlockerToGo is a FAT in front of an encrypted volume on removable media; a
// GUID tells it from the FAT that it looks like.
func bitlockerToGo(_, head []byte) (label, id string, ok bool) {
	const guid = "\x3b\xd6\x67\x49\x29\x2e\xd8\x4a\x83\x99\xf6\xa3\x39\xe3\xd0\x01"
	return "", "", has(head, 512) && string(head[424:440]) == guid
}

func lvmLabel(b, _ []byte) (label, id string, ok bool) {
	if !has(b, 512) || string(b[24:32]) != "LVM2 001" {
		return "", "", false
	}
	if off := binary.LittleEndian.Uint32(b[20:]); off <= 480 && has(b, 512) {
		u := b[off:]
		id = fmt.Sprintf("%s-%s-%s-%s-%s-%s-%s", u[:6], u[6:10], u[10:14], u[14:18], u[18:22], u[22:26], u[26:32])
	}
	return "", id, true
}

// md recognises version 1 of the metadata of Linux's RAID. Version 0.90 and 1.0
// stand at the end of the volume and hide nothing of what is in front.
func md(b, _ []byte) (label, id string, ok bool) {
	if !has(b, 256) || binary.LittleEndian.Uint32(b[4:]) != 1 {
		return "", "", false
	}
	return text(b[32:64]), uuid(b[16:]), true
}
