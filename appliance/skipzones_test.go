package appliance

import (
	"bytes"
	"context"
	"encoding/binary"
	"errors"
	"fmt"
	"io/fs"
	"iter"
	"log/slog"
	"math/rand/v2"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"testing"

	"pgregory.net/rapid"

	"lifeboat/disk"
	"lifeboat/disk/disktest"
	"lifeboat/guestfs"
)

// noise is n bytes that look like nothing.
func noise(seed uint64, n int) []byte {
	p := make([]byte, n)
	rng := rand.New(rand.NewPCG(seed, 3))
	for i := 0; i+8 <= n; i += 8 {
		binary.LittleEndian.PutUint64(p[i:], rng.Uint64()|1)
	}
	return p
}

// mkswap writes the header of swap space of so many pages.
func mkswap(p []byte, pages int) {
	clear(p[:swapPage])
	binary.LittleEndian.PutUint32(p[swapVersion:], 1)
	binary.LittleEndian.PutUint32(p[swapLastPage:], uint32(pages-1))
	copy(p[swapVersion+12:], "0123456789abcdef")
	copy(p[swapMagicAt:], swapMagic)
}

// mbrDisk is a disk with partitions given as start and length in bytes.
func mbrDisk(size int, parts ...[2]int) []byte {
	p := noise(uint64(size), size)
	clear(p[:512])
	for i, part := range parts {
		e := p[446+16*i:]
		e[4] = 0x83
		binary.LittleEndian.PutUint32(e[8:], uint32(part[0]/512))
		binary.LittleEndian.PutUint32(e[12:], uint32(part[1]/512))
	}
	p[510], p[511] = 0x55, 0xaa
	return p
}

func zonesOf(t testing.TB, disks ...[]byte) []areas {
	t.Helper()
	images := make([]disk.Image, len(disks))
	for i, d := range disks {
		images[i] = disktest.FromBytes(d)
	}
	return skipFinder{log: slog.New(slog.DiscardHandler)}.find(context.Background(), images)
}

const mib = 1 << 20

func TestSwapIsLeftOutButForItsFirstPage(t *testing.T) {
	d := mbrDisk(16*mib, [2]int{mib, 4 * mib}, [2]int{5 * mib, 8 * mib})
	mkswap(d[5*mib:], 6*mib/swapPage) // smaller than its partition
	got := zonesOf(t, d)[0]
	if len(got) != 1 || got[0] != (disk.Extent{Offset: 5*mib + swapPage, Length: 6*mib - swapPage}) {
		t.Errorf("%v", got)
	}
	whole := noise(1, 4*mib) // a disk that is nothing but swap space
	mkswap(whole, 4*mib/swapPage)
	if got := zonesOf(t, whole)[0]; len(got) != 1 || got[0].Offset != skipEdge || got[0].End() != 4*mib-skipEdge {
		t.Errorf("%v", got)
	}
}

// TestDoubtsAreStored changes something about swap space that makes it doubtful.
func TestDoubtsAreStored(t *testing.T) {
	const at, size = 5 * mib, 8 * mib
	for name, change := range map[string]func(d []byte){
		"nothing":    nil,
		"hibernated": func(d []byte) { copy(d[at+swapMagicAt-0:], "S1SUSPEND\x00") },
		"version":    func(d []byte) { d[at+swapVersion] = 2 },
		"too long":   func(d []byte) { binary.LittleEndian.PutUint32(d[at+swapLastPage:], size/swapPage) },
		"of no size": func(d []byte) { binary.LittleEndian.PutUint32(d[at+swapLastPage:], 0) },
		"bad pages":  func(d []byte) { binary.LittleEndian.PutUint32(d[at+swapBadPages:], 1000) },
		"not zero":   func(d []byte) { d[at+swapPadding+100] = 1 },
		"ext4 too":   func(d []byte) { copy(d[at+1024+56:], "\x53\xef") },
		"XFS too":    func(d []byte) { copy(d[at:], "XFSB") },
		"Btrfs too":  func(d []byte) { copy(d[at+0x10040:], "_BHRfS_M") },
		"FAT too": func(d []byte) {
			copy(d[at+11:], "\x00\x02\x08\x20\x00\x02")
			d[at+21], d[at+510], d[at+511] = 0xf8, 0x55, 0xaa
		},
		"a LUKS header":       func(d []byte) { copy(d[at:], "LUKS\xba\xbe\x00\x02") },
		"partitions overlap":  func(d []byte) { binary.LittleEndian.PutUint32(d[446+12:], 6*mib/512) },
		"partition too long":  func(d []byte) { binary.LittleEndian.PutUint32(d[446+16+12:], 20*mib/512) },
		"a third overlapping": func(d []byte) { copy(d[446+32:], d[446+16:446+32]) },
	} {
		d := mbrDisk(16*mib, [2]int{mib, 4 * mib}, [2]int{at, size})
		mkswap(d[at:], size/swapPage)
		if change != nil {
			change(d)
		}
		if got := zonesOf(t, d)[0]; (len(got) > 0) != (change == nil) {
			t.Errorf("%s: %v", name, got)
		}
	}
}

