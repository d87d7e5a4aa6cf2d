package inspect

import (
	"bufio"
	"bytes"
	"context"
	"errors"
	"fmt"
	"io/fs"
	"path"
	"strconv"
	"strings"

	"lifeboat/guestfs"
	"lifeboat/guestfs/tree"
)

// linux recognises the root of a Linux system by its os-release and fstab.
func (g *Guest) linux(ctx context.Context, volume int, fsys guestfs.FS) *System {
	for _, sub := range rootDirectories(g.report.Volumes[volume].Type) {
		release, err := osRelease(ctx, fsys, sub)
		if err != nil {
			continue
		}
		s := &System{
			Kind: Linux, ID: release["ID"], Version: release["VERSION_ID"],
			Name: firstOf(release["PRETTY_NAME"], release["NAME"], "Linux"),
		}
		if host, err := readFile(ctx, fsys, path.Join(sub, "etc/hostname"), maxText); err == nil {
			s.Host = clean(strings.TrimSpace(string(host)))
		}
		g.fstab(ctx, s, volume, fsys, sub)
		return s
	}
	return nil
}

// rootDirectories are where a file system may have the root of a system: Btrfs
// has it in a subvolume, of a name that the distribution chose.
func rootDirectories(kind string) []string {
	if kind == "btrfs" {
		return []string{"", "@", "root", "@rootfs", "@/.snapshots/1/snapshot"}
	}
	return []string{""}
}

func osRelease(ctx context.Context, fsys guestfs.FS, sub string) (map[string]string, error) {
	text, err := confined(ctx, fsys, sub, "etc/os-release")
	if errors.Is(err, fs.ErrNotExist) {
		text, err = confined(ctx, fsys, sub, "usr/lib/os-release")
	}
	if err != nil {
		return nil, err
	}
	return parseRelease(text), nil
}

// confined reads a file below a directory that is the guest's root: absolute
// links begin there.
func confined(ctx context.Context, fsys guestfs.FS, sub, name string) ([]byte, error) {
	if sub != "" {
		at, err := tree.Walk(ctx, fsys, sub, tree.Follow)
		if err != nil {
			return nil, err
		}
		fsys = tree.Sub(fsys, at.Inode)
	}
	return readFile(ctx, fsys, name, maxText)
}

// parseRelease reads os-release(5): shell assignments, quoted or not.
func parseRelease(text []byte) map[string]string {
	out := map[string]string{}
	lines := bufio.NewScanner(bytes.NewReader(text))
	lines.Buffer(nil, 64<<10)
	for lines.Scan() {
		key, value, ok := strings.Cut(strings.TrimSpace(lines.Text()), "=")
		if !ok || strings.HasPrefix(key, "#") {
			continue
		}
		if n := len(value); n >= 2 && (value[0] == '"' || value[0] == '\'') && value[n-1] == value[0] {
			value = value[1 : n-1]
		}
		out[key] = clean(unescape(value))
	}
	return out
}

// unescape takes the backslashes of a shell's string away.
func unescape(s string) string {
	var b strings.Builder
	for i := 0; i < len(s); i++ {
		if s[i] == '\\' && i+1 < len(s) {
			i++
		}
		b.WriteByte(s[i])
	}
	return b.String()
}

// clean is text of a guest that can be shown: valid, bounded, on one line.
func clean(s string) string {
	const limit = 200
	s = strings.Map(func(r rune) rune {
		if r < ' ' || r == 0x7f {
			return -1
		}
		return r
	}, strings.ToValidUTF8(s, "\uFFFD"))
	if r := []rune(s); len(r) > limit {
		s = string(r[:limit])
	}
	return s
}

func firstOf(list ...string) string {
	for _, s := range list {
		if s != "" {
			return s
		}
	}
	return ""
}

// maxMounts bounds what is believed of an fstab.
const maxMounts = 256

// fstab notes what the system mounts where. What it mounts and is not a volume
// of this guest (a network share, a disk that is not in the point) is a note.
func (g *Guest) fstab(ctx context.Context, s *System, volume int, fsys guestfs.FS, sub string) {
	s.Mounts = []Mount{{Path: "/", Volume: volume, Sub: sub}}
	text, err := confined(ctx, fsys, sub, "etc/fstab")
	if err != nil {
		if !errors.Is(err, fs.ErrNotExist) {
			s.Notes = append(s.Notes, fmt.Sprintf("its fstab cannot be read: %v", err))
		}
		return
	}
	names := map[string]string{}
	if table, err := confined(ctx, fsys, sub, "etc/crypttab"); err == nil {
		names = parseCrypttab(table)
	}
	for _, e := range parseFstab(text) {
		if len(s.Mounts) >= maxMounts {
			s.Notes = append(s.Notes, fmt.Sprintf("only the first %d mounts of its fstab are shown", maxMounts))
			return
		}
		if e.path == "/" {
			continue // found already, whatever it is called there
		}
		i, ok := g.byDevice(e.device, names)
		if !ok {
			s.Notes = append(s.Notes, clean(fmt.Sprintf("%s is mounted from %s, which is not on these disks", e.path, e.device)))
			continue
		}
		s.Mounts = append(s.Mounts, Mount{Path: e.path, Volume: i, Sub: strings.TrimPrefix(e.options["subvol"], "/")})
	}
}

// fstabEntry is a line that mounts a block device.
type fstabEntry struct {
	device, path string
	options      map[string]string
}

