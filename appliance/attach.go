package appliance

import (
	"context"
	"errors"
	"fmt"
	"log/slog"
	"strings"
	"time"

	"lifeboat/store"
	"lifeboat/vsphere"
)

// AttachRequest gives disks of a restore point to a VM that runs.
type AttachRequest struct {
	Point   *store.Point
	RepoURL string
	Disks   []int  // numbers in the point, from 0; nil = all
	VM      string // name, path or pattern that fits one VM
	Session string // "" = made up
	Address string // as in RecoverRequest
	Logger  *slog.Logger

	hook func(at string)
}

// Attached are disks that a VM has got.
type Attached struct {
	Session string         `json:"session"`
	Point   string         `json:"point"`
	VM      string         `json:"vm"`
	Disks   []AttachedDisk `json:"disks"`
	Steps   []RecoverStep  `json:"steps"`
}

// AttachedDisk is one of them.
type AttachedDisk struct {
	Number int    `json:"disk"` // in the restore point
	Key    int32  `json:"key"`  // at the VM
	Label  string `json:"label"`
	Size   int64  `json:"size"`
}

// attachMode keeps a disk of ours out of the VM's snapshots, and so out of
// backups of it, and what is written to it in the session's overlay.
const attachMode = "independent_persistent"

// Attach hot-adds disks of a restore point to a VM, writable: what is written
// goes to the session. Detach, or Stop, takes them away again.
func Attach(ctx context.Context, st *State, repo *store.Repository, vc *vsphere.Client, req AttachRequest) (*Attached, error) {
	w, err := newVSphereWork(ctx, st, vc, req.Logger, req.hook)
	if err != nil {
		return nil, err
	}
	for _, n := range req.Disks {
		if _, err := diskByNumber(req.Point, n); err != nil {
			return nil, err
		}
	}
	vm, host, err := w.attachTo(ctx, req.VM)
	if err != nil {
		return nil, err
	}
	nas, err := w.nas(ctx, req.Address)
	if err != nil {
		return nil, err
	}
	a := &attaching{vsphereWork: w, req: req, repo: repo, vm: vm}
	out, err := a.run(ctx, nas, host)
	if err != nil {
		clean, cancel := afterwards(ctx)
		defer cancel()
		return nil, errors.Join(err, w.unmountUnused(clean))
	}
	return out, w.settleMounts()
}

// attachTo finds the VM and the host where it runs, which needs the datastore.
func (w *vsphereWork) attachTo(ctx context.Context, pattern string) (*vsphere.VM, vsphere.Host, error) {
	inv, err := w.vc.Inventory(ctx)
	if err != nil {
		return nil, vsphere.Host{}, err
	}
	vms, err := inv.Match(pattern)
	switch {
	case err != nil:
		return nil, vsphere.Host{}, fmt.Errorf("%w: %w", ErrUsage, err)
	case len(vms) == 0:
		return nil, vsphere.Host{}, fmt.Errorf("VM %q: %w", pattern, ErrNotFound)
	case len(vms) > 1:
		return nil, vsphere.Host{}, fmt.Errorf("%w: %q fits %d VMs; name one by its path", ErrUsage, pattern, len(vms))
	}
	for _, h := range inv.Hosts {
		if h.Ref == vms[0].HostRef {
			return vms[0], h, nil
		}
	}
	return nil, vsphere.Host{}, fmt.Errorf("host of VM %q: %w", vms[0].Name, ErrNotFound)
}

type attaching struct {
	*vsphereWork
	req     AttachRequest
	repo    *store.Repository
	vm      *vsphere.VM
	session string
	steps   []RecoverStep
}

