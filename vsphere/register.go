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

// RegisterSpec says what to register and where.
type RegisterSpec struct {
	Path     string // "[datastore] folder/name.vmx"
	Name     string // "" = as the .vmx says
	Host     Ref
	Folder   Ref // "" = the vm folder of the host's datacenter
	Pool     Ref // "" = the root pool of the host's cluster
	Template bool
}

// home is where a host puts VMs when nobody says.
type home struct{ folder, pool Ref }

// homeOf finds the vm folder of a host's datacenter and the root pool of its
// cluster, with one call.
func (c *Client) homeOf(ctx context.Context, op string, host Ref) (home, error) {
	objects, err := c.retrieve(ctx, types.PropertyFilterSpec{
		ObjectSet: []types.ObjectSpec{{Obj: mor(host), Skip: types.NewBool(false), SelectSet: surroundings()[:1]}},
		PropSet: []types.PropertySpec{
			{Type: "HostSystem", PathSet: []string{"name", "parent"}},
			{Type: "Folder", PathSet: []string{"name", "parent"}},
			{Type: "ComputeResource", PathSet: []string{"name", "parent", "resourcePool"}},
			{Type: "ClusterComputeResource", PathSet: []string{"name", "parent", "resourcePool"}},
			{Type: "Datacenter", PathSet: []string{"name", "parent", "vmFolder"}},
		},
	})
	if err != nil {
		return home{}, c.fail(op, err)
	}
	t, err := newTree(objects)
	if err != nil {
		return home{}, c.fail(op, err)
	}
	h, ok := t.objects[mor(host)].(*mo.HostSystem)
	if !ok {
		return home{}, &Error{Op: op, Kind: ErrNotFound, Text: "there is no such host, or this user may not see it"}
	}
	d := t.describeHost(h)
	return home{folder: d.FolderRef, pool: d.PoolRef}, nil
}

// RegisterVM registers a VM by its .vmx on a datastore. Errors: ErrExists (the
// name, or the .vmx, is registered already), ErrNotFound (no such file),
// ErrInvalid (the .vmx is not accepted), ErrPermission.
func (c *Client) RegisterVM(ctx context.Context, s RegisterSpec) (Ref, error) {
	op := fmt.Sprintf("register %s as %q", s.Path, s.Name)
	if s.Folder == "" || (s.Pool == "" && !s.Template) {
		at, err := c.homeOf(ctx, op, s.Host)
		if err != nil {
			return "", err
		}
		if s.Folder == "" {
			s.Folder = at.folder
		}
		if s.Pool == "" {
			s.Pool = at.pool
		}
	}
	req := types.RegisterVM_Task{This: mor(s.Folder), Path: s.Path, Name: wireName(s.Name), AsTemplate: s.Template, Host: morPtr(s.Host)}
	if !s.Template { // a template has no pool
		req.Pool = morPtr(s.Pool)
	}
	task, err := methods.RegisterVM_Task(ctx, c.session, &req)
	if err != nil {
		return "", c.fail(op, err)
	}
	return c.madeVM(ctx, op, task.Returnval)
}

// madeVM waits for a task that results in a VM.
func (c *Client) madeVM(ctx context.Context, op string, task types.ManagedObjectReference) (Ref, error) {
	result, err := c.wait(ctx, op, task, nil)
	if err != nil {
		return "", err
	}
	ref, ok := result.(types.ManagedObjectReference)
	if !ok {
		return "", &Error{Op: op, Kind: ErrFault, Text: fmt.Sprintf("the server does not say which VM it made (%T)", result)}
	}
	return refOf(ref), nil
}

// Unregister takes a VM out of the inventory and leaves its files. That it is
// gone already is no error. Errors: ErrState (it runs).
func (c *Client) Unregister(ctx context.Context, vm Ref) error {
	_, err := methods.UnregisterVM(ctx, c.session, &types.UnregisterVM{This: mor(vm)})
	if err != nil && !isGone(err, mor(vm)) {
		return c.fail("unregister "+string(vm), err)
	}
	return nil
}

// DeleteVM unregisters a VM and deletes its files and disks. That it is gone
// already is no error. Never for a VM whose disks are ours to keep: see Unregister.
func (c *Client) DeleteVM(ctx context.Context, vm Ref) error {
	op := "delete " + string(vm)
	task, err := methods.Destroy_Task(ctx, c.session, &types.Destroy_Task{This: mor(vm)})
	if err != nil {
		if isGone(err, mor(vm)) {
			return nil
		}
		return c.fail(op, err)
	}
	_, err = c.wait(ctx, op, task.Returnval, nil)
	return err
}

