package appliance

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"io"
	"log/slog"
	"slices"
	"strings"
	"time"

	"lifeboat/disk"
	"lifeboat/store"
	"lifeboat/vddk"
	"lifeboat/vsphere"
)

// RestoreOverRequest turns an existing VM back to a restore point.
type RestoreOverRequest struct {
	Point *store.Point
	VM    string // name, path or pattern; "" = the VM that was backed up
	// PowerOff switches the VM off first; otherwise one that is on is refused.
	PowerOff bool
	PowerOn  bool // afterwards
	// NoSnapshot does without the safety snapshot: there is no way back then. Most
	// transports can only write disks without snapshots.
	NoSnapshot bool
	// SafetyPoint makes a restore point of the VM as it is, in place of the
	// snapshot.
	SafetyPoint bool

	Transports Transports
	Parallel   int
	Started    func(n int, name string, size int64) func(done, total int64)
	Logger     *slog.Logger

	hook func(at string)
}

// RestoreOver writes to an existing VM's disks what differs from the restore
// point, and nothing else. What may differ is asked from change tracking, since
// the point was made; where that has no answer, the disk is read and compared.
//
// The order: intent → VM off → safety snapshot (what the VM was until now) →
// areas that changed → blocks that differ are written to the disks above the
// snapshot. It stays: a person removes it when content, or reverts to it. Where
// nothing can write above a snapshot, a restore point takes its place (SafetyPoint)
// and the snapshot, which change tracking needs for its answer, goes before
// anything is written.
func RestoreOver(ctx context.Context, st *State, repo *store.Repository, vc *vsphere.Client, req RestoreOverRequest) (_ *Restored, err error) {
	w, err := newVSphereWork(ctx, st, vc, req.Logger, req.hook)
	if err != nil {
		return nil, err
	}
	o := &overwriting{restoring: restoring{vsphereWork: w, repo: repo, point: req.Point, transports: req.Transports, parallel: req.Parallel, started: req.Started}}
	if o.saved, err = readConfig(ctx, repo, req.Point); err != nil {
		return nil, err
	}
	if o.kept, err = readSavedDisks(ctx, repo, req.Point); err != nil {
		return nil, err
	}
	if err := o.find(ctx, req.VM); err != nil {
		return nil, err
	}
	if o.newest, err = o.newestSaved(ctx); err != nil {
		return nil, err
	}
	if o.vm.Power != vsphere.PoweredOff && !req.PowerOff {
		return nil, fmt.Errorf("%w: VM %q is on: switch it off, or say --power-off", ErrBusy, o.vm.Name)
	}
	name := "lifeboat-restore-" + time.Now().UTC().Format("20060102-150405")
	intent, err := st.begin(Intent{
		Kind: IntentRestore, VCenter: o.vm.Identity.VCenter, VM: o.vm.Identity, Object: map[string]string{"snapshot": name, "name": o.vm.Name},
	})
	if err != nil {
		return nil, err
	}
	out, err := o.run(ctx, name, req)
	if err != nil && o.touched {
		err = fmt.Errorf("VM %q is part old, part new: restore it again, or go back to how it was (%s): %w", o.vm.Name, o.wayBack(name, req), err)
	}
	return out, errors.Join(err, st.done(intent.ID))
}

// wayBack says how to have the VM as it was before.
func (o *overwriting) wayBack(snapshot string, req RestoreOverRequest) string {
	switch {
	case req.SafetyPoint:
		return "restore its newest point"
	case req.NoSnapshot:
		return "there is none"
	}
	return "revert to its snapshot " + snapshot
}

type overwriting struct {
	restoring
	vm      *vsphere.VM
	kept    *savedDisks // nil where the point has none that count
	newest  *savedDisks // of the VM's newest point, likewise
	touched bool        // something may have been written
}

// extraRestored is an advanced setting with another value after every restore over
// a VM. Change tracking sees nothing of what is written to the disks of a VM that
// is off; so what it says counts only since the last point with the same value.
// It is set before the first byte is written.
const extraRestored = "lifeboat.restored"

// find finds the VM, and checks that it has the disks that the point has.
func (o *overwriting) find(ctx context.Context, pattern string) error {
	if pattern != "" {
		vm, _, err := o.attachTo(ctx, pattern)
		if err != nil {
			return err
		}
		o.vm = vm
	} else {
		id, err := vsphere.ParseIdentity(o.point.VMID)
		if err != nil {
			return fmt.Errorf("%w: restore point %s does not say which VM it is of: name it with --over-vm", ErrUsage, o.point.ID)
		}
		if o.vm, err = o.vc.FindVM(ctx, id); err != nil {
			return err
		}
	}
	var missing []string
	for _, d := range o.point.Disks {
		if _, ok := o.diskOf(o.vm, d); !ok {
			missing = append(missing, fmt.Sprintf("%s (%d bytes)", d.Label, d.Size))
		}
	}
	if len(missing) > 0 {
		return fmt.Errorf("%w: VM %q does not have the disks %s as the restore point has them: restore to a new VM", ErrUsage, o.vm.Name, strings.Join(missing, ", "))
	}
	return nil
}

