package appliance

import (
	"context"
	"errors"
	"fmt"
	"io/fs"
	"log/slog"
	"net/netip"
	"path/filepath"
	"time"

	"lifeboat/disk"
	"lifeboat/internal/vfs"
	"lifeboat/nfsserver"
	"lifeboat/nfsserver/datastore"
	"lifeboat/store"
	"lifeboat/store/overlay"
)

// ExportPath is the one path that the appliance exports; sessions and their
// folders are directories below it, each of which can be mounted too.
const ExportPath = nfsserver.ExportPath

// PublishRequest says what to export and where.
type PublishRequest struct {
	Points  []string // references to restore points; may be empty for an existing session
	Session string   // "" = a new one, with a name of its own
	RepoURL string   // recorded with the session

	Listen    netip.Addr // address for all services; default 127.0.0.1
	NFSPort   int        // 0 = chosen by the kernel
	MountPort int        // 0 = chosen by the kernel; may equal NFSPort
	Portmap   string     // "addr:port", or "off"
	Allow     []netip.Prefix

	// NoPrefetch leaves out reading ahead what the VMs read when they booted
	// the last time.
	NoPrefetch bool
	// TraceWindow is how long it is recorded what the VMs read; 0 means
	// DefaultTraceWindow, less nothing at all.
	TraceWindow time.Duration

	Logger *slog.Logger
}

// Publication is an export that clients can reach.
type Publication struct {
	Session *Session
	Ready   PublishReady

	state    *State
	lock     *sessionLock
	fresh    bool // the session was made by this publication
	server   *nfsserver.Server
	tree     *datastore.Tree
	overlays []*overlay.Overlay
	images   []disk.Image
	traces   *bootTraces
	hold     *store.Hold // nil where the repository cannot be written
	log      *slog.Logger
}

// PublishReady is what `lifeboat publish --json` prints when clients may come.
type PublishReady struct {
	Session   string        `json:"session"`
	Export    string        `json:"export"`
	NFSAddr   string        `json:"nfs_addr"`
	MountAddr string        `json:"mount_addr"`
	Portmap   string        `json:"portmap_addr,omitempty"`
	Folders   []ReadyFolder `json:"folders"`
}

// ReadyFolder is one published point. Path is absolute and can be mounted; the
// other names are in it.
type ReadyFolder struct {
	Point string   `json:"point"`
	VM    string   `json:"vm"`
	Path  string   `json:"path"`
	VMX   string   `json:"vmx"`
	Disks []string `json:"disks"`
}

// Publish makes the named points reachable over NFS, or resumes a session as it
// was: same handles, same changes. The caller runs the publication and closes
// it.
func Publish(ctx context.Context, st *State, repo *store.Repository, req PublishRequest) (_ *Publication, err error) {
	p := &Publication{state: st, log: logger(req.Logger)}
	defer func() {
		if err != nil {
			p.abandon()
		}
	}()
	points, err := resolveAll(ctx, repo, req.Points)
	if err != nil {
		return nil, err
	}
	if err := p.claimSession(req, repo, points); err != nil {
		return nil, err
	}
	p.traces = newBootTraces(st, repo, req, p.log)
	if err := p.openDisks(ctx, repo); err != nil {
		return nil, err
	}
	if err := p.startServer(ctx, req); err != nil {
		return nil, err
	}
	p.describe()
	return p, nil
}

// abandon takes a publication back that never reached a client. What was made
// only for it, under a name that nobody chose, goes; a session that was there
// before is left as it is.
func (p *Publication) abandon() {
	end := p.Close
	if p.fresh {
		end = func() error {
			_, err := p.End()
			return err
		}
	}
	if err := end(); err != nil {
		p.log.Warn("could not take back a publication that failed", "err", err)
	}
}

func resolveAll(ctx context.Context, repo *store.Repository, refs []string) ([]*store.Point, error) {
	points := make([]*store.Point, len(refs))
	for i, ref := range refs {
		pt, err := ResolvePoint(ctx, repo, ref)
		if err != nil {
			return nil, err
		}
		for _, other := range points[:i] {
			if other.ID == pt.ID {
				return nil, fmt.Errorf("%w: restore point %s is named twice", ErrUsage, pt.ID)
			}
		}
		points[i] = pt
	}
	return points, nil
}

// claimSession takes the session's lock and its record, making a new session
// where there is none.
func (p *Publication) claimSession(req PublishRequest, repo *store.Repository, points []*store.Point) error {
	name := req.Session
	if name == "" {
		if len(points) == 0 {
			return fmt.Errorf("%w: name at least one restore point, or a session to resume", ErrUsage)
		}
		name = fileName(points[0].VM) + time.Now().UTC().Format("-20060102-150405")
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
		return checkResume(rec, req, repo, points)
	case err == nil || errors.Is(err, ErrNotFound):
		if len(points) == 0 {
			return fmt.Errorf("session %q: %w; to start it, name the restore points", name, ErrNotFound)
		}
		return p.create(name, req, repo, points)
	default:
		return err
	}
}

