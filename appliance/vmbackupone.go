package appliance

import (
	"context"
	"crypto/rand"
	"encoding/hex"
	"errors"
	"fmt"
	"log/slog"
	"maps"
	"slices"
	"strings"
	"sync/atomic"
	"time"

	"lifeboat/store"
	"lifeboat/vsphere"
)

// vmJob is the backup of one VM. The order of things is that of VADP:
//
//	leftovers of our own away → change tracking on → intent → snapshot →
//	configuration and change IDs, as the snapshot has them → disks → commit →
//	disks closed → snapshot away → consolidation checked
//
// Change IDs are those of the snapshot that is read, and are kept with the point
// that was made of it. So the next backup asks what changed since exactly that
// state, whatever became of points in between.
type vmJob struct {
	*vmRun
	log  *slog.Logger
	id   string // of the job
	vm   *vsphere.VM
	res  *VMResult
	snap *vmSnapshot // nil for a template
	at   *vsphere.VM // the VM as the snapshot has it

	parent *store.Point // or nil
	saved  *savedDisks  // of parent, or nil
}

// one backs a VM up and says how it went.
func (r *vmRun) one(ctx context.Context, vm *vsphere.VM) *VMResult {
	began := time.Now()
	var calls atomic.Int64
	ctx = vsphere.Counting(ctx, &calls)
	j := &vmJob{vmRun: r, vm: vm, id: newJobID(), res: &VMResult{VM: vm.Name, ID: vm.Identity.String()}}
	j.log = r.req.Logger.With("vm", vm.Name, "job", j.id)
	err := j.run(ctx)
	res := j.res
	res.Calls, res.Seconds = calls.Load(), time.Since(began).Seconds()
	switch {
	case err != nil && res.Point == "":
		res.Status, res.Error, res.err = StatusFailed, err.Error(), err
		if errors.Is(err, errSkipped) {
			res.Status = StatusSkipped
		}
	case err != nil: // the point is there, and what comes after it went wrong
		res.Warnings = append(res.Warnings, err.Error())
		res.Status = StatusWarning
	case len(res.Warnings) > 0:
		res.Status = StatusWarning
	default:
		res.Status = StatusDone
	}
	return res
}

func newJobID() string {
	var b [8]byte
	_, _ = rand.Read(b[:]) // it never fails
	return hex.EncodeToString(b[:])
}

// errSkipped says that there is nothing of a VM that could be backed up.
var errSkipped = fmt.Errorf("left out: %w", ErrPartial)

func (j *vmJob) warn(format string, args ...any) {
	text := fmt.Sprintf(format, args...)
	j.res.Warnings = append(j.res.Warnings, text)
	j.log.Warn(text)
}

func (j *vmJob) note(format string, args ...any) {
	text := fmt.Sprintf(format, args...)
	j.res.Notes = append(j.res.Notes, text)
	j.log.Info(text)
}

func (j *vmJob) run(ctx context.Context) (err error) {
	if ctx.Err() != nil {
		return context.Cause(ctx)
	}
	if err := j.check(ctx); err != nil {
		return err
	}
	if err := j.findParent(ctx); err != nil {
		return err
	}
	disks := j.selectDisks(j.vm.Disks)
	if len(disks) == 0 {
		return fmt.Errorf("none of its disks can be in a snapshot: %w", errSkipped)
	}
	// The first disks must have their turn before there is a snapshot: one that
	// waits for nothing but a slot grows all the same.
	batches := j.throttle.batches(datastoresOf(disks))
	first := datastoresOf(pick(disks, batches[0]))
	release, err := j.throttle.acquire(ctx, j.vm.Host, first)
	if err != nil {
		return err
	}
	defer release()
	if err := j.prepare(ctx); err != nil {
		return err
	}
	defer func() { err = errors.Join(err, j.finish(ctx)) }()
	return j.store(ctx, release)
}

