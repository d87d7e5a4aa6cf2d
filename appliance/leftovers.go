package appliance

import (
	"context"
	"errors"
	"fmt"
	"log/slog"
	"strings"

	"lifeboat/vsphere"
)

// Leftover is something on a vSphere that carries Lifeboat's names and that no
// running work needs.
type Leftover struct {
	Kind    string `json:"kind"` // "datastore", "vm", "disk", "session"
	Name    string `json:"name"`
	Where   string `json:"where"` // host, VM or folder
	Why     string `json:"why"`
	Foreign bool   `json:"foreign,omitempty"` // another appliance's: never removed from here
	Cleaned bool   `json:"cleaned"`
	Problem string `json:"problem,omitempty"` // why it could not be removed

	clean func(context.Context) error
}

// LeftoversRequest looks for what was left behind, and removes it on request.
type LeftoversRequest struct {
	Clean  bool
	Logger *slog.Logger
}

// Leftovers finds, by the journal and by name, what earlier runs have left on a
// vSphere: intents of dead processes, our datastore where no session needs it
// (inactive ones too), VMs and disks on it that no session knows, sessions whose
// VM is gone or has moved. With Clean the ones that are ours go. Another
// appliance's are only named.
func Leftovers(ctx context.Context, st *State, vc *vsphere.Client, req LeftoversRequest) ([]Leftover, error) {
	w, err := newVSphereWork(ctx, st, vc, req.Logger, nil)
	if err != nil {
		return nil, err
	}
	all, err := w.journalLeftovers(ctx, req.Clean)
	if err != nil {
		return all, err
	}
	inv, err := vc.Inventory(ctx)
	if err != nil {
		return all, err
	}
	mounts, err := vc.NASDatastores(ctx)
	if err != nil {
		return all, err
	}
	for _, find := range []func() ([]Leftover, error){
		func() ([]Leftover, error) { return w.inventoryLeftovers(inv) },
		func() ([]Leftover, error) { return w.sessionLeftovers(inv) },
		func() ([]Leftover, error) { return w.mountLeftovers(mounts) },
	} {
		found, err := find()
		if err != nil {
			return all, err
		}
		for _, l := range found {
			if req.Clean && !l.Foreign {
				if err := l.clean(ctx); err != nil {
					l.Problem = err.Error()
				} else {
					l.Cleaned = true
				}
			}
			all = append(all, l)
		}
	}
	return all, ctx.Err()
}

// journalLeftovers are intents of processes that are gone.
func (w *vsphereWork) journalLeftovers(ctx context.Context, clean bool) ([]Leftover, error) {
	var out []Leftover
	if clean {
		done, err := w.state.Reconcile(ctx, w.vc, w.log)
		for _, r := range done {
			out = append(out, Leftover{
				Kind: "intent", Name: intentName(r.Intent), Where: w.vc.About().Server,
				Why: firstNonEmpty(r.Action, "begun by a process that is gone"), Cleaned: r.Problem == "", Problem: r.Problem,
			})
		}
		return out, err
	}
	all, err := w.state.intents()
	for _, in := range all {
		if in.VCenter == w.vc.About().InstanceUUID && in.abandoned() {
			out = append(out, Leftover{Kind: "intent", Name: intentName(in), Where: w.vc.About().Server, Why: "begun by a process that is gone; what there is of it has to be looked for"})
		}
	}
	return out, err
}

func intentName(in Intent) string {
	name := string(in.Kind)
	if what := firstNonEmpty(in.Object["name"], in.Session); what != "" {
		name += " " + what
	}
	return name
}

func firstNonEmpty(values ...string) string {
	for _, v := range values {
		if v != "" {
			return v
		}
	}
	return ""
}

// ourPrefix is how all names that we give on a vSphere begin.
const ourPrefix = "lifeboat-"

// inventoryLeftovers are VMs and disks on our datastore that no session has.
func (w *vsphereWork) inventoryLeftovers(inv *vsphere.Inventory) ([]Leftover, error) {
	var out []Leftover
	working, err := w.notesAtWork()
	if err != nil {
		return nil, err
	}
	for i := range inv.VMs {
		vm := &inv.VMs[i]
		if w.halfMade(vm.Annotation) {
			if !working[vm.Annotation] {
				out = append(out, Leftover{
					Kind: "vm", Name: vm.Name, Where: vm.VMX, Why: "a VM that was half restored when the restore died",
					clean: func(ctx context.Context) error { _, err := w.removeHalfMade(ctx, vm.Annotation); return err },
				})
			}
			continue
		}
		l, err := w.vmLeftover(vm)
		if err != nil {
			return out, err
		}
		if l != nil {
			out = append(out, *l)
			continue
		}
		disks, err := w.diskLeftovers(vm)
		if err != nil {
			return out, err
		}
		out = append(out, disks...)
	}
	return out, nil
}

// halfMade reports whether a VM's notes say that a restore or copy of ours is, or
// was, making it.
func (w *vsphereWork) halfMade(note string) bool {
	return strings.HasPrefix(note, "[Lifeboat "+w.appliance+": ") && strings.HasSuffix(note, "the VM is not complete]")
}

// notesAtWork are the notes of VMs that are being made now.
func (w *vsphereWork) notesAtWork() (map[string]bool, error) {
	all, err := w.state.intents()
	notes := map[string]bool{}
	for _, in := range all {
		if in.Kind == IntentRestore && !in.abandoned() {
			notes[in.Object["note"]] = true
		}
	}
	return notes, err
}

