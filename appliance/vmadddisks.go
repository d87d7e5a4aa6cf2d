package appliance

import (
	"context"
	"errors"
	"fmt"
	"slices"

	"golang.org/x/sync/errgroup"

	"lifeboat/disk"
	"lifeboat/store"
	"lifeboat/vddk"
	"lifeboat/vsphere"
)

// vmDisk is one disk of a VM while it is read.
type vmDisk struct {
	vsphere.Disk
	plan   *diskPlan
	old    *savedDisk // or nil
	before int        // index of the disk in the parent point, -1: not there
	src    vddk.Source
	// transport is src's, for when it is closed.
	transport string
	img       disk.Image // src as it is to be stored
	zones     areas      // of img that read as zeros and are not
	audit     *auditor   // or nil
	was       disk.Image // the disk in the parent point, where somebody needs it
}

// addDisks reads the disks, batch by batch, and returns what the next backup has
// to know of them.
func (j *vmJob) addDisks(ctx context.Context, w *store.PointWriter, release func()) (savedDisks, error) {
	saved := savedDisks{Format: savedDisksFormat, Job: j.id, Restored: j.vm.ExtraConfig[extraRestored]}
	disks, err := j.inSnapshot()
	if err != nil {
		return saved, err
	}
	all := make([]*vmDisk, len(disks))
	for i, d := range disks {
		if all[i], err = j.planDisk(ctx, d); err != nil {
			return saved, fmt.Errorf("disk %s: %w", d.Label, err)
		}
	}
	for n, batch := range j.throttle.batches(datastoresOf(disks)) {
		group := pick(all, batch)
		if n > 0 {
			if release, err = j.throttle.acquire(ctx, j.vm.Host, datastoresOf(pick(disks, batch))); err != nil {
				return saved, err
			}
		}
		err := j.addBatch(ctx, w, group)
		release()
		if err != nil {
			return saved, err
		}
	}
	for _, d := range all {
		saved.Disks = append(saved.Disks, j.conclude(d))
	}
	j.noteGone(disks)
	return saved, nil
}

// inSnapshot is the disks to be read as the snapshot has them.
func (j *vmJob) inSnapshot() ([]vsphere.Disk, error) {
	var out []vsphere.Disk
	for _, d := range j.at.Disks {
		left := slices.ContainsFunc(j.res.Disks, func(r VMDiskResult) bool { return r.Key == d.Key })
		if !left && d.Snapshotted() {
			out = append(out, d)
		}
	}
	if len(out) == 0 {
		return nil, fmt.Errorf("the snapshot has none of its disks: %w", errSkipped)
	}
	return out, nil
}

// planDisk decides how a disk is read.
func (j *vmJob) planDisk(ctx context.Context, d vsphere.Disk) (*vmDisk, error) {
	v := &vmDisk{Disk: d, before: -1}
	if j.parent != nil {
		v.before = slices.IndexFunc(j.parent.Disks, func(k store.Disk) bool { return k.Key == int(d.Key) })
	}
	if v.before >= 0 {
		v.old = j.saved.disk(d.Key)
	}
	var t tracker = untracked{}
	if j.snap != nil {
		t = snapshotTracker{j.client, j.vm.Ref, j.snap.ref}
	}
	plan, err := planDisk(ctx, t, d, v.old, planOptions{full: j.req.Full, restored: j.restored(), auditEvery: max(j.req.AuditEvery, 0)})
	if err != nil {
		return nil, err
	}
	v.plan = plan
	switch {
	case plan.Warn:
		j.warn("disk %s was read in full and compared: %s", d.Label, plan.Why)
	case plan.Why != "" && !plan.Audit:
		j.note("disk %s was read in full and compared: %s", d.Label, plan.Why)
	case v.old == nil && j.saved != nil:
		j.note("disk %s is new", d.Label)
	}
	return v, nil
}

// restored reports whether a restore has written to the VM's disks since the point
// before. One that began while the snapshot was taken counts.
func (j *vmJob) restored() bool {
	return j.saved != nil && (j.vm.ExtraConfig[extraRestored] != j.saved.Restored || j.at.ExtraConfig[extraRestored] != j.saved.Restored)
}

// addBatch reads some disks at once.
func (j *vmJob) addBatch(ctx context.Context, w *store.PointWriter, batch []*vmDisk) (err error) {
	defer func() {
		for _, d := range batch {
			err = errors.Join(err, d.close())
		}
	}()
	for _, d := range batch {
		if err := j.open(ctx, d); err != nil {
			return err
		}
	}
	if !j.req.KeepSwap {
		j.leaveOut(ctx, batch)
	}
	group, ctx := errgroup.WithContext(ctx)
	for _, d := range batch {
		group.Go(func() error {
			if err := j.add(ctx, w, d); err != nil {
				return fmt.Errorf("disk %s: %w", d.Label, err)
			}
			return nil
		})
	}
	return group.Wait()
}