func (a *attaching) run(ctx context.Context, nas vsphere.NAS, host vsphere.Host) (*Attached, error) {
	a.session = a.req.Session
	if a.session == "" {
		a.session = fileName(a.req.Point.VM) + time.Now().UTC().Format("-disks-20060102-150405")
	}
	release, err := a.state.lockNewWork(a.session)
	if err != nil {
		return nil, err
	}
	defer release()
	began := time.Now()
	if err := a.mount(ctx, []vsphere.Host{host}, nas); err != nil {
		return nil, err
	}
	a.took("mount", began)
	rec := &Recovery{
		VCenter: a.vc.About().InstanceUUID, Server: a.vc.About().Server, VM: a.vm.Name, Identity: a.vm.Identity,
		Hosts: []string{host.Name}, Datastore: nas.Name, Address: nas.Server, State: RecoveryPublishing, Attach: true,
	}
	intent, err := a.state.begin(Intent{
		Kind: IntentAttach, Session: a.session, VCenter: rec.VCenter, VM: rec.Identity,
		Object: map[string]string{"file": datastorePath(nas.Name, a.session) + "/"},
	})
	if err != nil {
		return nil, err
	}
	a.at("begun")
	out, err := a.attach(ctx, rec)
	if err == nil {
		a.at("attached")
		return out, a.state.done(intent.ID)
	}
	clean, cancel := afterwards(ctx)
	defer cancel()
	if uerr := a.undo(clean, a.session); uerr != nil {
		return nil, errors.Join(err, uerr, a.state.release(intent.ID))
	}
	return nil, errors.Join(err, a.state.done(intent.ID))
}

func (a *attaching) took(name string, began time.Time) {
	a.steps = append(a.steps, RecoverStep{Name: name, Began: began, Seconds: time.Since(began).Seconds()})
}

func (a *attaching) attach(ctx context.Context, rec *Recovery) (*Attached, error) {
	began := time.Now()
	s, err := a.publishSession(ctx, a.repo, sessionPlan{Name: a.session, Points: []*store.Point{a.req.Point}, RepoURL: a.req.RepoURL, Recovery: rec}, nil)
	if err != nil {
		return nil, err
	}
	a.took("publish", began)
	began = time.Now()
	out := &Attached{Session: a.session, Point: a.req.Point.ID, VM: a.vm.Name}
	folder, keys := s.Folders[0], map[int]int32{}
	for n, v := range folder.Disks {
		if !a.wanted(n) {
			continue
		}
		a.at("before attach")
		key, err := a.vc.AttachDisk(ctx, a.vm.Ref, vsphere.AttachSpec{File: datastorePath(rec.Datastore, a.session, folder.Name, v.Descriptor), Mode: attachMode})
		if err != nil {
			return nil, err
		}
		a.at("after attach")
		keys[n] = key
		out.Disks = append(out.Disks, AttachedDisk{Number: n, Key: key, Label: v.Label, Size: v.Size})
	}
	a.took("attach", began)
	out.Steps = a.steps
	_, err = a.state.updateSession(a.session, func(s *Session) {
		s.Recovery.State, s.Recovery.Disks, s.Recovery.Steps = RecoveryAttached, keys, a.steps
	})
	return out, err
}

func (a *attaching) wanted(n int) bool {
	if a.req.Disks == nil {
		return true
	}
	for _, want := range a.req.Disks {
		if want == n {
			return true
		}
	}
	return false
}

// detachDisks takes the disks of a session from every VM that has one. The VMs
// keep everything else.
func (w *vsphereWork) detachDisks(ctx context.Context, inv *vsphere.Inventory, session string) error {
	prefix := datastorePath(w.datastore, session) + "/"
	for _, vm := range inv.VMs {
		if vm.ExtraConfig[sessionKey] == w.mark(session) || strings.HasPrefix(vm.VMX, prefix) {
			continue
		}
		for _, d := range vm.Disks {
			if !strings.HasPrefix(d.File, prefix) && !strings.HasPrefix(d.BaseFile, prefix) {
				continue
			}
			w.at("before detach disk")
			if err := w.vc.DetachDisk(ctx, vm.Ref, d.Key, true); err != nil && !errors.Is(err, vsphere.ErrNotFound) {
				return err
			}
			w.at("after detach disk")
		}
	}
	return nil
}