func parseFstab(text []byte) []fstabEntry {
	var out []fstabEntry
	lines := bufio.NewScanner(bytes.NewReader(text))
	lines.Buffer(nil, 64<<10)
	for lines.Scan() && len(out) < 2*maxMounts {
		f := strings.Fields(lines.Text())
		if len(f) < 3 || strings.HasPrefix(f[0], "#") {
			continue
		}
		e := fstabEntry{device: octal(f[0]), path: octal(f[1]), options: map[string]string{}}
		if !strings.HasPrefix(e.path, "/") || !isDevice(e.device) || f[2] == "swap" {
			continue
		}
		e.path = path.Clean(e.path)
		if len(f) > 3 {
			for _, o := range strings.Split(f[3], ",") {
				key, value, _ := strings.Cut(o, "=")
				e.options[key] = value
			}
		}
		if _, bind := e.options["bind"]; !bind {
			out = append(out, e)
		}
	}
	return out
}

func isDevice(s string) bool {
	return strings.HasPrefix(s, "/dev/") || strings.Contains(s, "=") && !strings.Contains(s, "/")
}

// octal undoes the escapes of fstab(5): \040 is a space. Quotes around a value
// are for blkid's sake.
func octal(s string) string {
	var b strings.Builder
	for i := 0; i < len(s); i++ {
		if s[i] == '\\' && i+3 < len(s) {
			if n, err := strconv.ParseUint(s[i+1:i+4], 8, 8); err == nil {
				b.WriteByte(byte(n))
				i += 3
				continue
			}
		}
		if s[i] != '"' {
			b.WriteByte(s[i])
		}
	}
	return b.String()
}

// byDevice finds the volume that a fstab names. opened are the names of encrypted
// ones.
func (g *Guest) byDevice(device string, opened map[string]string) (int, bool) {
	if name, ok := strings.CutPrefix(device, "/dev/mapper/"); ok {
		if i, ok := g.byContainer(name, opened); ok {
			return i, true
		}
	}
	key, value, ok := strings.Cut(device, "=")
	if !ok {
		return g.byPath(device)
	}
	return g.byTag(strings.ToUpper(key), value)
}

func (g *Guest) byTag(key, value string) (int, bool) {
	if value == "" {
		return 0, false
	}
	for i := range g.report.Volumes {
		v := &g.report.Volumes[i]
		switch key {
		case "UUID":
			ok := strings.EqualFold(v.UUID, value)
			if ok {
				return i, true
			}
		case "LABEL":
			if v.Label == value {
				return i, true
			}
		case "PARTUUID":
			if strings.EqualFold(v.Place.PartUUID, value) {
				return i, true
			}
		case "PARTLABEL":
			if v.Place.PartLabel == value {
				return i, true
			}
		}
	}
	return 0, false
}

// byPath finds a volume by a name in /dev.
func (g *Guest) byPath(device string) (int, bool) {
	name := strings.TrimPrefix(path.Clean(device), "/dev/")
	for dir, key := range map[string]string{
		"disk/by-uuid/": "UUID", "disk/by-label/": "LABEL", "disk/by-partuuid/": "PARTUUID", "disk/by-partlabel/": "PARTLABEL",
	} {
		if value, ok := strings.CutPrefix(name, dir); ok {
			return g.byTag(key, udevName(value))
		}
	}
	for i := range g.report.Volumes {
		p := &g.report.Volumes[i].Place
		if p.Group != "" && (name == p.Group+"/"+p.Logical || name == "mapper/"+mapperName(p.Group)+"-"+mapperName(p.Logical)) {
			return i, true
		}
	}
	return g.byLetter(name)
}

// udevName undoes udev's escapes in by-label: \x20 is a space.
func udevName(s string) string {
	var b strings.Builder
	for i := 0; i < len(s); i++ {
		if strings.HasPrefix(s[i:], `\x`) && i+4 <= len(s) {
			if n, err := strconv.ParseUint(s[i+2:i+4], 16, 8); err == nil {
				b.WriteByte(byte(n))
				i += 3
				continue
			}
		}
		b.WriteByte(s[i])
	}
	return b.String()
}

// byLetter finds /dev/sda1, vdb, xvda2, nvme0n1p3: the disks are in the order in
// which the VM has them, which is a guess like the name itself.
func (g *Guest) byLetter(name string) (int, bool) {
	disk, part := -1, 0
	switch {
	case strings.HasPrefix(name, "nvme"):
		var ns int
		if n, _ := fmt.Sscanf(name, "nvme%dn%dp%d", &disk, &ns, &part); n < 2 {
			return 0, false
		}
	default:
		rest := name
		for _, prefix := range []string{"xvd", "sd", "vd", "hd"} {
			if r, ok := strings.CutPrefix(name, prefix); ok {
				rest = r
				break
			}
		}
		if rest == name || rest == "" || rest[0] < 'a' || rest[0] > 'z' {
			return 0, false
		}
		disk = int(rest[0] - 'a')
		if rest[1:] != "" {
			n, err := strconv.Atoi(rest[1:])
			if err != nil {
				return 0, false
			}
			part = n
		}
	}
	for i := range g.report.Volumes {
		if p := g.report.Volumes[i].Place; p.Disk == disk && p.Partition == part && disk >= 0 {
			return i, true
		}
	}
	return 0, false
}