// open opens a disk by the best transport.
func (j *vmJob) open(ctx context.Context, d *vmDisk) error {
	var snapshot vsphere.Ref
	if j.snap != nil {
		snapshot = j.snap.ref
	}
	src, err := vddk.Open(ctx, j.req.Transports.request(j.client, j.vm, snapshot, d.Disk), j.req.Transports.options(j.throttle.bandwidth, j.log))
	if err != nil {
		if m := fatal(j.missingOn(d.Datastore)); len(m) > 0 {
			err = fmt.Errorf("%w; privileges are missing: %v", err, m)
		}
		return fmt.Errorf("disk %s: %w", d.Label, err)
	}
	d.src, d.img, d.transport = src, src, src.Transport()
	if p := j.throttle.pacer(d.Datastore); p != nil {
		d.img = &paced{Image: src, ctx: ctx, pacer: p}
	}
	return nil
}

// close ends what was opened for a disk. It may be called when nothing was.
func (d *vmDisk) close() error {
	var err error
	if d.was != nil {
		err = d.was.Close()
	}
	if d.src != nil {
		err = errors.Join(err, d.src.Close())
	}
	d.src, d.was = nil, nil
	return err
}

// leaveOut finds what guests do not need of a batch of disks.
func (j *vmJob) leaveOut(ctx context.Context, batch []*vmDisk) {
	images := make([]disk.Image, len(batch))
	for i, d := range batch {
		images[i] = d.img
	}
	for i, zones := range (skipFinder{log: j.log}).find(ctx, images) {
		batch[i].zones = zones
	}
}

// add reads one disk into the point.
func (j *vmJob) add(ctx context.Context, w *store.PointWriter, d *vmDisk) error {
	var progress func(store.Progress)
	if j.req.Started != nil {
		progress = j.req.Started(j.vm.Name, d.Label, d.Size)
	}
	changed, err := j.view(ctx, d)
	if err != nil {
		return err
	}
	return w.AddDisk(ctx, store.DiskSpec{Key: int(d.Key), Label: d.Label}, d.img, changed, progress)
}

// view puts the disk's image together as it is to be stored, and returns the
// areas that are to be read, nil for all.
func (j *vmJob) view(ctx context.Context, d *vmDisk) (changed []disk.Extent, err error) {
	if d.before >= 0 && (d.plan.Audit || d.plan.How == readAllocated) {
		was, err := j.repo.OpenDisk(ctx, j.parent, d.before)
		if err != nil {
			return nil, err
		}
		d.was = was
	}
	if d.plan.How == readAllocated {
		d.img = &thinned{Image: d.img, allocated: d.plan.Allocated, before: d.was}
	}
	if len(d.zones) > 0 {
		d.img = &masked{Image: d.img, holes: d.zones, zero: true}
	}
	if d.plan.How != readChanged && !d.plan.Audit {
		return nil, nil
	}
	// What is left out now and was not then, or the other way round, differs from
	// the point before although the guest has written nothing.
	claimed := d.plan.Claimed.union(d.zones.differing(d.old.leftOut()))
	if d.plan.Audit {
		d.audit = &auditor{Image: d.img, before: d.was, claimed: claimed}
		d.img = d.audit
		return nil, nil
	}
	return append([]disk.Extent{}, claimed...), nil
}

// conclude says what became of a disk, and what the next backup has to know.
func (j *vmJob) conclude(d *vmDisk) savedDisk {
	res := VMDiskResult{
		Key: d.Key, Label: d.Label, Size: d.Size, How: d.plan.How, Why: d.plan.Why, Transport: d.transport,
		Swap: d.zones.bytes(), Audited: d.audit != nil,
	}
	s := savedDisk{
		Key: d.Key, UUID: d.UUID, ChangeID: d.ChangeID, Size: d.Size, File: d.File, Label: d.Label, Mode: d.Mode, Thin: d.Thin,
		Controller: d.Controller, Unit: d.Unit, LeftOut: pairs(d.zones), SinceAudit: d.plan.SinceAudit, Distrust: d.plan.Distrust,
	}
	if a := d.audit; a != nil {
		if res.Missed = a.missed.Load(); res.Missed > 0 {
			s.Distrust = changeID(d.ChangeID).epoch()
			j.warn("changed block tracking has missed %d bytes of changes in disk %s (the first at offset %d) since point %s: this point is right, because all was read; "+
				"points since the last one that was read in full may not be. The disk is read in full from now on, until tracking is switched off and on again",
				res.Missed, d.Label, a.first, j.parent.ID)
		}
		if a.unsure != nil {
			j.warn("change tracking of disk %s could not be checked everywhere: %v", d.Label, a.unsure)
		}
	}
	j.res.Disks = append(j.res.Disks, res)
	slices.SortFunc(j.res.Disks, func(a, b VMDiskResult) int { return int(a.Key) - int(b.Key) })
	return s
}

// noteGone names the disks that the point before had and this one has not.
func (j *vmJob) noteGone(disks []vsphere.Disk) {
	if j.saved == nil {
		return
	}
	for _, old := range j.saved.Disks {
		known := slices.ContainsFunc(disks, func(d vsphere.Disk) bool { return d.Key == old.Key }) ||
			slices.ContainsFunc(j.res.Disks, func(r VMDiskResult) bool { return r.Key == old.Key })
		if !known {
			j.note("disk %s is not there any more; earlier points have it", old.Label)
		}
	}
}

// missingOn is the privileges that are missing on a datastore.
func (j *vmJob) missingOn(datastore string) []vsphere.Missing {
	return j.missing[j.datastores[datastore]]
}
