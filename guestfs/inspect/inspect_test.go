package inspect_test

import (
	"bytes"
	"encoding/binary"
	"encoding/hex"
	"errors"
	"fmt"
	"io/fs"
	"os"
	"os/exec"
	"path/filepath"
	"slices"
	"strconv"
	"strings"
	"testing"

	"lifeboat/disk"
	"lifeboat/guestfs"
	"lifeboat/guestfs/crypt"
	"lifeboat/guestfs/guestfstest"
	"lifeboat/guestfs/inspect"
	"lifeboat/guestfs/inspect/hive/hivetest"
	"lifeboat/guestfs/tree"
)

const megabyte = 1 << 20

// part is a partition of a disk that a test makes.
type part struct {
	kind string // of sfdisk
	size int64  // bytes
	name string // label of the partition
	file string // image of what is in it; "": nothing
}

// makeDisk makes a disk with a partition table. The first begins at 1 MiB.
func makeDisk(t *testing.T, scheme string, parts ...part) (disk.Image, []int64) {
	t.Helper()
	var script strings.Builder
	fmt.Fprintf(&script, "label: %s\n", scheme)
	at, starts := int64(megabyte), []int64{}
	for _, p := range parts {
		fmt.Fprintf(&script, "start=%d, size=%d, type=%s", at/512, p.size/512, p.kind)
		if p.name != "" {
			fmt.Fprintf(&script, ", name=%q", p.name)
		}
		script.WriteString("\n")
		starts = append(starts, at)
		at += p.size
	}
	file := guestfstest.NewImage(t, at+megabyte)
	cmd := exec.Command("sfdisk", "--quiet", file)
	cmd.Stdin = strings.NewReader(script.String())
	if out, err := cmd.CombinedOutput(); err != nil {
		t.Fatalf("sfdisk: %v\n%s", err, out)
	}
	for i, p := range parts {
		if p.file != "" {
			insert(t, file, starts[i], p.file)
		}
	}
	return open(t, file), starts
}

// insert copies one image into another.
func insert(t *testing.T, file string, at int64, from string) {
	t.Helper()
	guestfstest.Run(t, "dd", "if="+from, "of="+file, "bs=1M", "seek="+strconv.FormatInt(at/megabyte, 10), "conv=notrunc,sparse", "status=none")
}

func open(t *testing.T, file string) disk.Image {
	t.Helper()
	img, err := disk.Open(t.Context(), file, disk.OpenOptions{Format: disk.FormatRaw})
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { img.Close() })
	return img
}

// ext4 makes an image with files of the given content; a name that ends in @ is a
// symbolic link.
func ext4(t *testing.T, args []string, files map[string]string) string {
	t.Helper()
	dir := t.TempDir()
	for name, content := range files {
		path := filepath.Join(dir, strings.TrimSuffix(name, "@"))
		if err := os.MkdirAll(filepath.Dir(path), 0o755); err != nil {
			t.Fatal(err)
		}
		err := os.WriteFile(path, []byte(content), 0o644)
		if strings.HasSuffix(name, "@") {
			err = errors.Join(os.Remove(path), os.Symlink(content, path))
		}
		if err != nil {
			t.Fatal(err)
		}
	}
	file := guestfstest.NewImage(t, 8*megabyte)
	guestfstest.Run(t, "mke2fs", append([]string{"-q", "-F", "-t", "ext4", "-d", dir}, append(args, file)...)...)
	return file
}

func inspected(t *testing.T, disks ...disk.Image) *inspect.Guest {
	t.Helper()
	g, err := inspect.Open(t.Context(), disks, inspect.Options{Readers: inspect.NativeReaders()})
	if err != nil {
		t.Fatal(err)
	}
	if err := g.Report().Validate(); err != nil {
		t.Errorf("its own report: %v", err)
	}
	return g
}

func guestTree(g *inspect.Guest) *tree.Tree { return inspect.Tree(g.Report(), g.Open) }

