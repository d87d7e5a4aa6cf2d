package esxsim

import (
	"errors"
	"fmt"
	"log/slog"
	"net"
	"strings"
	"time"
)

// Options describes a simulated vSphere. Only Dir is obligatory.
type Options struct {
	// Dir is a directory of the simulation's own: datastores, certificates,
	// sockets. It is not removed by Close.
	Dir string
	// Listen is the address of the API; empty means 127.0.0.1:0.
	Listen string
	// Username and Password log in; empty means administrator@vsphere.local
	// and a random password (see [Sim.Password]).
	Username, Password string
	// Users are further accounts, name to password.
	Users map[string]string
	// Hosts is the number of hosts in the one cluster; 0 means 2.
	Hosts int
	// Standalone makes it one ESXi host without a vCenter.
	Standalone bool
	// Datastores are the names of the VMFS datastores, directories under Dir,
	// mounted on all hosts; nil means datastore1 and datastore2.
	Datastores []string
	// Networks are standard port groups beside "VM Network".
	Networks []string
	VMs      []VMSpec
	// Boot makes PowerOn start QEMU on the VM's disks. Otherwise a VM that is
	// on has its disks open and locked, and [VM.WriteDisk] is its guest.
	Boot bool
	// MaxNFSVolumes is NFS.MaxVolumes of each host; 0 means 8, as ESXi comes.
	MaxNFSVolumes int
	// Heartbeat is how often a NAS datastore is looked at and locks are
	// refreshed; 0 means 10 s. A datastore is inactive after three failures.
	Heartbeat time.Duration
	// APDTimeout is how long I/O to a lost NAS datastore is tried again; 0
	// means 140 s (Misc.APDTimeout [KB 2004684]).
	APDTimeout time.Duration
	// LockTimeout is how old the heartbeat in another host's lock file must be
	// before the lock is broken; 0 means 35 s.
	LockTimeout time.Duration
	// CBTWindow is how many bytes of a disk one QueryChangedDiskAreas looks at;
	// 0 means 64 GiB. Small ones make answers without any area.
	CBTWindow int64
	// LeaseTimeout is how long an HttpNfcLease lives without progress; 0 means
	// 5 min, as on a host.
	LeaseTimeout time.Duration
	// InstanceUUID is the vCenter's; empty means a random one.
	InstanceUUID string
	Logger       *slog.Logger
}

// VMSpec is a virtual machine that exists from the start.
type VMSpec struct {
	Name   string
	Folder string // path below the datacenter's vm folder, as "Prod/Web"
	Host   string // empty: the hosts in turn
	// Datastore holds the VM's folder; empty means the first.
	Datastore string
	Disks     []DiskSpec
	// Networks are the networks of its cards; nil means one on "VM Network".
	Networks []string
	Tags     []string // names; of the category "Lifeboat"
	GuestID  string   // empty: otherLinux64Guest
	Version  string   // hardware; empty: vmx-19
	Firmware string   // "bios" (also when empty) or "efi"
	NVRAM    []byte
	MemoryMB int // 0: 64, or 256 with Options.Boot
	CPUs     int // 0: 1
	// Tools says that VMware Tools run whenever the VM does. With Options.Boot
	// they run once the guest asks for a login on its serial line.
	Tools      bool
	PowerOn    bool
	Template   bool
	Suspended  bool
	CBT        bool // changed block tracking is on already
	SecureBoot bool
	TPM        bool
	Annotation string
	Extra      map[string]string // further .vmx keys
	// GuestDir is the directory that guest operations see as the guest's /;
	// empty: one of the simulation's. GuestUser and GuestPassword log in;
	// empty: root and guest. GuestProgram is what a program does, told its
	// path, its arguments and GuestDir; it returns the exit code.
	GuestDir, GuestUser, GuestPassword string
	GuestProgram                       func(program, arguments, dir string) int
	// LinkedFrom is the name of an earlier VM that this one is a linked clone
	// of: its disks are deltas on that VM's, which gets a snapshot for it.
	LinkedFrom string
}

// DiskSpec is one virtual disk.
type DiskSpec struct {
	Size int64  // bytes; 0 with From: that image's
	From string // raw, qcow2 or vmdk file whose content it has
	// Mode is a VirtualDiskMode; empty means persistent.
	Mode      string
	Datastore string // empty: the VM's
	// Controller is pvscsi (also when empty), lsilogic, lsisas1068, nvme, sata
	// or ide. Bus is its number; the unit is the next that is free.
	Controller string
	Bus        int
	// RDM is "physical" or "virtual" for a raw device mapping.
	RDM   string
	Thick bool
	// Name is the disk's file name without extension; empty: the VM's, with a
	// number from the second disk on.
	Name string
}

func (o Options) withDefaults() (Options, error) {
	if o.Dir == "" {
		return o, errors.New("esxsim: Options.Dir is missing: datastores have to be somewhere")
	}
	def(&o.Listen, "127.0.0.1:0")
	host, _, err := net.SplitHostPort(o.Listen)
	if ip := net.ParseIP(host); err != nil || ip == nil || !ip.IsLoopback() {
		return o, fmt.Errorf("esxsim: listening on %q: only on a loopback address, as 127.0.0.1:8989", o.Listen)
	}
	def(&o.Username, "administrator@vsphere.local")
	def(&o.Password, randomToken())
	def(&o.Hosts, 2)
	if o.Standalone {
		o.Hosts = 1
	}
	if len(o.Datastores) == 0 {
		o.Datastores = []string{"datastore1", "datastore2"}
	}
	def(&o.MaxNFSVolumes, 8)
	def(&o.Heartbeat, 10*time.Second)
	def(&o.APDTimeout, 140*time.Second)
	def(&o.LockTimeout, 35*time.Second)
	def(&o.CBTWindow, 64<<30)
	def(&o.LeaseTimeout, 5*time.Minute)
	def(&o.InstanceUUID, randomUUID())
	if o.Logger == nil {
		o.Logger = slog.New(slog.DiscardHandler)
	}
	for _, ds := range o.Datastores {
		if ds == "" || strings.ContainsAny(ds, "/[]") {
			return o, fmt.Errorf("esxsim: %q is no name for a datastore", ds)
		}
	}
	return o, nil
}

func def[T comparable](v *T, value T) {
	var zero T
	if *v == zero {
		*v = value
	}
}
