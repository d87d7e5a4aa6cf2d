package qemu

import (
	"context"
	"errors"
	"fmt"
	"os"
	"os/exec"
	"strings"
	"time"
)

// Move describes a live move of a disk to other storage: what Storage vMotion
// does, with QEMU's block mirror.
type Move struct {
	// Disk is the ID of the disk to move; empty means "disk0".
	Disk string
	// Path is the file to move it to. It must not exist: it is made, and
	// removed again when the move fails.
	Path string
	// Format of the target, "raw" (the default) or "qcow2".
	Format string
	// BytesPerSecond limits the copy; 0 means no limit.
	BytesPerSecond int64
	// Progress, if not nil, is called a few times a second and once at the
	// end, from Move's goroutine.
	Progress func(MoveProgress)
}

// MoveProgress says how far a move is.
type MoveProgress struct {
	Copied int64 // bytes
	Total  int64 // bytes; grows while the guest writes to what was copied
	Ready  bool  // source and target are the same; the switch comes next
}

// MoveResult is the outcome of a move.
type MoveResult struct {
	Bytes int64         // copied, zeros included
	Took  time.Duration // from the command to the switch being done
	Pivot time.Duration // the last part of it: the switch itself
}

// ErrMoving is returned when the disk is being moved already.
var ErrMoving = errors.New("the disk is being moved already")

// pollJob is how often the state of a job is asked when no event comes.
const pollJob = 100 * time.Millisecond

// jobInfo is one entry of query-jobs.
type jobInfo struct {
	ID       string `json:"id"`
	Status   string `json:"status"`
	Progress int64  `json:"current-progress"`
	Total    int64  `json:"total-progress"`
	Error    string `json:"error"`
}

// Move copies a disk to other storage while the guest runs and switches it
// over. When the error is nil the guest reads and writes the target only, and
// the source has been closed (for NFS: the connection is gone). On error, also
// when ctx is cancelled, the guest is still on the source and the target has
// been removed; but a result together with an error means that the guest is on
// the target and only the source could not be closed.
//
// The job's state is asked for, not taken from events: an event is only a
// reason to ask early. So nothing hangs on a lost event, and the job's own
// error is found in a concluded job, which stays until it is dismissed.
func (m *Machine) Move(ctx context.Context, mv Move) (*MoveResult, error) {
	setDefault(&mv.Disk, "disk0")
	setDefault(&mv.Format, "raw")
	state, err := m.claim(mv)
	if err != nil {
		return nil, fmt.Errorf("moving disk %s of %s: %w", mv.Disk, m.opts.Name, err)
	}
	from, to := state.generation, state.generation+1
	result, err := m.move(ctx, mv, from, to)
	if result != nil {
		err = m.deleteNodes(ctx, mv.Disk, from)
	}
	m.mu.Lock()
	state.moving = false
	if result != nil {
		state.generation = to
	}
	m.mu.Unlock()
	if err != nil {
		return result, fmt.Errorf("moving disk %s of %s to %s: %w", mv.Disk, m.opts.Name, mv.Path, err)
	}
	return result, nil
}

func (m *Machine) claim(mv Move) (*diskState, error) {
	if err := checkFormat(mv.Format); err != nil {
		return nil, err
	}
	m.mu.Lock()
	defer m.mu.Unlock()
	state, ok := m.disks[mv.Disk]
	switch {
	case !ok:
		return nil, errors.New("there is no such disk")
	case state.moving:
		return nil, ErrMoving
	}
	state.moving = true
	return state, nil
}

func (m *Machine) move(ctx context.Context, mv Move, from, to int) (*MoveResult, error) {
	start := time.Now()
	size, err := m.nodeSize(ctx, formatName(mv.Disk, from))
	if err != nil {
		return nil, err
	}
	if err := createTarget(ctx, mv, size); err != nil {
		return nil, err
	}
	result, err := m.mirror(ctx, mv, from, to)
	if err != nil {
		// The context may be what ended it; cleaning up must not fail for it.
		clean, cancel := context.WithTimeout(context.WithoutCancel(ctx), 30*time.Second)
		defer cancel()
		return nil, errors.Join(err, m.deleteNodes(clean, mv.Disk, to), os.Remove(mv.Path))
	}
	result.Took = time.Since(start)
	return result, nil
}

// nodeSize is the virtual size of a block node in bytes.
func (m *Machine) nodeSize(ctx context.Context, name string) (int64, error) {
	var nodes []struct {
		Name  string `json:"node-name"`
		Image struct {
			Size int64 `json:"virtual-size"`
		} `json:"image"`
	}
	if err := m.monitor.Execute(ctx, "query-named-block-nodes", node{"flat": true}, &nodes); err != nil {
		return 0, err
	}
	for _, n := range nodes {
		if n.Name == name {
			return n.Image.Size, nil
		}
	}
	return 0, fmt.Errorf("QEMU does not know its block node %s", name)
}

func createTarget(ctx context.Context, mv Move, size int64) error {
	f, err := os.OpenFile(mv.Path, os.O_WRONLY|os.O_CREATE|os.O_EXCL, 0o600)
	if err != nil {
		return fmt.Errorf("creating the target: %w", err)
	}
	if mv.Format == "raw" {
		err = f.Truncate(size)
	}
	if err = errors.Join(err, f.Close()); err == nil && mv.Format != "raw" {
		var out []byte
		// -- because a path may begin with a dash.
		out, err = exec.CommandContext(ctx, "qemu-img", "create", "-q", "-f", mv.Format, "--", mv.Path, fmt.Sprint(size)).CombinedOutput()
		if err != nil {
			err = fmt.Errorf("qemu-img: %w: %s", err, strings.TrimSpace(string(out)))
		}
	}
	if err != nil {
		return fmt.Errorf("creating the target: %w", errors.Join(err, os.Remove(mv.Path)))
	}
	return nil
}