// TestNothingElseIsDropped makes disks at random, of swap space, other data and
// nonsense, and wants every byte that is not inside of swap space.
func TestNothingElseIsDropped(t *testing.T) {
	rapid.Check(t, func(t *rapid.T) {
		const unit = 256 << 10
		total := rapid.IntRange(3, 24).Draw(t, "units")
		d := mbrDisk(total * unit)
		may := make([]bool, len(d))
		at := 1
		for i := 0; i < 4 && at < total; i++ {
			at += rapid.IntRange(0, 2).Draw(t, "gap")
			n := rapid.IntRange(1, 8).Draw(t, "length")
			e := d[446+16*i:]
			e[4] = byte(rapid.SampledFrom([]int{0x82, 0x83, 0x07, 0}).Draw(t, "type"))
			binary.LittleEndian.PutUint32(e[8:], uint32(at*unit/512))
			binary.LittleEndian.PutUint32(e[12:], uint32(n*unit/512))
			if at+n <= total && rapid.Bool().Draw(t, "swap") {
				pages := rapid.IntRange(2, n*unit/swapPage+2).Draw(t, "pages")
				mkswap(d[at*unit:], pages)
				for j := at*unit + swapPage; j < at*unit+min(pages*swapPage, n*unit); j++ {
					may[j] = true
				}
			}
			at += n
		}
		for range rapid.IntRange(0, 3).Draw(t, "flips") {
			d[rapid.IntRange(446, 511).Draw(t, "at")] ^= 1 << rapid.IntRange(0, 7).Draw(t, "bit")
		}
		zones := zonesOf2(d)
		m := &masked{Image: disktest.FromBytes(d), holes: zones, zero: true}
		got := make([]byte, len(d))
		if n, err := m.ReadAt(got, 0); n != len(d) {
			t.Fatal(err)
		}
		for i := range d {
			if got[i] != d[i] && !may[i] {
				t.Fatalf("byte %d is lost: zones %v", i, zones)
			}
		}
	})
}

func zonesOf2(d []byte) areas {
	return skipFinder{log: slog.New(slog.DiscardHandler)}.find(context.Background(), []disk.Image{disktest.FromBytes(d)})[0]
}

// TestSwapInLogicalVolumes has LVM's own tools make a group over two disks, with
// swap space on both, striped, beside volumes with data.
func TestSwapInLogicalVolumes(t *testing.T) {
	if os.Geteuid() != 0 {
		t.Skip("making logical volumes needs root")
	}
	disks := lvmDisks(t, 2, 32*mib, func(run func(args ...string), pvs []string) {
		run(append([]string{"vgcreate", "-s", "1m", "vg0"}, pvs...)...)
		run("lvcreate", "-an", "-Zn", "-Wn", "-L", "10m", "-n", "data", "vg0", pvs[0])
		run("lvcreate", "-an", "-Zn", "-Wn", "-i", "2", "-I", "64k", "-L", "16m", "-n", "swap", "vg0")
		run("lvcreate", "-an", "-Zn", "-Wn", "-L", "4m", "-n", "more", "vg0", pvs[1])
	})
	// The striped volume's first page is where its first extent is: behind data.
	first := mib + 10*mib
	mkswap(disks[0][first:], 16*mib/swapPage)
	got := zonesOf(t, disks[0], disks[1])
	if n := got[0].bytes() + got[1].bytes(); n != 16*mib-swapPage {
		t.Fatalf("%d bytes are left out: %v", n, got)
	}
	if got[0][0].Offset != int64(first+swapPage) || got[0][len(got[0])-1].End() != int64(first+8*mib) {
		t.Errorf("on the first disk: %v", got[0])
	}
	if got := zonesOf(t, disks[0]); len(got[0]) != 0 {
		t.Errorf("with a disk missing: %v", got[0])
	}
	copy(disks[1][1024+56:], "\x53\xef") // one of the physical volumes is ext4, too
	binary.LittleEndian.PutUint32(disks[1][1024+32:], 1)
	binary.LittleEndian.PutUint32(disks[1][1024+24:], 2)
	if got := zonesOf(t, disks[0], disks[1]); len(got[0])+len(got[1]) != 0 {
		t.Errorf("with a physical volume that is something else: %v", got)
	}
}

