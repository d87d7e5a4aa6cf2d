package vsphere

import (
	"context"
	"errors"
	"fmt"
	"time"

	"github.com/vmware/govmomi/vim25/methods"
	"github.com/vmware/govmomi/vim25/mo"
	"github.com/vmware/govmomi/vim25/types"
)

// Snapshots and changed block tracking, the way the VADP programming guide has
// it: tracking is switched on while no snapshot exists, change IDs are read from
// the snapshot's own configuration, and areas are asked of the snapshot.

// SnapshotSpec says how a snapshot is taken: never with memory.
type SnapshotSpec struct {
	Name        string
	Description string
	Quiesce     bool
	Timeout     time.Duration // for the whole task; 0 = 30 minutes
}

// EnableCBT switches changed block tracking on. It takes effect for a running
// VM with its next stun, which the next snapshot brings. Errors: ErrState when
// the VM has snapshots (tracking would begin in the middle of a chain, KB
// 1033816), ErrUnsupported for hardware before version 7.
func (c *Client) EnableCBT(ctx context.Context, vm Ref) error {
	op := "switch on changed block tracking of " + string(vm)
	var o mo.VirtualMachine
	if err := c.retrieveOne(ctx, op, mor(vm), []string{"capability.changeTrackingSupported", "config.changeTrackingEnabled", "snapshot"}, &o); err != nil {
		return err
	}
	switch {
	case o.Config != nil && isTrue(o.Config.ChangeTrackingEnabled):
		return nil
	case !o.Capability.ChangeTrackingSupported:
		return &Error{Op: op, Kind: ErrUnsupported, Text: "the VM's virtual hardware is too old for it (version 7 is wanted); upgrade its compatibility"}
	case o.Snapshot != nil && len(o.Snapshot.RootSnapshotList) > 0:
		return &Error{Op: op, Kind: ErrState, Text: "the VM has snapshots; it can be switched on when they are gone"}
	}
	return c.reconfigure(ctx, op, vm, types.VirtualMachineConfigSpec{ChangeTrackingEnabled: types.NewBool(true)})
}

// CreateSnapshot takes a snapshot without memory. Errors: ErrQuiesce when the
// guest could not be brought to rest (none was taken then), ErrState,
// ErrSpace, ErrTimeout (the task may still take one: look for its name).
func (c *Client) CreateSnapshot(ctx context.Context, vm Ref, s SnapshotSpec) (Ref, error) {
	op := fmt.Sprintf("take the snapshot %q of %s", s.Name, vm)
	limit := s.Timeout
	if limit == 0 {
		limit = 30 * time.Minute
	}
	inner, cancel := context.WithTimeout(ctx, limit)
	defer cancel()
	task, err := methods.CreateSnapshot_Task(inner, c.session, &types.CreateSnapshot_Task{
		This: mor(vm), Name: wireName(s.Name), Description: s.Description, Memory: false, Quiesce: s.Quiesce,
	})
	if err != nil {
		return "", c.fail(op, err)
	}
	result, err := c.wait(inner, op, task.Returnval, nil)
	if err != nil {
		if ctx.Err() == nil && inner.Err() != nil {
			return "", &Error{Op: op, Kind: ErrTimeout, Text: "it was not taken within " + limit.String(), Err: err}
		}
		return "", quiesceFailed(err, s.Quiesce)
	}
	ref, ok := result.(types.ManagedObjectReference)
	if !ok {
		return "", &Error{Op: op, Kind: ErrFault, Text: fmt.Sprintf("the server does not say which one it took (%T)", result)}
	}
	return refOf(ref), nil
}

// quiesceFailed says of a failed quiesced snapshot whether it is worth taking
// it without: hosts report it as SnapshotFault or a general configuration fault
// as well, where only the guest's side failed.
func quiesceFailed(err error, quiesce bool) error {
	var e *Error
	if !quiesce || !errors.As(err, &e) || errors.Is(err, ErrQuiesce) {
		return err
	}
	switch e.Fault {
	case "SnapshotFault", "GenericVmConfigFault", "ToolsUnavailable", "Timedout":
		return &Error{Op: e.Op, Kind: ErrQuiesce, Fault: e.Fault, Text: "the guest's file systems or applications could not be brought to rest", Detail: e.Detail, Err: err}
	}
	return err
}

