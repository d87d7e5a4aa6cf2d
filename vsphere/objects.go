package vsphere

import "github.com/vmware/govmomi/vim25/types"

// Progress of a task.
type Progress struct {
	Percent int    // 0 to 100; stays 0 where the server tells none
	State   string // "queued", "running"
	Message string // what the server says it does, often ""
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

	datacenter types.ManagedObjectReference
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
