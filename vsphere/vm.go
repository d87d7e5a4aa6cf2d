package vsphere

import (
	"encoding/json"
	"fmt"
	"strings"
	"time"
)

// Ref names an object of a server for the time of a session, as
// "VirtualMachine:vm-42". It is a hint and is never stored as identity.
type Ref string

// Kind is the managed object type ("VirtualMachine"); Value is its ID ("vm-42").
func (r Ref) Kind() string {
	kind, _, _ := strings.Cut(string(r), ":")
	return kind
}

// Value is the object's ID at the server ("vm-42").
func (r Ref) Value() string {
	_, value, _ := strings.Cut(string(r), ":")
	return value
}

// Identity names a VM for good: the instanceUuid of its vCenter (of a
// stand-alone host: the hardware's UUID) and the VM's own instanceUuid.
type Identity struct {
	VCenter string `json:"vcenter"`
	VM      string `json:"vm"`
}

// String is "vcenterUUID/vmUUID".
func (id Identity) String() string { return id.VCenter + "/" + id.VM }

// IsZero reports whether nothing is named.
func (id Identity) IsZero() bool { return id == Identity{} }

// ParseIdentity is the inverse of Identity.String.
func ParseIdentity(s string) (Identity, error) {
	vc, vm, ok := strings.Cut(s, "/")
	if !ok || vc == "" || vm == "" || strings.Contains(vm, "/") {
		return Identity{}, fmt.Errorf("%q is no identity of a VM: want vcenterUUID/vmUUID", s)
	}
	return Identity{VCenter: vc, VM: vm}, nil
}

// PowerState of a VM.
type PowerState string

// The power states that there are.
const (
	PoweredOn  PowerState = "on"
	PoweredOff PowerState = "off"
	Suspended  PowerState = "suspended"
)

// VM is what vSphere knows of a virtual machine. Fields marked (full) are
// filled by Client.VM, FindVM and SnapshotVM, not by Inventory.
type VM struct {
	Ref        Ref      `json:"ref"`
	Identity   Identity `json:"identity"`
	Name       string   `json:"name"`
	BIOSUUID   string   `json:"bios_uuid"`
	Folder     string   `json:"folder"`     // path below the datacenter's vm folder, "" at its top; a "/" in a name is %2f
	Datacenter string   `json:"datacenter"` // inventory path without the leading "/", "" on a stand-alone host's "ha-datacenter"
	Pool       string   `json:"pool"`
	Host       string   `json:"host"`
	HostRef    Ref      `json:"host_ref"`
	FolderRef  Ref      `json:"folder_ref"`
	PoolRef    Ref      `json:"pool_ref"`
	Tags       []string `json:"tags,omitempty"` // "category/name"; after Client.LoadTags

	Power               PowerState        `json:"power"`
	Connection          string            `json:"connection"` // "connected", "disconnected", "inaccessible", "orphaned", "invalid"
	Template            bool              `json:"template,omitempty"`
	GuestID             string            `json:"guest_id"`
	Version             string            `json:"version"`  // of the virtual hardware: "vmx-19"
	Firmware            string            `json:"firmware"` // "bios" or "efi"
	SecureBoot          bool              `json:"secure_boot,omitempty"`
	TPM                 bool              `json:"tpm,omitempty"`
	Encrypted           bool              `json:"encrypted,omitempty"`
	MemoryMB            int64             `json:"memory_mb"`
	CPUs                int32             `json:"cpus"`
	ToolsRunning        bool              `json:"tools_running,omitempty"`
	GuestIP             string            `json:"guest_ip,omitempty"`
	CBT                 bool              `json:"cbt"`
	CBTSupported        bool              `json:"cbt_supported"`
	ConsolidationNeeded bool              `json:"consolidation_needed,omitempty"`
	CurrentSnapshot     Ref               `json:"current_snapshot,omitempty"`
	Snapshots           []Snapshot        `json:"snapshots,omitempty"`
	Disks               []Disk            `json:"disks"`
	NICs                []NIC             `json:"nics"`
	VMX                 string            `json:"vmx"`                    // "[datastore] folder/name.vmx"
	NVRAM               string            `json:"nvram,omitempty"`        // likewise (full)
	Config              json.RawMessage   `json:"config,omitempty"`       // VirtualMachineConfigInfo, for keeping (full)
	Annotation          string            `json:"annotation,omitempty"`   //
	ExtraConfig         map[string]string `json:"extra_config,omitempty"` // advanced settings
}

// Disk is a virtual disk of a VM.
type Disk struct {
	Key        int32  `json:"key"` // stays the same for the VM's life
	Label      string `json:"label"`
	Size       int64  `json:"size"` // bytes
	UUID       string `json:"uuid"` // of the backing, written in the descriptor
	File       string `json:"file"` // descriptor of the topmost file: "[datastore] folder/name-000001.vmdk"
	BaseFile   string `json:"base_file"`
	ParentFile string `json:"parent_file,omitempty"` // what File lies on, "" for none
	Datastore  string `json:"datastore"`
	ChangeID   string `json:"change_id,omitempty"` // of the state that this view of the VM shows; "" without CBT
	ContentID  string `json:"content_id,omitempty"`
	Mode       string `json:"mode"` // "persistent", "independent_persistent", …

	Independent bool       `json:"independent,omitempty"` // not in snapshots
	Physical    bool       `json:"physical,omitempty"`    // RDM in physical mode: not in snapshots
	RDM         bool       `json:"rdm,omitempty"`         // of either mode
	Thin        bool       `json:"thin,omitempty"`
	Shared      bool       `json:"shared,omitempty"` // multi-writer
	Controller  Controller `json:"controller"`
	Unit        int32      `json:"unit"`
}

// Snapshotted reports whether a snapshot of the VM holds this disk.
func (d Disk) Snapshotted() bool { return !d.Independent && !d.Physical }

// Controller is what a disk hangs on.
type Controller struct {
	Key  int32  `json:"key"`
	Bus  int32  `json:"bus"`
	Type string `json:"type"` // "lsilogic", "lsisas1068", "buslogic", "pvscsi", "nvme", "sata", "ide"
}

// NIC is a network adapter of a VM.
type NIC struct {
	Key       int32  `json:"key"`
	Label     string `json:"label"`
	MAC       string `json:"mac"`
	Network   string `json:"network"` // name of the port group; "" when it is not known any more
	Type      string `json:"type"`    // "vmxnet3", "e1000e", "e1000", "pcnet32", "sriov"
	Connected bool   `json:"connected"`
}

// Snapshot is a snapshot of a VM.
type Snapshot struct {
	Ref         Ref       `json:"ref"`
	Name        string    `json:"name"`
	Description string    `json:"description,omitempty"`
	Created     time.Time `json:"created"`
	Parent      Ref       `json:"parent,omitempty"` // "" at the root
	Quiesced    bool      `json:"quiesced,omitempty"`
}
