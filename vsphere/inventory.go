package vsphere

import (
	"context"
	"log/slog"
	"slices"
	"strings"

	"github.com/vmware/govmomi/vim25/mo"
	"github.com/vmware/govmomi/vim25/types"
)

// Inventory is what a server has, at one time.
type Inventory struct {
	About      About       `json:"about"`
	VMs        []VM        `json:"vms"`
	Hosts      []Host      `json:"hosts"`
	Datastores []Datastore `json:"datastores"`
	Networks   []Network   `json:"networks"`
	Folders    []Folder    `json:"folders"`
	Pools      []Pool      `json:"pools"`

	tags bool // LoadTags was there
}

// vmProps is what the inventory asks of each VM. The whole configuration is
// four times as much and is asked for one VM at a time (Client.VM).
var vmProps = []string{
	"name", "parent", "parentVApp", "resourcePool", "snapshot", "capability.changeTrackingSupported",
	"config.uuid", "config.instanceUuid", "config.template", "config.guestId", "config.version", "config.firmware", "config.bootOptions",
	"config.changeTrackingEnabled", "config.annotation", "config.files", "config.hardware", "config.extraConfig", "config.keyId",
	"runtime.powerState", "runtime.connectionState", "runtime.host", "runtime.consolidationNeeded",
	"guest.toolsRunningStatus", "guest.ipAddress", "summary.config.vmPathName", "summary.config.instanceUuid",
}

// Inventory fetches everything with one retrieval (in pages of 1,000 objects).
// What the user may not read is not in it.
func (c *Client) Inventory(ctx context.Context) (*Inventory, error) {
	op := "read the inventory of " + c.about.Server
	objects, err := c.retrieve(ctx, types.PropertyFilterSpec{
		ObjectSet: []types.ObjectSpec{{Obj: c.vim.ServiceContent.RootFolder, SelectSet: wholeInventory()}},
		PropSet: []types.PropertySpec{
			{Type: "VirtualMachine", PathSet: vmProps},
			{Type: "HostSystem", PathSet: hostProps},
			{Type: "ComputeResource", PathSet: []string{"name", "parent", "resourcePool"}},
			{Type: "ClusterComputeResource", PathSet: clusterProps},
			{Type: "ResourcePool", PathSet: []string{"name", "parent", "owner"}},
			{Type: "Datastore", PathSet: []string{"name", "parent", "summary", "host", "vm", "info"}},
			{Type: "Network", PathSet: []string{"name", "parent", "summary"}},
			{Type: "Folder", PathSet: []string{"name", "parent", "childType"}},
			{Type: "Datacenter", PathSet: []string{"name", "parent", "vmFolder"}},
		},
	})
	if err != nil {
		return nil, c.fail(op, err)
	}
	t, err := newTree(objects)
	if err != nil {
		return nil, c.fail(op, err)
	}
	inv := &Inventory{About: c.about}
	for _, o := range t.order {
		c.add(inv, t, o)
	}
	c.places.learn(inv.Datastores)
	return inv, nil
}

// wholeInventory selects everything below the root folder. Named
// specifications refer to each other, which makes the traversal recursive.
func wholeInventory() []types.BaseSelectionSpec {
	see := func(names ...string) []types.BaseSelectionSpec {
		var out []types.BaseSelectionSpec
		for _, n := range names {
			out = append(out, &types.SelectionSpec{Name: n})
		}
		return out
	}
	step := func(name, kind, path string, then ...types.BaseSelectionSpec) types.BaseSelectionSpec {
		return &types.TraversalSpec{SelectionSpec: types.SelectionSpec{Name: name}, Type: kind, Path: path, SelectSet: then}
	}
	return []types.BaseSelectionSpec{
		step("children", "Folder", "childEntity",
			see("children", "vmFolder", "hostFolder", "datastoreFolder", "networkFolder", "hosts", "pool", "vAppVMs")...),
		step("vmFolder", "Datacenter", "vmFolder", see("children")...),
		step("hostFolder", "Datacenter", "hostFolder", see("children")...),
		step("datastoreFolder", "Datacenter", "datastoreFolder", see("children")...),
		step("networkFolder", "Datacenter", "networkFolder", see("children")...),
		step("hosts", "ComputeResource", "host"),
		step("pool", "ComputeResource", "resourcePool", see("pools", "vAppVMs")...),
		step("pools", "ResourcePool", "resourcePool", see("pools", "vAppVMs")...),
		// A vApp's VMs are in no folder.
		step("vAppVMs", "VirtualApp", "vm"),
	}
}

