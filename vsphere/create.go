package vsphere

import (
	"context"
	"encoding/json"
	"fmt"
	"slices"
	"strings"

	"github.com/vmware/govmomi/vim25/methods"
	"github.com/vmware/govmomi/vim25/types"
)

// CreateSpec is a VM to be made from a configuration that was kept with a restore point.
type CreateSpec struct {
	Name      string
	Host      Ref
	Folder    Ref // "" = the vm folder of the host's datacenter
	Pool      Ref // "" = the root pool of the host's cluster
	Datastore string

	Config    json.RawMessage   // VM.Config; empty = generic hardware
	Disks     []DiskSpec        // controllers are made as the disks need them
	Networks  map[string]string // old name → new name, where it differs; a NIC whose network the host lacks is left disconnected
	NoNetwork bool              // every NIC disconnected
	KeepUUIDs bool
	KeepMACs  bool
	Notes     string
	GuestID   string // where Config is empty: "" = "otherGuest64"
	MemoryMB  int64  // where Config is empty: 0 = 2048
	CPUs      int32  // where Config is empty: 0 = 2
	Firmware  string // where Config is empty: "" = "bios"
}

// Created is what CreateVM made.
type Created struct {
	Ref     Ref
	Disks   map[int32]Disk // DiskSpec.Key → the disk
	LeftOut []string       // what of the configuration the new VM does not have, in words
}

// CreateVM makes a VM with empty disks, switched off. Errors: ErrExists,
// ErrSpace, ErrNotFound, ErrInvalid (a configuration that this host does not take).
func (c *Client) CreateVM(ctx context.Context, s CreateSpec) (*Created, error) {
	op := fmt.Sprintf("create the VM %q", s.Name)
	plan, err := c.plan(ctx, op, &s)
	if err != nil {
		return nil, err
	}
	task, err := methods.CreateVM_Task(ctx, c.session, &types.CreateVM_Task{This: mor(s.Folder), Config: plan.spec, Pool: mor(s.Pool), Host: morPtr(s.Host)})
	if err != nil {
		return nil, c.fail(op, err)
	}
	ref, err := c.madeVM(ctx, op, task.Returnval)
	if err != nil {
		return nil, err
	}
	out := &Created{Ref: ref, Disks: map[int32]Disk{}, LeftOut: plan.leftOut}
	devices, _, err := c.devices(ctx, op, ref)
	if err != nil {
		return out, err
	}
	var v VM
	describeDevices(&v, &tree{}, devices)
	for _, want := range s.Disks {
		for _, d := range v.Disks {
			if d.Controller.Type == want.Controller.Type && d.Controller.Bus == want.Controller.Bus && d.Unit == want.Unit {
				out.Disks[want.Key] = d
			}
		}
	}
	if len(out.Disks) != len(s.Disks) {
		return out, &Error{Op: op, Kind: ErrFault, Text: fmt.Sprintf("it was made with %d of %d disks", len(out.Disks), len(s.Disks))}
	}
	return out, nil
}

// plan is a VM on paper.
type plan struct {
	c       *Client
	op      string
	s       *CreateSpec
	nets    *networks
	spec    types.VirtualMachineConfigSpec
	leftOut []string
	nextKey int32 // negative keys stand for devices that do not exist yet
}

func (c *Client) plan(ctx context.Context, op string, s *CreateSpec) (*plan, error) {
	if s.Folder == "" || s.Pool == "" {
		at, err := c.homeOf(ctx, op, s.Host)
		if err != nil {
			return nil, err
		}
		if s.Folder == "" {
			s.Folder = at.folder
		}
		if s.Pool == "" {
			s.Pool = at.pool
		}
	}
	nets, err := c.networksOf(ctx, op, s.Host)
	if err != nil {
		return nil, err
	}
	p := &plan{c: c, op: op, s: s, nets: nets, nextKey: -100}
	old := &types.VirtualMachineConfigInfo{}
	if len(s.Config) > 0 {
		if old, err = decodeConfig(s.Config); err != nil {
			return nil, &Error{Op: op, Kind: ErrInvalid, Text: err.Error(), Err: err}
		}
	}
	p.general(old, len(s.Config) == 0)
	if err := p.disks(); err != nil {
		return nil, &Error{Op: op, Kind: ErrInvalid, Text: err.Error(), Err: err}
	}
	return p, p.others(ctx, old)
}

