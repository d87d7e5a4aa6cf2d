package appliance

import (
	"context"
	"errors"
	"fmt"
	"log/slog"
	"strings"
	"time"

	"lifeboat/vsphere"
)

// MigrateRequest moves a recovered VM to production storage.
type MigrateRequest struct {
	Session   string
	Datastore string         // where the VM goes
	PerDisk   map[int]string // disks that go elsewhere: number in the restore point → datastore
	Thin      *bool          // nil = as the disks are
	// Cold moves the VM while it is off, where there is no licence for moving it
	// while it runs: it is shut down for the time of the copy and started again.
	Cold     bool
	Progress func(percent int)
	Logger   *slog.Logger

	hook func(at string)
}

// Migrate moves a recovered VM away from us with Storage vMotion while it runs,
// checks that nothing of it is left on our datastore, and removes what was ours.
// When it fails the VM runs on as before, and the error says what to do.
func Migrate(ctx context.Context, st *State, vc *vsphere.Client, req MigrateRequest) error {
	if req.Datastore == "" {
		return fmt.Errorf("%w: name the datastore that the VM is to go to", ErrUsage)
	}
	w, err := newVSphereWork(ctx, st, vc, req.Logger, req.hook)
	if err != nil {
		return err
	}
	rec, release, err := w.workOn(req.Session)
	if err != nil {
		return err
	}
	defer release()
	if rec.Recovery.State == RecoveryAttached {
		return fmt.Errorf("%w: session %q is disks that VM %q has; `lifeboat detach %[2]s` takes them away", ErrUsage, req.Session, rec.Recovery.VM)
	}
	vm, err := w.sessionVM(ctx, req.Session)
	if err != nil {
		return err
	}
	if vm == nil {
		return fmt.Errorf("the VM of session %q (%s) is not in the inventory any more: %w; `lifeboat stop %[1]s` removes the rest", req.Session, rec.Recovery.VM, ErrNotFound)
	}
	intent, err := st.begin(Intent{
		Kind: IntentRelocate, Session: req.Session, VCenter: rec.Recovery.VCenter, VM: vm.Identity,
		Object: map[string]string{"name": vm.Name, "target": req.Datastore},
	})
	if err != nil {
		return err
	}
	w.at("begun")
	if err := w.migrate(ctx, rec, vm, req); err != nil {
		return errors.Join(err, w.endMigration(ctx, req.Session, intent))
	}
	w.at("cleaned")
	return st.done(intent.ID)
}

func (w *vsphereWork) migrate(ctx context.Context, rec *Session, vm *vsphere.VM, req MigrateRequest) error {
	_, err := w.state.updateSession(req.Session, func(s *Session) { s.Recovery.State, s.Recovery.Target = RecoveryMigrating, req.Datastore })
	if err != nil {
		return err
	}
	if w.onOurs(vm) != "" {
		w.at("before relocate")
		if err := w.relocate(ctx, rec, vm, req); err != nil {
			return fmt.Errorf("VM %q is not moved, and runs on from the backup as before; nothing is lost: %w; try again (another --datastore?), or `lifeboat session keep %s` saves what it has written", vm.Name, err, req.Session)
		}
		w.at("after relocate")
	}
	now, err := w.vc.VM(ctx, vm.Ref)
	if err != nil {
		return err
	}
	if left := w.onOurs(now); left != "" {
		return fmt.Errorf("VM %q was moved, but %s is still on %s: nothing is removed; move it too, then `lifeboat migrate %s --datastore %s` again", vm.Name, left, w.datastore, req.Session, req.Datastore)
	}
	if _, err := w.state.updateSession(req.Session, func(s *Session) { s.Recovery.State = RecoveryMigrated }); err != nil {
		return err
	}
	w.at("migrated")
	return w.cleanMigrated(ctx, req.Session)
}

func (w *vsphereWork) relocate(ctx context.Context, rec *Session, vm *vsphere.VM, req MigrateRequest) error {
	spec := vsphere.RelocateSpec{Datastore: req.Datastore, Thin: req.Thin, PerDisk: map[int32]string{}}
	// Each disk has a locator of its own; without one it would stay where it is on
	// some versions.
	for _, d := range vm.Disks {
		spec.PerDisk[d.Key] = req.Datastore
	}
	for n, datastore := range req.PerDisk {
		d, err := diskOf(rec, vm, n)
		if err != nil {
			return err
		}
		spec.PerDisk[d.Key] = datastore
	}
	on := vm.Power == vsphere.PoweredOn
	if req.Cold && on {
		if _, err := w.state.updateSession(req.Session, func(s *Session) { s.Recovery.SwitchedOff = true }); err != nil {
			return err
		}
		if err := w.shutDown(ctx, vm); err != nil {
			return err
		}
	}
	err := w.vc.Relocate(ctx, vm.Ref, spec, func(p vsphere.Progress) {
		if req.Progress != nil {
			req.Progress(p.Percent)
		}
	})
	if req.Cold && on {
		clean, cancel := afterwards(ctx)
		defer cancel()
		err = errors.Join(err, w.whenFree(clean, func(ctx context.Context) error { return w.vc.PowerOn(ctx, vm.Ref) }))
	}
	if errors.Is(err, vsphere.ErrLicence) && on && !req.Cold {
		return fmt.Errorf("%w; without that licence: --copy, which has the VM off for a moment, or --cold", err)
	}
	return err
}