// newestSaved is what the newest point of the VM that says anything of it says of
// its disks. nil: none does.
func (o *overwriting) newestSaved(ctx context.Context) (*savedDisks, error) {
	if o.kept == nil {
		return nil, nil
	}
	points, err := o.repo.Points(ctx)
	if err != nil {
		return nil, err
	}
	for _, pt := range slices.Backward(points) {
		if pt.VMID != o.vm.Identity.String() {
			continue
		}
		if saved, err := readSavedDisks(ctx, o.repo, pt); err == nil && saved != nil {
			return saved, nil
		}
	}
	return nil, nil
}

func (o *overwriting) diskOf(vm *vsphere.VM, want store.Disk) (vsphere.Disk, bool) {
	for _, d := range vm.Disks {
		if int(d.Key) == want.Key && d.Size == want.Size {
			return d, true
		}
	}
	return vsphere.Disk{}, false
}

func (o *overwriting) run(ctx context.Context, name string, req RestoreOverRequest) (*Restored, error) {
	o.at("begun")
	if o.vm.Power != vsphere.PoweredOff {
		if err := o.vc.PowerOff(ctx, o.vm.Ref); err != nil {
			return nil, err
		}
	}
	out := &Restored{Point: o.point.ID, VM: o.vm.Name, Identity: o.vm.Identity, Snapshot: name}
	if req.SafetyPoint {
		pt, err := o.safetyPoint(ctx, req)
		if err != nil {
			return nil, err
		}
		out.SafetyPoint = pt
	}
	snapshot, err := o.vc.CreateSnapshot(ctx, o.vm.Ref, vsphere.SnapshotSpec{
		Name: name, Description: "The VM as it was before Lifeboat restored it from point " + o.point.ID + ". Revert to it to go back; remove it when content.",
	})
	if err != nil {
		return nil, err
	}
	o.at("snapshot")
	gone := false
	if out.Disks, err = o.write(ctx, snapshot, req, &gone); err != nil {
		if !o.touched && !gone {
			clean, cancel := afterwards(ctx)
			defer cancel()
			err = errors.Join(err, o.vc.RemoveSnapshot(clean, snapshot, vsphere.RemoveOptions{}))
		}
		return nil, err
	}
	if gone {
		out.Snapshot = ""
	}
	o.at("written")
	if req.PowerOn {
		if err := o.vc.PowerOn(ctx, o.vm.Ref); err != nil {
			out.Notes = append(out.Notes, "it is restored, but not on: "+err.Error())
		}
	}
	return out, nil
}

// write finds out by the snapshot what differs, and writes it. gone is set once the
// snapshot is not there any more.
func (o *overwriting) write(ctx context.Context, snapshot vsphere.Ref, req RestoreOverRequest, gone *bool) ([]RestoredDisk, error) {
	at, err := o.vc.SnapshotVM(ctx, snapshot)
	if err != nil {
		return nil, err
	}
	todo, how := make([]areas, len(o.point.Disks)), make([]string, len(o.point.Disks))
	for n, d := range o.point.Disks {
		todo[n], how[n] = o.changed(ctx, snapshot, at, d)
	}
	if req.NoSnapshot || req.SafetyPoint {
		if err := o.vc.RemoveSnapshot(ctx, snapshot, vsphere.RemoveOptions{}); err != nil {
			return nil, err
		}
		*gone = true
	}
	now, err := o.vc.VM(ctx, o.vm.Ref)
	if err != nil {
		return nil, err
	}
	return o.eachDisk(ctx, func(ctx context.Context, n int, img disk.Image) (RestoredDisk, error) {
		got, err := o.overwrite(ctx, now, n, img, todo[n])
		got.How = how[n]
		return got, err
	})
}

// safetyPoint makes a restore point of the VM as it is now.
func (o *overwriting) safetyPoint(ctx context.Context, req RestoreOverRequest) (string, error) {
	report, err := o.state.BackupVMs(ctx, o.repo, o.vc, BackupVMsRequest{
		Patterns: []string{o.vm.Identity.VM}, NoQuiesce: true, Transports: req.Transports, Tool: "restore", Logger: o.log,
	})
	if err != nil && !errors.Is(err, ErrPartial) {
		return "", fmt.Errorf("the VM as it is could not be backed up first, and nothing is written over it: %w", err)
	}
	if len(report.VMs) != 1 || report.VMs[0].Point == "" {
		return "", fmt.Errorf("the VM as it is could not be backed up first: %w", ErrPartial)
	}
	return report.VMs[0].Point, nil
}