// SnapshotVM describes the VM as the snapshot holds it: its disks with the
// change IDs and files of that moment. Disks that snapshots do not hold are not
// among them, or have no change ID (see Disk.Snapshotted). One call.
func (c *Client) SnapshotVM(ctx context.Context, snapshot Ref) (*VM, error) {
	op := "look at the snapshot " + string(snapshot)
	objects, err := c.retrieve(ctx, types.PropertyFilterSpec{
		ObjectSet: []types.ObjectSpec{{
			Obj: mor(snapshot), Skip: types.NewBool(false),
			SelectSet: []types.BaseSelectionSpec{&types.TraversalSpec{Type: "VirtualMachineSnapshot", Path: "vm", SelectSet: surroundings()}},
		}},
		PropSet: append([]types.PropertySpec{
			{Type: "VirtualMachineSnapshot", PathSet: []string{"config", "vm"}},
			{Type: "VirtualMachine", PathSet: []string{
				"name", "parent", "resourcePool", "snapshot", "config.instanceUuid", "runtime.powerState", "runtime.connectionState",
				"runtime.host", "runtime.consolidationNeeded", "guest.toolsRunningStatus", "capability.changeTrackingSupported",
			}},
		}, surroundingProps...),
	})
	if err != nil {
		return nil, c.fail(op, err)
	}
	t, err := newTree(objects)
	if err != nil {
		return nil, c.fail(op, err)
	}
	s, ok := t.objects[mor(snapshot)].(*mo.VirtualMachineSnapshot)
	if !ok {
		return nil, &Error{Op: op, Kind: ErrNotFound, Text: "it does not exist any more"}
	}
	vm, ok := t.objects[s.Vm].(*mo.VirtualMachine)
	if !ok {
		return nil, &Error{Op: op, Kind: ErrNotFound, Text: "its VM does not exist any more, or this user may not see it"}
	}
	v := c.describeVM(t, vm)
	id := v.Identity
	c.describeConfig(&v, t, &s.Config)
	if id.VM != "" {
		v.Identity = id
	}
	if v.Config, err = encodeConfig(&s.Config); err != nil {
		return nil, c.fail(op, err)
	}
	return &v, nil
}

// RemoveOptions say how a snapshot is removed.
type RemoveOptions struct {
	Children bool           // the snapshots that were taken after it too
	Progress func(Progress) // may be nil
}

// RemoveSnapshot removes a snapshot and folds its content into the disks. That
// it was gone already is no error. Afterwards VM.ConsolidationNeeded tells
// whether files were left (KB 2003638); see Consolidate.
func (c *Client) RemoveSnapshot(ctx context.Context, snapshot Ref, o RemoveOptions) error {
	op := "remove the snapshot " + string(snapshot)
	task, err := methods.RemoveSnapshot_Task(ctx, c.session, &types.RemoveSnapshot_Task{
		This: mor(snapshot), RemoveChildren: o.Children, Consolidate: types.NewBool(true),
	})
	if err != nil {
		if isGone(err, mor(snapshot)) {
			return nil
		}
		return c.fail(op, err)
	}
	_, err = c.wait(ctx, op, task.Returnval, o.Progress)
	return err
}

// Consolidate folds the files that a removed snapshot left into the disks.
func (c *Client) Consolidate(ctx context.Context, vm Ref) error {
	op := "consolidate the disks of " + string(vm)
	task, err := methods.ConsolidateVMDisks_Task(ctx, c.session, &types.ConsolidateVMDisks_Task{This: mor(vm)})
	if err != nil {
		return c.fail(op, err)
	}
	_, err = c.wait(ctx, op, task.Returnval, nil)
	return err
}

// RevertToSnapshot puts the VM back to what the snapshot holds; it stays off.
func (c *Client) RevertToSnapshot(ctx context.Context, snapshot Ref) error {
	op := "go back to the snapshot " + string(snapshot)
	task, err := methods.RevertToSnapshot_Task(ctx, c.session, &types.RevertToSnapshot_Task{This: mor(snapshot), SuppressPowerOn: types.NewBool(true)})
	if err != nil {
		return c.fail(op, err)
	}
	_, err = c.wait(ctx, op, task.Returnval, nil)
	return err
}
