package vsphere

import (
	"context"
	"errors"
	"fmt"
	"strings"
	"time"

	"github.com/vmware/govmomi/vim25/mo"
	"github.com/vmware/govmomi/vim25/types"
)

// settlePoll is how often a VM is looked at whose tasks somebody else began.
const settlePoll = 500 * time.Millisecond

// Settle returns when no task takes or removes a snapshot of the VM, whoever
// began it. After a process died in the middle of that, this is when what it began
// can be seen. A VM that is gone is settled.
func (c *Client) Settle(ctx context.Context, vm Ref) error {
	op := "wait for the snapshot tasks of " + string(vm)
	for {
		busy, err := c.busy(ctx, vm)
		if err != nil {
			return c.fail(op, err)
		}
		if busy == "" {
			return nil
		}
		timer := time.NewTimer(settlePoll)
		select {
		case <-timer.C:
		case <-ctx.Done():
			timer.Stop()
			return &Error{Op: op, Kind: ErrBusy, Text: fmt.Sprintf("%s has not ended", busy), Err: context.Cause(ctx)}
		}
	}
}

// busy names a snapshot task that works on the VM, or is empty.
func (c *Client) busy(ctx context.Context, vm Ref) (string, error) {
	objects, err := c.retrieve(ctx, types.PropertyFilterSpec{
		ObjectSet: []types.ObjectSpec{{
			Obj: mor(vm), Skip: types.NewBool(true),
			SelectSet: []types.BaseSelectionSpec{&types.TraversalSpec{Type: "VirtualMachine", Path: "recentTask"}},
		}},
		PropSet: []types.PropertySpec{{Type: "Task", PathSet: []string{"info"}}},
	})
	if err != nil {
		return "", err
	}
	for _, o := range objects {
		v, err := load(o)
		if err != nil {
			return "", err
		}
		task, ok := v.(*mo.Task)
		if !ok {
			return "", errors.New("the server's answer makes no sense")
		}
		running := task.Info.State == types.TaskInfoStateQueued || task.Info.State == types.TaskInfoStateRunning
		if running && strings.Contains(strings.ToLower(task.Info.DescriptionId), "snapshot") {
			return task.Info.DescriptionId, nil
		}
	}
	return "", nil
}
