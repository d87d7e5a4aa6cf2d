package esxsim

import (
	"bufio"
	"bytes"
	"errors"
	"fmt"
	"maps"
	"path"
	"slices"
	"strconv"
	"strings"
	"unicode/utf8"

	"github.com/vmware/govmomi/vim25/types"

	"lifeboat/disk"
)

func itoa(n int) string { return strconv.Itoa(n) }

// writeVMX writes the VM's configuration file, as a host does after every
// change: beside it, then over it.
func (v *vm) writeVMX() error {
	var b bytes.Buffer
	set := func(key, value string) { fmt.Fprintf(&b, "%s = \"%s\"\n", key, vmxEscape(value)) }
	set(".encoding", "UTF-8")
	set("config.version", "8")
	set("virtualHW.version", itoa(v.hardware()))
	set("displayName", unescapeName(v.name))
	set("guestOS", strings.TrimSuffix(v.guestID, "Guest"))
	set("memSize", itoa(int(v.memoryMB)))
	set("numvcpus", itoa(int(v.cpus)))
	set("firmware", v.firmware)
	if v.secureBoot {
		set("uefi.secureBoot.enabled", "TRUE")
	}
	set("uuid.bios", vmxUUID(v.uuid))
	set("uuid.location", vmxUUID(v.uuid))
	set("vc.uuid", vmxUUID(v.instanceUUID))
	if v.annotation != "" {
		set("annotation", v.annotation)
	}
	if v.nvram != "" {
		set("nvram", v.nvram)
	}
	v.vmxDevices(set)
	for _, k := range slices.Sorted(maps.Keys(v.extra)) {
		set(k, v.extra[k])
	}
	vol := v.vmx.ds.vol
	if err := writeFile(vol, v.vmx.path+"~", b.Bytes()); err != nil {
		return err
	}
	return vol.change(opRename, v.vmx.path+"~", v.vmx.path)
}

func (v *vm) vmxDevices(set func(key, value string)) {
	if v.cbt {
		set("ctkEnabled", "TRUE")
	}
	nic := 0
	for _, d := range v.devices {
		if b, ok := busOf(d); ok {
			name := b.name + itoa(int(busNumber(d)))
			set(name+".present", "TRUE")
			if b.name == "scsi" {
				set(name+".virtualDev", controllerName(d))
			}
			continue
		}
		if _, ok := d.(*types.VirtualTPM); ok {
			set("vtpm.present", "TRUE")
		}
		card, ok := d.(types.BaseVirtualEthernetCard)
		if !ok {
			continue
		}
		name := "ethernet" + itoa(nic)
		nic++
		c := card.GetVirtualEthernetCard()
		set(name+".present", "TRUE")
		set(name+".virtualDev", nicName(d))
		if n, ok := c.Backing.(*types.VirtualEthernetCardNetworkBackingInfo); ok {
			set(name+".networkName", n.DeviceName)
		}
		if c.AddressType == string(types.VirtualEthernetCardMacTypeManual) {
			set(name+".addressType", "static")
			set(name+".address", c.MacAddress)
		} else {
			set(name+".addressType", "vpx")
			set(name+".generatedAddress", c.MacAddress)
		}
		if c.Connectable != nil && !c.Connectable.StartConnected {
			set(name+".startConnected", "FALSE")
		}
	}
	for _, d := range v.disks {
		_, c := v.deviceByKey(d.controller)
		b, _ := busOf(c)
		at := fmt.Sprintf("%s%d:%d.", b.name, busNumber(c), d.unit)
		set(at+"present", "TRUE")
		set(at+"deviceType", "scsi-hardDisk")
		set(at+"fileName", v.nameInVMX(d.shown().at))
		if d.mode != "persistent" {
			set(at+"mode", strings.Replace(d.mode, "_", "-", 1))
		}
		if v.cbt {
			set(at+"ctkEnabled", "TRUE")
		}
	}
}