// read reads a file of the guest's own tree.
func read(t *testing.T, fsys guestfs.FS, path string) string {
	t.Helper()
	at, err := tree.Walk(t.Context(), fsys, path, tree.Follow)
	if err != nil {
		return err.Error()
	}
	img, err := fsys.Open(t.Context(), at.Inode)
	if err != nil {
		return err.Error()
	}
	defer img.Close()
	b := make([]byte, img.Size())
	if _, err := img.ReadAt(b, 0); err != nil && len(b) > 0 && !errors.Is(err, fs.ErrClosed) {
		t.Fatal(err)
	}
	return string(b)
}

const release = `PRETTY_NAME="Debian GNU/Linux 12 (bookworm)"
ID=debian
VERSION_ID='12'
`

// TestLinux: what an fstab names in every way that it can, on partitions and
// logical volumes, is one tree.
func TestLinux(t *testing.T) {
	guestfstest.NeedMount(t, "", "mke2fs", "sfdisk", "mkfs.vfat", "mkswap", "dd")
	const partUUID, fsUUID = "0C0FFEE0-1234-4321-8888-0123456789AB", "11111111-2222-3333-4444-555555555555"
	root := ext4(t, []string{"-U", fsUUID, "-L", "the root"}, map[string]string{
		"usr/lib/os-release": release, "etc/os-release@": "../usr/lib/os-release", "etc/hostname": "web1\n", "etc/shadow": "of the guest",
		"home/covered": "not seen", "srv/readme": "not seen", "up@": "../../../../etc/shadow", "absolute@": "/etc/hostname", "loop@": "loop",
		"etc/fstab": "# comment\n" +
			"UUID=" + fsUUID + " / ext4 errors=remount-ro 0 1\n" +
			"/dev/mapper/vg--a-home\t/home ext4 defaults 0 2\n" +
			"PARTUUID=" + strings.ToLower(partUUID) + " /srv/my\\040data ext4 defaults 0 2\n" +
			"LABEL=EFI /boot/efi vfat umask=0077 0 1\n" +
			"UUID=99999999-0000-0000-0000-000000000000 /gone ext4 defaults 0 2\n" +
			"/dev/sda3 none swap sw 0 0\nserver:/export /net nfs defaults 0 0\ntmpfs /tmp tmpfs defaults 0 0\n/srv /mnt none bind 0 0\n",
	})
	data := ext4(t, nil, map[string]string{"file": "in the data"})
	home := ext4(t, nil, map[string]string{"user/letter": "in the home", "out@": "../etc/hostname"})
	efi := guestfstest.NewImage(t, 4*megabyte)
	guestfstest.Run(t, "mkfs.vfat", "-n", "EFI", efi)
	swap := guestfstest.NewImage(t, 4*megabyte)
	guestfstest.Run(t, "mkswap", swap)
	first, _ := makeDisk(t, "gpt", part{"U", 4 * megabyte, "", efi}, part{"L", 8 * megabyte, "", root}, part{"S", 4 * megabyte, "", swap}, part{"L, uuid=" + partUUID, 8 * megabyte, "", data})
	g := inspected(t, first, logical(t, "vg-a", "home", home))
	r := g.Report()
	if len(r.Systems) != 1 {
		t.Fatalf("systems: %+v; notes: %v", r.Systems, r.Notes)
	}
	s := r.Systems[0]
	if s.Kind != inspect.Linux || s.Name != "Debian GNU/Linux 12 (bookworm)" || s.Version != "12" || s.ID != "debian" || s.Host != "web1" {
		t.Errorf("system: %+v", s)
	}
	if len(s.Notes) != 1 || !strings.Contains(s.Notes[0], "/gone") {
		t.Errorf("notes: %q", s.Notes)
	}
	mounts := map[string]string{}
	for _, v := range r.Volumes {
		mounts[v.Name] = v.Type + " " + strings.Join(v.Mounts, ",")
	}
	for name, want := range map[string]string{
		"disk0p1": "vfat /boot/efi", "disk0p2": "ext4 /", "disk0p3": "swap ", "disk0p4": "ext4 /srv/my data", "vg--a-home": "ext4 /home",
	} {
		if mounts[name] != want {
			t.Errorf("volume %s is %q, want %q (of %v)", name, mounts[name], want, mounts)
		}
	}
	fsys := guestTree(g)
	for path, want := range map[string]string{
		"/etc/hostname": "web1\n", "/srv/my data/file": "in the data", "/home/user/letter": "in the home", "/srv/readme": "not seen",
		"/up": "of the guest", "../../etc/shadow": "of the guest", "/absolute": "web1\n", "/home/out": "web1\n", "/home/../etc/./hostname": "web1\n",
		"/home/covered": `look up /home/covered: file does not exist`, "/loop": `"/loop": too many levels of symbolic links`,
		"/etc/hostname/x": `"/etc/hostname": not a directory`,
	} {
		if got := read(t, fsys, path); got != want && !strings.HasPrefix(got, want) {
			t.Errorf("%s: %q, want %q", path, got, want)
		}
	}
}

