package vsphere

import (
	"context"
	"errors"
	"fmt"
	"sync"
	"time"

	"github.com/vmware/govmomi/vim25/methods"
	"github.com/vmware/govmomi/vim25/mo"
	"github.com/vmware/govmomi/vim25/types"
)

// Waiting for tasks. Each wait has a property collector for itself, because a
// collector has one reader; they are kept and used again, the first being the
// session's own, so that waiting for a task costs four calls (filter, state
// now, state at the end, filter away) and none of them is a poll. A collector
// dies with its session: it carries the epoch in which it was made.
type collectorPool struct {
	mu           sync.Mutex
	free         []collector
	defaultTaken uint64 // epoch + 1 in which the session's own was given out
}

type collector struct {
	ref   types.ManagedObjectReference
	epoch uint64
	own   bool // the session's own: cannot be destroyed
}

func (c *Client) takeCollector(ctx context.Context) (collector, error) {
	epoch := c.session.epoch.Load()
	c.collectors.mu.Lock()
	for n := len(c.collectors.free); n > 0; n = len(c.collectors.free) {
		got := c.collectors.free[n-1]
		c.collectors.free = c.collectors.free[:n-1]
		if got.epoch == epoch {
			c.collectors.mu.Unlock()
			return got, nil
		}
	}
	first := c.collectors.defaultTaken != epoch+1
	c.collectors.defaultTaken = epoch + 1
	c.collectors.mu.Unlock()
	own := c.vim.ServiceContent.PropertyCollector
	if first {
		return collector{ref: own, epoch: epoch, own: true}, nil
	}
	res, err := methods.CreatePropertyCollector(ctx, c.session, &types.CreatePropertyCollector{This: own})
	if err != nil {
		return collector{}, err
	}
	return collector{ref: res.Returnval, epoch: c.session.epoch.Load()}, nil
}

func (c *Client) giveCollector(pc collector) {
	c.collectors.mu.Lock()
	defer c.collectors.mu.Unlock()
	c.collectors.free = append(c.collectors.free, pc)
}

// dropCollector gets rid of one that somebody may still be waiting on.
func (c *Client) dropCollector(pc collector) {
	if pc.epoch != c.session.epoch.Load() || c.closed.Load() {
		return
	}
	ctx, cancel := context.WithTimeout(context.Background(), 5*time.Second)
	defer cancel()
	if pc.own {
		_, _ = methods.CancelWaitForUpdates(ctx, c.session, &types.CancelWaitForUpdates{This: pc.ref})
		return
	}
	_, _ = methods.DestroyPropertyCollector(ctx, c.session, &types.DestroyPropertyCollector{This: pc.ref})
}

// patienceAfterCancel is how long a task is given to end after its caller went
// away, so that the caller learns what became of it.
const patienceAfterCancel = 5 * time.Second

// wait waits for a task to end and returns what it resulted in. When ctx ends
// first, the task is asked to stop: should it nevertheless succeed, that is
// returned as success, because the effect is there.
func (c *Client) wait(ctx context.Context, op string, task types.ManagedObjectReference, progress func(Progress)) (types.AnyType, error) {
	return c.waitFor(ctx, op, follower{task: task, progress: progress})
}

// waitAnswering is wait for a task during which a VM may ask something.
func (c *Client) waitAnswering(ctx context.Context, op string, task, vm types.ManagedObjectReference, question func(types.VirtualMachineQuestionInfo)) (types.AnyType, error) {
	return c.waitFor(ctx, op, follower{task: task, vm: vm, question: question})
}

// follower is what is listened to while a task runs.
type follower struct {
	task     types.ManagedObjectReference
	progress func(Progress) // may be nil
	vm       types.ManagedObjectReference
	question func(types.VirtualMachineQuestionInfo) // of vm; may be nil
}

func (c *Client) waitFor(ctx context.Context, op string, f follower) (types.AnyType, error) {
	task := f.task
	info, err := c.follow(ctx, f)
	if err != nil && ctx.Err() != nil {
		late, cancel := context.WithTimeout(context.WithoutCancel(ctx), patienceAfterCancel)
		defer cancel()
		_, _ = methods.CancelTask(late, c.session, &types.CancelTask{This: task})
		info, err = c.follow(late, follower{task: task})
		if err != nil {
			return nil, &Error{Op: op, Kind: ErrTaskLost, Text: "interrupted while the task goes on at the server", Err: errors.Join(context.Cause(ctx), err)}
		}
	}
	if err != nil {
		if isGone(err, task) {
			return nil, &Error{Op: op, Kind: ErrTaskLost, Text: "the server was started anew and does not know the task any more; whether it was carried out has to be looked at", Err: err}
		}
		return nil, c.fail(op, err)
	}
	if info.Error != nil {
		err := error(&taskError{info.Error})
		if ctx.Err() != nil {
			err = errors.Join(context.Cause(ctx), err)
		}
		return nil, c.fail(op, err)
	}
	return info.Result, nil
}

// taskError is the fault that a task ended with.
type taskError struct{ *types.LocalizedMethodFault }

func (e *taskError) Error() string {
	if e.LocalizedMessage != "" {
		return e.LocalizedMessage
	}
	return fmt.Sprintf("%T", e.LocalizedMethodFault.Fault)
}

func (e *taskError) Fault() types.BaseMethodFault { return e.LocalizedMethodFault.Fault }

// isGone reports whether err says that ref does not exist.
func isGone(err error, ref types.ManagedObjectReference) bool {
	f, _ := faultOf(err)
	gone, ok := f.(*types.ManagedObjectNotFound)
	return ok && gone.Obj == ref
}

