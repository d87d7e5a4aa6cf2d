package appliance

import (
	"context"
	"errors"
	"fmt"
	"log/slog"
	"strings"

	"lifeboat/disk"
	"lifeboat/store"
	"lifeboat/vddk"
	"lifeboat/vsphere"
)

// CopyVMRequest moves a recovered VM without Storage vMotion.
type CopyVMRequest struct {
	Session    string
	Datastore  string         // where the VM goes
	PerDisk    map[int]string // disks that go elsewhere: number in the restore point → datastore
	Thick      bool
	Transports Transports
	// Started, if not nil, hears of each pass over a disk and returns where its
	// progress goes: bytes done, and of how many.
	Started func(n int, name string, size int64) func(done, total int64)
	Logger  *slog.Logger

	hook func(at string)
}

// copiedKey is the setting by which the new VM is known until it has taken the
// old one's place.
const copiedKey = "lifeboat.copied"

// A guest that runs is copied in passes. Each is a cut of all its disks, kept as a
// restore point; the first is written whole to a new VM that is off, the others
// only where they differ from the one before. When little differs, or a pass does
// not make it less, the guest is shut down, and the last pass is what it wrote
// until then. So the time that it is off depends on how fast it writes, not on
// how large it is.
const (
	copyPasses   = 5
	copyEnough   = 64 << 20 // bytes that may be left for the time when the guest is off
	copyDiffRead = 1 << 20
)

// MigrateByCopy copies a recovered VM to a new one on production storage while it
// runs, and puts the new one in its place. Until the copy is complete nothing of
// the old one changes but, for the last pass, that it is shut down; when something
// fails it is switched on again, and the copy is removed.
//
// Journal: the intent of the new VM ends when the VM is complete, in the same step
// in which the session becomes RecoveryCopied. From then on the old VM is only
// taken away.
func MigrateByCopy(ctx context.Context, st *State, repo *store.Repository, vc *vsphere.Client, req CopyVMRequest) (err error) {
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
	m := &copying{vsphereWork: w, req: req, repo: repo, rec: rec}
	if m.vm, err = w.sessionVM(ctx, req.Session); err != nil {
		return err
	}
	if m.vm == nil || rec.Recovery.Attach {
		return fmt.Errorf("session %q has no VM in the inventory: %w", req.Session, ErrNotFound)
	}
	if m.vm, err = vc.VM(ctx, m.vm.Ref); err != nil {
		return err
	}
	if m.vm.Power == vsphere.Suspended {
		return fmt.Errorf("%w: VM %q is suspended, and what it has in memory cannot be copied: resume it, or shut it down", ErrUsage, m.vm.Name)
	}
	intent, err := st.begin(Intent{
		Kind: IntentRelocate, Session: req.Session, VCenter: rec.Recovery.VCenter, VM: m.vm.Identity,
		Object: map[string]string{"name": m.vm.Name, "target": req.Datastore},
	})
	if err != nil {
		return err
	}
	if err := m.run(ctx); err != nil {
		return errors.Join(fmt.Errorf("VM %q is not moved, and runs on from the backup; nothing is lost: %w", m.vm.Name, err), w.endMigration(ctx, req.Session, intent))
	}
	return st.done(intent.ID)
}

type copying struct {
	*vsphereWork
	req     CopyVMRequest
	repo    *store.Repository
	rec     *Session
	vm      *vsphere.VM    // the one that runs
	into    *vsphere.VM    // the new one
	targets []vsphere.Disk // of the new VM, in the order of the point's disks
	passes  []*store.Point
}

func (m *copying) run(ctx context.Context) (err error) {
	if _, err := m.state.updateSession(m.req.Session, func(s *Session) { s.Recovery.State, s.Recovery.Target = RecoveryMigrating, m.req.Datastore }); err != nil {
		return err
	}
	mark := fmt.Sprintf("[Lifeboat %s: a copy of session %s (%s) is under way; the VM is not complete]", m.appliance, m.req.Session, newUUID()[:8])
	intent, err := m.state.begin(Intent{Kind: IntentRestore, Session: m.req.Session, VCenter: m.rec.Recovery.VCenter, Object: map[string]string{"note": mark, "name": m.vm.Name}})
	if err != nil {
		return err
	}
	m.at("begun")
	err = m.copy(ctx, mark)
	m.forgetPasses(ctx)
	if err != nil {
		clean, cancel := afterwards(ctx)
		defer cancel()
		there, uerr := m.removeHalfMade(clean, mark)
		if uerr != nil || !there && unknownOutcome(ctx, err) { // it may still be made: the next command looks again
			return errors.Join(err, uerr, m.state.release(intent.ID))
		}
		return errors.Join(err, m.state.done(intent.ID))
	}
	m.at("copied")
	if err := m.state.done(intent.ID); err != nil {
		return err
	}
	return m.finishCopy(ctx, m.req.Session)
}

