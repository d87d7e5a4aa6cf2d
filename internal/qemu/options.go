package qemu

import (
	"encoding/json"
	"fmt"
	"log/slog"
	"net/netip"
	"os"
	"regexp"
	"strconv"
	"strings"
)

// Accel is how guest instructions are executed. The zero value is TCG, which
// works everywhere; [ChooseAccel] finds out whether KVM does.
type Accel string

// The accelerators that this runner uses.
const (
	TCG Accel = ""    // software translation
	KVM Accel = "kvm" // hardware virtualisation through /dev/kvm
)

// Options describes one machine. The zero value is a PC with 256 MiB of
// memory, one CPU, no disk, no network card and no display.
type Options struct {
	// Binary is the QEMU program; empty means qemu-system-x86_64 from PATH.
	Binary string
	// Name appears in error messages and in the process's title; empty means
	// "guest". At most 40 of [A-Za-z0-9._-].
	Name  string
	Accel Accel
	// MemoryMiB is the guest's memory; 0 means 256.
	MemoryMiB int
	// CPUs is the number of virtual CPUs; 0 means 1.
	CPUs int
	// Disks in the order in which the firmware tries them.
	Disks []Disk
	// Kernel, Initrd and Append boot a Linux kernel directly, past firmware
	// and boot loader.
	Kernel, Initrd, Append string
	// Firmware is a BIOS or UEFI image; empty means QEMU's SeaBIOS.
	Firmware string
	// Network is nil for no network card at all.
	Network *Network
	// Display adds a standard VGA adapter, which [Machine.Screenshot] needs.
	// There is never a window.
	Display bool
	// Ports are virtio-serial lines to programs in the guest.
	Ports []Port
	// Devices are further -device values ("virtio-rng-pci").
	Devices []string
	// Frozen starts the machine with its CPUs stopped until [Machine.Resume].
	Frozen bool
	// Logger receives debug records; nil means none.
	Logger *slog.Logger
}

// Disk is one virtual disk.
type Disk struct {
	// ID names the disk in [Machine.Move]; empty means "disk0", "disk1", … by
	// position. [a-z][a-z0-9]{0,15}.
	ID string
	// Path is a host file, or nfs://host/path for QEMU's own NFS client, which
	// finds its server through the port mapper on port 111 of host and offers
	// no way to name another port (package netns is for that), or
	// nbd+unix:/path/of/socket for the default export of an NBD server.
	Path string
	// NBD, in the place of Path, is QEMU's end of a socket pair on whose other
	// end somebody serves the disk with the NBD protocol (export ""). Start
	// leaves it open.
	NBD *os.File
	// Format is "raw" (the default) or "qcow2". It is never guessed: a guest
	// that writes a qcow2 header to a raw disk must not get to name files.
	Format string
	// Interface is "virtio" (the default), "scsi", "sata" or "ide".
	Interface string
	ReadOnly  bool
	// Direct bypasses the host's page cache (O_DIRECT); ignored for NFS.
	Direct bool
	// Serial is the disk's serial number as the guest sees it; may be empty.
	Serial string
}

// Port is a line to the guest, which sees it as /dev/virtio-ports/Name.
type Port struct {
	Name string // at most 31 of [A-Za-z0-9._-]
	// Conn is QEMU's end of a socket pair. Start leaves it open.
	Conn *os.File
}

// Network is one card on QEMU's user-mode network: the guest is 10.0.2.15 and
// reaches the host's loopback as 10.0.2.2.
type Network struct {
	// Restrict isolates the guest: only Forward and GuestForward pass.
	Restrict bool
	// Forward makes guest ports reachable from the host.
	Forward []Forward
	// GuestForward makes host services reachable in a restricted network.
	// QEMU connects once, when it starts: one connection for each entry.
	GuestForward []GuestForward
	// Model is the card; empty means virtio-net-pci.
	Model string
	// MAC is its address; empty means QEMU's default.
	MAC string
}

// Forward passes TCP connections made to Host on to GuestPort of the guest.
type Forward struct {
	Host      netip.AddrPort
	GuestPort uint16
}

// GuestForward passes what the guest sends to Guest (an address in 10.0.2.0/24
// other than the guest's own) on to Host.
type GuestForward struct {
	Guest, Host netip.AddrPort
}

