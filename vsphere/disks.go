package vsphere

import (
	"context"
	"fmt"
	"slices"

	"github.com/vmware/govmomi/object"
	"github.com/vmware/govmomi/vim25/types"
)

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

// slots of a controller, by its type: how many devices it takes, and which unit
// number is its own.
func slots(kind string) (n, own int32) {
	switch kind {
	case "pvscsi", "lsilogic", "lsisas1068", "buslogic":
		return 16, 7
	case "nvme":
		return 15, -1
	case "sata":
		return 30, -1
	case "ide":
		return 2, -1
	}
	return 0, -1
}

// freeSlot finds a place for one more disk on a controller that takes disks
// while the VM runs: SCSI first, then NVMe, then SATA.
func freeSlot(devices object.VirtualDeviceList) (controller, unit int32, ok bool) {
	for _, kinds := range [][]string{{"pvscsi", "lsilogic", "lsisas1068", "buslogic"}, {"nvme"}, {"sata"}} {
		for _, d := range devices {
			kind := controllerType(d)
			if _, isController := d.(types.BaseVirtualController); !isController || !slices.Contains(kinds, kind) {
				continue
			}
			key := d.GetVirtualDevice().Key
			n, own := slots(kind)
			for unit := int32(0); unit < n; unit++ {
				if unit != own && !slotTaken(devices, key, unit) {
					return key, unit, true
				}
			}
		}
	}
	return 0, 0, false
}

func slotTaken(devices object.VirtualDeviceList, controller, unit int32) bool {
	return slices.ContainsFunc(devices, func(d types.BaseVirtualDevice) bool {
		v := d.GetVirtualDevice()
		return v.ControllerKey == controller && v.UnitNumber != nil && *v.UnitNumber == unit
	})
}

// newController makes one of a kind; key is negative: the server gives the real one.
func newController(kind string, key, bus int32) (types.BaseVirtualDevice, error) {
	base := types.VirtualController{VirtualDevice: types.VirtualDevice{Key: key}, BusNumber: bus}
	scsi := types.VirtualSCSIController{VirtualController: base, SharedBus: types.VirtualSCSISharingNoSharing}
	switch kind {
	case "pvscsi":
		return &types.ParaVirtualSCSIController{VirtualSCSIController: scsi}, nil
	case "lsilogic":
		return &types.VirtualLsiLogicController{VirtualSCSIController: scsi}, nil
	case "lsisas1068":
		return &types.VirtualLsiLogicSASController{VirtualSCSIController: scsi}, nil
	case "buslogic":
		return &types.VirtualBusLogicController{VirtualSCSIController: scsi}, nil
	case "nvme":
		return &types.VirtualNVMEController{VirtualController: base}, nil
	case "sata":
		return &types.VirtualAHCIController{VirtualSATAController: types.VirtualSATAController{VirtualController: base}}, nil
	case "ide":
		return &types.VirtualIDEController{VirtualController: base}, nil
	}
	return nil, fmt.Errorf("controller of the unknown type %q", kind)
}

func addDevice(d types.BaseVirtualDevice) types.BaseVirtualDeviceConfigSpec {
	return &types.VirtualDeviceConfigSpec{Operation: types.VirtualDeviceConfigSpecOperationAdd, Device: d}
}

// place puts a disk on a free slot, adding a controller where there is none.
func placeDisk(op string, devices object.VirtualDeviceList, d *types.VirtualDisk) ([]types.BaseVirtualDeviceConfigSpec, error) {
	controller, unit, ok := freeSlot(devices)
	if ok {
		d.ControllerKey, d.UnitNumber = controller, &unit
		return nil, nil
	}
	used := map[int32]bool{}
	for _, dev := range devices {
		if s, isSCSI := dev.(types.BaseVirtualSCSIController); isSCSI {
			used[s.GetVirtualSCSIController().BusNumber] = true
		}
	}
	for bus := int32(0); bus < 4; bus++ {
		if used[bus] {
			continue
		}
		ctl, err := newController("pvscsi", -100, bus)
		if err != nil {
			return nil, err
		}
		d.ControllerKey, d.UnitNumber = -100, types.NewInt32(0)
		return []types.BaseVirtualDeviceConfigSpec{addDevice(ctl)}, nil
	}
	return nil, &Error{Op: op, Kind: ErrState, Text: "the VM has no place for another disk: all its SCSI controllers are full"}
}