// check refuses what cannot be backed up, and reads the VM anew.
func (j *vmJob) check(ctx context.Context) error {
	if c := j.vm.Connection; c != "" && c != "connected" {
		return fmt.Errorf("vSphere says that the VM is %s: look after its host %s, or its files", c, j.vm.Host)
	}
	if m := fatal(j.missing[j.vm.Ref]); len(m) > 0 {
		return fmt.Errorf("%w: %s; give the user a role that has them", vsphere.ErrPermission, strings.Join(m, ", "))
	}
	if twins := j.named[j.vm.Identity]; len(twins) > 1 && j.vm.Identity.VM != "" {
		return fmt.Errorf("the VMs %q have the same instanceUuid, and the history of one would become the other's: give one a new one (vc.uuid in its .vmx; removing it does)", twins)
	}
	now, err := j.client.VM(ctx, j.vm.Ref)
	if err != nil {
		return err
	}
	if now.Identity != j.vm.Identity {
		return fmt.Errorf("the VM is not the one that the inventory showed: %w; run the backup again", ErrBusy)
	}
	j.vm = now
	if now.Identity.VM == "" {
		return errors.New("vSphere tells no instanceUuid of the VM: it cannot be told from others; register it again")
	}
	return nil
}

func fatal(missing []vsphere.Missing) []string {
	var out []string
	for _, m := range missing {
		if m.OnlyFor == "" {
			out = append(out, m.String())
		}
	}
	return out
}

// findParent finds the point that the new one is compared with: the newest of
// this VM that knows its change IDs, else the newest.
func (j *vmJob) findParent(ctx context.Context) error {
	points, err := j.points()
	if err != nil {
		return err
	}
	id := j.vm.Identity.String()
	for _, pt := range slices.Backward(points) {
		if pt.VMID != id {
			continue
		}
		if j.parent == nil {
			j.parent = pt
		}
		saved, err := readSavedDisks(ctx, j.repo, pt)
		if err != nil {
			j.log.Warn("what a point says of its disks cannot be read: an older one is asked", "point", pt.ID, "error", err)
			continue
		}
		if saved != nil {
			j.parent, j.saved = pt, saved
			break
		}
	}
	if j.parent != nil && j.parent.VM != j.vm.Name {
		j.note("the VM was called %q before; its history goes on", j.parent.VM)
	}
	return nil
}

// selectDisks names the disks that are left out, and returns the others.
func (j *vmJob) selectDisks(all []vsphere.Disk) []vsphere.Disk {
	var in []vsphere.Disk
	for _, d := range all {
		why := ""
		switch {
		case slices.Contains(j.req.ExcludeDisks, d.Label):
			j.note("disk %s is left out: excluded", d.Label)
			j.res.Disks = append(j.res.Disks, VMDiskResult{Key: d.Key, Label: d.Label, Size: d.Size, How: "left out", Why: "excluded"})
			continue
		case d.Physical:
			why = "a raw device mapping in physical mode is in no snapshot"
		case d.Independent:
			why = "an independent disk is in no snapshot"
		}
		if why == "" {
			in = append(in, d)
			continue
		}
		j.warn("disk %s is left out: %s; change its mode, or back it up inside the guest", d.Label, why)
		j.res.Disks = append(j.res.Disks, VMDiskResult{Key: d.Key, Label: d.Label, Size: d.Size, How: "left out", Why: why})
	}
	return in
}

func datastoresOf(disks []vsphere.Disk) []string {
	names := make([]string, len(disks))
	for i, d := range disks {
		names[i] = d.Datastore
	}
	return names
}

func pick[T any](from []T, indices []int) []T {
	out := make([]T, len(indices))
	for i, n := range indices {
		out[i] = from[n]
	}
	return out
}

// prepare takes the snapshot, with change tracking on if it can be.
func (j *vmJob) prepare(ctx context.Context) error {
	if j.vm.Template {
		// A template has no snapshots and does not run: its files are its state.
		j.at = j.vm
		return nil
	}
	if n, err := j.state.removeLeftovers(ctx, j.client, j.vm); err != nil {
		return fmt.Errorf("remove a snapshot that an earlier backup left: %w", err)
	} else if n > 0 {
		j.note("removed %s that an earlier backup left", count(n, "snapshot", "snapshots"))
		if err := j.check(ctx); err != nil {
			return err
		}
	}
	j.enableTracking(ctx)
	quiesce := j.vm.Power == vsphere.PoweredOn && !j.req.NoQuiesce
	if quiesce && !j.vm.ToolsRunning {
		quiesce = false
		j.note("VMware Tools do not run in the guest: the point is crash-consistent")
	}
	if j.vm.Power == vsphere.Suspended {
		j.note("the VM is suspended: its memory is not in the backup, and it will start as after a power cut")
	}
	snap, err := j.state.takeSnapshot(ctx, j.client, j.vm, j.id, quiesce)
	if err != nil {
		return err
	}
	j.snap = snap
	at, err := j.client.SnapshotVM(ctx, snap.ref)
	if err != nil {
		return errors.Join(err, j.finish(ctx))
	}
	snap.look(at)
	switch {
	case snap.quiesceError != "":
		j.warn("the guest could not be brought to rest, the point is crash-consistent: %s", snap.quiesceError)
	case quiesce && snap.consistency == store.CrashConsistent:
		j.warn("vSphere took the snapshot without bringing the guest to rest: the point is crash-consistent")
	}
	j.at = at
	return nil
}