// diskOf is a VM's disk that stands for disk n of the restore point: by its
// file's name, which is ours.
func diskOf(rec *Session, vm *vsphere.VM, n int) (vsphere.Disk, error) {
	disks := rec.Folders[0].Disks
	if n < 0 || n >= len(disks) {
		return vsphere.Disk{}, fmt.Errorf("%w: the restore point has no disk %d: it has %d, counted from 0", ErrUsage, n, len(disks))
	}
	for _, d := range vm.Disks {
		if strings.HasSuffix(d.BaseFile, "/"+disks[n].Descriptor) || strings.HasSuffix(d.File, "/"+disks[n].Descriptor) {
			return d, nil
		}
	}
	return vsphere.Disk{}, fmt.Errorf("disk %d of VM %q: %w", n, vm.Name, ErrNotFound)
}

// guestPatience is how long a guest may take to shut down before the power is
// taken: Windows installs updates then.
const guestPatience = 10 * time.Minute

// shutDown asks the guest to, and takes the power where it cannot be asked or does
// not come to an end.
func (w *vsphereWork) shutDown(ctx context.Context, vm *vsphere.VM) error {
	asking, cancel := context.WithTimeout(ctx, guestPatience)
	defer cancel()
	err := w.vc.Shutdown(asking, vm.Ref)
	if err == nil || ctx.Err() != nil {
		return err
	}
	w.log.Warn("the guest does not shut down by itself: power off", "vm", vm.Name, "err", err)
	return w.vc.PowerOff(ctx, vm.Ref)
}

// endMigration says in the record where a migration that failed has left the VM.
func (w *vsphereWork) endMigration(ctx context.Context, session string, intent Intent) error {
	clean, cancel := afterwards(ctx)
	defer cancel()
	rec, err := w.state.session(session)
	if err != nil {
		return err
	}
	if rec.Recovery.State == RecoveryMigrated || rec.Recovery.State == RecoveryCopied {
		return w.state.release(intent.ID) // only cleaning up failed: the next command does it
	}
	if _, err := w.lookAfterMigration(clean, rec); err != nil {
		return errors.Join(err, w.state.release(intent.ID))
	}
	return w.state.done(intent.ID)
}

// lookAfterMigration finds out what became of a migration that nobody saw the end
// of. The task goes on at the vCenter without us: while it does, the VM refuses to
// be changed, and setting its mark to what it is changes nothing. The session then
// stays as it is, and the next command looks again.
func (w *vsphereWork) lookAfterMigration(ctx context.Context, rec *Session) (string, error) {
	inv, err := w.vc.Inventory(ctx)
	if err != nil {
		return "", err
	}
	vm := w.findVM(inv, rec.Name)
	if vm != nil && w.onOurs(vm) == "" {
		if _, err := w.state.updateSession(rec.Name, func(s *Session) { s.Recovery.State = RecoveryMigrated }); err != nil {
			return "", err
		}
		return fmt.Sprintf("finished: VM %q has moved", vm.Name), w.cleanMigrated(ctx, rec.Name)
	}
	// A copy was complete when its process died, but not yet the VM.
	if vm != nil {
		if err := w.dropCopies(ctx, inv, rec.Name); err != nil {
			return "", err
		}
		err := w.vc.Reconfigure(ctx, vm.Ref, vsphere.ChangeSpec{ExtraConfig: map[string]string{sessionKey: w.mark(rec.Name)}})
		if errors.Is(err, vsphere.ErrBusy) {
			return "", fmt.Errorf("VM %q is still being moved by the vCenter; the next command finishes what is left: %w", vm.Name, err)
		}
		if err != nil {
			w.log.Warn("cannot tell whether the VM is still being moved", "vm", vm.Name, "err", err)
		}
	}
	if vm != nil && vm.Power == vsphere.PoweredOff && rec.Recovery.SwitchedOff {
		if err := w.whenFree(ctx, func(ctx context.Context) error { return w.vc.PowerOn(ctx, vm.Ref) }); err != nil {
			return "", err
		}
	}
	_, err = w.state.updateSession(rec.Name, func(s *Session) { s.Recovery.State, s.Recovery.SwitchedOff = RecoveryRunning, false })
	return fmt.Sprintf("VM %q was not moved, it runs on from the backup", rec.Recovery.VM), err
}

// cleanMigrated removes what was ours of a VM that is on other storage: our
// notes in it, the session, the datastore. The VM itself is not touched.
func (w *vsphereWork) cleanMigrated(ctx context.Context, session string) error {
	rec, err := w.state.session(session)
	if errors.Is(err, ErrNotFound) {
		return w.unmountUnused(ctx)
	}
	if err != nil {
		return err
	}
	vm, err := w.sessionVM(ctx, session)
	if err != nil {
		return err
	}
	if vm != nil {
		if left := w.onOurs(vm); left != "" {
			return fmt.Errorf("VM %q: %s is on our datastore (again?): %w; nothing is removed", vm.Name, left, ErrBusy)
		}
		if err := w.release(ctx, rec, vm); err != nil {
			return err
		}
	}
	if err := w.dropSession(ctx, session); err != nil {
		return err
	}
	return w.unmountUnused(ctx)
}

// release makes a VM nobody's but its owner's: DRS and HA may have it, our note
// and our mark go. The mark goes last: by it the VM is found again.
func (w *vsphereWork) release(ctx context.Context, rec *Session, vm *vsphere.VM) error {
	if rec.Recovery.Pinned {
		if err := w.vc.OverrideDRSHA(ctx, vm.Ref, false); err != nil {
			return err
		}
		w.at("unpinned")
	}
	note := strings.TrimPrefix(strings.TrimPrefix(vm.Annotation, rec.Recovery.Note), "\n")
	if vm.ExtraConfig[sessionKey] == "" && note == vm.Annotation {
		return nil
	}
	err := w.vc.Reconfigure(ctx, vm.Ref, vsphere.ChangeSpec{Annotation: &note, ExtraConfig: map[string]string{sessionKey: ""}})
	w.at("unmarked")
	return err
}
