package appliance

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"log/slog"
	"maps"
	"path"
	"slices"
	"strings"

	"golang.org/x/sync/errgroup"

	"lifeboat/disk"
	"lifeboat/store"
	"lifeboat/vddk"
	"lifeboat/vsphere"
)

// IntentRestore: a VM that is being made, or written over. Object: note, and once
// known name.
const IntentRestore IntentKind = "restore"

// RestoreRequest puts a restore point back in full, on production storage.
type RestoreRequest struct {
	Point     *store.Point
	Name      string // of the new VM; "" = as it was, changed where that is taken
	Host      string // host or cluster; "" = where the VM was, or the first that can
	Folder    string
	Pool      string
	Datastore string         // where the new VM goes
	PerDisk   map[int]string // disks that go elsewhere: number in the point → datastore
	Thick     bool

	Networks     map[string]string // as in RecoverRequest
	KeepNetworks bool
	KeepIdentity bool
	PowerOn      bool

	Transports Transports
	// Parallel is how many disks are written at a time; 0 = 4.
	Parallel int
	// Started, if not nil, hears of each disk and returns where its progress goes:
	// bytes done, and of how many. It is called from several goroutines.
	Started func(n int, name string, size int64) func(done, total int64)
	Logger  *slog.Logger

	hook func(at string)
}

// Restored is a VM that was put back.
type Restored struct {
	Point    string           `json:"point"`
	VM       string           `json:"vm"`
	Identity vsphere.Identity `json:"identity"`
	Disks    []RestoredDisk   `json:"disks"`
	Notes    []string         `json:"notes,omitempty"`
	// Snapshot is the safety snapshot of a VM that was written over.
	Snapshot string `json:"snapshot,omitempty"`
	// SafetyPoint is the restore point of it that was made first.
	SafetyPoint string `json:"safety_point,omitempty"`
}

// RestoredDisk is what was done to one disk.
type RestoredDisk struct {
	Key       int    `json:"key"` // in the restore point
	Label     string `json:"label"`
	Size      int64  `json:"size"`
	Written   int64  `json:"written"` // bytes
	Transport string `json:"transport"`
	// How is "new", "changed" (the areas that differ were asked for) or
	// "compared" (they were found by reading).
	How string `json:"how"`
}

// restoreMark stands in a VM's notes while it is being restored: a VM that has it
// and whose restore is not under way is half made, and is ours to remove.
func (w *vsphereWork) restoreMark(pt *store.Point, id string) string {
	return fmt.Sprintf("[Lifeboat %s: restore %s of point %s is under way; the VM is not complete]", w.appliance, id, pt.ID)
}

// Restore makes a new VM of a restore point: the configuration that was kept,
// new disks, and everything in them. When it fails nothing of it is left.
func Restore(ctx context.Context, st *State, repo *store.Repository, vc *vsphere.Client, req RestoreRequest) (*Restored, error) {
	if req.Datastore == "" {
		return nil, fmt.Errorf("%w: name the datastore that the VM is to go to", ErrUsage)
	}
	w, err := newVSphereWork(ctx, st, vc, req.Logger, req.hook)
	if err != nil {
		return nil, err
	}
	r := &restoring{vsphereWork: w, repo: repo, point: req.Point, transports: req.Transports, parallel: req.Parallel, started: req.Started}
	if r.saved, err = readConfig(ctx, repo, req.Point); err != nil {
		return nil, err
	}
	spec, err := r.spec(ctx, req)
	if err != nil {
		return nil, err
	}
	mark := w.restoreMark(req.Point, newUUID()[:8])
	spec.Notes = mark
	intent, err := st.begin(Intent{
		Kind: IntentRestore, VCenter: vc.About().InstanceUUID, Object: map[string]string{"note": mark, "name": spec.Name},
	})
	if err != nil {
		return nil, err
	}
	w.at("begun")
	out, err := r.make(ctx, spec, req)
	if err == nil {
		return out, st.done(intent.ID)
	}
	clean, cancel := afterwards(ctx)
	defer cancel()
	there, uerr := w.removeHalfMade(clean, mark)
	if uerr != nil {
		return nil, errors.Join(err, fmt.Errorf("taking it back failed, too: %w; `lifeboat leftovers --clean` tries again", uerr), st.release(intent.ID))
	}
	if !there && unknownOutcome(ctx, err) {
		return nil, errors.Join(err, st.release(intent.ID)) // it may still be made: the next command looks again
	}
	return nil, errors.Join(err, st.done(intent.ID))
}

// restoring is what restores to a new and to an existing VM share.
type restoring struct {
	*vsphereWork
	repo       *store.Repository
	point      *store.Point
	saved      savedConfig
	transports Transports
	parallel   int
	started    func(n int, name string, size int64) func(done, total int64)
}

