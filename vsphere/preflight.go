package vsphere

import (
	"context"
	"slices"

	"github.com/vmware/govmomi/vim25/methods"
	"github.com/vmware/govmomi/vim25/types"
)

// Purpose is what a preflight checks privileges for.
type Purpose string

// The purposes.
const (
	ForBackup  Purpose = "backup"
	ForRecover Purpose = "recover"
	ForMigrate Purpose = "migrate"
	ForRestore Purpose = "restore"
	ForAttach  Purpose = "attach"
	ForHotAdd  Purpose = "hotadd"
	ForGuest   Purpose = "guest"
	ForLab     Purpose = "lab"
)

// Missing is a privilege that the session's user does not have.
type Missing struct {
	Privilege string `json:"privilege"` // vSphere's name: "VirtualMachine.State.CreateSnapshot"
	Entity    Ref    `json:"entity"`
	Path      string `json:"path"`               // of the entity in the inventory: "/DC0/vm/web01"
	OnlyFor   string `json:"only_for,omitempty"` // what cannot be done without it, where the rest can
}

// String is "VirtualMachine.State.CreateSnapshot on /DC0/vm/web01".
func (m Missing) String() string {
	s := m.Privilege + " on " + m.Path
	if m.OnlyFor != "" {
		s += " (only for " + m.OnlyFor + ")"
	}
	return s
}

// need is one privilege: on which kind of object, by vSphere's name.
type need struct{ kind, privilege, onlyFor string }

// onRoot stands for the root folder, where global privileges are given.
const onRoot = "root"

// Needs lists what a purpose wants, by kind of object ("VirtualMachine",
// "Datastore", "HostSystem", "ComputeResource", "ResourcePool", "Folder",
// "Network", "root"). docs/vsphere.md has the same list; a test compares.
func Needs(p Purpose) map[string][]string {
	out := map[string][]string{}
	for _, n := range needs(p) {
		out[n.kind] = append(out[n.kind], n.privilege)
	}
	return out
}

func needs(p Purpose) []need {
	on := func(kind string, privileges ...string) []need {
		var out []need
		for _, id := range privileges {
			out = append(out, need{kind: kind, privilege: id})
		}
		return out
	}
	const vm = "VirtualMachine"
	switch p {
	case ForBackup:
		return append(append(on(vm, "VirtualMachine.State.CreateSnapshot", "VirtualMachine.State.RemoveSnapshot",
			"VirtualMachine.Config.ChangeTracking", "VirtualMachine.Config.DiskLease",
			"VirtualMachine.Provisioning.DiskRandomRead", "VirtualMachine.Provisioning.GetVmFiles"),
			on("Datastore", "Datastore.Browse", "Datastore.FileManagement")...),
			need{onRoot, "Global.DisableMethods", "transports through VDDK"},
			need{onRoot, "Global.EnableMethods", "transports through VDDK"},
			need{onRoot, "Global.Licenses", "transports through VDDK"})
	case ForRecover, ForLab:
		out := slices.Concat(
			on("HostSystem", "Host.Config.Storage"),
			on("ResourcePool", "Resource.AssignVMToPool"),
			on("Folder", "VirtualMachine.Inventory.Register", "VirtualMachine.Inventory.Unregister", "VirtualMachine.Config.AddRemoveDevice",
				"VirtualMachine.Config.AdvancedConfig", "VirtualMachine.Config.EditDevice", "VirtualMachine.Config.Annotation",
				"VirtualMachine.Interact.PowerOn", "VirtualMachine.Interact.PowerOff", "VirtualMachine.Interact.AnswerQuestion"),
			on("Network", "Network.Assign"),
			on("Datastore", "Datastore.Browse"),
			on("ComputeResource", "Host.Inventory.EditCluster"))
		if p == ForLab {
			out = slices.Concat(out, on("HostSystem", "Host.Config.Network"), on("Folder", "VirtualMachine.Interact.ConsoleInteract"),
				on("ResourcePool", "Resource.CreatePool", "Resource.DeletePool"))
		}
		return out
	case ForMigrate:
		return slices.Concat(
			on(vm, "Resource.ColdMigrate", "Resource.HotMigrate"),
			on("ResourcePool", "Resource.AssignVMToPool"),
			on("Datastore", "Datastore.AllocateSpace", "Datastore.Browse"))
	case ForRestore:
		return slices.Concat(
			on("Folder", "VirtualMachine.Inventory.Create", "VirtualMachine.Config.AddNewDisk", "VirtualMachine.Config.AddRemoveDevice",
				"VirtualMachine.Config.AdvancedConfig", "VirtualMachine.Config.Annotation", "VirtualMachine.Provisioning.DiskRandomAccess"),
			on(vm, "VirtualMachine.State.CreateSnapshot", "VirtualMachine.State.RemoveSnapshot", "VirtualMachine.Interact.PowerOff",
				"VirtualMachine.Provisioning.DiskRandomAccess", "VirtualMachine.Config.DiskLease"),
			on("ResourcePool", "Resource.AssignVMToPool"),
			on("Datastore", "Datastore.AllocateSpace", "Datastore.Browse", "Datastore.FileManagement"),
			on("Network", "Network.Assign"))
	case ForAttach, ForHotAdd:
		return slices.Concat(
			on(vm, "VirtualMachine.Config.AddExistingDisk", "VirtualMachine.Config.RemoveDisk", "VirtualMachine.Config.AddRemoveDevice"),
			on("Datastore", "Datastore.Browse"),
			on("HostSystem", "Host.Config.Storage"))
	case ForGuest:
		return on(vm, "VirtualMachine.GuestOperations.Query", "VirtualMachine.GuestOperations.Modify", "VirtualMachine.GuestOperations.Execute")
	}
	return nil
}

