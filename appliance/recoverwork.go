package appliance

import (
	"context"
	"errors"
	"fmt"
	"log/slog"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"sync"
	"time"

	"golang.org/x/sys/unix"

	"lifeboat/vsphere"
)

// vsphereWork is what all work on a recovery at a vSphere shares.
type vsphereWork struct {
	state     *State
	vc        *vsphere.Client
	log       *slog.Logger
	appliance string // this appliance's ID: 16 hexadecimal digits
	datastore string // the name of its export on every vSphere
	hook      func(at string)

	mu       sync.Mutex
	mounting map[string]bool // intents of mounts that are ours to settle
}

func newVSphereWork(_ context.Context, st *State, vc *vsphere.Client, log *slog.Logger, hook func(string)) (*vsphereWork, error) {
	id, err := st.ApplianceID()
	if err != nil {
		return nil, err
	}
	return &vsphereWork{state: st, vc: vc, log: logger(log), appliance: id, datastore: "lifeboat-" + id[:8], hook: hook, mounting: map[string]bool{}}, nil
}

// ApplianceID tells this appliance's objects on a vSphere from those of another.
func (s *State) ApplianceID() (string, error) {
	id, err := s.identity()
	return fmt.Sprintf("%016x", id.fsid), err
}

// at is a place where tests end the process.
func (w *vsphereWork) at(place string) {
	if w.hook != nil {
		w.hook(place)
	}
}

// mark is the value of sessionKey of a session's VM.
func (w *vsphereWork) mark(session string) string { return w.appliance + "/" + session }

// lockMounts keeps two processes from mounting for one session and unmounting
// for another at the same time. It waits.
func (s *State) lockMounts() (release func(), err error) {
	f, err := os.OpenFile(filepath.Join(s.dir, "mounts.lock"), os.O_RDWR|os.O_CREATE, 0o600)
	if err != nil {
		return nil, fmt.Errorf("state directory: %w", err)
	}
	for {
		err = unix.Flock(int(f.Fd()), unix.LOCK_EX)
		if !errors.Is(err, unix.EINTR) {
			break
		}
	}
	if err != nil {
		f.Close()
		return nil, fmt.Errorf("state directory: lock: %w", err)
	}
	return func() { unlock(f) }, nil
}

// Mounts are shared by all sessions of a vCenter. A host needs ours while
//
//   - a session's record names the host, or
//   - an intent of a living process does: the session's record is about to.
//
// Both are looked at, and mounts made and taken off, under one lock of the state
// directory, so that none is taken off between being found mounted and being used.

// mount gives the hosts our datastore. The intents stay in the journal until
// settleMounts, when sessions name the hosts.
func (w *vsphereWork) mount(ctx context.Context, hosts []vsphere.Host, nas vsphere.NAS) error {
	release, err := w.state.lockMounts()
	if err != nil {
		return err
	}
	defer release()
	mounted, err := w.vc.NASDatastores(ctx)
	if err != nil {
		return err
	}
	var mounting sync.WaitGroup
	errs := make([]error, len(hosts))
	for i, h := range hosts {
		if err := w.intendMount(h, nas); err != nil {
			return err
		}
		at := slices.IndexFunc(mounted, func(m vsphere.NASMount) bool { return m.Host == h.Ref && m.Name == nas.Name })
		if at >= 0 && mounted[at].Server == nas.Server && mounted[at].Path == nas.Path && mounted[at].Mounted {
			continue
		}
		mounting.Go(func() { errs[i] = w.mountOn(ctx, h, nas) })
	}
	mounting.Wait()
	return errors.Join(errs...)
}

func (w *vsphereWork) intendMount(h vsphere.Host, nas vsphere.NAS) error {
	in, err := w.state.begin(Intent{
		Kind: IntentMount, VCenter: w.vc.About().InstanceUUID,
		Object: map[string]string{"name": nas.Name, "host": h.Name, "server": nas.Server, "path": nas.Path},
	})
	if err != nil {
		return err
	}
	w.mu.Lock()
	defer w.mu.Unlock()
	w.mounting[in.ID] = true
	return nil
}

func (w *vsphereWork) mountOn(ctx context.Context, h vsphere.Host, nas vsphere.NAS) error {
	w.at("before mount")
	_, err := w.vc.MountNAS(ctx, h.Ref, nas)
	w.at("after mount")
	var other *vsphere.MountedError
	switch {
	case errors.As(err, &other) && other.Name == nas.Name:
		return nil
	case errors.As(err, &other):
		return fmt.Errorf("host %s has %s:%s already, as the datastore %q: %w; unmount it there, or give the server another address", h.Name, nas.Server, nas.Path, other.Name, err)
	case errors.Is(err, vsphere.ErrNameTaken):
		return fmt.Errorf("host %s has another datastore called %s, perhaps ours under an old address: %w; `lifeboat leftovers --clean` removes it if nothing is on it", h.Name, nas.Name, err)
	case errors.Is(err, vsphere.ErrMaxVolumes):
		return fmt.Errorf("%w; Lifeboat needs one for all its recoveries: unmount one that is not needed, or raise NFS.MaxVolumes (at most 256)", err)
	}
	return err
}

