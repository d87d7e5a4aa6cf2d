package appliance

import (
	"context"
	"errors"
	"fmt"
	"log/slog"
	"slices"

	"lifeboat/vsphere"
)

// Reconciled is one intent of a process that is gone, and what became of it.
type Reconciled struct {
	Intent Intent `json:"intent"`
	// Action is a sentence: what was found and done.
	Action string `json:"action"`
	// Problem is why it could not be brought to an end. The intent stays in the
	// journal, and the next command tries again.
	Problem string `json:"problem,omitempty"`
}

// intentHandler brings an adopted intent to an end, by undoing what is there or
// by finishing it, and says in a sentence what it did. When it returns nil the
// intent is taken off the journal. It must be right at any moment of the effect:
// before it, after it, and after it was undone already. Objects that do not carry
// the names in the intent are never touched.
type intentHandler func(ctx context.Context, c *vsphere.Client, in Intent) (action string, err error)

// errMayCome is what a handler returns of an effect that is not there, but may
// still come: the process died while its request was on the way. There is nothing
// to say, and the next command looks again.
var errMayCome = errors.New("it is not there, and may still come")

// intentHandlers is the one table from kinds of intents to what reconciles them.
func (s *State) intentHandlers() map[IntentKind]intentHandler {
	return map[IntentKind]intentHandler{
		IntentSnapshot: s.undoSnapshot,
		IntentHotAdd:   s.undoHotAdd,
		IntentMount:    s.mountHandler,
		IntentRegister: s.recoveryHandler,
		IntentRelocate: s.recoveryHandler,
		IntentStop:     s.recoveryHandler,
		IntentAttach:   s.recoveryHandler,
		IntentRestore:  s.restoreHandler,
	}
}

// Reconcile brings what dead processes began on this vCenter to an end. Every
// command that talks to a vCenter calls it before its own work. What could not
// be reconciled is in the answer, and no reason not to work; the error is for a
// journal that cannot be read at all, or a context that ended.
func (s *State) Reconcile(ctx context.Context, c *vsphere.Client, log *slog.Logger) ([]Reconciled, error) {
	return s.reconcile(ctx, c.About().InstanceUUID, log, func(ctx context.Context, in Intent) (string, error) {
		handler := s.intentHandlers()[in.Kind]
		if handler == nil {
			return "", fmt.Errorf("this version of Lifeboat does not know intents of the kind %q; use the one that wrote it", in.Kind)
		}
		return handler(ctx, c, in)
	})
}

func (s *State) reconcile(ctx context.Context, vcenter string, log *slog.Logger, handle func(context.Context, Intent) (string, error)) ([]Reconciled, error) {
	all, err := s.intents()
	if err != nil {
		if all == nil {
			return nil, err
		}
		log.Error("some intents cannot be read", "error", err)
	}
	var out []Reconciled
	// The newest first: what was built last is taken down first.
	for _, in := range slices.Backward(all) {
		if in.VCenter != vcenter || !in.abandoned() {
			continue
		}
		r, err := s.reconcileOne(ctx, in, handle)
		switch {
		case ctx.Err() != nil:
			return out, context.Cause(ctx)
		case errors.Is(err, ErrBusy), errors.Is(err, ErrNotFound):
			continue // another process was faster
		case err != nil:
			return out, err
		case r.Action == "" && r.Problem == "":
			continue
		}
		log.Warn("reconciled what an earlier run left", "kind", in.Kind, "vm", in.VM, "object", in.Object, "action", r.Action, "problem", r.Problem)
		out = append(out, r)
	}
	return out, nil
}

func (s *State) reconcileOne(ctx context.Context, in Intent, handle func(context.Context, Intent) (string, error)) (Reconciled, error) {
	in, err := s.adopt(in.ID)
	if err != nil {
		return Reconciled{}, err
	}
	r := Reconciled{Intent: in}
	action, err := handle(ctx, in)
	if errors.Is(err, errMayCome) {
		return r, s.release(in.ID)
	}
	if r.Action = action; err != nil {
		r.Problem = err.Error()
		return r, s.release(in.ID)
	}
	return r, s.done(in.ID)
}