// logical makes a disk that is a physical volume with one logical volume, and
// what is in it.
func logical(t *testing.T, group, name, content string) disk.Image {
	t.Helper()
	file := guestfstest.NewImage(t, 16*megabyte)
	loop := strings.TrimSpace(guestfstest.Run(t, "losetup", "--find", "--show", file))
	detach := func() { _ = exec.Command("losetup", "--detach", loop).Run() }
	defer detach()
	dir := t.TempDir()
	config := fmt.Sprintf(`devices { use_devicesfile=0 filter=[ "a|^%s$|", "r|.*|" ] } activation { monitoring=0 udev_sync=0 udev_rules=0 }
		global { use_lvmlockd=0 locking_dir=%q } backup { backup=0 archive=0 }`, loop, dir)
	for _, args := range [][]string{
		{"pvcreate", "-q", "--dataalignment", "1m", loop}, {"vgcreate", "-q", "-s", "1m", group, loop}, {"lvcreate", "-q", "-an", "-Zn", "-Wn", "-L", "8m", "-n", name, group},
	} {
		cmd := exec.Command("lvm", append([]string{args[0], "--config", config, "--driverloaded", "n"}, args[1:]...)...)
		cmd.Env = append(os.Environ(), "LVM_SYSTEM_DIR="+dir, "LVM_SUPPRESS_FD_WARNINGS=1", "DM_DISABLE_UDEV=1")
		if out, err := cmd.CombinedOutput(); err != nil {
			t.Fatalf("lvm %v: %v\n%s", args, err, out)
		}
	}
	detach()
	insert(t, file, megabyte, content)
	return open(t, file)
}

// ntfs makes an image of NTFS with files in it.
func ntfs(t *testing.T, files map[string][]byte) string {
	t.Helper()
	file := guestfstest.NewImage(t, 16*megabyte)
	guestfstest.Run(t, "mkfs.ntfs", "-q", "-F", "-s", "512", "-p", "2048", "-H", "255", "-S", "63", file)
	dir := t.TempDir()
	guestfstest.Run(t, "ntfs-3g", file, dir)
	unmount := func() { guestfstest.Run(t, "fusermount3", "-u", dir) }
	for name, content := range files {
		path := filepath.Join(dir, name)
		if err := errors.Join(os.MkdirAll(filepath.Dir(path), 0o755), os.WriteFile(path, content, 0o644)); err != nil {
			unmount()
			t.Fatal(err)
		}
	}
	unmount()
	return file
}

