package esxsim

import (
	"reflect"
	"slices"
	"strings"
	"sync"

	"github.com/vmware/govmomi/simulator"
	"github.com/vmware/govmomi/vim25/methods"
	"github.com/vmware/govmomi/vim25/mo"
	"github.com/vmware/govmomi/vim25/soap"
	"github.com/vmware/govmomi/vim25/types"
)

// watchBook knows which properties anybody waits for, by type of object. The
// simulator compares names of changes with those of filters: a change of "info"
// does not reach who waits for "info.state", and one of "info.state" makes it
// read "info" without the object's lock for who waits for that. So a change is
// told under exactly the names that were asked for.
type watchBook struct {
	mu    sync.Mutex
	names map[string][]string
}

func (b *watchBook) note(set []types.PropertySpec) {
	b.mu.Lock()
	defer b.mu.Unlock()
	if b.names == nil {
		b.names = map[string][]string{}
	}
	for _, p := range set {
		for _, name := range p.PathSet {
			if !slices.Contains(b.names[p.Type], name) {
				b.names[p.Type] = append(b.names[p.Type], name)
			}
		}
	}
}

// touched are the names, of those that are waited for, that changes concern.
func (b *watchBook) touched(kind string, changes []types.PropertyChange) []string {
	b.mu.Lock()
	defer b.mu.Unlock()
	var list []string
	for _, name := range slices.Concat(b.names[kind], b.names["ManagedEntity"]) {
		concerns := slices.ContainsFunc(changes, func(c types.PropertyChange) bool {
			return c.Name == name || strings.HasPrefix(c.Name, name+".") || strings.HasPrefix(name, c.Name+".")
		})
		if concerns && !slices.Contains(list, name) {
			list = append(list, name)
		}
	}
	return list
}

// CreateFilter notes what is waited for.
func (d *collectorCalls) CreateFilter(ctx *simulator.Context, req *types.CreateFilter) soap.HasFault {
	pc, ok := ctx.Session.Get(req.This).(*simulator.PropertyCollector)
	if !ok {
		return &methods.CreateFilterBody{Fault_: fault(&types.ManagedObjectNotFound{Obj: req.This}, "")}
	}
	d.s.watched.note(req.Spec.PropSet)
	return pc.CreateFilter(ctx, req)
}

// update changes properties of an object and tells those who wait for it.
// Values become the object's: nothing that a value points to may change later.
func (s *Sim) update(obj mo.Reference, changes []types.PropertyChange) {
	ctx := s.background()
	s.reg.WithLock(ctx, obj, func() { s.apply(ctx, obj, changes) })
}

// apply is update for those who have the object's lock.
func (s *Sim) apply(ctx *simulator.Context, obj mo.Reference, changes []types.PropertyChange) {
	m := managed(obj)
	mo.ApplyPropertyChange(m, changes)
	var told []types.PropertyChange
	for _, name := range s.watched.touched(m.Reference().Type, changes) {
		if v, ok := property(m, name); ok {
			told = append(told, types.PropertyChange{Name: name, Val: v})
		}
	}
	if len(told) > 0 {
		s.reg.Update(ctx, obj, told)
	}
}

// managed is the object of package mo in one of the simulator's or ours.
func managed(obj mo.Reference) mo.Reference {
	switch o := obj.(type) {
	case *simulator.VirtualMachine:
		return &o.VirtualMachine
	case *simulator.VirtualMachineSnapshot:
		return &o.VirtualMachineSnapshot
	case *simulator.HostSystem:
		return &o.HostSystem
	case *simulator.Datastore:
		return &o.Datastore
	case *simulator.Task:
		return &o.Task
	case *leaseObject:
		return &o.HttpNfcLease
	}
	return obj
}

// property reads a property by its path; false: there is no such one.
func property(obj mo.Reference, path string) (any, bool) {
	v := reflect.ValueOf(obj).Elem()
	for name := range strings.SplitSeq(path, ".") {
		for v.Kind() == reflect.Pointer || v.Kind() == reflect.Interface {
			if v.IsNil() {
				return nil, true
			}
			v = v.Elem()
		}
		if v.Kind() != reflect.Struct || name == "" {
			return nil, false
		}
		if v = v.FieldByName(strings.ToUpper(name[:1]) + name[1:]); !v.IsValid() {
			return nil, false
		}
	}
	switch v.Kind() {
	case reflect.Pointer, reflect.Interface, reflect.Slice:
		if v.IsNil() {
			return nil, true
		}
	}
	if v.Kind() == reflect.Pointer && v.Elem().Kind() != reflect.Struct {
		v = v.Elem() // *bool and the like are told as values
	}
	return v.Interface(), true
}
