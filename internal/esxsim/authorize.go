package esxsim

import (
	"slices"

	"github.com/vmware/govmomi/simulator"
	"github.com/vmware/govmomi/vim25/methods"
	"github.com/vmware/govmomi/vim25/mo"
	"github.com/vmware/govmomi/vim25/soap"
	"github.com/vmware/govmomi/vim25/types"
)

// denial is a privilege that a user does not have, on an entity and below it.
type denial struct{ user, privilege, entity string }

// Deny takes a privilege ("VirtualMachine.State.CreateSnapshot") from a user on
// the entity of a name, and all below it; "" for everywhere. Calls that need it
// fail with NoPermission.
func (s *Sim) Deny(user, privilege, entity string) {
	s.mu.Lock()
	defer s.mu.Unlock()
	s.denied = append(s.denied, denial{user, privilege, escapeName(entity)})
}

// AllowAll undoes every Deny.
func (s *Sim) AllowAll() {
	s.mu.Lock()
	defer s.mu.Unlock()
	s.denied = nil
}

// allowed tells whether a user has a privilege on an entity.
func (s *Sim) allowed(user, privilege string, on ref) bool {
	s.mu.Lock()
	denied := slices.Clone(s.denied)
	s.mu.Unlock()
	for _, d := range denied {
		if d.user == user && d.privilege == privilege && (d.entity == "" || s.below(on, d.entity)) {
			return false
		}
	}
	return true
}

// below tells whether an object is, or is below, an entity of a name.
func (s *Sim) below(on ref, name string) bool {
	for at := &on; at != nil; {
		e, ok := s.reg.Get(*at).(mo.Entity)
		if !ok {
			return false
		}
		var entity string
		var parent *ref
		ctx := s.background()
		s.reg.WithLock(ctx, *at, func() {
			m := e.Entity()
			entity, parent = m.Name, m.Parent
			if v, ok := e.(*simulator.VirtualMachine); ok {
				entity = v.Name
			}
		})
		if entity == name {
			return true
		}
		at = parent
	}
	return false
}

// needs is which privilege a call needs on its object [API: "Required
// privileges" of each method].
func needs(method string) string {
	switch method {
	case "CreateSnapshot_Task", "CreateSnapshotEx_Task":
		return "VirtualMachine.State.CreateSnapshot"
	case "RemoveSnapshot_Task", "RemoveAllSnapshots_Task", "ConsolidateVMDisks_Task":
		return "VirtualMachine.State.RemoveSnapshot"
	case "RevertToSnapshot_Task":
		return "VirtualMachine.State.RevertToSnapshot"
	case "QueryChangedDiskAreas":
		return "VirtualMachine.Provisioning.DiskRandomRead"
	case "ExportVm", "ExportSnapshot":
		return "VApp.Export"
	case "ImportVApp":
		return "VApp.Import"
	case "CreateNasDatastore", "RemoveDatastore":
		return "Host.Config.Storage"
	case "RegisterVM_Task":
		return "VirtualMachine.Inventory.Register"
	case "UnregisterVM":
		return "VirtualMachine.Inventory.Unregister"
	case "CreateVM_Task":
		return "VirtualMachine.Inventory.Create"
	case "Destroy_Task":
		return "VirtualMachine.Inventory.Delete"
	case "PowerOnVM_Task":
		return "VirtualMachine.Interact.PowerOn"
	case "PowerOffVM_Task", "ShutdownGuest":
		return "VirtualMachine.Interact.PowerOff"
	case "AnswerVM":
		return "VirtualMachine.Interact.AnswerQuestion"
	case "CreateScreenshot_Task":
		return "VirtualMachine.Interact.CreateScreenshot"
	case "RelocateVM_Task", "MigrateVM_Task":
		return "Resource.HotMigrate"
	case "Rename_Task":
		return "VirtualMachine.Config.Rename"
	case "InitiateFileTransferToGuest", "MakeDirectoryInGuest", "DeleteFileInGuest", "ChangeFileAttributesInGuest", "MoveFileInGuest":
		return "VirtualMachine.GuestOperations.Modify"
	case "InitiateFileTransferFromGuest", "ListFilesInGuest", "ListProcessesInGuest":
		return "VirtualMachine.GuestOperations.Query"
	case "StartProgramInGuest":
		return "VirtualMachine.GuestOperations.Execute"
	}
	return ""
}