// tree is a retrieved part of the inventory, for finding paths in it.
type tree struct {
	order   []any
	entity  map[types.ManagedObjectReference]mo.ManagedEntity
	objects map[types.ManagedObjectReference]any
}

func newTree(objects []types.ObjectContent) (*tree, error) {
	t := &tree{entity: map[types.ManagedObjectReference]mo.ManagedEntity{}, objects: map[types.ManagedObjectReference]any{}}
	for _, o := range objects {
		if _, twice := t.objects[o.Obj]; twice || readable(&o) != nil {
			continue // what may not be read at all is not there for us
		}
		v, err := load(o)
		if err != nil {
			return nil, err
		}
		t.objects[o.Obj], t.order = v, append(t.order, v)
		if e := entityOf(v); e != nil {
			t.entity[o.Obj] = *e
		}
	}
	return t, nil
}

func entityOf(v any) *mo.ManagedEntity {
	switch o := v.(type) {
	case *mo.VirtualMachine:
		return &o.ManagedEntity
	case *mo.HostSystem:
		return &o.ManagedEntity
	case *mo.ComputeResource:
		return &o.ManagedEntity
	case *mo.ClusterComputeResource:
		return &o.ManagedEntity
	case *mo.ResourcePool:
		return &o.ManagedEntity
	case *mo.VirtualApp:
		return &o.ManagedEntity
	case *mo.Datastore:
		return &o.ManagedEntity
	case *mo.Folder:
		return &o.ManagedEntity
	case *mo.StoragePod:
		return &o.ManagedEntity
	case *mo.Datacenter:
		return &o.ManagedEntity
	}
	if n := networkOf(v); n != nil {
		e := n.ManagedEntity
		e.Name = n.Name // which the library keeps in one of the two places
		return &e
	}
	return nil
}

// networkOf is the network part of the several kinds of network.
func networkOf(v any) *mo.Network {
	switch o := v.(type) {
	case *mo.Network:
		return o
	case *mo.DistributedVirtualPortgroup:
		return &o.Network
	case *mo.OpaqueNetwork:
		return &o.Network
	}
	return nil
}

// maxDepth bounds walks upwards: vCenter allows far less, and a server that
// answers with a circle must not hang us.
const maxDepth = 200

// above lists the ancestors of ref from the nearest on, ref left out.
func (t *tree) above(ref types.ManagedObjectReference) []mo.ManagedEntity {
	var out []mo.ManagedEntity
	for e, ok := t.entity[ref]; ok && len(out) < maxDepth; {
		up := e.Parent
		if up == nil {
			break
		}
		if e, ok = t.entity[*up]; ok {
			out = append(out, e)
		}
	}
	return out
}

// datacenter of ref, and its path: "folder/name", as file URLs want it.
func (t *tree) datacenter(ref types.ManagedObjectReference) (dc *mo.Datacenter, path string) {
	line := t.above(ref)
	if e, ok := t.entity[ref]; ok {
		line = append([]mo.ManagedEntity{e}, line...)
	}
	var names []string
	for _, e := range line {
		if d, ok := t.objects[e.Self].(*mo.Datacenter); ok {
			dc = d
		}
		if dc != nil && e.Parent != nil { // the root folder has no name in paths
			names = append(names, e.Name)
		}
	}
	slices.Reverse(names)
	return dc, strings.Join(names, "/")
}