// mirror opens the target, copies, and switches over.
func (m *Machine) mirror(ctx context.Context, mv Move, from, to int) (*MoveResult, error) {
	format, protocol := formatName(mv.Disk, to), protocolName(mv.Disk, to)
	p, err := protocolNode(protocol, mv.Path, false, false)
	if err != nil {
		return nil, err
	}
	if err := m.monitor.Execute(ctx, "blockdev-add", p, nil); err != nil {
		return nil, err
	}
	if err := m.monitor.Execute(ctx, "blockdev-add", formatNode(format, protocol, mv.Format, false), nil); err != nil {
		return nil, err
	}
	job := "move-" + format
	events := m.monitor.Subscribe("JOB_STATUS_CHANGE", "BLOCK_JOB_READY", "BLOCK_JOB_ERROR")
	defer events.Close()
	args := node{
		"job-id": job, "device": formatName(mv.Disk, from), "target": format, "sync": "full",
		"speed": mv.BytesPerSecond, "auto-dismiss": false,
		"on-source-error": "report", "on-target-error": "report",
	}
	if err := m.monitor.Execute(ctx, "blockdev-mirror", args, nil); err != nil {
		return nil, err
	}
	result, err := m.follow(ctx, mv, job, events)
	if err != nil {
		m.abandon(ctx, job)
	}
	return result, err
}

// follow sees the job through: wait until it is ready, complete it, wait until
// it has concluded, dismiss it.
func (m *Machine) follow(ctx context.Context, mv Move, job string, events *Subscription) (*MoveResult, error) {
	result := &MoveResult{}
	var pivot time.Time
	for {
		j, err := m.job(ctx, job)
		if err != nil {
			return nil, err
		}
		result.Bytes = j.Progress
		ready := j.Status == "ready" || !pivot.IsZero()
		if mv.Progress != nil {
			mv.Progress(MoveProgress{Copied: j.Progress, Total: j.Total, Ready: ready})
		}
		switch {
		case j.Status == "concluded" && j.Error != "":
			return nil, fmt.Errorf("the copy failed: %s", j.Error)
		case j.Status == "concluded" && pivot.IsZero():
			return nil, errors.New("the copy was cancelled")
		case j.Status == "concluded":
			result.Pivot = time.Since(pivot)
			// Dismissing only makes QEMU forget the job: the switch is done.
			_ = m.monitor.Execute(ctx, "job-dismiss", node{"id": job}, nil)
			return result, nil
		case j.Status == "ready" && pivot.IsZero():
			pivot = time.Now()
			if err := m.monitor.Execute(ctx, "job-complete", node{"id": job}, nil); err != nil {
				return nil, err
			}
		}
		if err := m.nextPoll(ctx, events); err != nil {
			return nil, err
		}
	}
}

func (m *Machine) nextPoll(ctx context.Context, events *Subscription) error {
	t := time.NewTimer(pollJob)
	defer t.Stop()
	select {
	case <-t.C:
	case <-events.C:
	case <-m.done:
		return fmt.Errorf("the machine ended: %w", errors.Join(ErrMonitorClosed, m.exit))
	case <-ctx.Done():
		return context.Cause(ctx)
	}
	return nil
}

// job asks for the state of one job.
func (m *Machine) job(ctx context.Context, id string) (jobInfo, error) {
	var jobs []jobInfo
	if err := m.monitor.Execute(ctx, "query-jobs", nil, &jobs); err != nil {
		return jobInfo{}, err
	}
	for _, j := range jobs {
		if j.ID == id {
			return j, nil
		}
	}
	return jobInfo{}, fmt.Errorf("QEMU has forgotten the job %s", id)
}

// abandon cancels a job and waits until it is gone, so that its nodes can be
// deleted.
func (m *Machine) abandon(ctx context.Context, job string) {
	ctx, cancel := context.WithTimeout(context.WithoutCancel(ctx), 30*time.Second)
	defer cancel()
	events := m.monitor.Subscribe("JOB_STATUS_CHANGE")
	defer events.Close()
	_ = m.monitor.Execute(ctx, "block-job-cancel", node{"device": job, "force": true}, nil)
	for {
		j, err := m.job(ctx, job)
		if err != nil {
			return
		}
		if j.Status == "concluded" {
			_ = m.monitor.Execute(ctx, "job-dismiss", node{"id": job}, nil)
			return
		}
		if m.nextPoll(ctx, events) != nil {
			return
		}
	}
}

// deleteNodes closes one generation of a disk. Nodes that are not there are
// no error: a move may fail before it made them.
func (m *Machine) deleteNodes(ctx context.Context, disk string, generation int) error {
	var errs []error
	for _, name := range []string{formatName(disk, generation), protocolName(disk, generation)} {
		err := m.monitor.Execute(ctx, "blockdev-del", node{"node-name": name}, nil)
		var refused *CommandError
		if errors.As(err, &refused) && strings.Contains(refused.Desc, "Failed to find") {
			continue
		}
		if errors.Is(err, ErrMonitorClosed) {
			continue // QEMU is gone, and its nodes with it
		}
		errs = append(errs, err)
	}
	return errors.Join(errs...)
}
