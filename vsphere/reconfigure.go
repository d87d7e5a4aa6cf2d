package vsphere

import (
	"context"
	"fmt"
	"strconv"
	"strings"

	"github.com/vmware/govmomi/object"
	"github.com/vmware/govmomi/vim25/methods"
	"github.com/vmware/govmomi/vim25/mo"
	"github.com/vmware/govmomi/vim25/types"
)

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

// Reconfigure changes a VM. Errors: ErrNotFound (a network or adapter that does
// not exist), ErrState, ErrBusy.
func (c *Client) Reconfigure(ctx context.Context, vm Ref, s ChangeSpec) error {
	op := "reconfigure " + string(vm)
	spec := types.VirtualMachineConfigSpec{ExtraConfig: optionValues(s.ExtraConfig)}
	if s.Name != nil {
		spec.Name = wireName(*s.Name)
	}
	if s.Annotation != nil {
		spec.Annotation = *s.Annotation
		if *s.Annotation == "" {
			spec.Annotation = " " // an empty text means "as it is" in the API
		}
	}
	if len(s.NICs) > 0 {
		devices, host, err := c.devices(ctx, op, vm)
		if err != nil {
			return err
		}
		var networks *networks
		for _, n := range s.NICs {
			if n.Network != "" && networks == nil {
				if networks, err = c.networksOf(ctx, op, host); err != nil {
					return err
				}
			}
			change, err := c.changeNIC(ctx, op, devices, networks, n)
			if err != nil {
				return err
			}
			spec.DeviceChange = append(spec.DeviceChange, change)
		}
	}
	return c.reconfigure(ctx, op, vm, spec)
}

func optionValues(in map[string]string) []types.BaseOptionValue {
	var out []types.BaseOptionValue
	for k, v := range in {
		out = append(out, &types.OptionValue{Key: k, Value: v})
	}
	return out
}

func (c *Client) reconfigure(ctx context.Context, op string, vm Ref, spec types.VirtualMachineConfigSpec) error {
	task, err := methods.ReconfigVM_Task(ctx, c.session, &types.ReconfigVM_Task{This: mor(vm), Spec: spec})
	if err != nil {
		return c.fail(op, err)
	}
	_, err = c.wait(ctx, op, task.Returnval, nil)
	return err
}

// devices of a VM, and its host.
func (c *Client) devices(ctx context.Context, op string, vm Ref) (object.VirtualDeviceList, Ref, error) {
	var o mo.VirtualMachine
	if err := c.retrieveOne(ctx, op, mor(vm), []string{"config.hardware.device", "runtime.host"}, &o); err != nil {
		return nil, "", err
	}
	if o.Config == nil {
		return nil, "", &Error{Op: op, Kind: ErrState, Text: "the VM's configuration cannot be read now; is its datastore there?"}
	}
	return object.VirtualDeviceList(o.Config.Hardware.Device), refOfPtr(o.Runtime.Host), nil
}

func (c *Client) changeNIC(ctx context.Context, op string, devices object.VirtualDeviceList, nets *networks, n NICChange) (types.BaseVirtualDeviceConfigSpec, error) {
	d := devices.FindByKey(n.Key)
	card, ok := d.(types.BaseVirtualEthernetCard)
	if !ok {
		return nil, &Error{Op: op, Kind: ErrNotFound, Text: fmt.Sprintf("the VM has no network adapter with the key %d", n.Key)}
	}
	nic := card.GetVirtualEthernetCard()
	if n.Network != "" {
		backing, err := c.nicBacking(ctx, op, nets, n.Network)
		if err != nil {
			return nil, err
		}
		nic.Backing = backing
	}
	if nic.Connectable == nil {
		nic.Connectable = &types.VirtualDeviceConnectInfo{AllowGuestControl: true, StartConnected: true}
	}
	if n.Connected != nil {
		nic.Connectable.Connected = *n.Connected
	}
	if n.StartConnect != nil {
		nic.Connectable.StartConnected = *n.StartConnect
	}
	return &types.VirtualDeviceConfigSpec{Operation: types.VirtualDeviceConfigSpecOperationEdit, Device: d}, nil
}

// networks are those that a host offers, by plain name.
type networks struct {
	byName map[string]types.ManagedObjectReference
}

func (c *Client) networksOf(ctx context.Context, op string, host Ref) (*networks, error) {
	objects, err := c.retrieve(ctx, types.PropertyFilterSpec{
		ObjectSet: []types.ObjectSpec{{Obj: mor(host), SelectSet: []types.BaseSelectionSpec{&types.TraversalSpec{Type: "HostSystem", Path: "network"}}}},
		PropSet:   []types.PropertySpec{{Type: "Network", PathSet: []string{"name"}}},
	})
	if err != nil {
		return nil, c.fail(op, err)
	}
	out := &networks{byName: map[string]types.ManagedObjectReference{}}
	t, err := newTree(objects)
	if err != nil {
		return nil, c.fail(op, err)
	}
	for ref := range t.objects {
		out.byName[t.name(&ref)] = ref
	}
	return out, nil
}

