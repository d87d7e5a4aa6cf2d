package appliance

import (
	"context"
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"strings"

	"golang.org/x/sys/unix"

	"lifeboat/vsphere"
)

// What a process that died left of a recovery is found from two things: the
// session's record, which says how far it had come at least, and the inventory,
// which says what there is. The record is written before an effect that it
// announces (stopping, migrating) and after one that it claims (registered,
// migrated), so that
//
//	state        what may be there                     what is done about it
//	publishing   files, export                         undone
//	mounted      files, export, perhaps the VM, off    undone
//	registered   the VM, plugged and pinned, perhaps on  finished: powered on
//	running      all                                   nothing
//	migrating    the VM here, there, or on its way     there: finished; else it runs on
//	migrated     the VM there, our things              finished: our things are removed
//	copied       two VMs, or the new one, perhaps on   finished: the new one takes its place
//	stopping     some of all                           finished: all of it is removed
//
// Each of these may be cut short in turn and begun anew: finding nothing is no
// error, and the record changes only when what it says is true.

// resumeRecovery brings a session to where its state says that it belongs, and
// says in a sentence what it did.
func (w *vsphereWork) resumeRecovery(ctx context.Context, session string) (string, error) {
	release, err := w.state.lockWork(session)
	if err != nil {
		return "", err
	}
	defer release()
	rec, err := w.state.session(session)
	if errors.Is(err, ErrNotFound) {
		return "nothing was left of it", w.unmountUnused(ctx)
	}
	if err != nil {
		return "", err
	}
	if rec.Recovery == nil {
		return "it has nothing on a vSphere", nil
	}
	switch rec.Recovery.State {
	case RecoveryPublishing, RecoveryMounted:
		return "undone: it was not complete", errors.Join(w.undo(ctx, session), w.unmountUnused(ctx))
	case RecoveryRegistered:
		return w.finishRecovery(ctx, rec)
	case RecoveryMigrating:
		return w.lookAfterMigration(ctx, rec)
	case RecoveryMigrated:
		return "finished: the VM had moved, the rest is removed", w.cleanMigrated(ctx, session)
	case RecoveryCopied:
		return "finished: the copy took the VM's place", w.finishCopy(ctx, session)
	case RecoveryStopping:
		return "finished: stopped and removed", w.takeDown(ctx, session)
	}
	return "nothing was left to do", nil
}

// finishRecovery goes on after the VM came into the inventory.
func (w *vsphereWork) finishRecovery(ctx context.Context, rec *Session) (string, error) {
	vm, err := w.sessionVM(ctx, rec.Name)
	if err != nil {
		return "", err
	}
	if vm == nil {
		return "undone: somebody had removed the VM", errors.Join(w.undo(ctx, rec.Name), w.unmountUnused(ctx))
	}
	if !w.state.Control().Running(ctx) {
		return "", fmt.Errorf("VM %q waits for its disks: %w; start `lifeboat serve`", vm.Name, ErrNoServer)
	}
	if rec.Recovery.PowerOn && vm.Power != vsphere.PoweredOn {
		if err := w.whenFree(ctx, func(ctx context.Context) error { return w.vc.PowerOn(ctx, vm.Ref) }); err != nil {
			return "", err
		}
	}
	_, err = w.state.updateSession(rec.Name, func(s *Session) { s.Recovery.State = RecoveryRunning })
	return fmt.Sprintf("finished: VM %q is there", vm.Name), err
}

// sessionVM finds the VM of a session, nil if there is none.
func (w *vsphereWork) sessionVM(ctx context.Context, session string) (*vsphere.VM, error) {
	inv, err := w.vc.Inventory(ctx)
	if err != nil {
		return nil, err
	}
	return w.findVM(inv, session), nil
}

// undo takes a recovery back that nobody has seen: VM or disks, export, files. Mounts are
// the caller's.
func (w *vsphereWork) undo(ctx context.Context, session string) error {
	rec, err := w.state.session(session)
	if errors.Is(err, ErrNotFound) {
		return nil
	}
	if err != nil {
		return err
	}
	if rec.Recovery == nil {
		return fmt.Errorf("session %q is not a recovery: left alone", session)
	}
	inv, err := w.vc.Inventory(ctx)
	if err != nil {
		return err
	}
	if rec.Recovery.Attach {
		if err := w.detachDisks(ctx, inv, session); err != nil {
			return err
		}
	}
	if vm := w.findVM(inv, session); vm != nil {
		if err := w.removeVM(ctx, vm); err != nil {
			return err
		}
	}
	return w.dropSession(ctx, session)
}

