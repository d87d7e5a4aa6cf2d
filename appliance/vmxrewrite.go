package appliance

import (
	"fmt"
	"regexp"
	"slices"
	"strconv"
	"strings"
)

// A restore point keeps the .vmx of its VM as it was on its datastore. On ours,
// under another name, beside its original perhaps, on an older host: vmxChanges
// is what has to be different, and rewrite makes it so.
type vmxChanges struct {
	Name    string
	Note    string // goes before the annotation that is there
	Session string // value of sessionKey: whose VM this is
	NVRAM   string // file in the folder; "" = the host makes a new one
	Disks   []placedDisk
	// Instance and BIOS are the VM's new UUIDs; empty: it keeps its own, and its
	// MAC addresses.
	Instance, BIOS string
	// Hardware is the newest virtual hardware that the host runs; 0 = any.
	Hardware int
	Networks networkPlan
	// Adapters says which networks the NICs are on that the file names only by
	// the keys of a distributed switch: NIC number → name.
	Adapters map[int]string
}

// placedDisk is one of the point's disks and where the VM had it.
type placedDisk struct {
	Place      string // "scsi0:1", "nvme0:0", …; "" = not known
	Adapter    string // of a controller that must be made: "pvscsi", …
	Descriptor string // file in the folder
}

// networkPlan says what becomes of the NICs. The zero value leaves each on the
// network that it was on, unplugged: a VM that was brought back must not meet
// its original by accident.
type networkPlan struct {
	Keep bool              // plugged in, where they were
	Map  map[string]string // plugged in, on another network: old name → new name
}

// target says on which network a NIC goes and whether it is plugged in.
func (n networkPlan) target(network string) (string, bool) {
	if to, ok := n.Map[network]; ok {
		return to, true
	}
	return network, n.Keep
}

// sessionKey is the setting by which a VM of ours is known.
const sessionKey = "lifeboat.session"

var (
	vmxDiskPlace = regexp.MustCompile(`^((?:scsi|sata|ide|nvme)\d+:\d+)\.`)
	vmxAdapter   = regexp.MustCompile(`^(ethernet\d+)\.`)
	vmxStale     = regexp.MustCompile(`^((?:floppy|serial|parallel|pcipassthru|usb:)\d+|usb_xhci:\d+|ehci:\d+)\.`)
	// vmxOfTheOldPlace is what the host noted for itself about the place where
	// the VM was, or about a run that is over.
	vmxOfTheOldPlace = regexp.MustCompile(`^(uuid\.location|workingdir|extendedconfigfile|sched\.swap\.(dir|derivedname)|sched\.mem\.pin|` +
		`vmotion\..*|migrate\..*|checkpoint\..*|replay\..*|snapshot\..*|vmxstats\.filename|log\.filename|(host|guest|user)cpuid\..*|` +
		`cleanshutdown|softpoweroff|changetrackpath|(.*\.)?ctkenabled|.*\.redo|.*\.changetrackpath|vmxf?stats\..*|` +
		`sched\.scsi\d+:\d+\.throughputcap\.tmp|dumper\..*|lifeboat\..*)$`)
	vmxSecrets = regexp.MustCompile(`^(vtpm\..*|encryption\..*|encryptedvm\..*|datafilekey|nvram\.encryption.*|keysafe.*|cryptostate)$`)
)

// rewrite changes the file, and returns what a person should know about it.
func (v *vmxFile) rewrite(c vmxChanges) (notes []string) {
	v.set("displayName", c.Name)
	v.set("annotation", strings.TrimSuffix(c.Note+"\n"+v.get("annotation"), "\n"))
	v.drop("nvram")
	if c.NVRAM != "" {
		v.set("nvram", c.NVRAM)
	}
	v.dropAll(func(key, _ string) bool { return vmxOfTheOldPlace.MatchString(key) })
	v.identify(c)
	notes = append(notes, v.placeDisks(c.Disks)...)
	notes = append(notes, v.dropStale()...)
	notes = append(notes, v.plugNICs(c)...)
	notes = append(notes, v.lowerHardware(c.Hardware)...)
	// Whatever else points to a place that is not there.
	v.dropAll(func(_, value string) bool { return strings.HasPrefix(value, "/vmfs/") })
	v.set(sessionKey, c.Session)
	return notes
}

// identify sets the UUIDs. uuid.action keeps the host from asking whether the VM
// was moved or copied, which would block its power-on: whichever UUIDs stand
// here are meant.
func (v *vmxFile) identify(c vmxChanges) {
	if c.Instance != "" {
		v.set("vc.uuid", vmxUUID(c.Instance))
	}
	if c.BIOS != "" {
		v.set("uuid.bios", vmxUUID(c.BIOS))
	}
	v.set("uuid.action", "keep")
}

// vmxUUID writes a UUID ("564d8a1c-…") as a .vmx has it: "56 4d 8a 1c …-…".
func vmxUUID(id string) string {
	hex := strings.ToLower(strings.ReplaceAll(id, "-", ""))
	if len(hex) != 32 {
		return id
	}
	var b strings.Builder
	for i := 0; i < 32; i += 2 {
		switch {
		case i == 16:
			b.WriteByte('-')
		case i > 0:
			b.WriteByte(' ')
		}
		b.WriteString(hex[i : i+2])
	}
	return b.String()
}