// nicBacking is what an adapter on a network has for a backing: each kind of
// network has its own.
func (c *Client) nicBacking(ctx context.Context, op string, nets *networks, name string) (types.BaseVirtualDeviceBackingInfo, error) {
	ref, ok := nets.byName[name]
	if !ok {
		var names []string
		for n := range nets.byName {
			names = append(names, strconv.Quote(n))
		}
		return nil, &Error{Op: op, Kind: ErrNotFound, Text: fmt.Sprintf("the host offers no network %q; it has %s", name, strings.Join(names, ", "))}
	}
	var network object.NetworkReference
	switch ref.Type {
	case "DistributedVirtualPortgroup":
		network = object.NewDistributedVirtualPortgroup(c.vim, ref)
	case "OpaqueNetwork":
		network = object.NewOpaqueNetwork(c.vim, ref)
	default:
		return &types.VirtualEthernetCardNetworkBackingInfo{
			VirtualDeviceDeviceBackingInfo: types.VirtualDeviceDeviceBackingInfo{DeviceName: wireName(name)}, Network: &ref,
		}, nil
	}
	backing, err := network.EthernetCardBackingInfo(ctx)
	return backing, c.fail(op, err)
}

// OverrideDRSHA keeps DRS from moving a VM and HA from restarting it (on), or
// takes both overrides away (off). A VM whose host is in no cluster needs
// neither: nothing is done.
func (c *Client) OverrideDRSHA(ctx context.Context, vm Ref, on bool) error {
	op := "pin " + string(vm) + " in its cluster"
	cluster, cfg, err := c.clusterOf(ctx, op, vm)
	if err != nil || cluster == "" {
		return err
	}
	var spec types.ClusterConfigSpecEx
	if s := drsOverride(cfg, mor(vm), on); s != nil {
		spec.DrsVmConfigSpec = []types.ClusterDrsVmConfigSpec{*s}
	}
	if s := haOverride(cfg, mor(vm), on); s != nil {
		spec.DasVmConfigSpec = []types.ClusterDasVmConfigSpec{*s}
	}
	if spec.DrsVmConfigSpec == nil && spec.DasVmConfigSpec == nil {
		return nil
	}
	task, err := methods.ReconfigureComputeResource_Task(ctx, c.session, &types.ReconfigureComputeResource_Task{This: mor(cluster), Spec: &spec, Modify: true})
	if err != nil {
		return c.fail(op, err)
	}
	_, err = c.wait(ctx, op, task.Returnval, nil)
	return err
}

// clusterOf is the cluster that a VM's host is in, "" for none.
func (c *Client) clusterOf(ctx context.Context, op string, vm Ref) (Ref, *types.ClusterConfigInfoEx, error) {
	objects, err := c.retrieve(ctx, types.PropertyFilterSpec{
		ObjectSet: []types.ObjectSpec{{
			Obj: mor(vm), Skip: types.NewBool(false),
			SelectSet: []types.BaseSelectionSpec{&types.TraversalSpec{
				Type: "VirtualMachine", Path: "runtime.host",
				SelectSet: []types.BaseSelectionSpec{&types.TraversalSpec{Type: "HostSystem", Path: "parent"}},
			}},
		}},
		PropSet: []types.PropertySpec{
			{Type: "VirtualMachine", PathSet: []string{"name"}},
			{Type: "ClusterComputeResource", PathSet: []string{"name", "configurationEx"}},
		},
	})
	if err != nil {
		return "", nil, c.fail(op, err)
	}
	t, err := newTree(objects)
	if err != nil {
		return "", nil, c.fail(op, err)
	}
	for ref, o := range t.objects {
		if cr, ok := o.(*mo.ClusterComputeResource); ok {
			cfg, ok := cr.ConfigurationEx.(*types.ClusterConfigInfoEx)
			if !ok {
				cfg = &types.ClusterConfigInfoEx{}
			}
			return refOf(ref), cfg, nil
		}
	}
	return "", nil, nil
}

// operation to bring an override to where it should be; false = nothing to do.
func operation(there, on bool) (types.ArrayUpdateOperation, bool) {
	switch {
	case on && there:
		return types.ArrayUpdateOperationEdit, true
	case on:
		return types.ArrayUpdateOperationAdd, true
	}
	return types.ArrayUpdateOperationRemove, there
}

func drsOverride(cfg *types.ClusterConfigInfoEx, vm types.ManagedObjectReference, on bool) *types.ClusterDrsVmConfigSpec {
	there := false
	for _, o := range cfg.DrsVmConfig {
		there = there || o.Key == vm
	}
	do, needed := operation(there, on)
	if !needed {
		return nil
	}
	s := types.ClusterDrsVmConfigSpec{ArrayUpdateSpec: types.ArrayUpdateSpec{Operation: do}}
	if !on {
		s.RemoveKey = vm
		return &s
	}
	s.Info = &types.ClusterDrsVmConfigInfo{Key: vm, Enabled: types.NewBool(false), Behavior: types.DrsBehaviorManual}
	return &s
}

func haOverride(cfg *types.ClusterConfigInfoEx, vm types.ManagedObjectReference, on bool) *types.ClusterDasVmConfigSpec {
	there := false
	for _, o := range cfg.DasVmConfig {
		there = there || o.Key == vm
	}
	do, needed := operation(there, on)
	if !needed {
		return nil
	}
	s := types.ClusterDasVmConfigSpec{ArrayUpdateSpec: types.ArrayUpdateSpec{Operation: do}}
	if !on {
		s.RemoveKey = vm
		return &s
	}
	s.Info = &types.ClusterDasVmConfigInfo{
		Key: vm, DasSettings: &types.ClusterDasVmSettings{RestartPriority: string(types.ClusterDasVmSettingsRestartPriorityDisabled)},
	}
	return &s
}