func (p *plan) key() int32 {
	p.nextKey--
	return p.nextKey
}

func (p *plan) general(old *types.VirtualMachineConfigInfo, generic bool) {
	p.spec = types.VirtualMachineConfigSpec{
		Name: wireName(p.s.Name), Annotation: p.s.Notes,
		Files: &types.VirtualMachineFileInfo{VmPathName: "[" + wireName(p.s.Datastore) + "]"},
	}
	if generic {
		p.spec.GuestId, p.spec.Firmware = orElse(p.s.GuestID, "otherGuest64"), orElse(p.s.Firmware, "bios")
		p.spec.MemoryMB, p.spec.NumCPUs = orElse(p.s.MemoryMB, 2048), orElse(p.s.CPUs, 2)
		return
	}
	p.spec.GuestId, p.spec.Version, p.spec.Firmware = old.GuestId, old.Version, old.Firmware
	p.spec.AlternateGuestName = old.AlternateGuestName
	p.spec.MemoryMB, p.spec.NumCPUs = int64(old.Hardware.MemoryMB), old.Hardware.NumCPU
	if n := old.Hardware.NumCoresPerSocket; n != nil && *n > 0 {
		p.spec.NumCoresPerSocket = n
	}
	p.spec.CpuHotAddEnabled, p.spec.MemoryHotAddEnabled = old.CpuHotAddEnabled, old.MemoryHotAddEnabled
	if b := old.BootOptions; b != nil {
		p.spec.BootOptions = &types.VirtualMachineBootOptions{
			BootDelay: b.BootDelay, EnterBIOSSetup: types.NewBool(false),
			EfiSecureBootEnabled: b.EfiSecureBootEnabled,
		}
	}
	if p.s.KeepUUIDs {
		p.spec.Uuid, p.spec.InstanceUuid = old.Uuid, old.InstanceUuid
	}
	if p.s.Notes == "" {
		p.spec.Annotation = old.Annotation
	}
	for _, o := range old.ExtraConfig {
		if v := o.GetOptionValue(); v != nil && carriedOver(v.Key) {
			p.spec.ExtraConfig = append(p.spec.ExtraConfig, &types.OptionValue{Key: v.Key, Value: fmt.Sprint(v.Value)})
		}
	}
}

func orElse[T comparable](v, other T) T {
	var zero T
	if v == zero {
		return other
	}
	return v
}

// carriedOver tells the advanced settings that a person made from those that
// vSphere keeps for the one VM that had them.
func carriedOver(key string) bool {
	for _, prefix := range []string{"guestinfo.", "disk.EnableUUID", "devices.hotplug", "isolation.", "sched.", "hpet", "monitor.", "svga.", "mks.", "RemoteDisplay."} {
		if strings.HasPrefix(strings.ToLower(key), strings.ToLower(prefix)) {
			return !strings.HasPrefix(key, "sched.swap")
		}
	}
	return false
}

// disks places the disks where they were; disks without a controller go to the
// first SCSI bus, in order.
func (p *plan) disks() error {
	type busAt struct {
		kind string
		bus  int32
	}
	controllers := map[busAt]int32{}
	taken := map[int32]int32{} // on the generic bus
	for i := range p.s.Disks {
		d := &p.s.Disks[i]
		if d.Controller.Type == "" {
			d.Controller = Controller{Type: "pvscsi"}
			d.Unit = taken[0]
			if taken[0]++; taken[0] == 7 {
				taken[0]++
			}
		}
		n, own := slots(d.Controller.Type)
		if d.Unit < 0 || d.Unit >= n || d.Unit == own {
			return fmt.Errorf("disk %d: a controller of type %q has no place %d", d.Key, d.Controller.Type, d.Unit)
		}
		at := busAt{d.Controller.Type, d.Controller.Bus}
		key, ok := controllers[at]
		if !ok {
			key = p.key()
			if at.kind == "ide" {
				key = 200 + at.bus // every VM has these two
			} else {
				ctl, err := newController(at.kind, key, at.bus)
				if err != nil {
					return err
				}
				p.spec.DeviceChange = append(p.spec.DeviceChange, addDevice(ctl))
			}
			controllers[at] = key
		}
		disk := newDisk(*d, p.key())
		disk.ControllerKey, disk.UnitNumber = key, types.NewInt32(d.Unit)
		p.spec.DeviceChange = append(p.spec.DeviceChange, &types.VirtualDeviceConfigSpec{
			Operation: types.VirtualDeviceConfigSpecOperationAdd, FileOperation: types.VirtualDeviceConfigSpecFileOperationCreate, Device: disk,
		})
	}
	return nil
}

