package store

import (
	"time"
)

// Consistency says what a guest was told before its disks were captured.
type Consistency string

const (
	// CrashConsistent means that the disks are as after a power cut.
	CrashConsistent Consistency = "crash"
	// FileSystemConsistent means that the guest's file systems were flushed and frozen.
	FileSystemConsistent Consistency = "file-system"
	// ApplicationConsistent means that applications were told, too (VSS, scripts).
	ApplicationConsistent Consistency = "application"
)

// Point is a restore point: one VM at one time. It is immutable. Its JSON form
// is the one that the command line and the API print.
type Point struct {
	// ID is 16 hexadecimal digits, random.
	ID string `json:"id"`
	// VM is the name of the machine when it was backed up.
	VM string `json:"vm"`
	// VMID is the machine's lasting identity, where the source has one.
	VMID string `json:"vm_id,omitempty"`
	// Time is when the state was captured, in whole microseconds, UTC: fine
	// enough to order the points of a VM.
	Time time.Time `json:"time"`
	// Consistency is what the guest was told.
	Consistency Consistency `json:"consistency"`
	// Parent is the ID of the point that this one was compared with while it
	// was made, or empty. It is history only: no point needs another.
	Parent string `json:"parent,omitempty"`
	// Disks in the order of their keys.
	Disks []Disk `json:"disks"`
	// Config lists the files kept with the point, by name; Repository.Config
	// reads one.
	Config []ConfigFile `json:"config,omitempty"`
	// ReadBytes is what was read from the source.
	ReadBytes int64 `json:"read_bytes"`
	// NewBytes is what of it the repository did not have, before compression.
	NewBytes int64 `json:"new_bytes"`
	// StoredBytes is what the point added to the repository.
	StoredBytes int64 `json:"stored_bytes"`
	// Tool is the version of Lifeboat that made the point.
	Tool string `json:"tool,omitempty"`
	// Labels are the maker's own notes.
	Labels map[string]string `json:"labels,omitempty"`
	// Origin is where the point was copied from, nil where it was made here.
	Origin *Origin `json:"origin,omitempty"`
	// Verified is what verifications found, nil where none was kept. Points and
	// Point fill it in.
	Verified *VerifiedInfo `json:"verified,omitempty"`

	rec *pointRecord
}

// Origin names a point of another repository: the first that it was made in,
// however often it was copied since.
type Origin struct {
	Repository string `json:"repository"` // its ID
	Point      string `json:"point"`      // its ID there
}

// Disk is one disk of a restore point.
type Disk struct {
	// Key tells the disks of a VM apart over its life (vSphere's device key).
	Key int `json:"key"`
	// Label is for people.
	Label string `json:"label"`
	// Size is the virtual size in bytes.
	Size int64 `json:"size"`
	// Used is how many bytes of it are not holes, in whole blocks.
	Used int64 `json:"used"`
}

// ConfigFile is a small file kept with a point: its .vmx, its NVRAM.
type ConfigFile struct {
	Name string `json:"name"`
	Size int64  `json:"size"` // bytes
}