// File descriptors that QEMU inherits (3 is the first after stderr).
const (
	monitorFD = 3
	serialFD  = 4
	// extraFD is the first of the disks with NBD, in order, and then the ports.
	extraFD = 5
)

// expressions are the shapes of what callers may name.
type expressions struct{ name, disk, device, mac *regexp.Regexp }

func newExpressions() expressions {
	return expressions{
		name:   regexp.MustCompile(`^[A-Za-z0-9._-]{1,40}$`),
		disk:   regexp.MustCompile(`^[a-z][a-z0-9]{0,15}$`),
		device: regexp.MustCompile(`^[A-Za-z0-9][A-Za-z0-9._=,-]*$`),
		mac:    regexp.MustCompile(`^([0-9a-fA-F]{2}:){5}[0-9a-fA-F]{2}$`),
	}
}

// withDefaults fills in what was left out and refuses what cannot be. What it
// lets through is safe to put into QEMU's comma-separated option syntax.
func (o Options) withDefaults() (Options, error) {
	x := newExpressions()
	setDefault(&o.Binary, "qemu-system-x86_64")
	setDefault(&o.Name, "guest")
	setDefault(&o.MemoryMiB, 256)
	setDefault(&o.CPUs, 1)
	if !x.name.MatchString(o.Name) {
		return o, fmt.Errorf("machine name %q: want up to 40 letters, digits, dots, dashes", o.Name)
	}
	if o.Accel != TCG && o.Accel != KVM {
		return o, fmt.Errorf("accelerator %q: want TCG or KVM", o.Accel)
	}
	if o.MemoryMiB < 1 || o.CPUs < 1 || o.CPUs > 255 {
		return o, fmt.Errorf("machine %s: %d MiB and %d CPUs make no machine", o.Name, o.MemoryMiB, o.CPUs)
	}
	if (o.Initrd != "" || o.Append != "") && o.Kernel == "" {
		return o, fmt.Errorf("machine %s: Initrd and Append need a Kernel", o.Name)
	}
	for _, p := range o.Ports {
		if !x.name.MatchString(p.Name) || len(p.Name) > 31 || p.Conn == nil {
			return o, fmt.Errorf("machine %s: port %q: want up to 31 letters, digits, dots, dashes, and a socket", o.Name, p.Name)
		}
	}
	for _, d := range o.Devices {
		if !x.device.MatchString(d) {
			return o, fmt.Errorf("machine %s: device %q is not a plain -device value", o.Name, d)
		}
	}
	disks, err := diskDefaults(o.Disks, x)
	if err != nil {
		return o, fmt.Errorf("machine %s: %w", o.Name, err)
	}
	o.Disks = disks
	if n := o.Network; n != nil && n.MAC != "" && !x.mac.MatchString(n.MAC) {
		return o, fmt.Errorf("machine %s: MAC address %q: want six pairs of hexadecimal digits", o.Name, n.MAC)
	}
	if n := o.Network; n != nil && n.Model != "" && !x.name.MatchString(n.Model) {
		return o, fmt.Errorf("machine %s: network card %q is not a device name", o.Name, n.Model)
	}
	return o, nil
}

func diskDefaults(in []Disk, x expressions) ([]Disk, error) {
	disks := make([]Disk, len(in))
	seen := make(map[string]bool, len(in))
	for i, d := range in {
		setDefault(&d.ID, "disk"+strconv.Itoa(i))
		setDefault(&d.Format, "raw")
		setDefault(&d.Interface, "virtio")
		if !x.disk.MatchString(d.ID) || seen[d.ID] {
			return nil, fmt.Errorf("disk %q: want distinct identifiers of up to 16 lower-case letters and digits", d.ID)
		}
		seen[d.ID] = true
		if err := checkFormat(d.Format); err != nil {
			return nil, fmt.Errorf("disk %s: %w", d.ID, err)
		}
		if _, ok := deviceDriver(d.Interface); !ok {
			return nil, fmt.Errorf("disk %s: interface %q: want virtio, scsi, sata or ide", d.ID, d.Interface)
		}
		if d.NBD != nil && d.Path != "" {
			return nil, fmt.Errorf("disk %s: both a path and a socket", d.ID)
		}
		if d.NBD == nil {
			if _, err := protocolNode("check", d.Path, d.ReadOnly, d.Direct); err != nil {
				return nil, fmt.Errorf("disk %s: %w", d.ID, err)
			}
		}
		disks[i] = d
	}
	return disks, nil
}

