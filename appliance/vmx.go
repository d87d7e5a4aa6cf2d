package appliance

import (
	"bytes"
	"fmt"
	"strings"
	"unicode"

	"lifeboat/disk"
)

// vmx is what a published VM's configuration file says. The keys are VMware's
// (.vmx is a flat list of `key = "value"`).
type vmx struct {
	name     string // display name
	memoryMB int
	cpus     int
	efi      bool
	disks    []string // descriptor file names, in order
	note     string   // annotation: what this VM is
}

// diskAdapter is the virtual SCSI adapter that a published VM gets when its
// real one is not known: every guest since Windows 2003 and Linux 2.6 has a
// driver for LSI Logic parallel on board, which pvscsi cannot claim.
const diskAdapter = "lsilogic"

// encode renders the file for a VM whose own configuration is not known, from
// a backup of plain disk files: hardware that any guest boots on, no NIC (a
// copy must not meet its original on the network by accident), and
// uuid.action so that no question blocks the power-on.
func (v vmx) encode() []byte {
	var b bytes.Buffer
	set := func(key, value string) { fmt.Fprintf(&b, "%s = \"%s\"\n", key, vmxEscape(value)) }
	set(".encoding", "UTF-8")
	set("config.version", "8")
	set("virtualHW.version", "11")
	set("displayName", v.name)
	set("annotation", v.note)
	set("guestOS", "other-64")
	set("memSize", fmt.Sprint(v.memoryMB))
	set("numvcpus", fmt.Sprint(v.cpus))
	if v.efi {
		set("firmware", "efi")
	} else {
		set("firmware", "bios")
	}
	set("uuid.action", "create")
	set("nvram", fileName(v.name)+".nvram")
	set("pciBridge0.present", "TRUE")
	for i := 4; i <= 7; i++ {
		bridge := fmt.Sprintf("pciBridge%d.", i)
		set(bridge+"present", "TRUE")
		set(bridge+"virtualDev", "pcieRootPort")
		set(bridge+"functions", "8")
	}
	for i, d := range v.disks {
		bus, unit := scsiPlace(i)
		if unit == 0 {
			set(fmt.Sprintf("scsi%d.present", bus), "TRUE")
			set(fmt.Sprintf("scsi%d.virtualDev", bus), diskAdapter)
		}
		at := fmt.Sprintf("scsi%d:%d.", bus, unit)
		set(at+"present", "TRUE")
		set(at+"deviceType", "scsi-hardDisk")
		set(at+"fileName", d)
	}
	return b.Bytes()
}

// adapt applies to the generic file what of the changes it can have: it has no
// NICs and nothing of an old place.
func (v vmx) adapt(file *vmxFile, c vmxChanges) {
	if c.Instance != "" {
		file.identify(c)
	}
	if c.Session != "" {
		file.set(sessionKey, c.Session)
	}
}

// scsiPlace is where the i-th disk goes: unit 7 of a SCSI bus is the adapter
// itself.
func scsiPlace(i int) (bus, unit int) {
	bus, unit = i/15, i%15
	if unit >= 7 {
		unit++
	}
	return bus, unit
}

// maxPublishedDisks is what four SCSI adapters hold.
const maxPublishedDisks = 4 * 15

// vmxEscape writes a value the way VMware does: what would end the value or the
// line is |hex, and so is the bar itself.
func vmxEscape(s string) string {
	var b strings.Builder
	for _, r := range s {
		if r == '"' || r == '|' || r == '#' || r < 0x20 || r == 0x7f {
			fmt.Fprintf(&b, "|%02X", r)
			continue
		}
		if r == unicode.ReplacementChar {
			r = '_'
		}
		b.WriteRune(r)
	}
	return b.String()
}

// bootsWithEFI guesses a disk's firmware from its first sector: a protective
// MBR (type 0xEE, UEFI specification §5.2.3) with no boot code is a GPT disk
// that no BIOS could start.
func bootsWithEFI(img disk.Image) (bool, error) {
	var mbr [disk.SectorSize]byte
	if img.Size() < int64(len(mbr)) {
		return false, nil
	}
	if _, err := img.ReadAt(mbr[:], 0); err != nil {
		return false, fmt.Errorf("reading the boot sector: %w", err)
	}
	if mbr[510] != 0x55 || mbr[511] != 0xAA {
		return false, nil
	}
	for i := range 4 {
		if mbr[446+16*i+4] == 0xEE {
			return bytes.Count(mbr[:440], []byte{0}) == 440, nil
		}
	}
	return false, nil
}
