package inspect

import (
	"context"
	"encoding/binary"
	"errors"
	"fmt"
	"io/fs"
	"strconv"
	"strings"

	"lifeboat/guestfs"
	"lifeboat/guestfs/inspect/hive"
	"lifeboat/guestfs/tree"
)

// maxHive bounds the hives that are read, in bytes. SOFTWARE of a busy machine
// has some 100 MB.
const maxHive = 192 << 20

// windows recognises the system drive of Windows by its registry.
func (g *Guest) windows(ctx context.Context, volume int, fsys guestfs.FS) *System {
	if d, ok := fsys.(guestfs.Describer); !ok || d.Info().Type != "ntfs" {
		return nil // nothing else holds a Windows, and the look would be in vain
	}
	const config = "Windows/System32/config"
	if _, err := tree.Walk(ctx, fsys, config+"/SYSTEM", tree.Follow); err != nil {
		return nil
	}
	s := &System{Kind: Windows, ID: Windows, Name: "Windows"}
	s.describe(ctx, fsys, config)
	g.drives(ctx, s, volume, fsys, config)
	return s
}

// openHive reads a hive with its logs. What is wrong with it is noted.
func (s *System) openHive(ctx context.Context, fsys guestfs.FS, config, name string) *hive.Hive {
	data, err := readFile(ctx, fsys, config+"/"+name, maxHive)
	if err != nil {
		s.note("its registry (%s) cannot be read: %v", name, err)
		return nil
	}
	var logs [][]byte
	for _, ext := range []string{".LOG", ".LOG1", ".LOG2"} {
		log, err := readFile(ctx, fsys, config+"/"+name+ext, maxHive)
		if err == nil {
			logs = append(logs, log)
		} else if !errors.Is(err, fs.ErrNotExist) {
			s.note("a log of its registry (%s) cannot be read: %v", name+ext, err)
		}
	}
	h, err := hive.Open(data, logs...)
	if err != nil {
		s.note("its registry (%s): %v", name, err)
		return nil
	}
	if h.Dirty {
		s.note("its registry (%s) was being written, and its logs do not complete it: what is said of the system may be old", name)
	}
	return h
}

func (s *System) note(format string, args ...any) {
	if len(s.Notes) < maxNotes {
		s.Notes = append(s.Notes, clean(fmt.Sprintf(format, args...)))
	}
}

// describe tells which Windows it is.
func (s *System) describe(ctx context.Context, fsys guestfs.FS, config string) {
	h := s.openHive(ctx, fsys, config, "SOFTWARE")
	if h == nil {
		return
	}
	values, err := h.Values(`Microsoft\Windows NT\CurrentVersion`)
	if err != nil {
		s.note("its registry (SOFTWARE): %v", err)
		return
	}
	text, number := map[string]string{}, map[string]uint32{}
	for _, v := range values {
		text[v.Name], number[v.Name] = clean(v.Text()), v.Number()
	}
	build, err := strconv.Atoi(text["CurrentBuild"])
	if err != nil {
		build = 0
	}
	s.Name = firstOf(text["ProductName"], s.Name)
	const windows11 = 22000
	if build >= windows11 { // Windows 11 calls itself 10 there
		s.Name = strings.Replace(s.Name, "Windows 10", "Windows 11", 1)
	}
	if v := text["DisplayVersion"]; v != "" {
		s.Name += " " + v
	}
	s.Version = text["CurrentVersion"]
	if major, ok := number["CurrentMajorVersionNumber"]; ok {
		s.Version = fmt.Sprintf("%d.%d", major, number["CurrentMinorVersionNumber"])
	}
	if build > 0 {
		s.Version += fmt.Sprintf(".%d", build)
	}
}

// drives notes which volumes are which drives. A drive that is not known is not
// shown, but the one with the system is: as C:, unless the registry knows better.
func (g *Guest) drives(ctx context.Context, s *System, volume int, fsys guestfs.FS, config string) {
	found := false
	if h := s.openHive(ctx, fsys, config, "SYSTEM"); h != nil {
		s.Host = computerName(h)
		values, err := h.Values("MountedDevices")
		if err != nil {
			s.note("its drives are not known: %v", err)
		}
		for _, v := range values {
			letter, ok := driveLetter(v.Name)
			if !ok || len(s.Mounts) >= maxMounts {
				continue
			}
			if i, ok := g.byMountedDevice(v.Data); ok {
				s.Mounts = append(s.Mounts, Mount{Path: "/" + letter, Volume: i})
				found = found || i == volume
			}
		}
	}
	if !found && !s.has("/C:") {
		s.Mounts = append(s.Mounts, Mount{Path: "/C:", Volume: volume})
	}
}

func (s *System) has(path string) bool {
	for _, m := range s.Mounts {
		if m.Path == path {
			return true
		}
	}
	return false
}

// computerName is the name of the machine, in the control set that it last
// started with.
func computerName(h *hive.Hive) string {
	current := uint32(1)
	if values, err := h.Values("Select"); err == nil {
		for _, v := range values {
			if strings.EqualFold(v.Name, "Current") {
				current = v.Number()
			}
		}
	}
	values, err := h.Values(fmt.Sprintf(`ControlSet%03d\Control\ComputerName\ComputerName`, current))
	if err != nil {
		return ""
	}
	for _, v := range values {
		if strings.EqualFold(v.Name, "ComputerName") {
			return clean(v.Text())
		}
	}
	return ""
}

// driveLetter is "C:" of "\DosDevices\C:".
func driveLetter(name string) (string, bool) {
	const prefix = `\DosDevices\`
	if len(name) != len(prefix)+2 || !strings.EqualFold(name[:len(prefix)], prefix) {
		return "", false
	}
	letter := strings.ToUpper(name[len(prefix):])
	return letter, letter[1] == ':' && letter[0] >= 'A' && letter[0] <= 'Z'
}

// byMountedDevice finds the volume of a drive: on an MBR by the disk's signature
// and the offset of the partition, on a GPT by the partition's GUID.
func (g *Guest) byMountedDevice(data []byte) (int, bool) {
	const gpt = "DMIO:ID:"
	for i := range g.report.Volumes {
		p := &g.report.Volumes[i].Place
		switch {
		case p.Partition == 0:
		case len(data) == 12 && strings.EqualFold(p.DiskID, fmt.Sprintf("%08x", binary.LittleEndian.Uint32(data))) && p.Start == int64(binary.LittleEndian.Uint64(data[4:])):
			return i, true
		case len(data) == len(gpt)+16 && string(data[:len(gpt)]) == gpt && strings.EqualFold(p.PartUUID, guid(data[len(gpt):])):
			return i, true
		}
	}
	return 0, false
}

// guid writes a GUID as Windows and Linux do, its first three parts being numbers.
func guid(b []byte) string {
	le := binary.LittleEndian
	return fmt.Sprintf("%08x-%04x-%04x-%x-%x", le.Uint32(b), le.Uint16(b[4:]), le.Uint16(b[6:]), b[8:10], b[10:16])
}