// follow waits for the end of a task, through the loss of sessions: their
// collectors are gone then, the task is not.
func (c *Client) follow(ctx context.Context, f follower) (*types.TaskInfo, error) {
	for pause := time.Duration(0); ; pause = min(2*pause+100*time.Millisecond, 5*time.Second) {
		if !pausing(ctx, pause) {
			return nil, context.Cause(ctx)
		}
		pc, err := c.takeCollector(ctx)
		if err != nil {
			return nil, err
		}
		info, err := c.followWith(ctx, pc, f)
		if err == nil {
			return info, nil
		}
		c.dropCollector(pc)
		if ctx.Err() != nil || isGone(err, f.task) || (pc.epoch == c.session.epoch.Load() && !errors.Is(err, errRenewed)) {
			return nil, err
		}
	}
}

func (c *Client) followWith(ctx context.Context, pc collector, f follower) (*types.TaskInfo, error) {
	spec := types.PropertyFilterSpec{
		ObjectSet: []types.ObjectSpec{{Obj: f.task}},
		PropSet:   []types.PropertySpec{{Type: "Task", PathSet: []string{"info"}}},
	}
	if f.question != nil {
		spec.ObjectSet = append(spec.ObjectSet, types.ObjectSpec{Obj: f.vm})
		spec.PropSet = append(spec.PropSet, types.PropertySpec{Type: f.vm.Type, PathSet: []string{"runtime.question"}})
	}
	filter, err := methods.CreateFilter(ctx, c.session, &types.CreateFilter{This: pc.ref, Spec: spec})
	if err != nil {
		return nil, err
	}
	info, err := c.updates(ctx, pc, f)
	if err != nil {
		return nil, err
	}
	if _, err := methods.DestroyPropertyFilter(ctx, c.session, &types.DestroyPropertyFilter{This: filter.Returnval}); err == nil {
		c.giveCollector(pc)
	} else {
		c.dropCollector(pc)
	}
	return info, nil
}

func (c *Client) updates(ctx context.Context, pc collector, f follower) (*types.TaskInfo, error) {
	version, pause := "", time.Duration(0)
	for {
		res, err := methods.WaitForUpdatesEx(ctx, c.session, &types.WaitForUpdatesEx{
			This: pc.ref, Version: version,
			Options: &types.WaitOptions{MaxWaitSeconds: types.NewInt32(30)},
		})
		if err != nil {
			return nil, err
		}
		if c.session.epoch.Load() != pc.epoch { // somebody else noticed that the session was lost
			return nil, errRenewed
		}
		if res.Returnval == nil { // nothing happened in 30 s; or it was told, and lost on the way
			if info := c.taskNow(ctx, f.task); info != nil && ended(info) {
				return info, nil
			}
			continue
		}
		version = res.Returnval.Version
		f.listen(res.Returnval)
		info, err := taskInfo(res.Returnval, f.task)
		if err != nil {
			return nil, err
		}
		if info == nil {
			continue
		}
		if ended(info) {
			return info, nil
		}
		report(info, f.progress)
		// Many small steps of progress must not become as many calls.
		if !pausing(ctx, pause) {
			return nil, context.Cause(ctx)
		}
		pause = min(pause*2+20*time.Millisecond, time.Second)
	}
}

func ended(info *types.TaskInfo) bool {
	return info.State == types.TaskInfoStateSuccess || info.State == types.TaskInfoStateError
}

// taskNow asks how a task stands; nil when that is not to be had now.
func (c *Client) taskNow(ctx context.Context, task types.ManagedObjectReference) *types.TaskInfo {
	var o mo.Task
	if err := c.retrieveOne(ctx, "look at a task", task, []string{"info"}, &o); err != nil {
		return nil
	}
	return &o.Info
}

// listen passes questions on.
func (f follower) listen(set *types.UpdateSet) {
	if f.question == nil {
		return
	}
	for _, fs := range set.FilterSet {
		for _, o := range fs.ObjectSet {
			for _, ch := range o.ChangeSet {
				if q, ok := ch.Val.(types.VirtualMachineQuestionInfo); ok && o.Obj == f.vm {
					f.question(q)
				}
			}
		}
	}
}

// taskInfo finds the newest state of a task in a set of updates; nil when the
// set is about something else.
func taskInfo(set *types.UpdateSet, task types.ManagedObjectReference) (*types.TaskInfo, error) {
	var out *types.TaskInfo
	for _, f := range set.FilterSet {
		for _, m := range f.MissingSet {
			if m.Obj == task {
				return nil, &taskError{&m.Fault}
			}
		}
		for _, o := range f.ObjectSet {
			if o.Obj != task {
				continue
			}
			if o.Kind == types.ObjectUpdateKindLeave {
				return nil, &taskError{&types.LocalizedMethodFault{Fault: &types.ManagedObjectNotFound{Obj: task}}}
			}
			for _, m := range o.MissingSet { // it may not be read: waiting would never end
				return nil, &taskError{&m.Fault}
			}
			for _, ch := range o.ChangeSet {
				if info, ok := ch.Val.(types.TaskInfo); ok && ch.Name == "info" {
					out = &info
				}
			}
		}
	}
	return out, nil
}

func report(info *types.TaskInfo, progress func(Progress)) {
	if progress == nil {
		return
	}
	p := Progress{Percent: int(min(max(info.Progress, 0), 100)), State: string(info.State)}
	if info.Description != nil {
		p.Message = info.Description.Message
	}
	progress(p)
}