// checkResume refuses to resume a session with something else than it began
// with: its overlays hold changes against exactly those points.
func checkResume(rec *Session, req PublishRequest, repo *store.Repository, points []*store.Point) error {
	if rec.RepoID != repo.ID() {
		return fmt.Errorf("%w: session %q belongs to repository %s (%s), not to %s", ErrUsage, rec.Name, rec.RepoID, rec.RepoURL, req.RepoURL)
	}
	if len(points) == 0 {
		return nil
	}
	same := len(points) == len(rec.Folders)
	for i := 0; same && i < len(points); i++ {
		same = points[i].ID == rec.Folders[i].Point
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
func (p *Publication) create(name string, req PublishRequest, repo *store.Repository, points []*store.Point) error {
	rec := &Session{
		Name: name, Created: time.Now().UTC().Truncate(time.Second), Named: req.Session != "",
		RepoURL: req.RepoURL, RepoID: repo.ID(), Hold: newHoldID(),
	}
	for _, pt := range points {
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
func (p *Publication) openDisks(ctx context.Context, repo *store.Repository) error {
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
			if err := p.writeFolder(&p.Session.Folders[n], p.overlays[first:]); err != nil {
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

func (p *Publication) openDisk(ctx context.Context, repo *store.Repository, pt *store.Point, n int, v Virtual) error {
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

// startServer binds the disks to their placeholders, makes the session visible
// and takes the ports. Disks come first: no client may see an empty file in the
// place of a disk.
func (p *Publication) startServer(ctx context.Context, req PublishRequest) error {
	id, err := p.state.identity()
	if err != nil {
		return err
	}
	p.tree, err = datastore.Open(datastore.Options{Root: p.state.Datastore(), FSID: id.fsid, Key: id.handleKey, Logger: p.log})
	if err != nil {
		return err
	}
	next := 0
	for _, f := range p.Session.Folders {
		for _, v := range f.Disks {
			dev := p.overlays[next]
			next++
			if err := p.bind(f, v, dev); err != nil {
				return err
			}
		}
	}
	if err := p.tree.Attach(p.Session.Name); err != nil {
		return err
	}
	if p.server, err = nfsserver.New(serverOptions(p.tree, req, p.log)); err != nil {
		return err
	}
	return p.server.Listen(ctx)
}

func serverOptions(tree *datastore.Tree, req PublishRequest, log *slog.Logger) nfsserver.Options {
	if !req.Listen.IsValid() {
		req.Listen = netip.AddrFrom4([4]byte{127, 0, 0, 1})
	}
	addr := func(port int) string { return netip.AddrPortFrom(req.Listen, uint16(port)).String() }
	opt := nfsserver.Options{
		Tree: tree, NFSAddr: addr(req.NFSPort), MountAddr: addr(req.MountPort), PortmapAddr: req.Portmap, Logger: log,
		Allow: append([]netip.Prefix{netip.MustParsePrefix("127.0.0.0/8"), netip.MustParsePrefix("::1/128")}, req.Allow...),
	}
	return opt
}

// bind puts a disk behind its placeholder. A placeholder that a client removed
// (the host deletes the source files after a Storage vMotion) stays removed;
// the overlay is kept until the session is discarded.
func (p *Publication) bind(f Folder, v Virtual, dev disk.Device) error {
	path, err := p.state.placeholder(p.Session.Name, f, v)
	if errors.Is(err, fs.ErrNotExist) {
		p.log.Warn("a published disk was removed by a client in an earlier run; it is not exported again", "folder", f.Name, "disk", v.Flat)
		return nil
	}
	if err != nil {
		return fmt.Errorf("session %q: finding the disk %s: %w", p.Session.Name, v.Flat, err)
	}
	return p.tree.Bind(path, dev)
}

func (p *Publication) describe() {
	a := p.server.Addrs()
	p.Ready = PublishReady{Session: p.Session.Name, Export: ExportPath, NFSAddr: a.NFS.String(), MountAddr: a.Mount.String()}
	if a.Portmap.IsValid() {
		p.Ready.Portmap = a.Portmap.String()
	}
	for _, f := range p.Session.Folders {
		rf := ReadyFolder{Point: f.Point, VM: f.VM, Path: ExportPath + "/" + p.Session.Name + "/" + f.Name, VMX: f.VMX, Disks: []string{}}
		for _, v := range f.Disks {
			rf.Disks = append(rf.Disks, v.Flat)
		}
		p.Ready.Folders = append(p.Ready.Folders, rf)
	}
}

// Run serves until ctx is done or the server fails. Of a VM that has never run
// in this session it is recorded what it reads first.
func (p *Publication) Run(ctx context.Context) error {
	defer p.traces.start(ctx, !p.Written())()
	return p.server.Run(ctx)
}

// Written reports whether anything was ever written to the session's disks.
func (p *Publication) Written() bool {
	for _, o := range p.overlays {
		if st := o.Stats(); st.DataPages+st.ZeroPages > 0 {
			return true
		}
	}
	return false
}

// Close makes everything durable and lets go of the session. Call it after Run
// returned.
func (p *Publication) Close() error {
	var errs []error
	if p.tree != nil {
		p.tree.Close()
	}
	for _, o := range p.overlays {
		errs = append(errs, o.Close())
	}
	for _, img := range p.images {
		errs = append(errs, img.Close())
	}
	p.tree, p.overlays, p.images = nil, nil, nil
	p.closeHold()
	if p.lock != nil {
		p.lock.release()
		p.lock = nil
	}
	return errors.Join(errs...)
}
