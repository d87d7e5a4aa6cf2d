package appliance

import (
	"time"

	"lifeboat/vsphere"
)

// RecoveryState is how far a recovery on a vSphere has come.
type RecoveryState string

// The states, in their order. Before RecoveryRegistered a recovery whose process
// died is undone, from then on it is finished: a person may already look at it.
const (
	RecoveryPublishing RecoveryState = "publishing" // files are written, the export serves them
	RecoveryMounted    RecoveryState = "mounted"    // the hosts have the datastore
	RecoveryRegistered RecoveryState = "registered" // the VM is in the inventory, its NICs where they belong
	RecoveryRunning    RecoveryState = "running"    // all was done that `recover` was asked for
	RecoveryMigrating  RecoveryState = "migrating"
	RecoveryMigrated   RecoveryState = "migrated" // nothing of it is on our datastore: only cleaning up is left
	RecoveryCopied     RecoveryState = "copied"   // a complete copy waits to take the VM's place
	RecoveryStopping   RecoveryState = "stopping"
	RecoveryAttached   RecoveryState = "attached" // its disks are, to somebody's VM
)

// Recovery is what a session has on a vSphere, as the state database remembers it.
// Its objects are found by name: the VM by the .vmx on our datastore or by its
// sessionKey, the datastore by its name and export. References are not kept.
type Recovery struct {
	VCenter   string           `json:"vcenter"` // its instanceUuid
	Server    string           `json:"server"`  // its name, for people
	VM        string           `json:"vm"`      // name of the recovered VM, or of the one that has its disks
	Identity  vsphere.Identity `json:"identity,omitzero"`
	Hosts     []string         `json:"hosts"` // that have the datastore for it
	Datastore string           `json:"datastore"`
	Address   string           `json:"address"` // of the export, as the hosts know it
	State     RecoveryState    `json:"state"`
	Target    string           `json:"target,omitempty"` // datastore that a migration goes to
	// PowerOn: the VM is to be on when the recovery is finished.
	PowerOn bool `json:"power_on"`
	// SwitchedOff: it was on, and is off for the time of a move.
	SwitchedOff bool `json:"switched_off,omitempty"`
	// Pinned: DRS and HA were told to leave the VM alone.
	Pinned bool `json:"pinned,omitempty"`
	// Attach: it is disks for somebody's VM, not a VM of its own.
	Attach bool `json:"attach,omitempty"`
	// Disks are the numbers of the disks that are attached to somebody's VM, and
	// their keys there.
	Disks map[int]int32 `json:"attached_disks,omitempty"`
	Steps []RecoverStep `json:"steps,omitempty"`
	Notes []string      `json:"notes,omitempty"`
	// Note is what was put before the VM's own annotation.
	Note string `json:"note,omitempty"`
}

// RecoverStep is one step and how long it took.
type RecoverStep struct {
	Name    string    `json:"step"`
	Began   time.Time `json:"began"`
	Seconds float64   `json:"seconds"`
}

// onVSphere reports whether the session has something on a vSphere.
func (s *Session) onVSphere(vcenter string) bool {
	return s.Recovery != nil && (vcenter == "" || s.Recovery.VCenter == vcenter)
}