// copy makes the new VM and everything in it. The old one is off when it is done.
func (m *copying) copy(ctx context.Context, mark string) error {
	if err := m.makeTarget(ctx, mark); err != nil {
		return err
	}
	m.at("made")
	left := int64(-1)
	for n := range copyPasses {
		differs, err := m.pass(ctx)
		if err != nil {
			return err
		}
		m.at("pass")
		if m.vm.Power != vsphere.PoweredOn || n > 0 && (differs <= copyEnough || left >= 0 && differs > left/2) {
			break
		}
		left = differs
	}
	if m.vm.Power == vsphere.PoweredOn {
		if _, err := m.state.updateSession(m.req.Session, func(s *Session) { s.Recovery.SwitchedOff = true }); err != nil {
			return err
		}
		if err := m.shutDown(ctx, m.vm); err != nil {
			return err
		}
		m.at("off")
		if _, err := m.pass(ctx); err != nil {
			return err
		}
	}
	// Who switched it on meanwhile has a guest that writes what is not in the copy.
	now, err := m.vc.VM(ctx, m.vm.Ref)
	if err != nil {
		return err
	}
	if now.Power != vsphere.PoweredOff {
		return fmt.Errorf("%w: somebody has switched VM %q on while the last of it was copied", ErrBusy, now.Name)
	}
	note := strings.TrimPrefix(strings.TrimPrefix(m.vm.Annotation, m.rec.Recovery.Note), "\n")
	err = m.vc.Reconfigure(ctx, m.into.Ref, vsphere.ChangeSpec{
		Annotation: &note, ExtraConfig: map[string]string{copiedKey: m.mark(m.req.Session), sessionKey: ""},
	})
	if err != nil {
		return err
	}
	m.at("marked")
	_, err = m.state.updateSession(m.req.Session, func(s *Session) { s.Recovery.State = RecoveryCopied })
	return err
}

// makeTarget makes the VM that is copied to: the same hardware, with MAC addresses
// and BIOS UUID, because it will be the only one that has them.
func (m *copying) makeTarget(ctx context.Context, mark string) error {
	spec := vsphere.CreateSpec{
		Name: shortened(m.vm.Name, maxVMName-len(" (moving)")) + " (moving)", Host: m.vm.HostRef, Folder: m.vm.FolderRef, Pool: m.vm.PoolRef,
		Datastore: m.req.Datastore, Config: m.vm.Config, KeepUUIDs: true, KeepMACs: true, Notes: mark,
	}
	folder := m.rec.Folders[0]
	var keys []int32
	for n := range folder.Disks {
		d, err := diskOf(m.rec, m.vm, n)
		if err != nil {
			return err
		}
		keys = append(keys, d.Key)
		spec.Disks = append(spec.Disks, vsphere.DiskSpec{
			Key: d.Key, Size: d.Size, Datastore: m.req.PerDisk[n], Thin: !m.req.Thick, Controller: d.Controller, Unit: d.Unit,
		})
	}
	if len(m.vm.Disks) != len(spec.Disks) {
		return fmt.Errorf("%w: VM %q has %d disks, the restore point %d: somebody added some; move it with Storage vMotion, or --cold", ErrUsage, m.vm.Name, len(m.vm.Disks), len(spec.Disks))
	}
	created, err := m.vc.CreateVM(ctx, spec)
	if err != nil {
		return err
	}
	for _, key := range keys {
		m.targets = append(m.targets, created.Disks[key])
	}
	m.into, err = m.vc.VM(ctx, created.Ref)
	return err
}

// pass keeps the disks as they are now and brings the copy to that. It returns how
// many bytes had changed since the pass before.
func (m *copying) pass(ctx context.Context) (differs int64, err error) {
	kept, err := m.state.Control().Keep(ctx, KeepRequest{Session: m.req.Session, Tool: "migrate"})
	if err != nil {
		return 0, err
	}
	if len(kept) != 1 {
		return 0, fmt.Errorf("session %q: %d restore points of one VM", m.req.Session, len(kept))
	}
	m.passes = append(m.passes, kept[0])
	for n := range m.targets {
		changed, err := m.passDisk(ctx, n)
		if err != nil {
			return 0, fmt.Errorf("disk %d: %w", n, err)
		}
		differs += changed
	}
	return differs, nil
}

func (m *copying) passDisk(ctx context.Context, n int) (int64, error) {
	pt := m.passes[len(m.passes)-1]
	img, err := m.repo.OpenDisk(ctx, pt, n)
	if err != nil {
		return 0, err
	}
	defer img.Close()
	tell := func(int64, int64) {}
	if m.req.Started != nil {
		tell = m.req.Started(n, fmt.Sprintf("%s, pass %d", pt.Disks[n].Label, len(m.passes)), img.Size())
	}
	target := m.req.Transports.request(m.vc, m.into, "", m.targets[n])
	options := m.req.Transports.options(nil, m.log)
	if len(m.passes) == 1 {
		_, err := vddk.WriteImage(ctx, target, img, vddk.ImageOptions{Options: options, Fresh: true, Progress: tell})
		return img.Size(), err
	}
	var todo areas
	for e, err := range m.repo.Diff(ctx, m.passes[len(m.passes)-2], n, pt, n) {
		if err != nil {
			return 0, err
		}
		todo = append(todo, disk.Extent{Offset: e.Offset, Length: e.Length})
	}
	todo = areasOf(todo, img.Size())
	if len(todo) == 0 {
		return 0, nil
	}
	dev, err := vddk.OpenWrite(ctx, target, options)
	if err != nil {
		return 0, err
	}
	return todo.bytes(), errors.Join(copyAreas(ctx, dev, img, todo, tell), dev.Close())
}