// placeDisks puts the point's disks where the VM had them and drops every other
// drive: disks that were not backed up, CD-ROMs with media that are not here.
func (v *vmxFile) placeDisks(disks []placedDisk) (notes []string) {
	at := map[string]placedDisk{}
	for _, d := range disks {
		if d.Place != "" {
			at[strings.ToLower(d.Place)] = d
		}
	}
	for _, place := range v.devices(vmxDiskPlace) {
		if _, ours := at[place]; ours {
			continue
		}
		if file := v.get(place + ".fileName"); strings.HasSuffix(strings.ToLower(file), ".vmdk") {
			notes = append(notes, fmt.Sprintf("disk %s (%s) is not in the restore point: left out", place, file))
		}
		v.dropDevice(place)
	}
	for _, d := range disks {
		if d.Place == "" {
			d.Place = v.freePlace(at)
			at[d.Place] = d
		}
		v.placeDisk(d)
	}
	return notes
}

func (v *vmxFile) placeDisk(d placedDisk) {
	controller, _, _ := strings.Cut(d.Place, ":")
	if !v.is(controller+".present") && !strings.HasPrefix(controller, "ide") {
		v.set(controller+".present", "TRUE")
		if strings.HasPrefix(controller, "scsi") && v.get(controller+".virtualDev") == "" {
			v.set(controller+".virtualDev", cmpString(d.Adapter, diskAdapter))
		}
	}
	v.set(d.Place+".present", "TRUE")
	v.set(d.Place+".fileName", d.Descriptor)
	if v.get(d.Place+".deviceType") == "" && strings.HasPrefix(controller, "scsi") {
		v.set(d.Place+".deviceType", "scsi-hardDisk")
	}
	// An independent disk would lose its writes at power-off, or refuse snapshots.
	v.drop(d.Place+".mode", d.Place+".writeThrough", d.Place+".sharing")
}

func cmpString(a, b string) string {
	if a != "" {
		return a
	}
	return b
}

// freePlace is the first on a SCSI bus that no disk has.
func (v *vmxFile) freePlace(taken map[string]placedDisk) string {
	for i := 0; ; i++ {
		bus, unit := scsiPlace(i)
		place := fmt.Sprintf("scsi%d:%d", bus, unit)
		if _, ok := taken[place]; !ok && !v.is(place+".present") {
			return place
		}
	}
}

// dropStale drops what only the old host, or somebody's desk, had to offer.
func (v *vmxFile) dropStale() (notes []string) {
	for _, device := range v.devices(vmxStale) {
		if v.is(device+".present") && strings.HasPrefix(device, "pcipassthru") {
			notes = append(notes, fmt.Sprintf("PCI device %s of the old host: left out", device))
		}
		v.dropDevice(device)
	}
	v.set("floppy0.present", "FALSE")
	tpm := v.is("vtpm.present")
	secrets := v.dropAll(func(key, _ string) bool { return vmxSecrets.MatchString(key) })
	switch {
	case tpm:
		notes = append(notes, "the virtual TPM cannot be brought back: BitLocker and the like will ask for their recovery key")
	case secrets > 0:
		notes = append(notes, "the VM was encrypted: what runs is not")
	}
	return notes
}

// plugNICs puts the adapters on their networks. Keys of a distributed switch
// name a port that others may have by now: they go, the network's name stays.
func (v *vmxFile) plugNICs(c vmxChanges) (notes []string) {
	for _, nic := range v.devices(vmxAdapter) {
		if !v.is(nic + ".present") {
			v.dropDevice(nic)
			continue
		}
		number, _ := strconv.Atoi(strings.TrimPrefix(nic, "ethernet"))
		old := cmpString(v.get(nic+".networkName"), c.Adapters[number])
		network, plugged := c.Networks.target(old)
		v.dropAll(func(key, _ string) bool {
			return strings.HasPrefix(key, nic+".dvs.") || strings.HasPrefix(key, nic+".opaquenetwork.") || key == nic+".externalid"
		})
		v.set(nic+".networkName", network)
		if network == "" {
			plugged = false
			notes = append(notes, fmt.Sprintf("network adapter %s: its network is not known: disconnected", nic))
		}
		v.set(nic+".startConnected", strings.ToUpper(strconv.FormatBool(plugged)))
		if c.Instance != "" {
			v.set(nic+".addressType", "generated")
			v.drop(nic+".address", nic+".generatedAddress", nic+".generatedAddressOffset", nic+".checkMACAddress")
		}
	}
	return notes
}

// lowerHardware makes the virtual hardware one that the host runs. Guests take
// an older one, as long as it offers what they use.
func (v *vmxFile) lowerHardware(newest int) (notes []string) {
	have, err := strconv.Atoi(v.get("virtualHW.version"))
	if err != nil {
		v.set("virtualHW.version", strconv.Itoa(oldestHardware))
		return nil
	}
	if newest > 0 && have > newest {
		v.set("virtualHW.version", strconv.Itoa(newest))
		notes = append(notes, fmt.Sprintf("virtual hardware lowered from version %d to %d, the newest that this host runs", have, newest))
	}
	return notes
}

// oldestHardware is what a VM gets whose own is not known: ESXi 6.0 runs it.
const oldestHardware = 11

// hardwareOf reads "vmx-19".
func hardwareOf(version string) int {
	n, err := strconv.Atoi(strings.TrimPrefix(version, "vmx-"))
	if err != nil {
		return 0
	}
	return n
}

// lowest is the newest hardware that all hosts run; 0 where none tells.
func lowestHardware(versions []string) int {
	var known []int
	for _, v := range versions {
		if n := hardwareOf(v); n > 0 {
			known = append(known, n)
		}
	}
	if len(known) == 0 {
		return 0
	}
	return slices.Min(known)
}
