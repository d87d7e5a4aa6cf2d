package appliance

import (
	"context"
	"errors"
	"fmt"
	"io/fs"
	"log/slog"
	"path/filepath"
	"time"

	"lifeboat/disk"
	"lifeboat/internal/vfs"
	"lifeboat/nfsserver/datastore"
	"lifeboat/store"
	"lifeboat/store/overlay"
)

// openSession is a session that this process has to itself: its lock is held
// and, after openDisks, its images and overlays are open. Publish exports one
// alone, Server any number of them.
type openSession struct {
	Session *Session

	state    *State
	lock     *sessionLock
	fresh    bool // the session was made by us
	overlays []*overlay.Overlay
	images   []disk.Image
	traces   *bootTraces // nil: nothing is recorded or read ahead
	hold     *store.Hold // nil where the repository cannot be written
	config   folderConfig
	log      *slog.Logger
}

// sessionPlan is what a session is to be made of, or resumed with.
type sessionPlan struct {
	Name     string // "" = made up from the first point's VM
	Points   []*store.Point
	RepoURL  string
	Recovery *Recovery // of a new session; nil for a plain publish
}

// claim takes the session's lock and its record, making a new session where
// there is none.
func (p *openSession) claim(plan sessionPlan, repo *store.Repository) error {
	name := plan.Name
	if name == "" {
		if len(plan.Points) == 0 {
			return fmt.Errorf("%w: name at least one restore point, or a session to resume", ErrUsage)
		}
		name = fileName(plan.Points[0].VM) + time.Now().UTC().Format("-20060102-150405")
	}
	if err := checkSessionName(name); err != nil {
		return err
	}
	lock, err := p.state.lockSession(name)
	if err != nil {
		return err
	}
	p.lock = lock
	rec, err := p.state.session(name)
	switch {
	case err == nil && rec.Ready:
		p.Session = rec
		return checkResume(rec, plan, repo)
	case err == nil || errors.Is(err, ErrNotFound):
		if len(plan.Points) == 0 {
			return fmt.Errorf("session %q: %w; to start it, name the restore points", name, ErrNotFound)
		}
		return p.create(name, plan, repo)
	default:
		return err
	}
}

// checkResume refuses to resume a session with something else than it began
// with: its overlays hold changes against exactly those points.
func checkResume(rec *Session, plan sessionPlan, repo *store.Repository) error {
	if rec.RepoID != repo.ID() {
		return fmt.Errorf("%w: session %q belongs to repository %s (%s), not to %s", ErrUsage, rec.Name, rec.RepoID, rec.RepoURL, plan.RepoURL)
	}
	if plan.Recovery != nil {
		return fmt.Errorf("session %q is %w: it exists; choose another --session", rec.Name, ErrBusy)
	}
	if len(plan.Points) == 0 {
		return nil
	}
	same := len(plan.Points) == len(rec.Folders)
	for i := 0; same && i < len(plan.Points); i++ {
		same = plan.Points[i].ID == rec.Folders[i].Point
	}
	if !same {
		var have []string
		for _, f := range rec.Folders {
			have = append(have, f.Point)
		}
		return fmt.Errorf("%w: session %q was made of the points %v; publish others under another --session, or discard this one first", ErrUsage, rec.Name, have)
	}
	return nil
}

// create makes a new session's record, folders and placeholders. See Session
// for the order.
func (p *openSession) create(name string, plan sessionPlan, repo *store.Repository) error {
	rec := &Session{
		Name: name, Created: time.Now().UTC().Truncate(time.Second), Named: plan.Name != "",
		RepoURL: plan.RepoURL, RepoID: repo.ID(), Hold: newHoldID(), Recovery: plan.Recovery,
	}
	for _, pt := range plan.Points {
		f, err := planFolder(pt)
		if err != nil {
			return err
		}
		rec.Folders = append(rec.Folders, f)
	}
	p.Session, p.fresh = rec, true
	if err := p.state.removeSessionFiles(name); err != nil {
		return err
	}
	return p.state.putSession(rec)
}

// planFolder decides the names in a point's folder, VMware's own: vm.vmdk,
// vm_1.vmdk, … with the data in vm-flat.vmdk, vm_1-flat.vmdk, …
func planFolder(pt *store.Point) (Folder, error) {
	if len(pt.Disks) > maxPublishedDisks {
		return Folder{}, fmt.Errorf("%w: restore point %s has %d disks; at most %d can be published together", ErrUsage, pt.ID, len(pt.Disks), maxPublishedDisks)
	}
	base := fileName(pt.VM)
	f := Folder{Point: pt.ID, VM: pt.VM, Time: pt.Time, Name: base + "-" + pt.ID[:8], VMX: base + ".vmx"}
	for i, d := range pt.Disks {
		stem := base
		if i > 0 {
			stem = fmt.Sprintf("%s_%d", base, i)
		}
		f.Disks = append(f.Disks, Virtual{
			Key: d.Key, Label: d.Label, Size: d.Size,
			Descriptor: stem + ".vmdk", Flat: stem + "-flat.vmdk",
			Overlay: fmt.Sprintf("disk-%s-%d", pt.ID, i),
		})
	}
	return f, nil
}