// PowerOn starts a VM; that it runs already is no error. Should the host ask
// whether the VM was moved or copied, the answer is moved, which keeps what the
// .vmx says. Any other question ends the power-on with ErrQuestion, which tells it.
func (c *Client) PowerOn(ctx context.Context, vm Ref) error {
	op := "power on " + string(vm)
	task, err := methods.PowerOnVM_Task(ctx, c.session, &types.PowerOnVM_Task{This: mor(vm)})
	if err != nil {
		return c.alreadyIn(op, err, types.VirtualMachinePowerStatePoweredOn)
	}
	ctx, cancel := context.WithCancelCause(ctx)
	defer cancel(nil)
	answered := map[string]bool{} // a question stays to be seen for a while
	_, err = c.waitAnswering(ctx, op, task.Returnval, mor(vm), func(q types.VirtualMachineQuestionInfo) {
		if answered[q.Id] {
			return
		}
		answered[q.Id] = true
		if err := c.answer(ctx, op, vm, q); err != nil {
			cancel(err)
		}
	})
	if asked := context.Cause(ctx); err != nil && errors.Is(asked, ErrQuestion) {
		return asked
	}
	return c.alreadyIn(op, err, types.VirtualMachinePowerStatePoweredOn)
}

// ErrQuestion means that a VM waits for an answer which only a person can give.
var ErrQuestion = errors.New("the VM asks a question")

// answer answers whether a VM was moved or copied (msg.uuid.altered).
func (c *Client) answer(ctx context.Context, op string, vm Ref, q types.VirtualMachineQuestionInfo) error {
	for _, choice := range q.Choice.ChoiceInfo {
		if d := choice.GetElementDescription(); d.Label == "button.uuid.movedTheVM" || d.Label == "I Moved It" || d.Label == "I _Moved It" {
			_, err := methods.AnswerVM(ctx, c.session, &types.AnswerVM{This: mor(vm), QuestionId: q.Id, AnswerChoice: d.Key})
			if err != nil { // somebody else was faster, or the task says what is wrong
				c.log.Warn("answer to the VM's question was not taken", "vm", vm, "error", err)
			}
			return nil
		}
	}
	return &Error{Op: op, Kind: ErrQuestion, Text: "it waits for an answer; give it in the vSphere Client, then try again: " + q.Text}
}

// PowerOff switches a VM off at once; that it is off already is no error.
func (c *Client) PowerOff(ctx context.Context, vm Ref) error {
	op := "power off " + string(vm)
	task, err := methods.PowerOffVM_Task(ctx, c.session, &types.PowerOffVM_Task{This: mor(vm)})
	if err == nil {
		_, err = c.wait(ctx, op, task.Returnval, nil)
	} else {
		err = c.fail(op, err)
	}
	return c.alreadyIn(op, err, types.VirtualMachinePowerStatePoweredOff)
}

// alreadyIn forgives a refusal for the reason that it is so already.
func (c *Client) alreadyIn(op string, err error, state types.VirtualMachinePowerState) error {
	f, _ := faultOf(err)
	if p, ok := f.(*types.InvalidPowerState); ok && p.ExistingState == state {
		return nil
	}
	return c.fail(op, err)
}

// Shutdown asks the guest to shut down, and waits until the VM is off or ctx
// ends. Errors: ErrGuestTools (nobody there to ask: PowerOff is left).
func (c *Client) Shutdown(ctx context.Context, vm Ref) error {
	op := "shut down " + string(vm)
	if _, err := methods.ShutdownGuest(ctx, c.session, &types.ShutdownGuest{This: mor(vm)}); err != nil {
		return c.alreadyIn(op, err, types.VirtualMachinePowerStatePoweredOff)
	}
	for {
		var o mo.VirtualMachine
		if err := c.retrieveOne(ctx, op, mor(vm), []string{"runtime.powerState"}, &o); err != nil {
			return err
		}
		if o.Runtime.PowerState != types.VirtualMachinePowerStatePoweredOn {
			return nil
		}
		if !pausing(ctx, time.Second) {
			return c.fail(op, context.Cause(ctx))
		}
	}
}