// mayNot is the fault of a call that its user may not make.
func (s *Sim) mayNot(ctx *simulator.Context, m *simulator.Method) types.BaseMethodFault {
	if ctx.Session == nil {
		return nil
	}
	privileges := []string{needs(m.Name)}
	if req, ok := m.Body.(*types.ReconfigVM_Task); ok {
		privileges = reconfigureNeeds(&req.Spec)
	}
	on := m.This
	s.mu.Lock()
	if n := s.snapshots[on]; n != nil {
		on = n.vm.ref
	}
	if h := s.hostOfStorage(on); h != nil {
		on = h.ref
	}
	if v := s.vms[on]; v != nil && m.Name == "RelocateVM_Task" && v.power != poweredOn {
		privileges = []string{"Resource.ColdMigrate"}
	}
	s.mu.Unlock()
	for _, p := range privileges {
		if p != "" && !s.allowed(ctx.Session.UserName, p, on) {
			return &types.NoPermission{Object: &on, PrivilegeId: p}
		}
	}
	return nil
}

func reconfigureNeeds(spec *types.VirtualMachineConfigSpec) []string {
	var list []string
	need := func(p string, when bool) {
		if when && !slices.Contains(list, p) {
			list = append(list, p)
		}
	}
	need("VirtualMachine.Config.ChangeTracking", spec.ChangeTrackingEnabled != nil)
	need("VirtualMachine.Config.AdvancedConfig", len(spec.ExtraConfig) > 0)
	need("VirtualMachine.Config.Annotation", spec.Annotation != "")
	need("VirtualMachine.Config.Rename", spec.Name != "")
	for _, c := range spec.DeviceChange {
		dc := c.GetVirtualDeviceConfigSpec()
		_, isDisk := dc.Device.(*types.VirtualDisk)
		switch {
		case isDisk && dc.Operation == types.VirtualDeviceConfigSpecOperationRemove:
			need("VirtualMachine.Config.RemoveDisk", true)
		case isDisk && dc.Operation == types.VirtualDeviceConfigSpecOperationAdd && dc.FileOperation == "":
			need("VirtualMachine.Config.AddExistingDisk", true)
		case isDisk && dc.Operation == types.VirtualDeviceConfigSpecOperationAdd:
			need("VirtualMachine.Config.AddNewDisk", true)
		case dc.Operation == types.VirtualDeviceConfigSpecOperationEdit:
			need("VirtualMachine.Config.EditDevice", true)
		default:
			need("VirtualMachine.Config.AddRemoveDevice", true)
		}
	}
	return list
}

// authorizationCalls stands before AuthorizationManager.
type authorizationCalls struct{ base }

func (d *authorizationCalls) entities(user string, entities []ref, privileges []string) []types.EntityPrivilege {
	var list []types.EntityPrivilege
	for _, e := range entities {
		p := types.EntityPrivilege{Entity: e}
		for _, id := range privileges {
			p.PrivAvailability = append(p.PrivAvailability, types.PrivilegeAvailability{PrivId: id, IsGranted: d.s.allowed(user, id, e)})
		}
		list = append(list, p)
	}
	return list
}

// HasPrivilegeOnEntities asks for a session's privileges [API].
func (d *authorizationCalls) HasPrivilegeOnEntities(_ *simulator.Context, req *types.HasPrivilegeOnEntities) soap.HasFault {
	user := d.s.sessions.user(req.SessionId)
	if user == "" {
		return &methods.HasPrivilegeOnEntitiesBody{Fault_: fault(&types.InvalidArgument{InvalidProperty: "sessionId"}, "")}
	}
	return &methods.HasPrivilegeOnEntitiesBody{Res: &types.HasPrivilegeOnEntitiesResponse{Returnval: d.entities(user, req.Entity, req.PrivId)}}
}

// HasPrivilegeOnEntity is the same for one entity [API].
func (d *authorizationCalls) HasPrivilegeOnEntity(_ *simulator.Context, req *types.HasPrivilegeOnEntity) soap.HasFault {
	user := d.s.sessions.user(req.SessionId)
	granted := []bool{}
	for _, id := range req.PrivId {
		granted = append(granted, user != "" && d.s.allowed(user, id, req.Entity))
	}
	return &methods.HasPrivilegeOnEntityBody{Res: &types.HasPrivilegeOnEntityResponse{Returnval: granted}}
}

// HasUserPrivilegeOnEntities asks for a user's privileges [API].
func (d *authorizationCalls) HasUserPrivilegeOnEntities(_ *simulator.Context, req *types.HasUserPrivilegeOnEntities) soap.HasFault {
	return &methods.HasUserPrivilegeOnEntitiesBody{Res: &types.HasUserPrivilegeOnEntitiesResponse{
		Returnval: d.entities(req.UserName, req.Entities, req.PrivId),
	}}
}
