package vsphere

import (
	"context"
	"fmt"
	"strings"

	"github.com/vmware/govmomi/vim25/methods"
	"github.com/vmware/govmomi/vim25/mo"
	"github.com/vmware/govmomi/vim25/types"
)

// fullVMProps is what VM asks.
var fullVMProps = []string{
	"name", "parent", "parentVApp", "resourcePool", "snapshot", "capability.changeTrackingSupported", "config",
	"runtime.powerState", "runtime.connectionState", "runtime.host", "runtime.consolidationNeeded",
	"guest.toolsRunningStatus", "guest.ipAddress", "layoutEx.file", "summary.config.vmPathName", "summary.config.instanceUuid",
}

// surroundings selects what a VM stands in: the folders above it, its host,
// pool and networks.
func surroundings() []types.BaseSelectionSpec {
	up := func(kind string) types.BaseSelectionSpec {
		return &types.TraversalSpec{Type: kind, Path: "parent", SelectSet: []types.BaseSelectionSpec{&types.SelectionSpec{Name: "up"}}}
	}
	return []types.BaseSelectionSpec{
		&types.TraversalSpec{
			SelectionSpec: types.SelectionSpec{Name: "up"}, Type: "ManagedEntity", Path: "parent",
			SelectSet: []types.BaseSelectionSpec{&types.SelectionSpec{Name: "up"}},
		},
		&types.TraversalSpec{Type: "VirtualMachine", Path: "runtime.host"},
		&types.TraversalSpec{Type: "VirtualMachine", Path: "network"},
		&types.TraversalSpec{Type: "VirtualMachine", Path: "resourcePool"},
		&types.TraversalSpec{Type: "VirtualMachine", Path: "parentVApp", SelectSet: []types.BaseSelectionSpec{up("ManagedEntity")}},
	}
}

var surroundingProps = []types.PropertySpec{
	{Type: "ManagedEntity", PathSet: []string{"name", "parent"}},
	{Type: "OpaqueNetwork", PathSet: []string{"name", "parent", "summary"}},
}

// VM describes one VM in full, with one call. Errors: ErrNotFound.
func (c *Client) VM(ctx context.Context, r Ref) (*VM, error) {
	op := "look at " + string(r)
	objects, err := c.retrieve(ctx, types.PropertyFilterSpec{
		ObjectSet: []types.ObjectSpec{{Obj: mor(r), SelectSet: surroundings(), Skip: types.NewBool(false)}},
		PropSet:   append([]types.PropertySpec{{Type: "VirtualMachine", PathSet: fullVMProps}}, surroundingProps...),
	})
	if err != nil {
		return nil, c.fail(op, err)
	}
	t, err := newTree(objects)
	if err != nil {
		return nil, c.fail(op, err)
	}
	o, ok := t.objects[mor(r)].(*mo.VirtualMachine)
	if !ok {
		return nil, &Error{Op: op, Kind: ErrNotFound, Text: "there is no such VM, or this user may not see it"}
	}
	v := c.describeVM(t, o)
	if o.Config == nil {
		return &v, nil
	}
	if v.Config, err = encodeConfig(o.Config); err != nil {
		return nil, c.fail(op, err)
	}
	if o.LayoutEx != nil {
		for _, f := range o.LayoutEx.File {
			if f.Type == string(types.VirtualMachineFileLayoutExFileTypeNvram) {
				v.NVRAM = f.Name
			}
		}
	}
	return &v, nil
}

// FindVM finds a VM by who it is, with two calls. Errors: ErrNotFound, also for
// a VM of another vCenter.
func (c *Client) FindVM(ctx context.Context, id Identity) (*VM, error) {
	op := "find the VM " + id.String()
	if id.VCenter != c.about.InstanceUUID {
		return nil, &Error{Op: op, Kind: ErrNotFound, Text: fmt.Sprintf("it belongs to another server than %s (whose instance UUID is %s)", c.about.Server, c.about.InstanceUUID)}
	}
	if c.vim.ServiceContent.SearchIndex == nil {
		return nil, &Error{Op: op, Kind: ErrUnsupported, Text: "the server offers no search by UUID"}
	}
	res, err := methods.FindAllByUuid(ctx, c.session, &types.FindAllByUuid{
		This: *c.vim.ServiceContent.SearchIndex, Uuid: id.VM, VmSearch: true, InstanceUuid: types.NewBool(true),
	})
	if err != nil {
		return nil, c.fail(op, err)
	}
	switch len(res.Returnval) {
	case 0:
		return nil, &Error{Op: op, Kind: ErrNotFound, Text: "no VM with this instance UUID is registered there"}
	case 1:
		return c.VM(ctx, refOf(res.Returnval[0]))
	}
	var refs []string
	for _, r := range res.Returnval {
		refs = append(refs, r.Value)
	}
	return nil, &Error{Op: op, Kind: ErrAmbiguous, Text: "several VMs have this instance UUID: " + strings.Join(refs, ", ")}
}