// TestWindows: drive letters of partitions on GPT and MBR; what the system is
// called stands in the log of a registry that was being written.
func TestWindows(t *testing.T) {
	guestfstest.NeedMount(t, "", "mkfs.ntfs", "ntfs-3g", "sfdisk", "fusermount3", "dd")
	const partUUID, diskID = "0C0FFEE0-1234-4321-8888-0123456789AB", uint32(0x1234abcd)
	software := func(name string) []hivetest.Value {
		const key = `Microsoft\Windows NT\CurrentVersion`
		return []hivetest.Value{
			hivetest.Text(key, "ProductName", name), hivetest.Text(key, "CurrentBuild", "20348"), hivetest.Text(key, "DisplayVersion", "21H2"),
			hivetest.Number(key, "CurrentMajorVersionNumber", 10), hivetest.Number(key, "CurrentMinorVersionNumber", 0),
		}
	}
	second := ntfs(t, map[string][]byte{"Data/letter.txt": []byte("on the second")})
	dataDisk, starts := makeDisk(t, fmt.Sprintf("dos\nlabel-id: %#x", diskID), part{"7", 16 * megabyte, "", second})
	system := hivetest.Make(9,
		hivetest.Value{Key: "MountedDevices", Name: `\DosDevices\C:`, Type: 3, Data: append([]byte("DMIO:ID:"), windowsGUID(t, partUUID)...)},
		hivetest.Value{Key: "MountedDevices", Name: `\DosDevices\E:`, Type: 3, Data: binary.LittleEndian.AppendUint64(binary.LittleEndian.AppendUint32(nil, diskID), uint64(starts[0]))},
		hivetest.Value{Key: "MountedDevices", Name: `\DosDevices\F:`, Type: 3, Data: append([]byte("DMIO:ID:"), make([]byte, 16)...)},
		hivetest.Number("Select", "Current", 2),
		hivetest.Text(`ControlSet001\Control\ComputerName\ComputerName`, "ComputerName", "OLD"),
		hivetest.Text(`ControlSet002\Control\ComputerName\ComputerName`, "ComputerName", "SRV-1"))
	config := "Windows/System32/config/"
	first := ntfs(t, map[string][]byte{
		config + "SYSTEM": system, config + "SOFTWARE": hivetest.Make(3, software("Windows Server 2022 Standard")...),
		"Users/Public/note.txt": []byte("on the first"),
	})
	systemDisk, _ := makeDisk(t, "gpt", part{"L, uuid=" + partUUID, 16 * megabyte, "Basic data partition", first})
	g := inspected(t, dataDisk, systemDisk)
	r := g.Report()
	if len(r.Systems) != 1 {
		t.Fatalf("systems: %+v; volumes: %+v", r.Systems, r.Volumes)
	}
	s := r.Systems[0]
	if s.Kind != inspect.Windows || s.Name != "Windows Server 2022 Standard 21H2" || s.Version != "10.0.20348" || s.Host != "SRV-1" || len(s.Notes) > 0 {
		t.Errorf("system: %+v", s)
	}
	if !slices.Equal(r.Volumes[0].Mounts, []string{"E:"}) || !slices.Equal(r.Volumes[1].Mounts, []string{"C:"}) {
		t.Errorf("volumes: %+v", r.Volumes)
	}
	fsys := guestTree(g)
	for path, want := range map[string]string{
		"/C:/Users/Public/note.txt": "on the first", "/c:/users/PUBLIC/NOTE.TXT": "on the first", "/E:/Data/letter.txt": "on the second",
	} {
		if got := read(t, fsys, path); got != want {
			t.Errorf("%s: %q, want %q", path, got, want)
		}
	}
}

// windowsGUID is a GUID in Windows' order of bytes.
func windowsGUID(t *testing.T, s string) []byte {
	t.Helper()
	b, err := hex.DecodeString(strings.ReplaceAll(s, "-", ""))
	if err != nil {
		t.Fatal(err)
	}
	slices.Reverse(b[0:4])
	slices.Reverse(b[4:6])
	slices.Reverse(b[6:8])
	return b
}

// TestNothingKnown: disks that are empty, damaged or of something else are listed
// and say what they are.
func TestNothingKnown(t *testing.T) {
	luks := make([]byte, megabyte)
	copy(luks, "LUKS\xba\xbe\x00\x02")
	torn, err := os.ReadFile(ext4(t, nil, map[string]string{"file": "x"}))
	if err != nil {
		t.Fatal(err)
	}
	torn = torn[:len(torn)/2]
	g := inspected(t, disk.Bytes(t.Context(), make([]byte, megabyte)), disk.Bytes(t.Context(), luks), disk.Bytes(t.Context(), torn), disk.Bytes(t.Context(), nil))
	want := []guestfs.State{guestfs.Unsupported, guestfs.Encrypted, guestfs.Damaged, guestfs.Unsupported}
	for i, v := range g.Report().Volumes {
		if v.State != want[i] || v.State != guestfs.Encrypted && v.Note == "" {
			t.Errorf("%+v, want state %s", v, want[i])
		}
		if _, err := g.FS(i); (err == nil) != v.Usable() || v.Usable() && v.State != guestfs.Damaged {
			t.Errorf("volume %s was opened", v.Name)
		}
	}
	names := []string{}
	for e, err := range guestTree(g).ReadDir(t.Context(), guestTree(g).Root(), 0) {
		if err != nil {
			t.Fatal(err)
		}
		names = append(names, e.Name)
	}
	if !slices.Equal(names, []string{"disk0", "disk1", "disk2", "disk3"}) {
		t.Errorf("the tree has %v", names)
	}
}

