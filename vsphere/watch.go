package vsphere

import (
	"context"
	"errors"
	"time"

	"github.com/vmware/govmomi/vim25/methods"
	"github.com/vmware/govmomi/vim25/mo"
	"github.com/vmware/govmomi/vim25/types"
)

// Change is one thing that Watch saw.
type Change struct {
	Kind ChangeKind
	Ref  Ref
	VM   *VM // as it is now; nil when it is gone
}

// ChangeKind says what happened to a VM.
type ChangeKind string

// The kinds of change.
const (
	Appeared ChangeKind = "appeared"
	Modified ChangeKind = "modified"
	Vanished ChangeKind = "vanished"
)

// Watch keeps an inventory of VMs current: it calls f for every VM that there
// is (Appeared), and then for each change as the server tells it, until ctx
// ends or f returns an error, which is returned. After the loss of a session it
// starts anew by itself: VMs that are still there come as Modified, those that
// went meanwhile as Vanished. Tags are not watched. The VM that f gets is f's own.
func (c *Client) Watch(ctx context.Context, f func(Change) error) error {
	w := &watch{c: c, f: f}
	for pause := 100 * time.Millisecond; ; pause = min(2*pause, 5*time.Second) {
		epoch := c.session.epoch.Load()
		err := w.run(ctx)
		switch {
		case w.failed != nil:
			return w.failed
		case ctx.Err() != nil:
			return context.Cause(ctx)
		case c.session.epoch.Load() == epoch && !errors.Is(err, errRenewed):
			return c.fail("watch the inventory of "+c.about.Server, err)
		}
		c.log.Info("watching the inventory anew", "server", c.about.Server, "reason", err)
		if !pausing(ctx, pause) {
			return context.Cause(ctx)
		}
	}
}

type watch struct {
	c      *Client
	f      func(Change) error
	failed error // what f returned

	known map[types.ManagedObjectReference]bool // told to f, over all runs
	tree  *tree                                 // what the server told, in this run
}

func (w *watch) run(ctx context.Context) error {
	c := w.c
	w.tree = &tree{entity: map[types.ManagedObjectReference]mo.ManagedEntity{}, objects: map[types.ManagedObjectReference]any{}}
	made, err := methods.CreatePropertyCollector(ctx, c.session, &types.CreatePropertyCollector{This: c.vim.ServiceContent.PropertyCollector})
	if err != nil {
		return err
	}
	pc := collector{ref: made.Returnval, epoch: c.session.epoch.Load()}
	defer c.dropCollector(pc)
	_, err = methods.CreateFilter(ctx, c.session, &types.CreateFilter{
		This: pc.ref, PartialUpdates: false,
		Spec: types.PropertyFilterSpec{
			ObjectSet: []types.ObjectSpec{{Obj: c.vim.ServiceContent.RootFolder, SelectSet: wholeInventory()}},
			PropSet: []types.PropertySpec{
				{Type: "VirtualMachine", PathSet: vmProps},
				{Type: "ManagedEntity", PathSet: []string{"name", "parent"}},
			},
		},
	})
	if err != nil {
		return err
	}
	first, version := map[types.ManagedObjectReference]bool{}, ""
	for {
		res, err := methods.WaitForUpdatesEx(ctx, c.session, &types.WaitForUpdatesEx{
			This: pc.ref, Version: version, Options: &types.WaitOptions{MaxWaitSeconds: types.NewInt32(60)},
		})
		if err != nil {
			return err
		}
		if c.session.epoch.Load() != pc.epoch {
			return errRenewed
		}
		if res.Returnval == nil {
			continue
		}
		version = res.Returnval.Version
		w.take(res.Returnval, first)
		if first != nil && !isTrue(res.Returnval.Truncated) {
			w.afresh(first)
			first = nil
		}
		if w.failed != nil {
			return w.failed
		}
	}
}

// take applies a set of updates. In the first round of a run (first != nil) it
// only collects: a VM's folders may come after it.
func (w *watch) take(set *types.UpdateSet, first map[types.ManagedObjectReference]bool) {
	var touched []types.ManagedObjectReference
	for _, fs := range set.FilterSet {
		for _, u := range fs.ObjectSet {
			if u.Kind == types.ObjectUpdateKindLeave {
				delete(w.tree.objects, u.Obj)
				delete(w.tree.entity, u.Obj)
				w.gone(u.Obj)
				continue
			}
			if err := w.apply(u); err != nil {
				w.c.log.Warn("an update of the inventory is not understood", "object", refOf(u.Obj), "error", err)
				continue
			}
			if u.Obj.Type == "VirtualMachine" {
				touched = append(touched, u.Obj)
			}
		}
	}
	for _, ref := range touched {
		if first != nil {
			first[ref] = true
		} else {
			w.tell(ref)
		}
	}
}

// afresh tells everything after the first round of a run, and what is gone
// since the run before.
func (w *watch) afresh(first map[types.ManagedObjectReference]bool) {
	for ref := range w.known {
		if !first[ref] {
			w.gone(ref)
		}
	}
	if w.known == nil {
		w.known = map[types.ManagedObjectReference]bool{}
	}
	for ref := range first {
		w.tell(ref)
	}
}

// apply brings an object in the tree up to date.
func (w *watch) apply(u types.ObjectUpdate) error {
	content := types.ObjectContent{Obj: u.Obj}
	for _, ch := range u.ChangeSet {
		if ch.Val != nil {
			content.PropSet = append(content.PropSet, types.DynamicProperty{Name: ch.Name, Val: ch.Val})
		}
	}
	old, ok := w.tree.objects[u.Obj]
	if !ok {
		v, err := load(content)
		if err != nil {
			return err
		}
		w.tree.objects[u.Obj] = v
	} else if err := applyChanges(old, u.ChangeSet); err != nil {
		return err
	}
	if e := entityOf(w.tree.objects[u.Obj]); e != nil {
		w.tree.entity[u.Obj] = *e
	}
	return nil
}

// applyChanges is the library's, whose panics on strange answers become errors.
func applyChanges(obj any, changes []types.PropertyChange) (err error) {
	defer func() {
		if p := recover(); p != nil {
			err = panicError{p}
		}
	}()
	if ref, ok := obj.(mo.Reference); ok {
		mo.ApplyPropertyChange(ref, changes)
	}
	return nil
}

func (w *watch) tell(ref types.ManagedObjectReference) {
	o, ok := w.tree.objects[ref].(*mo.VirtualMachine)
	if !ok || w.failed != nil {
		return
	}
	kind := Modified
	if !w.known[ref] {
		kind, w.known[ref] = Appeared, true
	}
	v := w.c.describeVM(w.tree, o)
	w.failed = w.f(Change{Kind: kind, Ref: refOf(ref), VM: &v})
}

func (w *watch) gone(ref types.ManagedObjectReference) {
	if ref.Type != "VirtualMachine" || !w.known[ref] || w.failed != nil {
		return
	}
	delete(w.known, ref)
	w.failed = w.f(Change{Kind: Vanished, Ref: refOf(ref)})
}