// copyAreas writes areas of img to dev, durably.
func copyAreas(ctx context.Context, dev disk.Device, img disk.Image, todo areas, tell func(done, total int64)) error {
	buf, done := make([]byte, copyDiffRead), int64(0)
	for _, a := range todo {
		for off := a.Offset; off < a.End(); off += copyDiffRead {
			if ctx.Err() != nil {
				return context.Cause(ctx)
			}
			piece := buf[:min(copyDiffRead, a.End()-off)]
			if err := readFull(img, piece, off); err != nil {
				return err
			}
			if _, err := dev.WriteAt(piece, off); err != nil {
				return err
			}
			done += int64(len(piece))
			tell(done, todo.bytes())
		}
	}
	return dev.Sync()
}

// forgetPasses takes the restore points of the passes off the list; they were a
// means. Where they may not be forgotten, they stay.
func (m *copying) forgetPasses(ctx context.Context) {
	if len(m.passes) == 0 {
		return
	}
	clean, cancel := afterwards(ctx)
	defer cancel()
	var ids []string
	for _, pt := range m.passes {
		ids = append(ids, pt.ID)
	}
	if err := m.repo.Forget(clean, ids...); err != nil {
		m.log.Warn("the restore points that the copy was made through stay", "points", ids, "err", err)
	}
}

// finishCopy puts the new VM in the old one's place: the old one goes, the new one
// gets its name and is switched on. Begun anew after a crash, it goes on where
// that was: the new VM has its mark until nothing is left to be done to it.
func (w *vsphereWork) finishCopy(ctx context.Context, session string) error {
	rec, err := w.state.session(session)
	if err != nil {
		return err
	}
	inv, err := w.vc.Inventory(ctx)
	if err != nil {
		return err
	}
	if old := w.findVM(inv, session); old != nil {
		if old.Power != vsphere.PoweredOff {
			return w.copyIsOld(ctx, rec, old)
		}
		if err := w.removeVM(ctx, old); err != nil {
			return err
		}
	}
	for _, vm := range inv.VMs {
		if vm.ExtraConfig[copiedKey] != w.mark(session) {
			continue
		}
		if vm.Name != rec.Recovery.VM {
			if err := w.vc.Reconfigure(ctx, vm.Ref, vsphere.ChangeSpec{Name: &rec.Recovery.VM}); err != nil {
				return err
			}
		}
		w.at("renamed")
		if rec.Recovery.SwitchedOff {
			if err := w.whenFree(ctx, func(ctx context.Context) error { return w.vc.PowerOn(ctx, vm.Ref) }); err != nil {
				return err
			}
		}
		w.at("on")
		if err := w.vc.Reconfigure(ctx, vm.Ref, vsphere.ChangeSpec{ExtraConfig: map[string]string{copiedKey: ""}}); err != nil {
			return err
		}
		w.at("unmarked")
	}
	if err := w.dropSession(ctx, session); err != nil {
		return err
	}
	return w.unmountUnused(ctx)
}

// copyIsOld takes back a copy that is complete: somebody has switched the old VM
// on before the new one could take its place, and what it writes is not in the copy.
func (w *vsphereWork) copyIsOld(ctx context.Context, rec *Session, old *vsphere.VM) error {
	if _, err := w.state.updateSession(rec.Name, func(s *Session) { s.Recovery.State = RecoveryMigrating }); err != nil {
		return err
	}
	if _, err := w.lookAfterMigration(ctx, rec); err != nil {
		return err
	}
	return fmt.Errorf("%w: VM %q was switched on after it had been copied, and has written since: it runs on from the backup, and the copy is removed; move it again", ErrBusy, old.Name)
}

// dropCopies removes copies of a session's VM that are complete, and have not
// become the VM.
func (w *vsphereWork) dropCopies(ctx context.Context, inv *vsphere.Inventory, session string) error {
	for _, vm := range inv.VMs {
		if vm.ExtraConfig[copiedKey] != w.mark(session) {
			continue
		}
		if vm.Power != vsphere.PoweredOff {
			return fmt.Errorf("%w: VM %q is a copy of session %q that was not to be used yet, and somebody has switched it on: switch off one of the two", ErrBusy, vm.Name, session)
		}
		if err := w.vc.DeleteVM(ctx, vm.Ref); err != nil {
			return err
		}
	}
	return nil
}
