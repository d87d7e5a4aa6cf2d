package lvm_test

import (
	"bytes"
	"errors"
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"testing"

	"lifeboat/disk"
	"lifeboat/disk/disktest"
	"lifeboat/guestfs"
	"lifeboat/guestfs/lvm"
)

const (
	megabyte = 1 << 20
	extent   = megabyte
	dataAt   = 1 * megabyte // pe_start
	pvSize   = 16 * megabyte
)

// lab is a set of physical volumes on loop devices, on which Debian's LVM works
// without a device mapper.
type lab struct {
	t     *testing.T
	dir   string
	files []string
	loops []string
}

func newLab(t *testing.T, n int) *lab {
	t.Helper()
	if os.Getuid() != 0 {
		t.Skip("LVM's own tools want root and loop devices")
	}
	l := &lab{t: t, dir: t.TempDir()}
	for i := range n {
		file := filepath.Join(l.dir, fmt.Sprintf("pv%d", i))
		if err := os.WriteFile(file, nil, 0o600); err != nil {
			t.Fatal(err)
		}
		if err := os.Truncate(file, pvSize); err != nil {
			t.Fatal(err)
		}
		out, err := exec.Command("losetup", "--find", "--show", file).Output()
		if err != nil {
			t.Fatalf("losetup: %v", err)
		}
		loop := strings.TrimSpace(string(out))
		t.Cleanup(func() { _ = exec.Command("losetup", "--detach", loop).Run() })
		l.files, l.loops = append(l.files, file), append(l.loops, loop)
	}
	return l
}

// run runs a command of LVM, which sees no device but ours.
func (l *lab) run(args ...string) string {
	l.t.Helper()
	var accept strings.Builder
	for _, loop := range l.loops {
		fmt.Fprintf(&accept, "%q, ", "a|^"+loop+"$|")
	}
	config := fmt.Sprintf(`devices { use_devicesfile=0 filter=[ %s"r|.*|" ] } activation { monitoring=0 udev_sync=0 udev_rules=0 }
		global { use_lvmlockd=0 locking_dir=%q } backup { backup=0 archive=0 }`, accept.String(), l.dir)
	cmd := exec.Command("lvm", append([]string{args[0], "--config", config, "--driverloaded", "n"}, args[1:]...)...)
	cmd.Env = append(os.Environ(), "LVM_SYSTEM_DIR="+l.dir, "LVM_SUPPRESS_FD_WARNINGS=1", "DM_DISABLE_UDEV=1")
	var stdout, stderr bytes.Buffer
	cmd.Stdout, cmd.Stderr = &stdout, &stderr
	if err := cmd.Run(); err != nil {
		l.t.Fatalf("lvm %v: %v\n%s%s", args, err, stdout.Bytes(), stderr.Bytes())
	}
	return stdout.String()
}

func (l *lab) create(args ...string) {
	l.t.Helper()
	l.run(append([]string{"lvcreate", "-an", "-Zn", "-Wn"}, args...)...)
}

// images opens the physical volumes, after filling the extents of each with a
// pattern of its own.
func (l *lab) images() []disk.Image {
	l.t.Helper()
	var out []disk.Image
	for i, loop := range l.loops {
		if err := exec.Command("losetup", "--detach", loop).Run(); err != nil {
			l.t.Fatalf("losetup --detach: %v", err)
		}
		data, err := os.ReadFile(l.files[i])
		if err != nil {
			l.t.Fatal(err)
		}
		for off := dataAt; off < len(data); off += 4096 {
			copy(data[off:off+4096], pattern(i, off-dataAt))
		}
		out = append(out, disktest.FromBytes(data))
	}
	return out
}

// pattern is 4 KiB that say on which volume and at which offset they are.
func pattern(pv, off int) []byte {
	return bytes.Repeat(fmt.Appendf(nil, "%03d:%012d", pv, off), 256)
}

func scan(t *testing.T, images []disk.Image) []lvm.Group {
	t.Helper()
	groups, is, err := lvm.Scan(t.Context(), images)
	if err != nil {
		t.Fatal(err)
	}
	for i, yes := range is {
		if !yes {
			t.Errorf("image %d is not taken for a physical volume", i)
		}
	}
	return groups
}