// spec is the VM to be made.
func (r *restoring) spec(ctx context.Context, req RestoreRequest) (*vsphere.CreateSpec, error) {
	p := &recoverPlace{names: map[string]bool{}, sessions: map[string]bool{}}
	one := &recovering{vsphereWork: r.vsphereWork, repo: r.repo, point: r.point, place: p, req: RecoverRequest{
		Points: []*store.Point{r.point}, Name: req.Name, Host: req.Host, Folder: req.Folder, Pool: req.Pool,
	}}
	if err := r.locate(ctx, p, one.req); err != nil {
		return nil, err
	}
	if folder := folderOf(p, r.saved.vm); p.folder == "" && folder != "" {
		p.folder = folder
	}
	name, err := one.vmName(p.folder)
	if err != nil {
		return nil, err
	}
	spec := &vsphere.CreateSpec{
		Name: name, Host: p.hosts[0].Ref, Folder: p.folder, Pool: p.pool, Datastore: req.Datastore,
		Networks: map[string]string{}, NoNetwork: !req.KeepNetworks && len(req.Networks) == 0,
		KeepUUIDs: req.KeepIdentity, KeepMACs: req.KeepIdentity, MemoryMB: defaultMemoryMB, CPUs: defaultCPUs,
	}
	maps.Copy(spec.Networks, req.Networks)
	if req.KeepIdentity && r.saved.vm != nil {
		if vm, there := p.inv.VM(r.saved.vm.Identity); there {
			return nil, fmt.Errorf("%w: VM %q still is in the inventory: two cannot have the same UUIDs; restore over it (--over), or without keeping them", ErrBusy, vm.Name)
		}
	}
	if r.saved.vm != nil {
		spec.Config, spec.GuestID, spec.Firmware = r.saved.vm.Config, r.saved.vm.GuestID, r.saved.vm.Firmware
	} else if err := r.guessFirmware(ctx, spec); err != nil {
		return nil, err
	}
	for n, d := range r.point.Disks {
		spec.Disks = append(spec.Disks, r.diskSpec(n, d, req))
	}
	return spec, nil
}

func (r *restoring) guessFirmware(ctx context.Context, spec *vsphere.CreateSpec) error {
	if len(r.point.Disks) == 0 {
		return nil
	}
	img, err := r.repo.OpenDisk(ctx, r.point, 0)
	if err != nil {
		return err
	}
	defer img.Close()
	efi, err := bootsWithEFI(img)
	if efi {
		spec.Firmware = "efi"
	}
	return err
}

// diskSpec is the n-th disk of the point, where the VM had it.
func (r *restoring) diskSpec(n int, d store.Disk, req RestoreRequest) vsphere.DiskSpec {
	bus, unit := scsiPlace(n)
	spec := vsphere.DiskSpec{
		Key: int32(d.Key), Size: d.Size, Datastore: req.PerDisk[n], Thin: !req.Thick,
		Controller: vsphere.Controller{Type: diskAdapter, Bus: int32(bus)}, Unit: int32(unit),
	}
	if r.saved.vm != nil {
		for _, was := range r.saved.vm.Disks {
			if int(was.Key) == d.Key {
				spec.Controller, spec.Unit = was.Controller, was.Unit
			}
		}
	}
	return spec
}

// make makes the VM, writes its disks and gives it to its owner.
func (r *restoring) make(ctx context.Context, spec *vsphere.CreateSpec, req RestoreRequest) (*Restored, error) {
	created, err := r.vc.CreateVM(ctx, *spec)
	if err != nil {
		return nil, err
	}
	r.at("made")
	vm, err := r.vc.VM(ctx, created.Ref)
	if err != nil {
		return nil, err
	}
	out := &Restored{Point: r.point.ID, VM: vm.Name, Identity: vm.Identity, Notes: created.LeftOut}
	if out.Disks, err = r.eachDisk(ctx, func(ctx context.Context, n int, img disk.Image) (RestoredDisk, error) {
		return r.fill(ctx, vm, created.Disks[int32(r.point.Disks[n].Key)], n, img)
	}); err != nil {
		return nil, err
	}
	r.at("written")
	if err := r.putNVRAM(ctx, vm); err != nil {
		out.Notes = append(out.Notes, "the firmware's settings (NVRAM) could not be put back, the VM gets new ones: "+err.Error())
	}
	note := fmt.Sprintf("Restored by Lifeboat from restore point %s of %s, taken %s.", r.point.ID, r.point.VM, r.point.Time.UTC().Format("2006-01-02 15:04 UTC"))
	if r.saved.vm != nil && r.saved.vm.Annotation != "" {
		note += "\n" + r.saved.vm.Annotation
	}
	if err := r.vc.Reconfigure(ctx, vm.Ref, vsphere.ChangeSpec{Annotation: &note}); err != nil {
		return nil, err
	}
	r.at("complete")
	if req.PowerOn {
		if err := r.vc.PowerOn(ctx, vm.Ref); err != nil {
			out.Notes = append(out.Notes, "it is complete, but not on: "+err.Error())
		}
	}
	return out, nil
}