// AttachDisk gives a VM, running or not, an existing disk and returns its key.
// Errors: ErrLocked (the disk is another VM's), ErrNotFound, ErrState (no place).
func (c *Client) AttachDisk(ctx context.Context, vm Ref, s AttachSpec) (key int32, err error) {
	op := fmt.Sprintf("attach %s to %s", s.File, vm)
	mode := s.Mode
	if mode == "" {
		mode = string(types.VirtualDiskModePersistent)
	}
	d := &types.VirtualDisk{VirtualDevice: types.VirtualDevice{
		Key: -1, Backing: &types.VirtualDiskFlatVer2BackingInfo{
			VirtualDeviceFileBackingInfo: types.VirtualDeviceFileBackingInfo{FileName: s.File}, DiskMode: mode,
		},
	}}
	added, err := c.addDisk(ctx, op, vm, d, "")
	return added.Key, err
}

// CreateDisk makes a disk for a VM, on the next free place when the spec's
// controller is zero.
func (c *Client) CreateDisk(ctx context.Context, vm Ref, s DiskSpec) (Disk, error) {
	op := fmt.Sprintf("make a disk of %d bytes for %s", s.Size, vm)
	d := newDisk(s, -1)
	if s.Controller.Key != 0 {
		d.ControllerKey, d.UnitNumber = s.Controller.Key, types.NewInt32(s.Unit)
	}
	return c.addDisk(ctx, op, vm, d, types.VirtualDeviceConfigSpecFileOperationCreate)
}

// newDisk describes a disk that vSphere is to make.
func newDisk(s DiskSpec, key int32) *types.VirtualDisk {
	b := &types.VirtualDiskFlatVer2BackingInfo{DiskMode: string(types.VirtualDiskModePersistent), ThinProvisioned: types.NewBool(s.Thin)}
	if s.Datastore != "" {
		b.FileName = "[" + wireName(s.Datastore) + "]"
	}
	return &types.VirtualDisk{
		VirtualDevice:   types.VirtualDevice{Key: key, Backing: b},
		CapacityInBytes: s.Size, CapacityInKB: (s.Size + 1023) >> 10,
	}
}

// addDisk adds a disk and finds out what became of it: the one with a key that
// was not there before.
func (c *Client) addDisk(ctx context.Context, op string, vm Ref, d *types.VirtualDisk, file types.VirtualDeviceConfigSpecFileOperation) (Disk, error) {
	before, _, err := c.devices(ctx, op, vm)
	if err != nil {
		return Disk{}, err
	}
	var changes []types.BaseVirtualDeviceConfigSpec
	if d.ControllerKey == 0 {
		if changes, err = placeDisk(op, before, d); err != nil {
			return Disk{}, c.fail(op, err)
		}
	}
	changes = append(changes, &types.VirtualDeviceConfigSpec{Operation: types.VirtualDeviceConfigSpecOperationAdd, FileOperation: file, Device: d})
	if err := c.reconfigure(ctx, op, vm, types.VirtualMachineConfigSpec{DeviceChange: changes}); err != nil {
		return Disk{}, err
	}
	after, _, err := c.devices(ctx, op, vm)
	if err != nil {
		return Disk{}, err
	}
	var now VM
	describeDevices(&now, &tree{}, after)
	for _, disk := range now.Disks {
		if before.FindByKey(disk.Key) == nil {
			return disk, nil
		}
	}
	return Disk{}, &Error{Op: op, Kind: ErrFault, Text: "the server says it is done, but the VM has no new disk"}
}

// DetachDisk takes a disk from a VM; its file is deleted unless keepFile. That
// the VM has no such disk (any more) is no error.
func (c *Client) DetachDisk(ctx context.Context, vm Ref, key int32, keepFile bool) error {
	op := fmt.Sprintf("detach disk %d from %s", key, vm)
	devices, _, err := c.devices(ctx, op, vm)
	if err != nil {
		return err
	}
	d, ok := devices.FindByKey(key).(*types.VirtualDisk)
	if !ok {
		return nil
	}
	change := &types.VirtualDeviceConfigSpec{Operation: types.VirtualDeviceConfigSpecOperationRemove, Device: d}
	if !keepFile {
		change.FileOperation = types.VirtualDeviceConfigSpecFileOperationDestroy
	}
	return c.reconfigure(ctx, op, vm, types.VirtualMachineConfigSpec{DeviceChange: []types.BaseVirtualDeviceConfigSpec{change}})
}