// others takes over network adapters, and says of the rest what is left out.
func (p *plan) others(ctx context.Context, old *types.VirtualMachineConfigInfo) error {
	var t tree
	for _, d := range old.Hardware.Device {
		label := ""
		if d == nil || d.GetVirtualDevice() == nil {
			continue
		}
		if info := d.GetVirtualDevice().DeviceInfo; info != nil {
			label = info.GetDescription().Label
		}
		switch o := d.(type) {
		case types.BaseVirtualEthernetCard:
			if err := p.nic(ctx, d, describeNIC(&t, o.GetVirtualEthernetCard(), d)); err != nil {
				return err
			}
		case *types.VirtualTPM:
			p.leftOut = append(p.leftOut, "virtual TPM: what the guest sealed in it (BitLocker's key) has to be given by hand at the first start")
		case *types.VirtualCdrom, *types.VirtualFloppy, *types.VirtualSerialPort, *types.VirtualParallelPort, *types.VirtualPCIPassthrough, *types.VirtualUSB:
			p.leftOut = append(p.leftOut, label)
		}
	}
	return nil
}

func (p *plan) nic(ctx context.Context, d types.BaseVirtualDevice, was NIC) error {
	kind := slices.Index([]string{"vmxnet3", "e1000e", "e1000", "pcnet32", "vmxnet2"}, was.Type)
	if kind < 0 {
		p.leftOut = append(p.leftOut, was.Label+" ("+was.Type+")")
		return nil
	}
	nic := types.VirtualEthernetCard{
		VirtualDevice: types.VirtualDevice{Key: p.key(), Connectable: &types.VirtualDeviceConnectInfo{AllowGuestControl: true}},
		AddressType:   string(types.VirtualEthernetCardMacTypeGenerated),
	}
	if p.s.KeepMACs && was.MAC != "" {
		nic.AddressType, nic.MacAddress = string(types.VirtualEthernetCardMacTypeManual), was.MAC
	}
	name := was.Network
	if to, ok := p.s.Networks[name]; ok {
		name = to
	}
	backing := types.BaseVirtualDeviceBackingInfo(&types.VirtualEthernetCardNetworkBackingInfo{
		VirtualDeviceDeviceBackingInfo: types.VirtualDeviceDeviceBackingInfo{DeviceName: wireName(name)},
	})
	if _, known := p.nets.byName[name]; known {
		b, err := p.c.nicBacking(ctx, p.op, p.nets, name)
		if err != nil {
			return err
		}
		backing = b
		nic.Connectable.StartConnected = was.Connected && !p.s.NoNetwork
	} else {
		p.leftOut = append(p.leftOut, fmt.Sprintf("%s: the host has no network %q; the adapter is not connected", was.Label, name))
	}
	nic.Backing = backing
	var device types.BaseVirtualDevice
	switch kind {
	case 0:
		device = &types.VirtualVmxnet3{VirtualVmxnet: types.VirtualVmxnet{VirtualEthernetCard: nic}}
	case 1:
		device = &types.VirtualE1000e{VirtualEthernetCard: nic}
	case 2:
		device = &types.VirtualE1000{VirtualEthernetCard: nic}
	case 3:
		device = &types.VirtualPCNet32{VirtualEthernetCard: nic}
	default:
		device = &types.VirtualVmxnet2{VirtualVmxnet: types.VirtualVmxnet{VirtualEthernetCard: nic}}
	}
	p.spec.DeviceChange = append(p.spec.DeviceChange, addDevice(device))
	return nil
}