// kindOf an object, as needs names kinds.
func kindOf(r Ref) string {
	switch k := r.Kind(); k {
	case "ClusterComputeResource":
		return "ComputeResource"
	case "VirtualApp":
		return "ResourcePool"
	case "DistributedVirtualPortgroup", "OpaqueNetwork":
		return "Network"
	default:
		return k
	}
}

// Preflight names each privilege that is missing for a purpose on the targets,
// and on the root folder where global ones are wanted. One call; one more when
// something is missing. The result is empty when all is well.
func (c *Client) Preflight(ctx context.Context, p Purpose, targets ...Ref) ([]Missing, error) {
	op := "check the privileges for " + string(p)
	root := refOf(c.vim.ServiceContent.RootFolder)
	list := needs(p)
	var entities []types.ManagedObjectReference
	var ids []string
	for _, n := range list {
		if !slices.Contains(ids, n.privilege) {
			ids = append(ids, n.privilege)
		}
		if n.kind == onRoot && !slices.Contains(entities, mor(root)) {
			entities = append(entities, mor(root))
		}
	}
	for _, t := range targets {
		if r := mor(t); t != "" && !slices.Contains(entities, r) {
			entities = append(entities, r)
		}
	}
	if len(entities) == 0 || len(ids) == 0 || c.vim.ServiceContent.AuthorizationManager == nil {
		return nil, nil
	}
	res, err := methods.HasPrivilegeOnEntities(ctx, c.session, &types.HasPrivilegeOnEntities{
		This: *c.vim.ServiceContent.AuthorizationManager, Entity: entities, SessionId: c.session.id(), PrivId: ids,
	})
	if err != nil {
		return nil, c.fail(op, err)
	}
	denied := map[Ref]map[string]bool{}
	for _, e := range res.Returnval {
		ref := refOf(e.Entity)
		denied[ref] = map[string]bool{}
		for _, a := range e.PrivAvailability {
			denied[ref][a.PrivId] = !a.IsGranted
		}
	}
	var out []Missing
	for _, n := range list {
		for _, e := range entities {
			ref := refOf(e)
			if denied[ref][n.privilege] && (n.kind == kindOf(ref) || n.kind == onRoot && ref == root) {
				out = append(out, Missing{Privilege: n.privilege, Entity: ref, OnlyFor: n.onlyFor})
			}
		}
	}
	return out, c.fillPaths(ctx, op, out)
}

// fillPaths says where the entities are, for a person.
func (c *Client) fillPaths(ctx context.Context, op string, missing []Missing) error {
	var objects []types.ObjectSpec
	for _, m := range missing {
		objects = append(objects, types.ObjectSpec{Obj: mor(m.Entity), Skip: types.NewBool(false), SelectSet: surroundings()[:1]})
	}
	if len(objects) == 0 {
		return nil
	}
	content, err := c.retrieve(ctx, types.PropertyFilterSpec{ObjectSet: objects, PropSet: surroundingProps[:1]})
	if err != nil {
		return c.fail(op, err)
	}
	t, err := newTree(content)
	if err != nil {
		return c.fail(op, err)
	}
	for i := range missing {
		missing[i].Path = t.path(mor(missing[i].Entity))
	}
	return nil
}

// path of an entity from the root, "/DC0/vm/web01"; "/" is the root folder.
func (t *tree) path(ref types.ManagedObjectReference) string {
	e, ok := t.entity[ref]
	if !ok {
		return string(refOf(ref)) // not even its name may be read
	}
	if e.Parent == nil {
		return "/"
	}
	p := ""
	for _, up := range t.above(ref) {
		if up.Parent != nil {
			p = "/" + element(up.Name) + p
		}
	}
	return p + "/" + element(e.Name)
}