// enableTracking switches change tracking on. That it cannot be is no reason not
// to back up.
func (j *vmJob) enableTracking(ctx context.Context) {
	if j.vm.CBT {
		return
	}
	err := j.client.EnableCBT(ctx, j.vm.Ref)
	switch {
	case err == nil:
		j.vm.CBT = true
		j.note("changed block tracking is now on; it takes effect with the next stun of the VM (a snapshot, as a rule this one; a power cycle for sure)")
	case errors.Is(err, vsphere.ErrState):
		j.note("changed block tracking cannot be switched on while the VM has snapshots: all of it is read until they are gone")
	case errors.Is(err, vsphere.ErrUnsupported):
		j.note("the VM's hardware (%s) cannot track changes: all of it is read each time", j.vm.Version)
	default:
		j.warn("changed block tracking could not be switched on, all of the VM is read: %v", err)
	}
}

// finish removes the snapshot. It is called once, at any end.
func (j *vmJob) finish(ctx context.Context) error {
	switch {
	case j.snap == nil:
		return nil
	case ctx.Err() != nil:
		return j.state.dropSnapshot(ctx, j.client, j.snap.intent)
	}
	return j.state.finishSnapshot(ctx, j.client, j.vm.Ref, j.snap)
}

// store reads the disks and commits the point. release gives back the slots of
// the first batch.
func (j *vmJob) store(ctx context.Context, release func()) error {
	spec := store.PointSpec{
		VM: j.vm.Name, VMID: j.vm.Identity.String(), Parent: j.parent,
		Config: j.configuration(ctx), Labels: j.labels(),
	}
	spec.Time, spec.Consistency = j.moment()
	w, err := j.ing.Begin(spec)
	if err != nil {
		return err
	}
	defer w.Abort()
	saved, err := j.addDisks(ctx, w, release)
	if err != nil {
		return err
	}
	if err := j.seal(ctx, w, saved); err != nil {
		return err
	}
	pt, err := w.Commit(ctx)
	if err != nil {
		return err
	}
	j.res.Point, j.res.Consistency = pt.ID, pt.Consistency
	j.res.ReadBytes, j.res.NewBytes, j.res.StoredBytes = pt.ReadBytes, pt.NewBytes, pt.StoredBytes
	return nil
}

// moment is when the state was captured, and how. A VM that is off is
// crash-consistent: nobody was told, and how it went off is not known.
func (j *vmJob) moment() (time.Time, store.Consistency) {
	taken, consistency := time.Now(), store.CrashConsistent
	if j.snap != nil {
		taken, consistency = j.snap.taken, j.snap.consistency
	}
	if j.parent != nil && !taken.After(j.parent.Time) {
		taken = j.parent.Time.Add(time.Millisecond)
	}
	return taken, consistency
}

func (j *vmJob) labels() map[string]string {
	labels := map[string]string{
		labelJob: j.id, "vcenter": j.client.About().Server, "power": string(j.vm.Power), "folder": j.vm.Folder, "host": j.vm.Host,
	}
	if j.vm.Template {
		labels["template"] = "yes"
	}
	if j.snap != nil && j.snap.quiesceError != "" {
		labels["quiesce-error"] = j.snap.quiesceError
	}
	if j.saved != nil {
		labels["changed-from"] = j.parent.ID
	}
	for k, v := range labels {
		labels[k] = cut(v, maxLabel)
	}
	maps.DeleteFunc(labels, func(_, v string) bool { return v == "" })
	return labels
}

// maxLabel bounds what a label of a point holds, in bytes.
const maxLabel = 1000

// cut shortens valid text to at most n bytes.
func cut(s string, n int) string {
	s = strings.ToValidUTF8(s, "\uFFFD")
	if len(s) <= n {
		return s
	}
	return strings.ToValidUTF8(s[:n-3], "") + "…"
}