// TestTwins: two disks that are copies of each other, with the same UUIDs, are
// two volumes.
func TestTwins(t *testing.T) {
	file := ext4(t, nil, map[string]string{"a": "same"})
	g := inspected(t, open(t, file), open(t, file))
	if n := len(g.Report().Volumes); n != 2 {
		t.Fatalf("%d volumes", n)
	}
	a, errA := g.FS(0)
	b, errB := g.FS(1)
	if errA != nil || errB != nil || a == b || !bytes.Equal([]byte(read(t, a, "/a")), []byte(read(t, b, "/a"))) {
		t.Errorf("%v, %v", errA, errB)
	}
}

// TestSeveralDevices: the devices of one file system are found by their names.
func TestSeveralDevices(t *testing.T) {
	guestfstest.NeedMount(t, "", "mkfs.btrfs")
	a, b := guestfstest.NewImage(t, 256*megabyte), guestfstest.NewImage(t, 256*megabyte)
	guestfstest.Run(t, "mkfs.btrfs", "-q", "-d", "raid0", "-m", "raid1", a, b)
	if v := inspected(t, open(t, a)).Report().Volumes[0]; v.State != guestfs.Damaged {
		t.Errorf("one device of two: %+v", v)
	}
	for _, v := range inspected(t, open(t, b), open(t, a)).Report().Volumes {
		if v.State != guestfs.Clean || v.Type != "btrfs" || !v.Usable() {
			t.Errorf("both devices: %+v", v)
		}
	}
}

// TestEncrypted: a volume that is encrypted says what it takes; with the key it is
// what is in it, where crypttab and fstab say.
func TestEncrypted(t *testing.T) {
	guestfstest.NeedMount(t, "", "qemu-img", "mke2fs")
	luks := filepath.Join(t.TempDir(), "luks")
	guestfstest.Run(t, "qemu-img", "convert", "-O", "luks", "--object", "secret,id=s,data=correct horse", "-o", "key-secret=s,iter-time=50", "-f", "raw",
		ext4(t, nil, map[string]string{"letter": "a secret"}), luks)
	about, err := crypt.Identify(open(t, luks))
	if err != nil {
		t.Fatal(err)
	}
	root := ext4(t, nil, map[string]string{
		"etc/os-release": release, "etc/crypttab": "# name device key\nhome_crypt UUID=" + about.UUID + " none luks\n",
		"etc/fstab": "/dev/mapper/home_crypt /home ext4 defaults 0 2\n",
	})
	disks := []disk.Image{open(t, root), open(t, luks)}
	v := inspected(t, disks...).Report().Volumes[1]
	if v.State != guestfs.Encrypted || v.Usable() || !strings.Contains(v.Note, "passphrase") || v.Place.Encryption == "" {
		t.Errorf("without a key: %+v", v)
	}
	for key, want := range map[string]guestfs.State{"wrong horse": guestfs.Encrypted, "correct horse": guestfs.Clean} {
		g, err := inspect.Open(t.Context(), disks, inspect.Options{Readers: inspect.NativeReaders(), Secrets: []crypt.Secret{{Passphrase: []byte(key)}}})
		if err != nil {
			t.Fatal(err)
		}
		v := g.Report().Volumes[1]
		if v.State != want || v.Usable() != (want == guestfs.Clean) {
			t.Errorf("with %q: %+v", key, v)
		}
		if got := read(t, guestTree(g), "/home/letter"); (got == "a secret") != v.Usable() {
			t.Errorf("with %q: %q", key, got)
		}
	}
}