// TestSwapWithASnapshotIsStored: a volume was data, got a snapshot, and became
// swap. What the swap has not been written over is still the snapshot's.
func TestSwapWithASnapshotIsStored(t *testing.T) {
	if os.Geteuid() != 0 {
		t.Skip("making logical volumes needs root")
	}
	for _, shared := range []bool{false, true} {
		disks := lvmDisks(t, 1, 32*mib, func(run func(args ...string), pvs []string) {
			run("vgcreate", "-s", "1m", "vg0", pvs[0])
			run("lvcreate", "-an", "-Zn", "-Wn", "-L", "10m", "-n", "swap", "vg0")
			run("lvcreate", "-an", "-Zn", "-Wn", "-L", "4m", "-n", "before", "vg0")
			if !shared {
				return
			}
			file := filepath.Join(t.TempDir(), "vg0")
			run("vgcfgbackup", "-f", file, "vg0")
			text, err := os.ReadFile(file)
			if err != nil {
				t.Fatal(err)
			}
			const snapshot = `logical_volumes {
				snapshot0 {
					id = "AAAAAA-AAAA-AAAA-AAAA-AAAA-AAAA-AAAAAA"
					status = ["READ", "WRITE", "VISIBLE"]
					flags = []
					segment_count = 1
					segment1 {
						start_extent = 0
						extent_count = 10
						type = "snapshot"
						chunk_size = 8
						origin = "swap"
						cow_store = "before"
					}
				}`
			if err := os.WriteFile(file, bytes.Replace(text, []byte("logical_volumes {"), []byte(snapshot), 1), 0o600); err != nil {
				t.Fatal(err)
			}
			run("vgcfgrestore", "--force", "-f", file, "vg0")
		})
		mkswap(disks[0][mib:], 10*mib/swapPage)
		if got := zonesOf(t, disks[0]); (got[0].bytes() == 0) != shared {
			t.Errorf("with a snapshot %v: left out are %v", shared, got[0])
		}
	}
}

// lvmDisks are disks of noise with what LVM's tools made of them.
func lvmDisks(t *testing.T, n, size int, fill func(run func(args ...string), pvs []string)) [][]byte {
	t.Helper()
	dir := t.TempDir()
	var loops, files []string
	var accept strings.Builder
	for i := range n {
		file := filepath.Join(dir, fmt.Sprint(i))
		if err := os.WriteFile(file, bytes.Repeat([]byte{0}, size), 0o600); err != nil {
			t.Fatal(err)
		}
		out, err := exec.Command("losetup", "--find", "--show", file).CombinedOutput()
		if err != nil {
			t.Fatalf("losetup: %v: %s", err, out)
		}
		loop := strings.TrimSpace(string(out))
		t.Cleanup(func() { _ = exec.Command("losetup", "--detach", loop).Run() })
		loops, files = append(loops, loop), append(files, file)
		fmt.Fprintf(&accept, "%q, ", "a|^"+loop+"$|")
	}
	run := func(args ...string) {
		t.Helper()
		config := fmt.Sprintf(`devices { use_devicesfile=0 filter=[ %s"r|.*|" ] } activation { monitoring=0 udev_sync=0 udev_rules=0 } global { use_lvmlockd=0 locking_dir=%q } backup { backup=0 archive=0 }`, accept.String(), dir)
		cmd := exec.Command("lvm", append([]string{args[0], "--config", config, "--driverloaded", "n"}, args[1:]...)...)
		cmd.Env = append(os.Environ(), "LVM_SYSTEM_DIR="+dir, "LVM_SUPPRESS_FD_WARNINGS=1", "DM_DISABLE_UDEV=1")
		if out, err := cmd.CombinedOutput(); err != nil {
			t.Fatalf("lvm %v: %v\n%s", args, err, out)
		}
	}
	run(append([]string{"pvcreate"}, loops...)...)
	fill(run, loops)
	var out [][]byte
	for i, loop := range loops {
		if err := exec.Command("losetup", "--detach", loop).Run(); err != nil {
			t.Fatalf("losetup --detach: %v", err)
		}
		d, err := os.ReadFile(files[i])
		if err != nil {
			t.Fatal(err)
		}
		copy(d[mib:], noise(uint64(i), size-2*mib))
		out = append(out, d)
	}
	return out
}

// windows is as much of an NTFS as pageFiles looks at.
type windows struct {
	files map[string]windowsFile
	state guestfs.State
}

type windowsFile struct {
	guestfs.Attr
	content string
	runs    []guestfs.PhysicalExtent
}

func (w windows) Root() guestfs.Inode { return 5 }
func (w windows) Info() guestfs.Info  { return guestfs.Info{State: w.state} }