// settleMounts takes our intents of mounts off the journal: sessions name the
// hosts by now, or nothing is mounted for us any more.
func (w *vsphereWork) settleMounts() error {
	w.mu.Lock()
	defer w.mu.Unlock()
	for id := range w.mounting {
		if err := w.state.done(id); err != nil {
			return err
		}
		delete(w.mounting, id)
	}
	return nil
}

// neededOn returns the hosts of this vCenter where our datastore is needed, by
// name; see mount.
func (w *vsphereWork) neededOn() (map[string]bool, error) {
	needed := map[string]bool{}
	recs, err := w.state.sessions()
	if err != nil {
		return nil, err
	}
	vcenter := w.vc.About().InstanceUUID
	for _, rec := range recs {
		if rec.onVSphere(vcenter) {
			for _, host := range rec.Recovery.Hosts {
				needed[host] = true
			}
		}
	}
	all, err := w.state.intents()
	w.mu.Lock()
	defer w.mu.Unlock()
	for _, in := range all {
		if in.Kind == IntentMount && in.VCenter == vcenter && !w.mounting[in.ID] && !in.abandoned() {
			needed[in.Object["host"]] = true
		}
	}
	return needed, err
}

// unmountUnused takes our datastore off every host where nobody needs it, and
// settles our intents. A datastore that somebody has put a VM on stays, and is
// named.
func (w *vsphereWork) unmountUnused(ctx context.Context) error {
	release, err := w.state.lockMounts()
	if err != nil {
		return err
	}
	defer release()
	mounts, err := w.vc.NASDatastores(ctx)
	if err != nil {
		return err
	}
	needed, err := w.neededOn()
	if err != nil {
		return err
	}
	var errs []error
	for _, m := range mounts {
		if m.Name != w.datastore || needed[m.HostName] {
			continue
		}
		w.at("before unmount")
		if err := w.vc.UnmountNAS(ctx, m.Host, m.Name); err != nil && !errors.Is(err, vsphere.ErrNotFound) {
			errs = append(errs, fmt.Errorf("datastore %s stays on host %s: %w", m.Name, m.HostName, err))
		}
		w.at("after unmount")
	}
	if err := errors.Join(errs...); err != nil {
		return err
	}
	return w.settleMounts()
}

// findVM finds the VM of a session: by its .vmx in the session's folder, or else,
// when it has moved, by its mark. nil: there is none. A copy that is to take its
// place is another VM.
func (w *vsphereWork) findVM(inv *vsphere.Inventory, session string) *vsphere.VM {
	folder := datastorePath(w.datastore, session) + "/"
	var marked *vsphere.VM
	for i, vm := range inv.VMs {
		switch {
		case strings.HasPrefix(vm.VMX, folder):
			return &inv.VMs[i]
		case vm.ExtraConfig[sessionKey] == w.mark(session) && vm.ExtraConfig[copiedKey] == "" && !w.halfMade(vm.Annotation):
			marked = &inv.VMs[i]
		}
	}
	return marked
}

// onOurs says what of a VM is still on our datastore: "" nothing.
func (w *vsphereWork) onOurs(vm *vsphere.VM) string {
	prefix := "[" + w.datastore + "] "
	for _, d := range vm.Disks {
		if strings.HasPrefix(d.File, prefix) || strings.HasPrefix(d.BaseFile, prefix) || strings.HasPrefix(d.ParentFile, prefix) || d.Datastore == w.datastore {
			return d.Label
		}
	}
	switch {
	case strings.HasPrefix(vm.VMX, prefix):
		return "its configuration"
	case vm.VMX == "": // vSphere cannot read it now; its disks are not told either
		return "what vSphere does not tell now"
	}
	return ""
}

// pin keeps DRS and HA from moving the VM about and starting it elsewhere while
// it depends on us.
func (w *vsphereWork) pin(ctx context.Context, session string, ref vsphere.Ref) error {
	if _, err := w.state.updateSession(session, func(s *Session) { s.Recovery.Pinned = true }); err != nil {
		return err
	}
	return w.vc.OverrideDRSHA(ctx, ref, true)
}

// How long a VM is waited for on which a task is at work: one of a process that
// died, most likely, which ends by itself.
const (
	busyPatience = 2 * time.Minute
	busyPause    = 250 * time.Millisecond
)

// whenFree does something to a VM, and tries again while another task has it.
func (w *vsphereWork) whenFree(ctx context.Context, do func(context.Context) error) error {
	for end := time.Now().Add(busyPatience); ; {
		err := do(ctx)
		if !errors.Is(err, vsphere.ErrBusy) || time.Now().After(end) || !pause(ctx, busyPause) {
			return err
		}
	}
}
