package esxsim

import (
	"fmt"
	"strings"
	"time"

	"github.com/vmware/govmomi/simulator"
	"github.com/vmware/govmomi/vim25/types"

	"lifeboat/internal/qemu"
)

// vm is one registered virtual machine. Guarded by Sim.mu, its disks' content
// apart.
type vm struct {
	sim  *Sim
	obj  *simulator.VirtualMachine
	ref  ref
	busy *task

	name         string
	folder, pool ref
	host         *host
	uuid         string // BIOS
	instanceUUID string
	vmx          dsPath
	nvram        string // file name beside the .vmx; "" = none
	guestID      string
	version      string
	firmware     string
	secureBoot   bool
	memoryMB     int32
	cpus         int32
	annotation   string
	extra        map[string]string // .vmx keys that have no field of their own
	created      time.Time
	changed      int // configuration changes so far

	devices []types.BaseVirtualDevice // all but disks; values are never changed, only replaced
	disks   []*vdisk
	cbt     bool // asked for; in effect where a disk's tracker is on

	power    types.VirtualMachinePowerState
	starting bool // on its way to being on: its disks are held
	booted   time.Time
	template bool
	tools    bool // installed
	toolsUp  bool
	question *question
	askMoved bool   // it was moved or copied, and says not what to do about it
	missing  string // a device that a start fails for
	machine  *qemu.Machine
	exports  []*nbdServer // the machine's disks
	dead     error        // why the machine lost its disks

	roots        []*snapshot
	current      *snapshot // what the disks stand on
	snapshotID   int32     // the last one's
	consolidate  bool
	quiesceFails bool
	mergeFails   bool
	guest        guestState
}

// VM is a handle on a virtual machine for tests: what its guest could do, and
// what an administrator could see. It stays good when the VM moves.
type VM struct {
	s *Sim
	v *vm
}

// VM finds a machine by name; nil when there is none.
func (s *Sim) VM(name string) *VM {
	s.mu.Lock()
	defer s.mu.Unlock()
	if v := s.vmByName(name); v != nil {
		return &VM{s, v}
	}
	return nil
}

// vmByName finds a VM by the name that people know, or as the API escapes it.
func (s *Sim) vmByName(name string) *vm {
	for _, v := range s.vms {
		if v.name == escapeName(name) || v.name == name {
			return v
		}
	}
	return nil
}

// escapeName is how vCenter keeps names [API: ManagedEntity.name]: %, / and \
// are escaped.
func escapeName(name string) string {
	return strings.NewReplacer("%", "%25", "/", "%2f", `\`, "%5c").Replace(name)
}

func unescapeName(name string) string {
	return strings.NewReplacer("%25", "%", "%2f", "/", "%2F", "/", "%5c", `\`, "%5C", `\`).Replace(name)
}

// Name is the VM's name as the API has it.
func (m *VM) Name() string { m.s.mu.Lock(); defer m.s.mu.Unlock(); return m.v.name }

// Ref is "VirtualMachine:vm-42".
func (m *VM) Ref() string { return m.v.ref.String() }

// Identity is the vCenter's instance UUID and the VM's.
func (m *VM) Identity() (vcenter, vm string) {
	m.s.mu.Lock()
	defer m.s.mu.Unlock()
	return m.s.InstanceUUID(), m.v.instanceUUID
}

// Disks is how many disks there are.
func (m *VM) Disks() int { m.s.mu.Lock(); defer m.s.mu.Unlock(); return len(m.v.disks) }

func (m *VM) disk(n int) (*vdisk, error) {
	m.s.mu.Lock()
	defer m.s.mu.Unlock()
	if n < 0 || n >= len(m.v.disks) {
		return nil, fmt.Errorf("esxsim: %s has no disk %d", m.v.name, n)
	}
	return m.v.disks[n], nil
}

// WriteDisk writes to the n-th disk as the guest would: changed block tracking
// sees it. With Options.Boot it is for machines that are off.
func (m *VM) WriteDisk(n int, p []byte, off int64) error {
	d, err := m.disk(n)
	if err != nil {
		return err
	}
	_, err = d.WriteAt(p, off)
	return err
}

// ReadDisk reads from the n-th disk as the guest would.
func (m *VM) ReadDisk(n int, p []byte, off int64) error {
	d, err := m.disk(n)
	if err != nil {
		return err
	}
	if got, err := d.ReadAt(p, off); got < len(p) {
		return err
	}
	return nil
}

// SyncDisk makes durable what was written.
func (m *VM) SyncDisk(n int) error {
	d, err := m.disk(n)
	if err != nil {
		return err
	}
	return d.Sync()
}

// DiskSize is the n-th disk's size in bytes; 0 when there is none.
func (m *VM) DiskSize(n int) int64 {
	d, err := m.disk(n)
	if err != nil {
		return 0
	}
	return d.size()
}

// DiskKey is the n-th disk's device key; 0 when there is none.
func (m *VM) DiskKey(n int) int32 {
	d, err := m.disk(n)
	if err != nil {
		return 0
	}
	return d.key
}

// Machine is the QEMU that runs the VM; nil when it is off or Options.Boot is
// not set.
func (m *VM) Machine() *qemu.Machine { m.s.mu.Lock(); defer m.s.mu.Unlock(); return m.v.machine }

// Power is "poweredOn", "poweredOff" or "suspended".
func (m *VM) Power() string { m.s.mu.Lock(); defer m.s.mu.Unlock(); return string(m.v.power) }

// Died is why the running machine lost its disks; nil if it did not.
func (m *VM) Died() error { m.s.mu.Lock(); defer m.s.mu.Unlock(); return m.v.dead }

// Snapshots are the names of all snapshots, parents first.
func (m *VM) Snapshots() []string {
	m.s.mu.Lock()
	defer m.s.mu.Unlock()
	var names []string
	m.v.eachSnapshot(func(n *snapshot) { names = append(names, n.name) })
	return names
}

// QuiesceFails makes quiesced snapshots of a VM fail, or succeed again.
func (s *Sim) QuiesceFails(name string, fails bool) error {
	return s.withVM(name, func(v *vm) { v.quiesceFails = fails })
}

// LieCBT makes QueryChangedDiskAreas leave out changed areas of a disk.
func (s *Sim) LieCBT(name string, disk int, lies bool) error {
	return s.withVM(name, func(v *vm) {
		if disk < len(v.disks) {
			v.disks[disk].lied = lies
		}
	})
}

func (s *Sim) withVM(name string, f func(v *vm)) error {
	s.mu.Lock()
	defer s.mu.Unlock()
	v := s.vmByName(name)
	if v == nil {
		return fmt.Errorf("esxsim: there is no VM %q", name)
	}
	f(v)
	return nil
}