// removeVM takes a VM of ours out of the inventory; its files are ours. One that
// is not on our datastore any more is somebody's production by now.
func (w *vsphereWork) removeVM(ctx context.Context, vm *vsphere.VM) error {
	if !strings.HasPrefix(vm.VMX, "["+w.datastore+"] ") {
		return fmt.Errorf("%w: the configuration of VM %q is at %s, not on our datastore: it is left alone", ErrBusy, vm.Name, vm.VMX)
	}
	if vm.Power != vsphere.PoweredOff {
		w.at("before power-off")
		if err := w.whenFree(ctx, func(ctx context.Context) error { return w.vc.PowerOff(ctx, vm.Ref) }); err != nil && !errors.Is(err, vsphere.ErrNotFound) {
			return err
		}
		w.at("after power-off")
	}
	w.at("before unregister")
	if err := w.whenFree(ctx, func(ctx context.Context) error { return w.vc.Unregister(ctx, vm.Ref) }); err != nil && !errors.Is(err, vsphere.ErrNotFound) {
		return err
	}
	w.at("after unregister")
	return nil
}

// dropSession ends the export of a session and forgets it with all that was
// written in it.
func (w *vsphereWork) dropSession(ctx context.Context, session string) error {
	if err := w.state.Control().Detach(ctx, session); err != nil && !errors.Is(err, ErrNotFound) {
		return err
	}
	w.at("after detach")
	err := DiscardSession(w.state, session)
	if errors.Is(err, ErrNotFound) {
		return nil
	}
	return err
}

// lockWork gives this process the only right to change what a session has on a
// vSphere. ErrBusy: another command is at it.
func (s *State) lockWork(session string) (release func(), err error) {
	if err := checkSessionName(session); err != nil {
		return nil, err
	}
	dir := filepath.Join(s.dir, "work")
	if err := os.MkdirAll(dir, 0o700); err != nil {
		return nil, fmt.Errorf("state directory: %w", err)
	}
	path := filepath.Join(dir, session)
	for {
		f, err := os.OpenFile(path, os.O_RDWR|os.O_CREATE, 0o600)
		if err != nil {
			return nil, fmt.Errorf("state directory: %w", err)
		}
		if err := unix.Flock(int(f.Fd()), unix.LOCK_EX|unix.LOCK_NB); err != nil {
			f.Close()
			if errors.Is(err, unix.EWOULDBLOCK) {
				return nil, fmt.Errorf("session %q is %w: another command works on it; wait for it", session, ErrBusy)
			}
			return nil, fmt.Errorf("session %q: lock: %w", session, err)
		}
		if !stillAt(f, path) {
			f.Close()
			continue
		}
		return func() { // the name first: whoever opened the file meanwhile sees that it is gone
			_ = os.Remove(path)
			unlock(f)
		}, nil
	}
}

// recoveryHandler is the intentHandler of everything that is done to a session.
func (s *State) recoveryHandler(ctx context.Context, c *vsphere.Client, in Intent) (string, error) {
	w, err := newVSphereWork(ctx, s, c, nil, nil)
	if err != nil {
		return "", err
	}
	action, err := w.resumeRecovery(ctx, in.Session)
	return fmt.Sprintf("session %q: %s", in.Session, action), err
}

// mountHandler is the intentHandler of mounts: a datastore that no session needs
// goes.
func (s *State) mountHandler(ctx context.Context, c *vsphere.Client, in Intent) (string, error) {
	w, err := newVSphereWork(ctx, s, c, nil, nil)
	if err != nil {
		return "", err
	}
	w.mounting[in.ID] = true // adopted: it is no reason to keep the datastore
	return fmt.Sprintf("datastore %s on host %s: there where a session needs it, and nowhere else", in.Object["name"], in.Object["host"]), w.unmountUnused(ctx)
}

// lockNewWork is lockWork for a session that is about to be made. One that exists
// is refused: what fails from here on is undone, and must not undo another's work.
func (s *State) lockNewWork(session string) (release func(), err error) {
	release, err = s.lockWork(session)
	if err != nil {
		return nil, err
	}
	_, err = s.session(session)
	if errors.Is(err, ErrNotFound) {
		return release, nil
	}
	release()
	if err == nil {
		err = fmt.Errorf("session %q is %w: it exists already; choose another --session", session, ErrBusy)
	}
	return nil, err
}