// below is the path of ref under the nearest ancestor for which top holds, ref
// included, elements escaped so that "/" separates.
func (t *tree) below(ref types.ManagedObjectReference, top func(mo.ManagedEntity) bool) string {
	e, ok := t.entity[ref]
	if !ok || top(e) {
		return ""
	}
	names := []string{element(e.Name)}
	for _, up := range t.above(ref) {
		if top(up) {
			break
		}
		names = append(names, element(up.Name))
	}
	slices.Reverse(names)
	return strings.Join(names, "/")
}

// isTopFolder reports whether e is one of the folders directly under a
// datacenter (vm, host, datastore, network).
func (t *tree) isTopFolder(e mo.ManagedEntity) bool {
	return e.Parent == nil || e.Parent.Type == "Datacenter"
}

func isCompute(e mo.ManagedEntity) bool {
	return e.Self.Type == "ComputeResource" || e.Self.Type == "ClusterComputeResource"
}

func (t *tree) name(ref *types.ManagedObjectReference) string {
	if ref == nil {
		return ""
	}
	return plainName(t.entity[*ref].Name)
}

func (c *Client) add(inv *Inventory, t *tree, o any) {
	switch o := o.(type) {
	case *mo.VirtualMachine:
		if o.Config == nil {
			c.log.Debug("VM without a readable configuration", slog.String("name", o.Name), slog.String("ref", string(refOf(o.Self))))
		}
		inv.VMs = append(inv.VMs, c.describeVM(t, o))
	case *mo.HostSystem:
		inv.Hosts = append(inv.Hosts, t.describeHost(o))
	case *mo.Datastore:
		inv.Datastores = append(inv.Datastores, t.describeDatastore(o))
	case *mo.Folder:
		if slices.Contains(o.ChildType, "VirtualMachine") {
			_, dc := t.datacenter(o.Self)
			inv.Folders = append(inv.Folders, Folder{Ref: refOf(o.Self), Name: plainName(o.Name), Path: t.below(o.Self, t.isTopFolder), Datacenter: dc})
		}
	case *mo.ResourcePool:
		inv.Pools = append(inv.Pools, t.describePool(o))
	case *mo.VirtualApp:
		inv.Pools = append(inv.Pools, t.describePool(&o.ResourcePool))
	}
	if n := networkOf(o); n != nil {
		_, dc := t.datacenter(n.Self)
		accessible := true
		if s := n.Summary; s != nil {
			accessible = s.GetNetworkSummary().Accessible
		}
		inv.Networks = append(inv.Networks, Network{Ref: refOf(n.Self), Name: plainName(n.Name), Datacenter: dc, Accessible: accessible})
	}
}

func (t *tree) describePool(o *mo.ResourcePool) Pool {
	_, dc := t.datacenter(o.Self)
	return Pool{Ref: refOf(o.Self), Name: plainName(o.Name), Path: t.below(o.Self, isCompute), Cluster: t.name(&o.Owner), Datacenter: dc}
}

func (t *tree) describeDatastore(o *mo.Datastore) Datastore {
	in, dc := t.datacenter(o.Self)
	d := Datastore{
		Ref: refOf(o.Self), Name: plainName(o.Name), Datacenter: dc, Type: o.Summary.Type, Accessible: o.Summary.Accessible,
		Capacity: o.Summary.Capacity, Free: o.Summary.FreeSpace,
	}
	if in != nil {
		d.datacenter = in.Self
	}
	for _, h := range o.Host {
		d.Hosts = append(d.Hosts, refOf(h.Key))
	}
	for _, v := range o.Vm {
		d.VMs = append(d.VMs, refOf(v))
	}
	if nas, ok := o.Info.(*types.NasDatastoreInfo); ok && nas.Nas != nil {
		d.Server, d.Path = nas.Nas.RemoteHost, nas.Nas.RemotePath
	}
	return d
}
