package esxsim

import (
	"context"
	"reflect"
	"strings"
	"time"

	"github.com/vmware/govmomi/simulator"
	"github.com/vmware/govmomi/vim25/methods"
	"github.com/vmware/govmomi/vim25/mo"
	"github.com/vmware/govmomi/vim25/soap"
	"github.com/vmware/govmomi/vim25/types"
)

type ref = types.ManagedObjectReference

// base makes a dispatcher an object of the registry. Its lock does nothing: a
// dispatcher stands for many objects, whose calls must not wait for each other.
type base struct {
	// Object makes the registry's searches, which look at every object as a type
	// of the mo package, pass over this one instead of panicking.
	Object mo.SearchIndex
	Self   ref
	s      *Sim
}

// Reference is the dispatcher's own place in the registry.
func (b *base) Reference() types.ManagedObjectReference { return b.Self }

// Lock does nothing.
func (*base) Lock() {}

// Unlock does nothing.
func (*base) Unlock() {}

// dispatchers returns, by type of managed object, who answers for it before
// govmomi's object does.
func (s *Sim) dispatchers() map[string]mo.Reference {
	b := func(kind string) base { return base{Self: ref{Type: "Esxsim" + kind, Value: "esxsim-" + kind}, s: s} }
	files := &fileCalls{base: b("Files")}
	return map[string]mo.Reference{
		"VirtualMachine":         &vmCalls{b("VM")},
		"VirtualMachineSnapshot": &snapshotCalls{b("Snapshot")},
		"Folder":                 &folderCalls{b("Folder")},
		"ResourcePool":           &poolCalls{b("Pool")},
		"HostDatastoreSystem":    &hostStorageCalls{b("HostStorage")},
		"Datastore":              &datastoreCalls{b("Datastore")},
		"HostDatastoreBrowser":   &browserCalls{b("Browser")},
		"FileManager":            files,
		"VirtualDiskManager":     files,
		"SessionManager":         &sessionCalls{b("Session")},
		"AuthorizationManager":   &authorizationCalls{b("Authorization")},
		"Task":                   &taskCalls{b("Task")},
		"PropertyCollector":      &collectorCalls{b("Collector")},
		"HttpNfcLease":           &leaseCalls{b("Lease")},
		"GuestFileManager":       &guestCalls{base: b("Guest")},
		"GuestProcessManager":    &guestCalls{base: b("Guest")},
		"GuestAuthManager":       &guestCalls{base: b("Guest")},
	}
}

// installHandler puts the dispatchers in front of the registry.
func (s *Sim) installHandler() {
	type entry struct {
		at      ref
		methods map[string]bool
	}
	table := map[string]entry{}
	for kind, d := range s.dispatchers() {
		s.reg.Put(d)
		e := entry{at: d.Reference(), methods: map[string]bool{}}
		for m := range reflect.TypeOf(d).Methods() {
			e.methods[m.Name] = true
		}
		table[kind] = e
	}
	s.reg.Cookie = s.sessions.cookie
	s.reg.Handler = func(ctx *simulator.Context, m *simulator.Method) (mo.Reference, types.BaseMethodFault) {
		if ctx.Session != nil {
			s.sessions.note(ctx.Session.Key, ctx.Session.UserName)
		}
		if fault := s.before(ctx, m); fault != nil {
			return nil, fault
		}
		if m.This.Type == "VirtualMachine" && hollow(m.Name) {
			return nil, &types.NotSupported{}
		}
		e, ok := table[m.This.Type]
		if !ok || !e.methods[goName(m.Name)] || ctx.Session == nil && m.Name != "Login" {
			return nil, nil
		}
		m.This = e.at
		return s.reg.Get(e.at), nil
	}
}

// hollow are methods that govmomi's VirtualMachine has, for VMs of its own
// making, and we do not.
func hollow(method string) bool {
	switch method {
	case "CloneVM_Task", "InstantClone_Task", "CustomizeVM_Task", "RebootGuest", "StandbyGuest", "UpgradeVM_Task",
		"AttachDisk_Task", "DetachDisk_Task", "PromoteDisks_Task", "RevertToCurrentSnapshot_Task":
		return true
	}
	return false
}

// goName is how the simulator calls a SOAP method in Go.
func goName(method string) string {
	name := strings.ToUpper(method[:1]) + method[1:]
	if head, ok := strings.CutSuffix(name, "_Task"); ok {
		return head + "Task"
	}
	return name
}

// before is what happens to every call: it is counted, made slow, made to
// fail, and checked for what its user may do and whether its host is there.
func (s *Sim) before(ctx *simulator.Context, m *simulator.Method) types.BaseMethodFault {
	delay := s.calls.count(m.Name)
	if delay > 0 {
		t := time.NewTimer(delay)
		defer t.Stop()
		select {
		case <-t.C:
		case <-s.ctx.Done():
			return &types.HostCommunication{}
		}
	}
	if fault := s.calls.take(s.calls.faults, m.Name, false); fault != nil {
		if _, ok := fault.(*types.NotAuthenticated); ok && ctx.Session != nil {
			s.sessions.end(ctx.Session.Key)
		}
		return fault
	}
	if fault := s.mayNot(ctx, m); fault != nil {
		return fault
	}
	return s.hostGone(m.This)
}

// fault wraps a fault as a call's answer; the bodies of all methods have it.
func fault(f types.BaseMethodFault, text string) *soap.Fault { return simulator.Fault(text, f) }

// collectorCalls stands before every property collector, only to leave waiting
// out of the time that the simulator works.
type collectorCalls struct{ base }

func (d *collectorCalls) WaitForUpdatesEx(ctx *simulator.Context, req *types.WaitForUpdatesEx) (res soap.HasFault) {
	pc, ok := ctx.Session.Get(req.This).(*simulator.PropertyCollector)
	if !ok {
		return &methods.WaitForUpdatesExBody{Fault_: fault(&types.ManagedObjectNotFound{Obj: req.This}, "")}
	}
	if req.Version == "" {
		return pc.WaitForUpdatesEx(ctx, req)
	}
	over := make(chan struct{})
	defer close(over)
	stop := context.AfterFunc(d.s.ctx, func() { cancelWait(pc, over) })
	defer stop()
	d.s.front.meter.waiting(func() { res = pc.WaitForUpdatesEx(ctx, req) })
	return res
}

// cancelWait ends a wait for updates, also one that is only about to begin.
func cancelWait(pc *simulator.PropertyCollector, over <-chan struct{}) {
	for {
		pc.CancelWaitForUpdates(&types.CancelWaitForUpdates{})
		select {
		case <-over:
			return
		case <-time.After(5 * time.Millisecond):
		}
	}
}