// putNVRAM puts the firmware's settings beside the new VM's .vmx.
func (r *restoring) putNVRAM(ctx context.Context, vm *vsphere.VM) error {
	if r.saved.nvram == nil {
		return nil
	}
	datastore, file, ok := vsphere.SplitPath(vm.VMX)
	if !ok {
		return fmt.Errorf("the VM's configuration is at %q", vm.VMX)
	}
	name := strings.TrimSuffix(file, path.Ext(file)) + ".nvram"
	if err := r.vc.Files(vm.Datacenter).Upload(ctx, datastorePath(datastore, name), bytes.NewReader(r.saved.nvram), int64(len(r.saved.nvram))); err != nil {
		return err
	}
	return r.vc.Reconfigure(ctx, vm.Ref, vsphere.ChangeSpec{ExtraConfig: map[string]string{"nvram": path.Base(name)}})
}

// eachDisk runs do for every disk of the point, some at a time.
func (r *restoring) eachDisk(ctx context.Context, do func(ctx context.Context, n int, img disk.Image) (RestoredDisk, error)) ([]RestoredDisk, error) {
	out := make([]RestoredDisk, len(r.point.Disks))
	group, gctx := errgroup.WithContext(ctx)
	group.SetLimit(orDefault(r.parallel, 4))
	for n, d := range r.point.Disks {
		group.Go(func() error {
			img, err := r.repo.OpenDisk(gctx, r.point, n)
			if err != nil {
				return err
			}
			defer img.Close()
			out[n], err = do(gctx, n, img)
			if err != nil {
				return fmt.Errorf("disk %d (%s): %w", n, d.Label, err)
			}
			return nil
		})
	}
	return out, group.Wait()
}

func (r *restoring) progress(n int, d store.Disk) func(done, total int64) {
	if r.started == nil {
		return func(int64, int64) {}
	}
	return r.started(n, r.point.VM+" "+d.Label, d.Size)
}

// fill writes a new disk.
func (r *restoring) fill(ctx context.Context, vm *vsphere.VM, target vsphere.Disk, n int, img disk.Image) (RestoredDisk, error) {
	d := r.point.Disks[n]
	out := RestoredDisk{Key: d.Key, Label: d.Label, Size: d.Size, Written: d.Used, How: "new"}
	if target.File == "" {
		return out, fmt.Errorf("the new VM's disk: %w", ErrNotFound)
	}
	var err error
	out.Transport, err = vddk.WriteImage(ctx, r.transports.request(r.vc, vm, "", target), img, vddk.ImageOptions{
		Options: r.transports.options(nil, r.log), Fresh: true, Progress: r.progress(n, d),
	})
	return out, err
}

// removeHalfMade removes the VM that has a restore's mark in its notes, and
// nothing else, and says whether there was one.
func (w *vsphereWork) removeHalfMade(ctx context.Context, mark string) (bool, error) {
	inv, err := w.vc.Inventory(ctx)
	if err != nil {
		return false, err
	}
	at := slices.IndexFunc(inv.VMs, func(vm vsphere.VM) bool { return mark != "" && vm.Annotation == mark })
	if at < 0 {
		return false, nil
	}
	vm := inv.VMs[at]
	if vm.Power != vsphere.PoweredOff {
		return true, fmt.Errorf("%w: VM %q is on, although it is not complete: somebody uses it", ErrBusy, vm.Name)
	}
	return true, w.vc.DeleteVM(ctx, vm.Ref)
}

// restoreHandler is the intentHandler of restores to a new VM. One over an
// existing VM cannot be undone by us: its safety snapshot can.
func (s *State) restoreHandler(ctx context.Context, c *vsphere.Client, in Intent) (string, error) {
	w, err := newVSphereWork(ctx, s, c, nil, nil)
	if err != nil {
		return "", err
	}
	if snapshot := in.Object["snapshot"]; snapshot != "" {
		return fmt.Sprintf("VM %q was being written over: it may be part old, part new; restore it again, or revert to its snapshot %q, if it has that", in.Object["name"], snapshot), nil
	}
	there, err := w.removeHalfMade(ctx, in.Object["note"])
	if !there {
		return fmt.Sprintf("VM %q: nothing was left of its restore", in.Object["name"]), err
	}
	return fmt.Sprintf("VM %q was half restored: removed", in.Object["name"]), err
}