func checkFormat(f string) error {
	if f != "raw" && f != "qcow2" {
		return fmt.Errorf("format %q: want raw or qcow2", f)
	}
	return nil
}

func setDefault[T comparable](v *T, def T) {
	var zero T
	if *v == zero {
		*v = def
	}
}

// arguments is the command line after the program's name.
func (o Options) arguments() []string {
	a := []string{
		"-name", o.Name, "-nodefaults", "-no-user-config", "-no-reboot", "-display", "none",
		"-sandbox", "on,obsolete=deny,elevateprivileges=deny,spawn=deny,resourcecontrol=deny",
		"-m", strconv.Itoa(o.MemoryMiB), "-smp", strconv.Itoa(o.CPUs),
		"-chardev", fmt.Sprintf("socket,id=monitor,fd=%d", monitorFD), "-mon", "chardev=monitor,mode=control",
		"-chardev", fmt.Sprintf("socket,id=console,fd=%d", serialFD), "-serial", "chardev:console",
	}
	if o.Accel == KVM {
		a = append(a, "-machine", "pc", "-accel", "kvm", "-cpu", "host")
	} else {
		// A large translation cache: the default is thrown away in mid-boot.
		// Without the RAM-backed HPET and vmport every timer read is cheaper.
		a = append(a, "-machine", "pc,hpet=off,vmport=off", "-accel", "tcg,thread=multi,tb-size=256", "-cpu", "max")
	}
	vga := "none"
	if o.Display {
		vga = "std"
	}
	a = append(a, "-vga", vga)
	for _, p := range [][2]string{{"-kernel", o.Kernel}, {"-initrd", o.Initrd}, {"-append", o.Append}, {"-bios", o.Firmware}} {
		if p[1] != "" {
			a = append(a, p[0], p[1])
		}
	}
	if o.Frozen {
		a = append(a, "-S")
	}
	a = append(a, o.diskArguments()...)
	a = append(a, o.Network.arguments()...)
	a = append(a, o.portArguments()...)
	for _, d := range o.Devices {
		a = append(a, "-device", d)
	}
	return a
}

// extraFiles are what QEMU inherits from extraFD on.
func (o Options) extraFiles() (files []*os.File) {
	for _, d := range o.Disks {
		if d.NBD != nil {
			files = append(files, d.NBD)
		}
	}
	for _, p := range o.Ports {
		files = append(files, p.Conn)
	}
	return files
}

func (o Options) portArguments() (a []string) {
	if len(o.Ports) == 0 {
		return nil
	}
	a = append(a, "-device", "virtio-serial-pci")
	fd := extraFD + len(o.extraFiles()) - len(o.Ports)
	for i, p := range o.Ports {
		a = append(a, "-chardev", fmt.Sprintf("socket,id=port%d,fd=%d", i, fd+i), "-device", fmt.Sprintf("virtserialport,chardev=port%d,name=%s", i, p.Name))
	}
	return a
}

func (n *Network) arguments() []string {
	if n == nil {
		return []string{"-nic", "none"}
	}
	var b strings.Builder
	b.WriteString("user,id=net0")
	if n.Restrict {
		b.WriteString(",restrict=on")
	}
	for _, f := range n.Forward {
		fmt.Fprintf(&b, ",hostfwd=tcp:%s:%d-:%d", f.Host.Addr(), f.Host.Port(), f.GuestPort)
	}
	for _, f := range n.GuestForward {
		fmt.Fprintf(&b, ",guestfwd=tcp:%s-tcp:%s", f.Guest, f.Host)
	}
	model := n.Model
	setDefault(&model, "virtio-net-pci")
	dev := model + ",netdev=net0"
	if n.MAC != "" {
		dev += ",mac=" + n.MAC
	}
	if model == "virtio-net-pci" {
		dev += ",romfile=" // no network boot: saves the option ROM's seconds
	}
	return []string{"-netdev", b.String(), "-device", dev}
}

func mustJSON(v any) string {
	b, err := json.Marshal(v)
	if err != nil {
		panic("qemu: encoding our own option: " + err.Error())
	}
	return string(b)
}