// nameInVMX: relative beside the .vmx, else absolute under /vmfs/volumes.
func (v *vm) nameInVMX(p dsPath) string {
	if p.ds == v.vmx.ds && path.Dir(p.path) == path.Dir(v.vmx.path) {
		return path.Base(p.path)
	}
	return "/vmfs/volumes/" + p.ds.name + "/" + p.path
}

// vmxUUID is a UUID as .vmx files have it: "56 4d … -…".
func vmxUUID(id string) string { return descriptorUUID(id) }

func vmxEscape(s string) string {
	var b strings.Builder
	for _, r := range s {
		if r == '"' || r == '|' || r == '#' || r < 0x20 || r == 0x7f {
			fmt.Fprintf(&b, "|%02X", r)
			continue
		}
		b.WriteRune(r)
	}
	return b.String()
}

// maxVMX bounds a configuration file.
const maxVMX = 1 << 20

// parseVMX reads `key = "value"` lines: keys in lower case, values unescaped.
// A line that is none of that is an error, as a host has it.
func parseVMX(text []byte) (map[string]string, error) {
	if !utf8.Valid(text) {
		return nil, errors.New("the file is not UTF-8")
	}
	values := map[string]string{}
	lines := bufio.NewScanner(bytes.NewReader(text))
	lines.Buffer(nil, maxVMX)
	for n := 1; lines.Scan(); n++ {
		line := strings.TrimSpace(lines.Text())
		if line == "" || line[0] == '#' {
			continue
		}
		key, value, ok := strings.Cut(line, "=")
		key, value = strings.ToLower(strings.TrimSpace(key)), strings.TrimSpace(value)
		if !ok || key == "" || len(value) < 2 || value[0] != '"' || value[len(value)-1] != '"' || strings.Contains(value[1:len(value)-1], `"`) {
			return nil, fmt.Errorf("line %d: syntax error", n)
		}
		if _, twice := values[key]; twice {
			return nil, fmt.Errorf("line %d: variable %q is already defined", n, key)
		}
		values[key] = vmxUnescape(value[1 : len(value)-1])
	}
	return values, lines.Err()
}

func vmxUnescape(s string) string {
	var b strings.Builder
	for i := 0; i < len(s); i++ {
		if s[i] == '|' && i+2 < len(s) {
			if c, err := strconv.ParseUint(s[i+1:i+3], 16, 8); err == nil {
				b.WriteByte(byte(c))
				i += 2
				continue
			}
		}
		b.WriteByte(s[i])
	}
	return b.String()
}

// readLayer opens the descriptor of a disk and what it stands on. Layers that
// are known are shared.
func (s *Sim) readLayer(at dsPath) (*layer, *disk.Descriptor, error) {
	text, err := readFile(at.ds.vol, at.path, 1<<20)
	if err != nil {
		return nil, nil, err
	}
	desc, err := disk.ParseDescriptor(text)
	if err != nil {
		return nil, nil, err
	}
	if known := s.layers[at.String()]; known != nil {
		return known, desc, nil
	}
	if desc.CreateType != disk.CreateVMFS || desc.ParentCID != disk.NoParent || len(desc.Extents) != 1 {
		return nil, nil, fmt.Errorf("%s: createType %q with %d extents: a host cannot open that", at, desc.CreateType, len(desc.Extents))
	}
	e := desc.Extents[0]
	if e.Type != disk.ExtentVMFS || strings.Contains(e.File, "/") || e.Access != "RW" {
		return nil, nil, fmt.Errorf("%s: the extent %s %q is not one of a VMFS disk", at, e.Type, e.File)
	}
	l := &layer{at: at, data: path.Join(path.Dir(at.path), e.File), size: desc.Size(), cid: desc.CID, track: &tracker{}}
	have, err := at.ds.vol.stat(l.data)
	if err != nil {
		return nil, nil, err
	}
	if have.size != l.size {
		return nil, nil, fmt.Errorf("%s has %d bytes where its descriptor says %d", l.data, have.size, l.size)
	}
	return l, desc, nil
}
