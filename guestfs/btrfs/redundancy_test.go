package btrfs_test

import (
	"bytes"
	"errors"
	"os"
	"path/filepath"
	"testing"

	"lifeboat/disk"
	"lifeboat/guestfs"
	"lifeboat/guestfs/btrfs"
	"lifeboat/guestfs/guestfstest"
)

// mirrored is a file system on two devices, each of which has all of it, and the
// content of a file on it.
func mirrored(t *testing.T) (images []string, content []byte) {
	t.Helper()
	images = format(t, variant{2, []string{"-d", "raid1", "-m", "raid1"}, ""})
	dir, unmount := guestfstest.MountDevices(t, images, "btrfs", "")
	content = bytes.Repeat([]byte("twice is better than once "), 40_000)
	if err := os.WriteFile(filepath.Join(dir, "file"), content, 0o600); err != nil {
		t.Fatal(err)
	}
	unmount()
	return images, content
}

func content(t *testing.T, fsys *btrfs.FS) ([]byte, error) {
	t.Helper()
	e, err := guestfs.Lookup(t.Context(), fsys, fsys.Root(), "file")
	if err != nil {
		return nil, err
	}
	img, err := fsys.Open(t.Context(), e.Inode)
	if err != nil {
		return nil, err
	}
	defer img.Close()
	p := make([]byte, img.Size())
	n, err := img.ReadAt(p, 0)
	return p[:n], err
}

// TestMissingDevice: one of two devices is enough, and it is said that there is
// only one.
func TestMissingDevice(t *testing.T) {
	guestfstest.NeedMount(t, "btrfs", "mkfs.btrfs")
	images, want := mirrored(t)
	for _, image := range images {
		fsys := open(t, image)
		if got, err := content(t, fsys); err != nil || !bytes.Equal(got, want) {
			t.Errorf("%d bytes, %v", len(got), err)
		}
		if info := fsys.Info(); info.State != guestfs.Damaged || info.Note != "1 of its 2 devices are missing" {
			t.Errorf("info: %+v", info)
		}
	}
	img, err := disk.Open(t.Context(), images[0], disk.OpenOptions{Format: disk.FormatRaw})
	if err != nil {
		t.Fatal(err)
	}
	defer img.Close()
	if fsid, n, err := btrfs.Member(img); n != 2 || err != nil || fsid == [16]byte{} {
		t.Errorf("it is of %x with %d devices, %v", fsid, n, err)
	}
	if _, err := btrfs.Open(t.Context(), img, img); err == nil {
		t.Error("one device was taken for two")
	}
}

// TestBadCopy: what is damaged on one device is read from the other, and what is
// damaged on both is an error, never other bytes.
func TestBadCopy(t *testing.T) {
	guestfstest.NeedMount(t, "btrfs", "mkfs.btrfs")
	images, want := mirrored(t)
	for i, image := range images {
		damageData(t, image, want)
		got, err := content(t, open(t, images...))
		if i == 0 && (err != nil || !bytes.Equal(got, want)) {
			t.Errorf("with one bad copy: %d bytes, %v", len(got), err)
		}
		if i == 1 && (!errors.Is(err, guestfs.ErrCorrupt) || !bytes.Equal(got, want[:len(got)])) {
			t.Errorf("with no good copy: %d bytes, %v", len(got), err)
		}
	}
}

// damageData changes a byte of a file's content, wherever it is on a device.
func damageData(t *testing.T, image string, content []byte) {
	t.Helper()
	data, err := os.ReadFile(image)
	if err != nil {
		t.Fatal(err)
	}
	at := bytes.Index(data, content[8192:8192+2000])
	if at < 0 {
		t.Fatal("the content is not on the device")
	}
	f, err := os.OpenFile(image, os.O_WRONLY, 0)
	if err != nil {
		t.Fatal(err)
	}
	defer f.Close()
	if _, err := f.WriteAt([]byte{data[at+100] ^ 1}, int64(at+100)); err != nil {
		t.Fatal(err)
	}
}
