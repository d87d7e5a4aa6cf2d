package vsphere

import (
	"context"
	"fmt"
	"slices"

	"github.com/vmware/govmomi/vim25/methods"
	"github.com/vmware/govmomi/vim25/mo"
	"github.com/vmware/govmomi/vim25/types"
)

// RelocateSpec says where a VM goes.
type RelocateSpec struct {
	Datastore string           // name; for the configuration and every disk not in PerDisk
	PerDisk   map[int32]string // device key → datastore name
	Host      Ref              // "" = stays
	Pool      Ref              // "" = stays
	Thin      *bool            // nil = as the disks are
}

// Relocate moves a VM's files, and the VM where a host is named, while it runs
// (Storage vMotion). A VM with snapshots is moved with all its files. After
// an error the VM is where it was and runs as it did. Errors: ErrLicence,
// ErrUnsupported (no vMotion there), ErrSpace, ErrNotFound (a datastore that the
// host does not have), ErrHost.
func (c *Client) Relocate(ctx context.Context, vm Ref, s RelocateSpec, progress func(Progress)) error {
	op := fmt.Sprintf("move %s to datastore %q", vm, s.Datastore)
	v, stores, err := c.relocationOf(ctx, op, vm, s.Host)
	if err != nil {
		return err
	}
	find := func(name string) (types.ManagedObjectReference, error) {
		ref, ok := stores[name]
		if !ok {
			return ref, &Error{Op: op, Kind: ErrNotFound, Text: fmt.Sprintf("the host has no datastore %q", name)}
		}
		return ref, nil
	}
	spec := types.VirtualMachineRelocateSpec{Host: morPtr(s.Host), Pool: morPtr(s.Pool)}
	if s.Datastore != "" {
		ref, err := find(s.Datastore)
		if err != nil {
			return err
		}
		spec.Datastore = &ref
	}
	// Without snapshots there is one file per disk; with them, the chain goes as it is.
	if v.Snapshot != nil && len(v.Snapshot.RootSnapshotList) > 0 {
		spec.DiskMoveType = string(types.VirtualMachineRelocateDiskMoveOptionsMoveAllDiskBackingsAndDisallowSharing)
	}
	if spec.Disk, err = locators(op, v, s, find); err != nil {
		return err
	}
	task, err := methods.RelocateVM_Task(ctx, c.session, &types.RelocateVM_Task{This: mor(vm), Spec: spec, Priority: types.VirtualMachineMovePriorityDefaultPriority})
	if err != nil {
		return c.fail(op, err)
	}
	_, err = c.wait(ctx, op, task.Returnval, progress)
	return err
}

// locators say of each disk where it goes, when that is not the same for all.
func locators(op string, v *mo.VirtualMachine, s RelocateSpec, find func(string) (types.ManagedObjectReference, error)) ([]types.VirtualMachineRelocateSpecDiskLocator, error) {
	if len(s.PerDisk) == 0 && s.Thin == nil {
		return nil, nil
	}
	var out []types.VirtualMachineRelocateSpecDiskLocator
	var keys []int32
	for _, d := range v.Config.Hardware.Device {
		disk, ok := d.(*types.VirtualDisk)
		if !ok {
			continue
		}
		keys = append(keys, disk.Key)
		name, ok := s.PerDisk[disk.Key]
		if !ok {
			name = s.Datastore
		}
		if name == "" {
			name, _, _ = SplitPath(describeDisk(disk).File)
			name = plainName(name)
		}
		ref, err := find(name)
		if err != nil {
			return nil, err
		}
		l := types.VirtualMachineRelocateSpecDiskLocator{DiskId: disk.Key, Datastore: ref}
		if flat, ok := disk.Backing.(*types.VirtualDiskFlatVer2BackingInfo); ok && s.Thin != nil {
			l.DiskBackingInfo = &types.VirtualDiskFlatVer2BackingInfo{DiskMode: flat.DiskMode, ThinProvisioned: s.Thin, EagerlyScrub: types.NewBool(false)}
		}
		out = append(out, l)
	}
	for key := range s.PerDisk {
		if !slices.Contains(keys, key) {
			return nil, &Error{Op: op, Kind: ErrNotFound, Text: fmt.Sprintf("the VM has no disk with the key %d", key)}
		}
	}
	return out, nil
}

// relocationOf fetches, with one call, a VM and the datastores that its host
// (or the one named) has.
func (c *Client) relocationOf(ctx context.Context, op string, vm, host Ref) (*mo.VirtualMachine, map[string]types.ManagedObjectReference, error) {
	stores := []types.BaseSelectionSpec{&types.TraversalSpec{Type: "HostSystem", Path: "datastore"}}
	objects := []types.ObjectSpec{{
		Obj: mor(vm), Skip: types.NewBool(false),
		SelectSet: []types.BaseSelectionSpec{&types.TraversalSpec{Type: "VirtualMachine", Path: "runtime.host", SelectSet: stores}},
	}}
	if host != "" {
		objects[0].SelectSet = nil
		objects = append(objects, types.ObjectSpec{Obj: mor(host), SelectSet: stores})
	}
	content, err := c.retrieve(ctx, types.PropertyFilterSpec{
		ObjectSet: objects,
		PropSet: []types.PropertySpec{
			{Type: "VirtualMachine", PathSet: []string{"config.hardware.device", "snapshot"}},
			{Type: "Datastore", PathSet: []string{"name"}},
		},
	})
	if err != nil {
		return nil, nil, c.fail(op, err)
	}
	t, err := newTree(content)
	if err != nil {
		return nil, nil, c.fail(op, err)
	}
	v, ok := t.objects[mor(vm)].(*mo.VirtualMachine)
	if !ok || v.Config == nil {
		return nil, nil, &Error{Op: op, Kind: ErrNotFound, Text: "there is no such VM, or its configuration cannot be read now"}
	}
	byName := map[string]types.ManagedObjectReference{}
	for ref, o := range t.objects {
		if d, ok := o.(*mo.Datastore); ok {
			byName[plainName(d.Name)] = ref
		}
	}
	return v, byName, nil
}
