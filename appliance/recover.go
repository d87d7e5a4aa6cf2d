package appliance

import (
	"context"
	"errors"
	"fmt"
	"log/slog"
	"sync"
	"time"

	"lifeboat/store"
	"lifeboat/vsphere"
)

// RecoverRequest says which restore points are to run where.
type RecoverRequest struct {
	Points  []*store.Point
	RepoURL string
	Session string // of a single point; "" = made up
	Name    string // of a single point's VM; "" = the VM's own, changed where it is taken

	Host   string // host or cluster; "" = where the VM was, or else the first host that can
	Folder string // path of the VM folder; "" = where the VM was, or the datacenter's
	Pool   string // path of the resource pool; "" = the root pool

	Networks     map[string]string // old name → new name, plugged in
	KeepNetworks bool              // plugged in where they were
	// KeepIdentity gives the VM the UUIDs and MAC addresses of the original,
	// which must be gone.
	KeepIdentity bool
	PowerOn      bool

	// Address is how the hosts reach the server; "" = where it listens.
	Address string
	// Parallel is how many VMs are worked on at a time; 0 = 8.
	Parallel int
	// Step, if not nil, hears of each step that is done. Several VMs at once.
	Step   func(session string, step RecoverStep)
	Logger *slog.Logger

	hook func(at string) // tests: called before and after every effect
}

// Recovered is one VM that was recovered, or why it was not.
type Recovered struct {
	Session   string           `json:"session"`
	Point     string           `json:"point"`
	Source    string           `json:"source"` // the VM that was backed up
	VM        string           `json:"vm"`
	Identity  vsphere.Identity `json:"identity,omitzero"`
	Host      string           `json:"host"`
	Datastore string           `json:"datastore"`
	State     RecoveryState    `json:"state"`
	Steps     []RecoverStep    `json:"steps"`
	Notes     []string         `json:"notes,omitempty"`
	Error     string           `json:"error,omitempty"`
}

// Recover runs restore points on a vSphere, each in a session of its own: files
// and export, datastore on the hosts, VM in the inventory, power. The server
// must run. Of several some may fail: their errors are joined, and each is undone.
//
// Journal: an intent stands before the first effect and goes when the session's
// record says that all is done. See resumeRecovery for what happens in between.
func Recover(ctx context.Context, st *State, repo *store.Repository, vc *vsphere.Client, req RecoverRequest) ([]Recovered, error) {
	if len(req.Points) == 0 {
		return nil, fmt.Errorf("%w: name at least one restore point", ErrUsage)
	}
	if len(req.Points) > 1 && (req.Session != "" || req.Name != "") {
		return nil, fmt.Errorf("%w: a name is for one restore point; there are %d", ErrUsage, len(req.Points))
	}
	w, err := newVSphereWork(ctx, st, vc, req.Logger, req.hook)
	if err != nil {
		return nil, err
	}
	place, err := w.place(ctx, req)
	if err != nil {
		return nil, err
	}
	began := time.Now()
	if err := w.mount(ctx, place.hosts, place.nas); err != nil {
		clean, cancel := afterwards(ctx)
		defer cancel()
		return nil, errors.Join(err, w.unmountUnused(clean))
	}
	mounting := RecoverStep{Name: "mount", Began: began, Seconds: time.Since(began).Seconds()}
	out := make([]Recovered, len(req.Points))
	errs := make([]error, len(req.Points))
	var running sync.WaitGroup
	slots := make(chan struct{}, orDefault(req.Parallel, 8))
	for i, pt := range req.Points {
		running.Go(func() {
			slots <- struct{}{}
			defer func() { <-slots }()
			one := &recovering{vsphereWork: w, req: req, repo: repo, point: pt, place: place, steps: []RecoverStep{mounting}}
			out[i], errs[i] = one.run(ctx)
		})
	}
	running.Wait()
	err = errors.Join(errs...)
	if err != nil {
		// What was mounted for those that failed, and nobody else.
		clean, cancel := afterwards(ctx)
		defer cancel()
		return out, errors.Join(err, w.unmountUnused(clean))
	}
	return out, w.settleMounts()
}