func (w windows) by(inode guestfs.Inode) windowsFile {
	return w.files[pageFileNames()[inode-10]]
}

func (w windows) Stat(_ context.Context, inode guestfs.Inode) (*guestfs.Attr, error) {
	f := w.by(inode)
	return &f.Attr, nil
}

func (w windows) ReadDir(context.Context, guestfs.Inode, uint64) iter.Seq2[guestfs.Dirent, error] {
	panic("nobody has to list the root")
}

func (w windows) Open(ctx context.Context, inode guestfs.Inode) (disk.Image, error) {
	return disk.Bytes(ctx, []byte(w.by(inode).content)), nil
}

func (w windows) Lookup(_ context.Context, dir guestfs.Inode, name string) (guestfs.Dirent, error) {
	for i, n := range pageFileNames() {
		if _, ok := w.files[name]; ok && n == name && dir == w.Root() {
			return guestfs.Dirent{Name: n, Inode: guestfs.Inode(10 + i)}, nil
		}
	}
	return guestfs.Dirent{}, fs.ErrNotExist
}

func (w windows) PhysicalExtents(_ context.Context, inode guestfs.Inode) iter.Seq2[guestfs.PhysicalExtent, error] {
	return func(yield func(guestfs.PhysicalExtent, error) bool) {
		for _, e := range w.by(inode).runs {
			if !yield(e, nil) {
				return
			}
		}
	}
}

func TestPageFilesAreLeftOutWhereThatIsSure(t *testing.T) {
	const part = 2 * mib
	d := mbrDisk(32*mib, [2]int{part, 28 * mib})
	copy(d[part+3:], "NTFS    ")
	d[part+510], d[part+511] = 0x55, 0xaa
	file := func(change func(*windowsFile)) windowsFile {
		f := windowsFile{
			Attr:    guestfs.Attr{Mode: guestfs.TypeFile, Links: 1, Flags: guestfs.System | guestfs.Hidden},
			content: strings.Repeat("\x00", 16), runs: []guestfs.PhysicalExtent{{At: 4 * mib, Length: mib}, {Offset: mib, At: 8 * mib, Length: 2 * mib}},
		}
		if change != nil {
			change(&f)
		}
		return f
	}
	for name, c := range map[string]struct {
		name   string
		state  guestfs.State
		change func(*windowsFile)
		want   int64
	}{
		"page file":         {name: "pagefile.sys", state: guestfs.Clean, want: 3 * mib},
		"of a live system":  {name: "pagefile.sys", state: guestfs.Replayed, want: 3 * mib},
		"journal not seen":  {name: "pagefile.sys", state: guestfs.Dirty},
		"awake":             {name: "hiberfil.sys", state: guestfs.Clean, change: func(f *windowsFile) { f.content = "wake" }, want: 3 * mib},
		"asleep":            {name: "hiberfil.sys", state: guestfs.Clean, change: func(f *windowsFile) { f.content = "HIBR" }},
		"somebody's file":   {name: "pagefile.sys", state: guestfs.Clean, change: func(f *windowsFile) { f.Flags = 0 }},
		"a directory":       {name: "pagefile.sys", state: guestfs.Clean, change: func(f *windowsFile) { f.Mode = guestfs.TypeDir }},
		"two names":         {name: "pagefile.sys", state: guestfs.Clean, change: func(f *windowsFile) { f.Links = 2 }},
		"compressed":        {name: "pagefile.sys", state: guestfs.Clean, change: func(f *windowsFile) { f.runs[0].Encoded = true }},
		"behind the volume": {name: "pagefile.sys", state: guestfs.Clean, change: func(f *windowsFile) { f.runs[0].At = 27*mib + 1 }},
		"negative":          {name: "pagefile.sys", state: guestfs.Clean, change: func(f *windowsFile) { f.runs[0].At = -1 }},
	} {
		open := func(context.Context, disk.Image) (guestfs.FS, error) {
			return windows{map[string]windowsFile{c.name: file(c.change)}, c.state}, nil
		}
		got := skipFinder{openNTFS: open, log: slog.New(slog.DiscardHandler)}.find(t.Context(), []disk.Image{disktest.FromBytes(d)})[0]
		if got.bytes() != c.want || c.want > 0 && got[0].Offset != part+4*mib {
			t.Errorf("%s: %v", name, got)
		}
	}
	failing := func(context.Context, disk.Image) (guestfs.FS, error) { return nil, errors.New("no") }
	if got := (skipFinder{openNTFS: failing, log: slog.New(slog.DiscardHandler)}).find(t.Context(), []disk.Image{disktest.FromBytes(d)})[0]; got != nil {
		t.Errorf("%v", got)
	}
}
