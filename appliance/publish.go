package appliance

import (
	"context"
	"fmt"
	"log/slog"
	"net/netip"
	"time"

	"lifeboat/nfsserver"
	"lifeboat/nfsserver/datastore"
	"lifeboat/store"
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

// Publication is an export of one session that clients can reach.
type Publication struct {
	*openSession
	Ready PublishReady

	server *nfsserver.Server
	tree   *datastore.Tree
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
	p := &Publication{openSession: &openSession{state: st, log: logger(req.Logger)}}
	defer func() {
		if err != nil {
			p.abandon()
		}
	}()
	points, err := resolveAll(ctx, repo, req.Points)
	if err != nil {
		return nil, err
	}
	if err := p.claim(sessionPlan{Name: req.Session, Points: points, RepoURL: req.RepoURL}, repo); err != nil {
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

// startServer makes the session visible and takes the ports.
func (p *Publication) startServer(ctx context.Context, req PublishRequest) (err error) {
	if p.tree, err = p.state.openTree(p.log); err != nil {
		return err
	}
	if err := p.export(p.tree, nil); err != nil {
		return err
	}
	if p.server, err = nfsserver.New(serverOptions(p.tree, req, p.log)); err != nil {
		return err
	}
	return p.server.Listen(ctx)
}

// openTree opens the tree that clients see, with the identity that never changes.
func (s *State) openTree(log *slog.Logger) (*datastore.Tree, error) {
	id, err := s.identity()
	if err != nil {
		return nil, err
	}
	return datastore.Open(datastore.Options{Root: s.Datastore(), FSID: id.fsid, Key: id.handleKey, Logger: log})
}

func serverOptions(tree *datastore.Tree, req PublishRequest, log *slog.Logger) nfsserver.Options {
	if !req.Listen.IsValid() {
		req.Listen = netip.AddrFrom4([4]byte{127, 0, 0, 1})
	}
	addr := func(port int) string { return netip.AddrPortFrom(req.Listen, uint16(port)).String() }
	opt := nfsserver.Options{
		Tree: tree, NFSAddr: addr(req.NFSPort), MountAddr: addr(req.MountPort), PortmapAddr: req.Portmap, Logger: log,
		Allow: withLoopback(req.Allow),
	}
	return opt
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

// Close makes everything durable and lets go of the session. Call it after Run
// returned.
func (p *Publication) Close() error {
	if p.tree != nil {
		p.tree.Close()
		p.tree = nil
	}
	return p.close()
}
