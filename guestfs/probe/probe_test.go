package probe_test

import (
	"errors"
	"os"
	"os/exec"
	"slices"
	"strings"
	"testing"

	"lifeboat/disk"
	"lifeboat/disk/disktest"
	"lifeboat/guestfs"
	"lifeboat/guestfs/guestfstest"
	"lifeboat/guestfs/probe"
)

// TestAgainstBlkid makes everything that Debian can make and asks blkid, too.
func TestAgainstBlkid(t *testing.T) {
	const passphrase = "--key-file=/dev/stdin"
	for name, test := range map[string]struct {
		size int64
		args []string
		kind string
	}{
		"ext2":   {8 << 20, []string{"mke2fs", "-q", "-F", "-t", "ext2", "-L", "one", "IMAGE"}, probe.Ext},
		"ext4":   {8 << 20, []string{"mke2fs", "-q", "-F", "-t", "ext4", "-L", "root", "IMAGE"}, probe.Ext},
		"xfs":    {320 << 20, []string{"mkfs.xfs", "-q", "-f", "-L", "data", "IMAGE"}, probe.XFS},
		"btrfs":  {128 << 20, []string{"mkfs.btrfs", "-q", "-f", "-L", "the pool", "IMAGE"}, probe.Btrfs},
		"ntfs":   {8 << 20, []string{"mkfs.ntfs", "-q", "-F", "-f", "IMAGE"}, probe.NTFS},
		"fat12":  {2 << 20, []string{"mkfs.vfat", "-F", "12", "-n", "FLOPPY", "IMAGE"}, probe.FAT},
		"fat16":  {32 << 20, []string{"mkfs.vfat", "-F", "16", "IMAGE"}, probe.FAT},
		"fat32":  {64 << 20, []string{"mkfs.vfat", "-F", "32", "-n", "ESP", "IMAGE"}, probe.FAT},
		"exfat":  {16 << 20, []string{"mkfs.exfat", "IMAGE"}, probe.ExFAT},
		"swap":   {8 << 20, []string{"mkswap", "-q", "-L", "swapped", "IMAGE"}, probe.Swap},
		"luks 1": {32 << 20, []string{"cryptsetup", "luksFormat", "-q", "--type", "luks1", "--iter-time", "1", "IMAGE", passphrase}, probe.LUKS},
		"luks 2": {32 << 20, []string{"cryptsetup", "luksFormat", "-q", "--pbkdf", "pbkdf2", "--iter-time", "1", "--label", "vault", "IMAGE", passphrase}, probe.LUKS},
		"iso":    {0, []string{"genisoimage", "-quiet", "-V", "DISC", "-o", "IMAGE", "/etc/apt/apt.conf.d"}, probe.ISO},
	} {
		t.Run(name, func(t *testing.T) {
			guestfstest.NeedMount(t, "", test.args[0], "blkid")
			image := guestfstest.NewImage(t, test.size)
			args := slices.Clone(test.args)
			args[slices.Index(args, "IMAGE")] = image
			cmd := exec.Command(args[0], args[1:]...)
			cmd.Stdin = strings.NewReader("secret")
			if out, err := cmd.CombinedOutput(); err != nil {
				t.Fatalf("%v: %v\n%s", args, err, out)
			}
			want := blkid(t, image)
			got := volume(t, image)
			if got.Type != test.kind || got.Type != probe.Ext && got.Type != want["TYPE"] {
				t.Errorf("type %q, blkid says %q", got.Type, want["TYPE"])
			}
			if got.UUID != want["UUID"] || got.Label != want["LABEL"] {
				t.Errorf("UUID %q, label %q; blkid says %q, %q", got.UUID, got.Label, want["UUID"], want["LABEL"])
			}
		})
	}
}

func blkid(t *testing.T, image string) map[string]string {
	t.Helper()
	out := map[string]string{}
	for line := range strings.Lines(guestfstest.Run(t, "blkid", "-p", "-o", "export", image)) {
		key, value, _ := strings.Cut(strings.TrimSuffix(line, "\n"), "=")
		out[key] = strings.ReplaceAll(value, "\\ ", " ")
	}
	return out
}

func volume(t *testing.T, image string) guestfs.Info {
	t.Helper()
	img, err := disk.Open(t.Context(), image, disk.OpenOptions{Format: disk.FormatRaw})
	if err != nil {
		t.Fatal(err)
	}
	defer img.Close()
	info, err := probe.Volume(t.Context(), img)
	if err != nil {
		t.Fatal(err)
	}
	return info
}

// TestNothing: what is nothing is said to be nothing.
func TestNothing(t *testing.T) {
	for _, img := range []disk.Image{disktest.NewMemory(0), disktest.NewMemory(100), disktest.NewMemory(1 << 20), disktest.Random(1, 1<<20, 1)} {
		if info, err := probe.Volume(t.Context(), img); !errors.Is(err, guestfs.ErrNoFS) {
			t.Errorf("%d bytes: %+v, %v", img.Size(), info, err)
		}
	}
}

// TestErrorOfTheDisk: a disk that cannot be read is not an empty one.
func TestErrorOfTheDisk(t *testing.T) {
	broken := &disktest.Faulty{Device: disktest.NewMemory(1 << 20), OnRead: func(int64, int) error { return os.ErrDeadlineExceeded }}
	if _, err := probe.Volume(t.Context(), broken); !errors.Is(err, os.ErrDeadlineExceeded) {
		t.Errorf("got %v", err)
	}
}

func FuzzVolume(f *testing.F) {
	f.Add([]byte("XFSB"), 0)
	f.Add([]byte("LABELONE"), 512)
	f.Add([]byte{0x55, 0xaa}, 510)
	f.Fuzz(func(t *testing.T, data []byte, at int) {
		if at < 0 || at > 70_000 || len(data) > 70_000 {
			return
		}
		for _, size := range []int64{int64(at + len(data)), 1 << 20} {
			m := disktest.NewMemory(size)
			if _, err := m.WriteAt(data, int64(at)); size > 0 && err != nil {
				return
			}
			_, _ = probe.Volume(t.Context(), m)
		}
	})
}