func volume(t *testing.T, groups []lvm.Group, name string) *lvm.Volume {
	t.Helper()
	for _, g := range groups {
		for i := range g.Volumes {
			if g.Volumes[i].Name == name {
				return &g.Volumes[i]
			}
		}
	}
	t.Fatalf("no volume %s in %+v", name, groups)
	return nil
}

// want compares a volume with where LVM says that its bytes are: ranges like
// "1:4-7", a physical volume and its extents, with stripes of the given size
// over the ranges in one line.
func want(t *testing.T, v *lvm.Volume, stripe int, lines ...[]string) {
	t.Helper()
	var content []byte
	for _, line := range lines {
		var legs [][]byte
		for _, r := range line {
			var pv, first, last int
			if _, err := fmt.Sscanf(r, "%d:%d-%d", &pv, &first, &last); err != nil {
				t.Fatalf("%q: %v", r, err)
			}
			var leg []byte
			for off := first * extent; off < (last+1)*extent; off += 4096 {
				leg = append(leg, pattern(pv, off)...)
			}
			legs = append(legs, leg)
		}
		for at := 0; at < len(legs[0]); at += stripe {
			for _, leg := range legs {
				content = append(content, leg[at:min(at+stripe, len(leg))]...)
			}
		}
	}
	img, err := v.Open(t.Context())
	if err != nil {
		t.Fatal(err)
	}
	defer img.Close()
	disktest.Equal(t, img, disktest.FromBytes(content))
}

// ranges asks LVM where a volume is: a line for each segment.
func (l *lab) ranges(vg, name string) (lines [][]string) {
	l.t.Helper()
	out := l.run("lvs", "--noheadings", "-o", "seg_pe_ranges", "--segments", vg+"/"+name)
	for line := range strings.Lines(out) {
		fields := strings.Fields(line)
		for i, f := range fields {
			for pv, loop := range l.loops {
				if rest, ok := strings.CutPrefix(f, loop+":"); ok {
					fields[i] = fmt.Sprintf("%d:%s", pv, rest)
				}
			}
		}
		lines = append(lines, fields)
	}
	return lines
}

func TestLinearAndStriped(t *testing.T) {
	l := newLab(t, 3)
	l.run("vgcreate", "-s", "1M", "vg-data", l.loops[0], l.loops[1], l.loops[2])
	l.create("-L", "5M", "-n", "linear", "vg-data")
	l.create("-i", "3", "-I", "64k", "-L", "6M", "-n", "striped", "vg-data")
	l.create("-L", "2M", "-n", "between", "vg-data", l.loops[0])
	l.run("lvextend", "-l", "+7", "vg-data/linear") // over two disks
	linear, striped := l.ranges("vg-data", "linear"), l.ranges("vg-data", "striped")
	if len(linear) < 2 {
		t.Fatalf("the linear volume is in one piece: %q", linear)
	}
	images := l.images()
	groups := scan(t, images)
	if len(groups) != 1 || groups[0].Name != "vg-data" || len(groups[0].Volumes) != 3 || len(groups[0].Missing) != 0 {
		t.Fatalf("groups: %+v", groups)
	}
	want(t, volume(t, groups, "linear"), extent, linear...)
	want(t, volume(t, groups, "striped"), 64<<10, striped...)

	t.Run("a disk is missing", func(t *testing.T) {
		groups := scan(t, images[:1])
		if len(groups[0].Missing) != 2 {
			t.Errorf("missing: %q", groups[0].Missing)
		}
		if _, err := volume(t, groups, "striped").Open(t.Context()); !errors.Is(err, lvm.ErrMissing) {
			t.Errorf("striped: %v", err)
		}
		if img, err := volume(t, groups, "between").Open(t.Context()); err != nil || img.Size() != 2*megabyte {
			t.Errorf("a volume that needs no missing disk: %v", err)
		}
	})
	t.Run("two guests with the same names and UUIDs", func(t *testing.T) {
		again := scan(t, images)
		want(t, volume(t, again, "linear"), extent, linear...)
		want(t, volume(t, groups, "linear"), extent, linear...)
	})
	t.Run("damaged", func(t *testing.T) {
		broken := images[0].(*disktest.Memory).Clone()
		if _, err := broken.WriteAt([]byte{1}, 512+100); err != nil { // the label's sector
			t.Fatal(err)
		}
		groups, _, err := lvm.Scan(t.Context(), []disk.Image{broken, images[1], images[2]})
		if !errors.Is(err, guestfs.ErrCorrupt) || len(groups) != 1 || len(groups[0].Missing) != 1 {
			t.Errorf("groups %+v, error %v", groups, err)
		}
	})
}

