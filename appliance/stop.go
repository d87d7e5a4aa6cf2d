package appliance

import (
	"context"
	"errors"
	"fmt"
	"log/slog"

	"lifeboat/vsphere"
)

// IntentStop: a recovery that is being taken down.
const IntentStop IntentKind = "stop"

// StopRequest ends a recovery and drops what was written in it.
type StopRequest struct {
	Session string
	Logger  *slog.Logger

	hook func(at string)
}

// Stop takes a recovered VM down: power off, out of the inventory, datastore off
// the hosts where nobody else needs it, overlay dropped. A VM that was moved to
// other storage meanwhile is left as it is; only our things are removed then.
func Stop(ctx context.Context, st *State, vc *vsphere.Client, req StopRequest) error {
	w, err := newVSphereWork(ctx, st, vc, req.Logger, req.hook)
	if err != nil {
		return err
	}
	rec, release, err := w.workOn(req.Session)
	if err != nil {
		return err
	}
	defer release()
	intent, err := st.begin(Intent{Kind: IntentStop, Session: req.Session, VCenter: rec.Recovery.VCenter, VM: rec.Recovery.Identity})
	if err != nil {
		return err
	}
	w.at("begun")
	_, err = st.updateSession(req.Session, func(s *Session) { s.Recovery.State = RecoveryStopping })
	if err == nil {
		w.at("stopping")
		err = w.takeDown(ctx, req.Session)
	}
	if err != nil {
		return errors.Join(fmt.Errorf("session %q is half stopped; the next `lifeboat stop %[1]s` goes on: %w", req.Session, err), st.release(intent.ID))
	}
	w.at("stopped")
	return st.done(intent.ID)
}

// workOn takes the right to work on a session that has something on this vCenter.
func (w *vsphereWork) workOn(session string) (*Session, func(), error) {
	release, err := w.state.lockWork(session)
	if err != nil {
		return nil, nil, err
	}
	rec, err := w.state.session(session)
	switch {
	case err != nil:
	case rec.Recovery == nil:
		err = fmt.Errorf("%w: session %q has nothing on a vSphere; `lifeboat session discard %[2]s` drops it", ErrUsage, session)
	case rec.Recovery.VCenter != w.vc.About().InstanceUUID:
		err = fmt.Errorf("%w: session %q is on %s, and this is %s", ErrUsage, session, rec.Recovery.Server, w.vc.About().Server)
	default:
		return rec, release, nil
	}
	release()
	return nil, nil, err
}

// takeDown removes everything of a session, whatever is left of it.
func (w *vsphereWork) takeDown(ctx context.Context, session string) error {
	rec, err := w.state.session(session)
	if err != nil {
		return err
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
		if w.onOurs(vm) == "" {
			w.log.Warn("the VM is on other storage by now: it stays", "vm", vm.Name)
			return w.cleanMigrated(ctx, session)
		}
		if err := w.removeVM(ctx, vm); err != nil {
			return err
		}
	}
	if err := w.dropSession(ctx, session); err != nil {
		return err
	}
	return w.unmountUnused(ctx)
}
