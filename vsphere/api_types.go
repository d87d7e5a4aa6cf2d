package vsphere

import (
	"encoding/json"
	"time"
)

// Extent is an area of a disk, in bytes.
type Extent struct{ Offset, Length int64 }

// Progress of a task.
type Progress struct {
	Percent int    // 0 to 100; stays 0 where the server tells none
	State   string // "queued", "running"
	Message string // what the server says it does, often ""
}

// SnapshotSpec says how a snapshot is taken: never with memory.
type SnapshotSpec struct {
	Name        string
	Description string
	Quiesce     bool
	Timeout     time.Duration // for the whole task; 0 = 30 minutes
}

// RemoveOptions say how a snapshot is removed.
type RemoveOptions struct {
	Children bool           // the snapshots that were taken after it too
	Progress func(Progress) // may be nil
}

// Host is an ESXi host.
type Host struct {
	Ref           Ref      `json:"ref"`
	Name          string   `json:"name"`
	Version       string   `json:"version"` // "8.0.3"
	Connected     bool     `json:"connected"`
	Maintenance   bool     `json:"maintenance,omitempty"`
	Cluster       string   `json:"cluster,omitempty"` // "" for a host of its own
	ClusterRef    Ref      `json:"cluster_ref"`       // the compute resource, also of a host of its own
	Datacenter    string   `json:"datacenter"`
	PoolRef       Ref      `json:"pool_ref"`       // root resource pool of the cluster or host
	FolderRef     Ref      `json:"folder_ref"`     // the datacenter's vm folder
	Datastores    []string `json:"datastores"`     // names
	MaxNFSVolumes int      `json:"max_nfs"`        // NFS.MaxVolumes; 0 = not told (Client.Hosts tells)
	MaxHardware   string   `json:"max_hw"`         // newest virtual hardware that it runs: "vmx-21", "" = not told
	DRS           bool     `json:"drs,omitempty"`  // of the cluster
	HA            bool     `json:"ha,omitempty"`   // of the cluster
	VMotion       bool     `json:"vmotion"`        // a vMotion network is set up (Client.Hosts tells)
	Networks      []string `json:"networks"`       // names of port groups that it offers
	Hardware      string   `json:"uuid,omitempty"` // UUID of the machine
}

// Datastore is one of the server's datastores.
type Datastore struct {
	Ref        Ref    `json:"ref"`
	Name       string `json:"name"`
	Datacenter string `json:"datacenter"`
	Type       string `json:"type"` // "VMFS", "NFS", "NFS41", "vsan", "VVOL"
	Accessible bool   `json:"accessible"`
	Capacity   int64  `json:"capacity"` // bytes
	Free       int64  `json:"free"`     // bytes
	Hosts      []Ref  `json:"hosts"`
	VMs        []Ref  `json:"vms"`
	Server     string `json:"server,omitempty"` // of NFS
	Path       string `json:"path,omitempty"`   // of NFS: the export
}

// Network is a port group, a network of a distributed switch, or an opaque one.
type Network struct {
	Ref        Ref    `json:"ref"`
	Name       string `json:"name"`
	Datacenter string `json:"datacenter"`
	Accessible bool   `json:"accessible"`
}

// Folder is a VM folder; Path is as in VM.Folder.
type Folder struct {
	Ref        Ref    `json:"ref"`
	Name       string `json:"name"`
	Path       string `json:"path"`
	Datacenter string `json:"datacenter"`
}

// Pool is a resource pool or vApp.
type Pool struct {
	Ref        Ref    `json:"ref"`
	Name       string `json:"name"`
	Path       string `json:"path"` // below its cluster or host: "Resources/production"
	Cluster    string `json:"cluster"`
	Datacenter string `json:"datacenter"`
}

// NAS names an NFSv3 export and the datastore it becomes.
type NAS struct {
	Name     string // of the datastore
	Server   string // as the hosts reach it; the same text on every host of a cluster, or vSphere sees two datastores
	Path     string // of the export
	ReadOnly bool
}

// NASMount is a datastore that is an NFS mount.
type NASMount struct {
	Datastore Ref    `json:"datastore"`
	Name      string `json:"name"`
	Host      Ref    `json:"host"`
	HostName  string `json:"host_name"`
	Server    string `json:"server"`
	Path      string `json:"path"`
	Mounted   bool   `json:"mounted"`
	Active    bool   `json:"active"` // false: "inactive", its server does not answer
	VMs       []Ref  `json:"vms"`    // registered on it, from any host
}

// RegisterSpec says what to register and where.
type RegisterSpec struct {
	Path     string // "[datastore] folder/name.vmx"
	Name     string // "" = as the .vmx says
	Host     Ref
	Folder   Ref // "" = the vm folder of the host's datacenter
	Pool     Ref // "" = the root pool of the host's cluster
	Template bool
}