func orDefault(n, def int) int {
	if n > 0 {
		return n
	}
	return def
}

// undoPatience bounds cleaning up after an error or an interruption.
const undoPatience = 5 * time.Minute

// afterwards is a context for cleaning up when ctx may be over.
func afterwards(ctx context.Context) (context.Context, context.CancelFunc) {
	return context.WithTimeout(context.WithoutCancel(ctx), undoPatience)
}

// recovering is the recovery of one point.
type recovering struct {
	*vsphereWork
	req   RecoverRequest
	repo  *store.Repository
	point *store.Point
	place *recoverPlace

	session string
	vm      vmPlan
	rec     *Session
	ref     vsphere.Ref
	steps   []RecoverStep
	notes   []string
}

func (r *recovering) run(ctx context.Context) (Recovered, error) {
	out := Recovered{Point: r.point.ID, Source: r.point.VM, Datastore: r.place.nas.Name, Host: r.place.hosts[0].Name}
	rec, err := r.plan(ctx)
	if err != nil {
		out.Error = err.Error()
		return out, err
	}
	out.Session, out.VM = r.session, rec.VM
	release, err := r.state.lockNewWork(r.session)
	if err != nil {
		out.Error = err.Error()
		return out, err
	}
	defer release()
	intent, err := r.state.begin(Intent{
		Kind: IntentRegister, Session: r.session, VCenter: rec.VCenter, VM: rec.Identity,
		Object: map[string]string{"name": rec.VM, "datastore": rec.Datastore, "session": r.session},
	})
	if err != nil {
		out.Error = err.Error()
		return out, err
	}
	r.at("begun")
	err = r.steer(ctx, rec)
	if err == nil {
		err = r.state.done(intent.ID)
		r.at("done")
	} else {
		err = r.failed(ctx, intent, err)
		out.Error = err.Error()
	}
	out.Steps, out.Notes = r.steps, r.notes
	if now, serr := r.state.session(r.session); serr == nil && now.Recovery != nil {
		out.State, out.Identity = now.Recovery.State, now.Recovery.Identity
	}
	return out, err
}

// steer takes the steps in their order.
func (r *recovering) steer(ctx context.Context, rec *Recovery) error {
	if err := r.step("publish", func() error { return r.publish(ctx, rec) }); err != nil {
		return err
	}
	if err := r.step("register", func() error { return r.register(ctx) }); err != nil {
		return err
	}
	if r.place.pinned() {
		if err := r.step("pin", func() error { return r.pin(ctx, r.session, r.ref) }); err != nil {
			return err
		}
	}
	// Its NICs are where they belong, and DRS knows: from here on it is finished,
	// not undone.
	if _, err := r.state.updateSession(r.session, func(s *Session) { s.Recovery.State = RecoveryRegistered }); err != nil {
		return err
	}
	r.at("registered")
	if r.req.PowerOn {
		if err := r.step("power-on", func() error { return r.vc.PowerOn(ctx, r.ref) }); err != nil {
			return fmt.Errorf("VM %q is registered but not on: %w", r.rec.Recovery.VM, err)
		}
	}
	_, err := r.state.updateSession(r.session, func(s *Session) {
		s.Recovery.State, s.Recovery.Steps, s.Recovery.Notes = RecoveryRunning, r.steps, r.notes
	})
	return err
}

// step runs one step and notes how long it took.
func (r *recovering) step(name string, do func() error) error {
	s := RecoverStep{Name: name, Began: time.Now()}
	r.at("before " + name)
	err := do()
	if err != nil {
		return err
	}
	r.at("after " + name)
	s.Seconds = time.Since(s.Began).Seconds()
	r.steps = append(r.steps, s)
	if r.req.Step != nil {
		r.req.Step(r.session, s)
	}
	return nil
}

