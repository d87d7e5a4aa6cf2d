package appliance

import (
	"cmp"
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"slices"
	"strings"
	"time"

	"lifeboat/store"
	"lifeboat/vsphere"
)

// snapshotPrefix begins the names of our snapshots; the rest is the job's ID.
const snapshotPrefix = "lifeboat-"

// snapshotNote is the description of our snapshots. It says to a person what the
// snapshot is, and to us whose: another Lifeboat may protect the same VM.
type snapshotNote struct {
	Note      string `json:"note"`
	Appliance string `json:"appliance"`
	Job       string `json:"job"`
}

func (n snapshotNote) encode() string {
	n.Note = "Lifeboat is backing this VM up and removes this snapshot when it is done."
	text, err := json.Marshal(n)
	if err != nil {
		panic(err) // three strings
	}
	return string(text)
}

// isOurs reports whether a snapshot was taken by this appliance: by its name and
// by its description. A person may have either, but not both.
func isOurs(s vsphere.Snapshot, appliance string) bool {
	var n snapshotNote
	return strings.HasPrefix(s.Name, snapshotPrefix) && json.Unmarshal([]byte(s.Description), &n) == nil &&
		n.Appliance == appliance && s.Name == snapshotPrefix+n.Job
}

// vmSnapshot is our snapshot of a VM while it is there.
type vmSnapshot struct {
	ref         vsphere.Ref
	intent      Intent
	taken       time.Time // before which everything that the guest wrote is in it
	consistency store.Consistency
	// quiesceError is why it is only crash-consistent although the guest was asked.
	quiesceError string
}

// takeSnapshot takes the snapshot of a job. The intent is in the journal before
// and stays there until the snapshot is gone; where the error is ErrBusy there is
// none. One of our own that is still there from earlier has to be gone first: see
// removeLeftovers.
func (s *State) takeSnapshot(ctx context.Context, c *vsphere.Client, vm *vsphere.VM, job string, quiesce bool) (_ *vmSnapshot, err error) {
	appliance, err := s.applianceID()
	if err != nil {
		return nil, err
	}
	name := snapshotPrefix + job
	in, err := s.beginUnless(Intent{
		Kind: IntentSnapshot, Job: job, VCenter: vm.Identity.VCenter, VM: vm.Identity, Object: map[string]string{"name": name, "vm": vm.Name},
	}, func(other Intent) error {
		if other.Kind == IntentSnapshot && other.VM.VM == vm.Identity.VM { // seen through a vCenter or its host
			return fmt.Errorf("the VM is %w: another lifeboat process is backing it up; wait for it, or end it", ErrBusy)
		}
		return nil
	})
	if err != nil {
		return nil, err
	}
	snap := &vmSnapshot{intent: in, consistency: store.CrashConsistent} // in.Object is shared by both
	defer func() {
		if err != nil {
			err = errors.Join(err, s.dropSnapshot(ctx, c, in))
		}
	}()
	spec := vsphere.SnapshotSpec{Name: name, Description: snapshotNote{Appliance: appliance, Job: job}.encode(), Quiesce: quiesce}
	snap.taken = time.Now()
	snap.ref, err = c.CreateSnapshot(ctx, vm.Ref, spec)
	if quiesce && errors.Is(err, vsphere.ErrQuiesce) && ctx.Err() == nil {
		snap.quiesceError = err.Error()
		// Some hosts leave one behind that is of no use.
		if err = s.removeFailed(ctx, c, vm.Ref, name, appliance); err != nil {
			return nil, err
		}
		spec.Quiesce = false
		snap.taken = time.Now()
		snap.ref, err = c.CreateSnapshot(ctx, vm.Ref, spec)
	}
	if err != nil {
		if !unknownOutcome(ctx, err) {
			in.Object["ref"] = noSnapshot
		}
		return nil, err
	}
	in.Object["ref"] = string(snap.ref)
	return snap, s.amend(in.ID, in.Object)
}

