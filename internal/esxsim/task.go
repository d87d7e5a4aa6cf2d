package esxsim

import (
	"context"
	"errors"
	"fmt"
	"reflect"
	"strings"
	"sync/atomic"
	"time"

	"github.com/vmware/govmomi/simulator"
	"github.com/vmware/govmomi/vim25/methods"
	"github.com/vmware/govmomi/vim25/soap"
	"github.com/vmware/govmomi/vim25/types"
)

// task is one long operation. govmomi's own tasks hold the lock of their entity
// while they run, so that its properties cannot be read, and have no progress
// and nothing to cancel; these do.
type task struct {
	obj       *simulator.Task
	cancel    context.CancelCauseFunc
	stoppable bool
	percent   atomic.Int32
	gone      atomic.Bool // forgotten by a restart
}

// work is what a task does. It reports progress in percent. What it returns is
// the task's result.
type work func(ctx context.Context, progress func(percent int)) (any, types.BaseMethodFault)

var errCancelled = errors.New("cancelled by the user")

// startTask runs f as a task on an entity. v, if not nil, is the VM that the
// task has for itself: a second one gets TaskInProgress [API].
func (s *Sim) startTask(ctx *simulator.Context, method string, entity ref, v *vm, stoppable bool, f work) (ref, *soap.Fault) {
	t := &task{obj: s.newTaskObject(ctx, method, entity), stoppable: stoppable}
	s.mu.Lock()
	if v != nil {
		if v.busy != nil {
			other := v.busy.obj.Self
			s.mu.Unlock()
			return ref{}, fault(&types.TaskInProgress{Task: other}, "Another task is already in progress.")
		}
		v.busy = t
	}
	if s.ctx.Err() != nil {
		s.mu.Unlock()
		return ref{}, fault(&types.HostCommunication{}, "shutting down")
	}
	s.running.Add(1)
	s.reg.Put(t.obj)
	self := t.obj.Self
	s.tasks[self] = t
	s.mu.Unlock()
	work, cancel := context.WithCancelCause(s.ctx)
	t.cancel = cancel
	s.front.meter.add(1)
	go func() {
		defer s.running.Done()
		defer cancel(nil)
		result, bad := s.runTask(work, method, t, f)
		s.mu.Lock()
		if v != nil {
			v.busy = nil
		}
		s.mu.Unlock()
		s.front.meter.add(-1)
		s.finishTask(t, result, bad)
	}()
	return self, nil
}

func (s *Sim) newTaskObject(ctx *simulator.Context, method string, entity ref) *simulator.Task {
	obj := &simulator.Task{}
	n := s.taskNumber.Add(1)
	obj.Self = ref{Type: "Task", Value: fmt.Sprintf("task-%d", n)}
	name := strings.TrimSuffix(method, "_Task")
	user := s.opts.Username
	if ctx != nil && ctx.Session != nil {
		user = ctx.Session.UserName
	}
	now := time.Now()
	obj.Info = types.TaskInfo{
		Key: obj.Self.Value, Task: obj.Self, Name: method,
		DescriptionId: entity.Type + "." + strings.ToLower(name[:1]) + name[1:],
		Entity:        &entity, EntityName: entity.Value,
		Reason:    &types.TaskReasonUser{UserName: user},
		QueueTime: now, StartTime: &now, State: types.TaskInfoStateRunning,
	}
	return obj
}

func (s *Sim) runTask(ctx context.Context, method string, t *task, f work) (any, types.BaseMethodFault) {
	if bad := s.calls.take(s.calls.tasks, method, false); bad != nil {
		return nil, bad
	}
	progress := func(percent int) {
		p := int32(min(max(percent, 0), 100))
		if old := t.percent.Swap(p); old != p && !t.gone.Load() {
			s.update(t.obj, []types.PropertyChange{{Name: "info.progress", Val: p}})
		}
	}
	result, bad := f(ctx, progress)
	if errors.Is(context.Cause(ctx), errCancelled) && bad != nil {
		bad = &types.RequestCanceled{}
	}
	if bad == nil {
		bad = s.calls.take(s.calls.tasks, method, true)
	}
	return result, bad
}

func (s *Sim) finishTask(t *task, result any, bad types.BaseMethodFault) {
	if t.gone.Load() {
		return
	}
	now := time.Now()
	changes := []types.PropertyChange{{Name: "info.completeTime", Val: now}}
	if bad != nil {
		changes = append(changes, types.PropertyChange{Name: "info.error", Val: &types.LocalizedMethodFault{
			Fault: bad, LocalizedMessage: describe(bad),
		}})
		if _, ok := bad.(*types.RequestCanceled); ok {
			changes = append(changes, types.PropertyChange{Name: "info.cancelled", Val: true})
		}
		s.update(t.obj, append(changes, types.PropertyChange{Name: "info.state", Val: types.TaskInfoStateError}))
		return
	}
	if result != nil {
		changes = append(changes, types.PropertyChange{Name: "info.result", Val: result})
	}
	s.update(t.obj, append(changes, types.PropertyChange{Name: "info.state", Val: types.TaskInfoStateSuccess}))
}

// describe is a fault's localized message.
func describe(f types.BaseMethodFault) string {
	if m := f.GetMethodFault(); m != nil && len(m.FaultMessage) > 0 && m.FaultMessage[0].Message != "" {
		return m.FaultMessage[0].Message
	}
	if e, ok := f.(*types.SystemError); ok {
		return "A general system error occurred: " + e.Reason
	}
	return "A general fault occurred: " + reflect.TypeOf(f).Elem().Name()
}

// said gives a fault a message, as hosts do [API: MethodFault.faultMessage].
func said[F types.BaseMethodFault](f F, key, format string, args ...any) F {
	text := fmt.Sprintf(format, args...)
	if m := f.GetMethodFault(); m != nil {
		m.FaultMessage = []types.LocalizableMessage{{Key: key, Message: text}}
	}
	return f
}

// forgetTasks removes all task objects; what they do goes on [field].
func (s *Sim) forgetTasks() {
	s.mu.Lock()
	defer s.mu.Unlock()
	for self, t := range s.tasks {
		t.gone.Store(true)
		s.reg.Remove(s.background(), self)
	}
	clear(s.tasks)
}

// taskCalls stands before Task.
type taskCalls struct{ base }

// CancelTask: of a task that cannot be cancelled it is NotSupported [API].
func (d *taskCalls) CancelTask(_ *simulator.Context, req *types.CancelTask) soap.HasFault {
	d.s.mu.Lock()
	t := d.s.tasks[req.This]
	d.s.mu.Unlock()
	switch {
	case t == nil:
		return &methods.CancelTaskBody{Fault_: fault(&types.ManagedObjectNotFound{Obj: req.This}, "")}
	case !t.stoppable:
		return &methods.CancelTaskBody{Fault_: fault(&types.NotSupported{}, "The task cannot be cancelled.")}
	}
	t.cancel(errCancelled)
	return &methods.CancelTaskBody{Res: &types.CancelTaskResponse{}}
}