// changed is what may differ from the point, and how that is known. What the
// backup left out (swap space, page files) is left as it is.
func (o *overwriting) changed(ctx context.Context, snapshot vsphere.Ref, at *vsphere.VM, d store.Disk) (areas, string) {
	todo, how := areas{{Length: d.Size}}, "compared"
	kept := o.kept.disk(int32(d.Key))
	if kept == nil {
		return todo, how
	}
	if why := o.distrusted(at, d, kept); why != "" {
		o.log.Info("the disk is read and compared", "vm", o.vm.Name, "disk", d.Label, "reason", why)
		return todo.without(kept.leftOut()), how
	}
	found, err := snapshotTracker{o.vc, o.vm.Ref, snapshot}.areas(ctx, vsphere.Disk{Key: int32(d.Key), Size: d.Size}, kept.ChangeID)
	if err != nil {
		o.log.Warn("change tracking does not tell what differs: the disk is read and compared", "vm", o.vm.Name, "disk", d.Label, "err", err)
		return todo.without(kept.leftOut()), how
	}
	return found.without(kept.leftOut()), "changed"
}

// distrusted says why change tracking is not asked what differs from the point.
func (o *overwriting) distrusted(at *vsphere.VM, d store.Disk, kept *savedDisk) string {
	now, ok := o.diskOf(at, d)
	if !ok {
		return "the snapshot does not have it"
	}
	if o.kept.Restored != o.vm.ExtraConfig[extraRestored] {
		return whyRestored
	}
	if newest := o.newest.disk(int32(d.Key)); newest != nil && newest.Distrust != "" && newest.Distrust == changeID(now.ChangeID).epoch() {
		return "change tracking has missed changes before"
	}
	why, _ := distrusted(now, kept)
	return why
}

// whyRestored says what extraRestored is for.
const whyRestored = "a restore has written to it, of which change tracking knows nothing"

// overwriteChunk is how much is compared and written at a time, bytes.
const overwriteChunk = 1 << 20

// overwriteBlock is the unit in which what differs is written, bytes.
const overwriteBlock = 64 << 10

// overwrite makes one disk what the point says.
func (o *overwriting) overwrite(ctx context.Context, vm *vsphere.VM, n int, img disk.Image, todo areas) (out RestoredDisk, err error) {
	d := o.point.Disks[n]
	out = RestoredDisk{Key: d.Key, Label: d.Label, Size: d.Size}
	target, _ := o.diskOf(vm, d)
	dev, err := vddk.OpenWrite(ctx, o.transports.request(o.vc, vm, "", target), o.transports.options(nil, o.log))
	if err != nil {
		return out, fmt.Errorf("%w; a disk with a snapshot can be written through VMware's library or hotadd only; --safety-point makes a restore point first in its place, --no-snapshot does without a way back", err)
	}
	defer func() { err = errors.Join(err, dev.Close()) }()
	if t, ok := dev.(interface{ Transport() string }); ok {
		out.Transport = t.Transport()
	}
	total, done := todo.bytes(), int64(0)
	tell := o.progress(n, d)
	want, have := make([]byte, overwriteChunk), make([]byte, overwriteChunk)
	for _, a := range todo {
		for off := a.Offset; off < a.End(); off += overwriteChunk {
			if err := ctx.Err(); err != nil {
				return out, context.Cause(ctx)
			}
			size := min(overwriteChunk, a.End()-off)
			written, err := o.writeDifferent(ctx, dev, img, want[:size], have[:size], off)
			out.Written += written
			if err != nil {
				return out, err
			}
			done += size
			tell(done, total)
		}
	}
	return out, dev.Sync()
}

// writeDifferent writes the blocks that differ in [off, off+len(want)).
func (o *overwriting) writeDifferent(ctx context.Context, dev disk.Device, img io.ReaderAt, want, have []byte, off int64) (written int64, err error) {
	if err := readFull(img, want, off); err != nil {
		return 0, err
	}
	if err := readFull(dev, have, off); err != nil {
		return 0, err
	}
	for at := 0; at < len(want); at += overwriteBlock {
		end := min(at+overwriteBlock, len(want))
		if bytes.Equal(want[at:end], have[at:end]) {
			continue
		}
		if err := o.touch(ctx); err != nil {
			return written, err
		}
		n, err := dev.WriteAt(want[at:end], off+int64(at))
		written += int64(n)
		if err != nil {
			return written, err
		}
	}
	return written, nil
}

// touch is called before anything is written; see extraRestored.
func (o *overwriting) touch(ctx context.Context) error {
	o.mu.Lock()
	defer o.mu.Unlock()
	if o.touched {
		return nil
	}
	err := o.vc.Reconfigure(ctx, o.vm.Ref, vsphere.ChangeSpec{ExtraConfig: map[string]string{extraRestored: newUUID()}})
	if err != nil {
		return fmt.Errorf("note in the VM that it is written over, so that the next backup reads all of it: %w", err)
	}
	o.touched = true
	return nil
}