// openDisks opens every point's images with their overlays and, for a new
// session, writes what surrounds them.
func (p *openSession) openDisks(ctx context.Context, repo *store.Repository) error {
	if err := p.takeHold(ctx, repo); err != nil {
		return err
	}
	for n, f := range p.Session.Folders {
		pt, err := repo.Point(ctx, f.Point)
		if err != nil {
			return fmt.Errorf("session %q: %w", p.Session.Name, pointError(err))
		}
		first := len(p.overlays)
		for i, v := range f.Disks {
			if err := p.openDisk(ctx, repo, pt, i, v); err != nil {
				return fmt.Errorf("session %q, point %s, disk %d: %w", p.Session.Name, f.Point, v.Key, err)
			}
		}
		if !p.Session.Ready {
			if err := p.writeFolder(ctx, repo, pt, &p.Session.Folders[n], p.overlays[first:]); err != nil {
				return fmt.Errorf("session %q: %w", p.Session.Name, err)
			}
		}
	}
	if p.Session.Ready {
		return nil
	}
	p.Session.Ready = true
	return p.state.putSession(p.Session)
}

func (p *openSession) openDisk(ctx context.Context, repo *store.Repository, pt *store.Point, n int, v Virtual) error {
	img, err := repo.OpenDisk(ctx, pt, n)
	if err != nil {
		return err
	}
	p.images = append(p.images, img)
	o, err := overlay.Open(overlay.Options{
		FS: vfs.OS(), Dir: filepath.Join(p.state.sessionDir(p.Session.Name), v.Overlay),
		Base: p.traces.image(pt, img, v.Key), BaseID: baseID(repo, pt, v), Logger: p.log,
	})
	if err != nil {
		return err
	}
	p.overlays = append(p.overlays, o)
	return nil
}

// baseID names the exact content that an overlay's changes are against.
func baseID(repo *store.Repository, pt *store.Point, v Virtual) string {
	return fmt.Sprintf("%s/%s/%d", repo.ID(), pt.ID, v.Key)
}

// export binds the disks to their placeholders and makes the session visible.
// Disks come first: no client may see an empty file in the place of a disk.
// device gives what is bound for the n-th overlay; nil: the overlay itself.
func (p *openSession) export(tree *datastore.Tree, device func(n int, o *overlay.Overlay) disk.Device) error {
	next := 0
	for _, f := range p.Session.Folders {
		for _, v := range f.Disks {
			var dev disk.Device = p.overlays[next]
			if device != nil {
				dev = device(next, p.overlays[next])
			}
			next++
			if err := p.bind(tree, f, v, dev); err != nil {
				return err
			}
		}
	}
	return tree.Attach(p.Session.Name)
}

// bind puts a disk behind its placeholder. A placeholder that a client removed
// (the host deletes the source files after a Storage vMotion) stays removed;
// the overlay is kept until the session is discarded.
func (p *openSession) bind(tree *datastore.Tree, f Folder, v Virtual, dev disk.Device) error {
	path, err := p.state.placeholder(p.Session.Name, f, v)
	if errors.Is(err, fs.ErrNotExist) {
		p.log.Warn("a published disk was removed by a client in an earlier run; it is not exported again", "folder", f.Name, "disk", v.Flat)
		return nil
	}
	if err != nil {
		return fmt.Errorf("session %q: finding the disk %s: %w", p.Session.Name, v.Flat, err)
	}
	return tree.Bind(path, dev)
}

// Written reports whether anything was ever written to the session's disks.
func (p *openSession) Written() bool {
	for _, o := range p.overlays {
		if st := o.Stats(); st.DataPages+st.ZeroPages > 0 {
			return true
		}
	}
	return false
}

// close makes everything durable and lets go of the session. Nothing may be
// bound to its disks any more.
func (p *openSession) close() error {
	var errs []error
	for _, o := range p.overlays {
		errs = append(errs, o.Close())
	}
	for _, img := range p.images {
		errs = append(errs, img.Close())
	}
	p.overlays, p.images = nil, nil
	p.closeHold()
	if p.lock != nil {
		p.lock.release()
		p.lock = nil
	}
	return errors.Join(errs...)
}