// NICChange changes one adapter of a VM.
type NICChange struct {
	Key          int32
	Network      string // name; "" = as it is
	Connected    *bool  // now, when the VM runs
	StartConnect *bool  // at power-on
}

// ChangeSpec is what Reconfigure changes; nil and zero values stay as they are.
type ChangeSpec struct {
	Name        *string
	Annotation  *string
	NICs        []NICChange
	ExtraConfig map[string]string // "" removes the key
}

// RelocateSpec says where a VM goes.
type RelocateSpec struct {
	Datastore string           // name; for the configuration and every disk not in PerDisk
	PerDisk   map[int32]string // device key → datastore name
	Host      Ref              // "" = stays
	Pool      Ref              // "" = stays
	Thin      *bool            // nil = as the disks are
}

// AttachSpec says which existing disk a VM is to get.
type AttachSpec struct {
	File string // descriptor: "[datastore] folder/name.vmdk"
	Mode string // "" = "persistent"; "independent_nonpersistent" writes nothing to the file
}

// DiskSpec is a disk to be made.
type DiskSpec struct {
	Key        int32      `json:"key"` // of the disk that it stands for; CreateVM's answer maps it to the new one
	Size       int64      `json:"size"`
	Datastore  string     `json:"datastore"` // "" = the VM's
	Thin       bool       `json:"thin"`
	Controller Controller `json:"controller"`
	Unit       int32      `json:"unit"`
}

// CreateSpec is a VM to be made from a configuration that was kept with a restore point.
type CreateSpec struct {
	Name      string
	Folder    Ref
	Pool      Ref
	Host      Ref
	Datastore string

	Config    json.RawMessage   // VM.Config; empty = generic hardware
	Disks     []DiskSpec        // nil = none; controllers are made as the disks need them
	Networks  map[string]string // old name → new name; a NIC whose network is not found is left disconnected
	NoNetwork bool              // every NIC disconnected
	KeepUUIDs bool
	KeepMACs  bool
	Notes     string
	GuestID   string // where Config is empty
	MemoryMB  int64
	CPUs      int32
	Firmware  string
}

// Created is what CreateVM made.
type Created struct {
	Ref     Ref
	Disks   map[int32]Disk // DiskSpec.Key → the disk
	LeftOut []string       // devices of the configuration that the new VM does not have, in words
}

// Purpose is what a preflight checks privileges for.
type Purpose string

// The purposes.
const (
	ForBackup  Purpose = "backup"
	ForRecover Purpose = "recover"
	ForMigrate Purpose = "migrate"
	ForRestore Purpose = "restore"
	ForAttach  Purpose = "attach"
	ForHotAdd  Purpose = "hotadd"
	ForGuest   Purpose = "guest"
	ForLab     Purpose = "lab"
)

// Missing is a privilege that the session's user does not have.
type Missing struct {
	Privilege string `json:"privilege"` // vSphere's name: "VirtualMachine.State.CreateSnapshot"
	Entity    Ref    `json:"entity"`
	Path      string `json:"path"` // of the entity in the inventory: "/DC0/vm/web01"
}

// String is "VirtualMachine.State.CreateSnapshot on /DC0/vm/web01".
func (m Missing) String() string { return m.Privilege + " on " + m.Path }

// GuestAuth is a user of the guest.
type GuestAuth struct {
	Username, Password string
	Interactive        bool // in the desktop session of the user who is logged in
}

// GuestFile is an entry of a directory in a guest.
type GuestFile struct {
	Path     string            `json:"path"` // as listed: a name, "." and ".." left out
	Type     string            `json:"type"` // "file", "directory", "symlink"
	Size     int64             `json:"size"`
	Modified time.Time         `json:"modified"`
	Attrs    GuestFileAttrs    `json:"attrs"`
	Extra    map[string]string `json:"extra,omitempty"`
}

// GuestFileAttrs are the attributes that VMware Tools can set.
type GuestFileAttrs struct {
	Modified, Accessed time.Time // zero = leave
	Windows            bool      // which of the following hold
	Hidden, ReadOnly   bool      // Windows
	Created            time.Time // Windows; zero = leave
	Owner, Group       int32     // POSIX; -1 = leave
	Mode               uint32    // POSIX permission bits; 0 = leave
	LinkTarget         string    // told, never set
}

// GuestProgram is a program to be run in a guest.
type GuestProgram struct {
	Path    string
	Args    string // one string, as vSphere takes it: quoting is the program's matter
	Dir     string
	Env     []string
	Timeout time.Duration // 0 = 10 minutes
}

// Change is one thing that Watch saw.
type Change struct {
	Kind ChangeKind
	Ref  Ref
	VM   *VM // as it is now; nil when it is gone
}

// ChangeKind says what happened to a VM.
type ChangeKind string

// The kinds of change.
const (
	Appeared ChangeKind = "appeared"
	Modified ChangeKind = "modified"
	Vanished ChangeKind = "vanished"
)