// noSnapshot in place of a reference says that vSphere refused to take one.
const noSnapshot = "none"

// unknownOutcome reports whether vSphere may still do what a call that failed
// asked for.
func unknownOutcome(ctx context.Context, err error) bool {
	for _, kind := range []error{vsphere.ErrTaskLost, vsphere.ErrTimeout, vsphere.ErrUnreachable, vsphere.ErrCertificate, vsphere.ErrCancelled} {
		if errors.Is(err, kind) {
			return true
		}
	}
	return ctx.Err() != nil
}

// look takes over what the snapshot says of itself: that the guest was asked to
// come to rest does not mean that it was there to hear it.
func (v *vmSnapshot) look(at *vsphere.VM) {
	for _, s := range at.Snapshots {
		if s.Ref == v.ref && s.Quiesced {
			v.consistency = store.FileSystemConsistent
		}
	}
}

// How hard the removal of a snapshot is tried. A host that is busy with the VM
// refuses, and a moment later it does not.
const (
	removeTries   = 5
	removePause   = 2 * time.Second
	removeTimeout = 2 * time.Minute // when the backup was interrupted
	// snapshotMayCome is how long a snapshot is looked for whose request was on its
	// way when the process died.
	snapshotMayCome = 10 * time.Minute
)

// dropSnapshot ends the snapshot of a job that failed, interrupted or not.
func (s *State) dropSnapshot(ctx context.Context, c *vsphere.Client, in Intent) error {
	ctx, cancel := context.WithTimeout(context.WithoutCancel(ctx), removeTimeout)
	defer cancel()
	return s.endSnapshot(ctx, c, in)
}

// endSnapshot removes the snapshot of an intent and takes the intent off the
// journal. When it fails the intent is given up, for whoever comes next.
func (s *State) endSnapshot(ctx context.Context, c *vsphere.Client, in Intent) error {
	var err error
	for try := range removeTries {
		if try > 0 && !pause(ctx, cmp.Or(s.pause, removePause)<<(try-1)) {
			break
		}
		_, err = s.undoSnapshot(ctx, c, in)
		switch {
		case err == nil:
			return s.done(in.ID)
		case errors.Is(err, errMayCome):
			return s.release(in.ID)
		}
		if ctx.Err() != nil || errors.Is(err, vsphere.ErrPermission) || errors.Is(err, vsphere.ErrUnreachable) {
			break
		}
	}
	return errors.Join(
		fmt.Errorf("the snapshot %q of %s may still be there: %w; the next backup removes it, and so does `lifeboat leftovers --clean`", in.Object["name"], in.Object["vm"], err),
		s.release(in.ID))
}

// finishSnapshot is endSnapshot for one that is known to be there. Where its
// reference does not do, it is looked for by its name.
func (s *State) finishSnapshot(ctx context.Context, c *vsphere.Client, vm vsphere.Ref, snap *vmSnapshot) error {
	err := c.RemoveSnapshot(ctx, snap.ref, vsphere.RemoveOptions{})
	if err == nil {
		err = consolidate(ctx, c, vm)
	}
	if err == nil {
		return s.done(snap.intent.ID)
	}
	if ctx.Err() != nil {
		return errors.Join(err, s.dropSnapshot(ctx, c, snap.intent))
	}
	return s.endSnapshot(ctx, c, snap.intent)
}