func (w *vsphereWork) vmLeftover(vm *vsphere.VM) (*Leftover, error) {
	owner, session, marked := strings.Cut(vm.ExtraConfig[sessionKey], "/")
	datastore, file := splitDatastorePath(vm.VMX)
	if !marked && !strings.HasPrefix(datastore, ourPrefix) {
		return nil, nil
	}
	l := &Leftover{Kind: "vm", Name: vm.Name, Where: vm.VMX}
	if marked && owner != w.appliance || !marked && datastore != w.datastore {
		l.Foreign, l.Why = true, "a VM that another Lifeboat recovered; it may be in use there"
		return l, nil
	}
	if datastore != w.datastore {
		l.Why = "a VM that was moved away from us still carries our mark"
		l.clean = func(ctx context.Context) error { return w.unmark(ctx, vm) }
	} else {
		l.Why = "a VM on our datastore that no session knows"
		l.clean = func(ctx context.Context) error { return w.removeVM(ctx, vm) }
	}
	if !marked {
		session, _, _ = strings.Cut(file, "/")
	}
	known, err := w.known(session)
	if known || err != nil {
		return nil, err
	}
	return l, nil
}

func (w *vsphereWork) unmark(ctx context.Context, vm *vsphere.VM) error {
	return w.vc.Reconfigure(ctx, vm.Ref, vsphere.ChangeSpec{ExtraConfig: map[string]string{sessionKey: ""}})
}

// known reports whether a session of that name has something on a vSphere.
func (w *vsphereWork) known(session string) (bool, error) {
	rec, err := w.state.session(session)
	if errors.Is(err, ErrNotFound) {
		return false, nil
	}
	return err == nil && rec.Recovery != nil, err
}

// diskLeftovers are disks of ours at somebody's VM.
func (w *vsphereWork) diskLeftovers(vm *vsphere.VM) ([]Leftover, error) {
	if datastore, _ := splitDatastorePath(vm.VMX); strings.HasPrefix(datastore, ourPrefix) {
		return nil, nil
	}
	var out []Leftover
	for _, d := range vm.Disks {
		datastore, file := splitDatastorePath(d.File)
		if !strings.HasPrefix(datastore, ourPrefix) {
			continue
		}
		l := Leftover{Kind: "disk", Name: d.File, Where: vm.Name, Why: "a disk of a restore point that no session knows"}
		if datastore != w.datastore {
			l.Foreign, l.Why = true, "a disk that another Lifeboat attached; it may be in use"
			out = append(out, l)
			continue
		}
		session, _, _ := strings.Cut(file, "/")
		known, err := w.known(session)
		if err != nil {
			return out, err
		}
		if !known {
			l.clean = func(ctx context.Context) error { return w.vc.DetachDisk(ctx, vm.Ref, d.Key, true) }
			out = append(out, l)
		}
	}
	return out, nil
}

// splitDatastorePath splits "[datastore] a/b".
func splitDatastorePath(p string) (datastore, file string) {
	name, rest, ok := strings.Cut(strings.TrimPrefix(p, "["), "]")
	if !ok {
		return "", p
	}
	return name, strings.TrimPrefix(rest, " ")
}

// sessionLeftovers are sessions whose VM is gone from the inventory, or has been
// moved to other storage by hand.
func (w *vsphereWork) sessionLeftovers(inv *vsphere.Inventory) ([]Leftover, error) {
	recs, err := w.state.sessions()
	if err != nil {
		return nil, err
	}
	var out []Leftover
	for _, rec := range recs {
		if !rec.onVSphere(w.vc.About().InstanceUUID) || rec.Recovery.Attach || rec.Recovery.State != RecoveryRunning {
			continue
		}
		l := Leftover{Kind: "session", Name: rec.Name, Where: rec.Recovery.VM}
		vm := w.findVM(inv, rec.Name)
		switch {
		case vm == nil:
			// What was written in it is still there: that goes only when asked by name.
			l.Why = fmt.Sprintf("its VM is not in the inventory any more; `lifeboat session keep %s` saves what it wrote, `lifeboat stop %[1]s` drops it", rec.Name)
			l.clean = func(context.Context) error {
				return fmt.Errorf("%w: what the VM wrote would be lost: `lifeboat stop %s` does it", ErrBusy, rec.Name)
			}
		case w.onOurs(vm) == "":
			l.Why = "its VM was moved to other storage"
			l.clean = func(ctx context.Context) error { return w.cleanMoved(ctx, rec.Name) }
		default:
			continue
		}
		out = append(out, l)
	}
	return out, nil
}

func (w *vsphereWork) cleanMoved(ctx context.Context, session string) error {
	release, err := w.state.lockWork(session)
	if err != nil {
		return err
	}
	defer release()
	return w.cleanMigrated(ctx, session)
}

// mountLeftovers are hosts that have our datastore and no use for it.
func (w *vsphereWork) mountLeftovers(mounts []vsphere.NASMount) ([]Leftover, error) {
	needed, err := w.neededOn()
	if err != nil {
		return nil, err
	}
	var out []Leftover
	for _, m := range mounts {
		if !strings.HasPrefix(m.Name, ourPrefix) || m.Path != ExportPath {
			continue
		}
		l := Leftover{Kind: "datastore", Name: m.Name, Where: m.HostName, Why: "no session needs it there"}
		if !m.Active {
			l.Why += "; it is inactive, its server " + m.Server + " does not answer"
		}
		switch {
		case m.Name != w.datastore:
			if m.Active {
				continue // somebody's, and at work
			}
			l.Foreign, l.Why = true, "another Lifeboat's, inactive: its server "+m.Server+" does not answer"
		case needed[m.HostName]:
			continue
		default:
			l.clean = w.unmountUnused
		}
		out = append(out, l)
	}
	return out, nil
}