// TestCopies: LVM makes no raid1 without the kernel, but takes one from a text.
func TestCopies(t *testing.T) {
	l := newLab(t, 2)
	l.run("vgcreate", "-s", "1M", "vg", l.loops[0], l.loops[1])
	for _, name := range []string{"r_rimage_0", "r_rmeta_0"} {
		l.create("-l", "1", "-n", name[2:], "vg", l.loops[0])
	}
	l.create("-l", "3", "-n", "x0", "vg", l.loops[0])
	l.create("-l", "3", "-n", "x1", "vg", l.loops[1])
	l.create("-l", "1", "-n", "m1", "vg", l.loops[1])
	backup := filepath.Join(l.dir, "vg.txt")
	l.run("vgcfgbackup", "-f", backup, "vg")
	text, err := os.ReadFile(backup)
	if err != nil {
		t.Fatal(err)
	}
	edited := strings.NewReplacer(
		"rimage_0 {", "gone {", "rmeta_0 {", "r_rmeta_0 {", "x0 {", "r_rimage_0 {", "x1 {", "r_rimage_1 {", "m1 {", "r_rmeta_1 {",
	).Replace(string(text))
	edited = strings.ReplaceAll(edited, `"VISIBLE"`, `"WRITE"`)
	const raid = `
		r {
			id = "AAAAAA-AAAA-AAAA-AAAA-AAAA-AAAA-AAAAAA"
			status = ["READ", "WRITE", "VISIBLE"]
			flags = []
			segment_count = 1
			segment1 {
				start_extent = 0
				extent_count = 3
				type = "raid1"
				device_count = 2
				region_size = 4096
				raids = [ "r_rmeta_0", "r_rimage_0", "r_rmeta_1", "r_rimage_1" ]
			}
		}
		`
	edited = strings.Replace(edited, "logical_volumes {", "logical_volumes {"+raid, 1)
	if err := os.WriteFile(backup, []byte(edited), 0o600); err != nil {
		t.Fatal(err)
	}
	l.run("vgcfgrestore", "--force", "-f", backup, "vg")
	images := l.images()
	want(t, volume(t, scan(t, images), "r"), extent, []string{"0:2-4"})
	groups, _, err := lvm.Scan(t.Context(), images[1:])
	if err != nil {
		t.Fatal(err)
	}
	want(t, volume(t, groups, "r"), extent, []string{"1:0-2"})
}

// TestUnsupported: a cached volume is listed and refused by name.
func TestUnsupported(t *testing.T) {
	l := newLab(t, 1)
	l.run("vgcreate", "-s", "1M", "vg", l.loops[0])
	l.create("-L", "2M", "-n", "plain", "vg")
	backup := filepath.Join(l.dir, "vg.txt")
	l.run("vgcfgbackup", "-f", backup, "vg")
	text, err := os.ReadFile(backup)
	if err != nil {
		t.Fatal(err)
	}
	_, plain, _ := strings.Cut(string(text), "vg {")
	img := fakePV(t, l.images()[0], "vg {"+strings.Replace(plain, `"striped"`, `"cache"`, 1))
	v := volume(t, scan(t, []disk.Image{img}), "plain")
	if _, err := v.Open(t.Context()); !errors.Is(err, guestfs.ErrUnsupported) || !strings.Contains(err.Error(), "cache") {
		t.Errorf("open: %v", err)
	}
	if v.Size != 2*megabyte {
		t.Errorf("its size is %d", v.Size)
	}
}