// undoSnapshot removes the snapshot of a backup that did not come to its end, and
// is what reconciling does with it. While vSphere works on the VM the snapshot may
// still come; so that is waited for.
func (s *State) undoSnapshot(ctx context.Context, c *vsphere.Client, in Intent) (string, error) {
	appliance, err := s.applianceID()
	if err != nil {
		return "", err
	}
	name := in.Object["name"]
	meant := func(sn vsphere.Snapshot) bool { return sn.Name == name && isOurs(sn, appliance) }
	vm, err := c.FindVM(ctx, in.VM)
	if errors.Is(err, vsphere.ErrNotFound) {
		return fmt.Sprintf("%s does not exist any more, and no snapshot of it", in.Object["vm"]), nil
	}
	if err != nil {
		return "", err
	}
	if in.Object["ref"] == "" {
		patient, cancel := context.WithTimeout(ctx, removeTimeout)
		err := c.Settle(patient, vm.Ref)
		cancel()
		if err != nil {
			return "", err
		}
		if vm, err = c.VM(ctx, vm.Ref); err != nil {
			return "", err
		}
	}
	switch removed, err := removeSnapshots(ctx, c, vm, meant); {
	case err != nil:
		return "", err
	case removed == 0 && in.Object["ref"] == "" && time.Since(in.Time) < snapshotMayCome:
		return "", errMayCome
	case removed == 0:
		return fmt.Sprintf("snapshot %q of %s is not there", name, in.Object["vm"]), nil
	}
	return fmt.Sprintf("removed snapshot %q of %s", name, in.Object["vm"]), nil
}

func pause(ctx context.Context, d time.Duration) bool {
	timer := time.NewTimer(d)
	defer timer.Stop()
	select {
	case <-timer.C:
		return true
	case <-ctx.Done():
		return false
	}
}

// removeFailed removes what a snapshot that failed left of itself.
func (s *State) removeFailed(ctx context.Context, c *vsphere.Client, ref vsphere.Ref, name, appliance string) error {
	vm, err := c.VM(ctx, ref)
	if err != nil {
		return err
	}
	_, err = removeSnapshots(ctx, c, vm, func(sn vsphere.Snapshot) bool { return sn.Name == name && isOurs(sn, appliance) })
	return err
}

// removeSnapshots removes the snapshots of a VM that are meant, and says how many
// there were.
func removeSnapshots(ctx context.Context, c *vsphere.Client, vm *vsphere.VM, meant func(vsphere.Snapshot) bool) (removed int, err error) {
	for _, sn := range slices.Backward(vm.Snapshots) { // the youngest first
		if !meant(sn) {
			continue
		}
		if err := c.RemoveSnapshot(ctx, sn.Ref, vsphere.RemoveOptions{}); err != nil && !errors.Is(err, vsphere.ErrNotFound) {
			return removed, err
		}
		removed++
	}
	if removed == 0 && !vm.ConsolidationNeeded {
		return 0, nil
	}
	return removed, consolidate(ctx, c, vm.Ref)
}

// consolidate makes sure that nothing of a removed snapshot is left in files.
func consolidate(ctx context.Context, c *vsphere.Client, vm vsphere.Ref) error {
	now, err := c.VM(ctx, vm)
	if err != nil || !now.ConsolidationNeeded {
		return err
	}
	if err := c.Consolidate(ctx, vm); err != nil {
		return fmt.Errorf("the snapshot is gone, but its files are not: %w", err)
	}
	return nil
}

// removeLeftovers removes what earlier backups of this appliance left on a VM and
// nobody works on any more, whatever the journal says. What others took, persons
// and other appliances, stays.
func (s *State) removeLeftovers(ctx context.Context, c *vsphere.Client, vm *vsphere.VM) (int, error) {
	appliance, err := s.applianceID()
	if err != nil {
		return 0, err
	}
	if !slices.ContainsFunc(vm.Snapshots, func(sn vsphere.Snapshot) bool { return isOurs(sn, appliance) }) {
		return 0, nil
	}
	all, err := s.intents()
	if err != nil {
		return 0, err
	}
	// By its name alone: a backup of the VM may be at work through the host, and
	// this one see it through the vCenter.
	busy := func(sn vsphere.Snapshot) bool {
		return slices.ContainsFunc(all, func(in Intent) bool {
			return in.Kind == IntentSnapshot && in.Object["name"] == sn.Name && !in.abandoned()
		})
	}
	return removeSnapshots(ctx, c, vm, func(sn vsphere.Snapshot) bool { return isOurs(sn, appliance) && !busy(sn) })
}