// publish makes the session and has the server export it.
func (r *recovering) publish(ctx context.Context, rec *Recovery) (err error) {
	plan := sessionPlan{Name: r.session, Points: []*store.Point{r.point}, RepoURL: r.req.RepoURL, Recovery: rec}
	if r.rec, err = r.publishSession(ctx, r.repo, plan, r.files); err != nil {
		return err
	}
	_, err = r.state.updateSession(r.session, func(s *Session) { s.Recovery.State = RecoveryMounted })
	return err
}

// publishSession makes a new session's files and overlays, and has the server
// export it.
func (w *vsphereWork) publishSession(ctx context.Context, repo *store.Repository, plan sessionPlan, config folderConfig) (*Session, error) {
	p := &openSession{state: w.state, log: w.log, config: config}
	err := p.claim(plan, repo)
	if err == nil {
		err = p.openDisks(ctx, repo)
	}
	if err = errors.Join(err, p.close()); err != nil {
		return nil, err
	}
	w.at("made")
	return p.Session, w.state.Control().Attach(ctx, plan.Name)
}

// files are those of the VM as it is to run here.
func (r *recovering) files(ctx context.Context, repo *store.Repository, pt *store.Point, f *Folder, efi bool) (map[string][]byte, error) {
	files, notes, err := vmFiles(ctx, repo, pt, f, efi, vmxChanges{
		Name: r.vm.name, Note: r.vm.note, Session: r.mark(r.session), Instance: r.vm.instance, BIOS: r.vm.bios,
		Hardware: r.place.hardware, Networks: networkPlan{Keep: r.req.KeepNetworks, Map: r.req.Networks},
	})
	r.notes = append(r.notes, notes...)
	return files, err
}

// register brings the VM into the inventory.
func (r *recovering) register(ctx context.Context) error {
	f := r.rec.Folders[0]
	ref, err := r.vc.RegisterVM(ctx, vsphere.RegisterSpec{
		Path: datastorePath(r.place.nas.Name, r.session, f.Name, f.VMX),
		Name: r.vm.name, Host: r.place.hosts[0].Ref, Folder: r.vm.folder, Pool: r.place.pool,
	})
	if err != nil {
		return err
	}
	r.ref = ref
	r.at("in the inventory")
	vm, err := r.vc.VM(ctx, ref)
	if err != nil {
		return err
	}
	if _, err = r.state.updateSession(r.session, func(s *Session) { s.Recovery.Identity = vm.Identity }); err != nil {
		return err
	}
	return r.plug(ctx, vm)
}

// plug puts NICs on networks that a .vmx cannot name (those of a distributed
// switch): the host shows such a NIC on no network, or another.
func (r *recovering) plug(ctx context.Context, vm *vsphere.VM) error {
	saved, err := readConfig(ctx, r.repo, r.point)
	if err != nil || saved.vm == nil {
		return err
	}
	plan := networkPlan{Keep: r.req.KeepNetworks, Map: r.req.Networks}
	var change []vsphere.NICChange
	for _, was := range saved.vm.NICs {
		network, plugged := plan.target(was.Network)
		for _, nic := range vm.NICs {
			if nic.Key == was.Key && plugged && nic.Network != network {
				on := true
				change = append(change, vsphere.NICChange{Key: nic.Key, Network: network, StartConnect: &on})
			}
		}
	}
	if len(change) == 0 {
		return nil
	}
	return r.vc.Reconfigure(ctx, r.ref, vsphere.ChangeSpec{NICs: change})
}

// failed undoes what there is, or leaves the intent to the next command.
func (r *recovering) failed(ctx context.Context, intent Intent, cause error) error {
	clean, cancel := afterwards(ctx)
	defer cancel()
	err := r.undo(clean, r.session)
	if err == nil {
		err = r.state.done(intent.ID)
	} else {
		err = errors.Join(err, r.state.release(intent.ID))
	}
	if err != nil {
		return fmt.Errorf("%s: %w; taking it back failed, too (%w): `lifeboat leftovers --clean` tries again", r.point.VM, cause, err)
	}
	return fmt.Errorf("%s: %w", r.point.VM, cause)
}
