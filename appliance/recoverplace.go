package appliance

import (
	"context"
	"crypto/rand"
	"errors"
	"fmt"
	"net"
	"net/netip"
	"path"
	"slices"
	"strings"
	"sync"
	"time"

	"lifeboat/vsphere"
)

// recoverPlace is where recoveries go: decided once for all of a request, from
// one look at the inventory.
type recoverPlace struct {
	hosts    []vsphere.Host // that get the datastore; VMs are registered on the first
	nas      vsphere.NAS
	pool     vsphere.Ref
	hardware int // newest that all hosts run; 0 = not told
	inv      *vsphere.Inventory
	folder   vsphere.Ref // "" = each VM's own

	mu       sync.Mutex // guards what follows: several VMs are planned at once
	names    map[string]bool
	sessions map[string]bool
}

// vmPlan is what a VM is called and known by.
type vmPlan struct {
	name, note     string
	instance, bios string
	folder         vsphere.Ref
}

func (p *recoverPlace) pinned() bool {
	return slices.ContainsFunc(p.hosts, func(h vsphere.Host) bool { return h.DRS || h.HA })
}

// place decides where the VMs of a request run, and refuses what cannot be before
// anything is done.
func (w *vsphereWork) place(ctx context.Context, req RecoverRequest) (*recoverPlace, error) {
	nas, err := w.nas(ctx, req.Address)
	if err != nil {
		return nil, err
	}
	p := &recoverPlace{nas: nas, names: map[string]bool{}, sessions: map[string]bool{}}
	if err := w.locate(ctx, p, req); err != nil {
		return nil, err
	}
	var versions []string
	for _, h := range p.hosts {
		versions = append(versions, h.MaxHardware)
	}
	p.hardware = lowestHardware(versions)
	return p, nil
}

// locate finds hosts, pool and folder.
func (w *vsphereWork) locate(ctx context.Context, p *recoverPlace, req RecoverRequest) (err error) {
	if p.inv, err = w.vc.Inventory(ctx); err != nil {
		return err
	}
	if err := w.chooseHosts(ctx, p, req); err != nil {
		return err
	}
	if p.pool, err = choosePool(p, req.Pool); err != nil {
		return err
	}
	p.folder, err = chooseFolder(p, req.Folder)
	return err
}

// nas is our export as hosts are to mount it. The name is one that nobody else
// gives; the address must be the same text for every host of a cluster.
func (w *vsphereWork) nas(ctx context.Context, address string) (vsphere.NAS, error) {
	status, err := w.state.Control().Status(ctx)
	if err != nil {
		return vsphere.NAS{}, err
	}
	nfs, err := netip.ParseAddrPort(status.NFSAddr)
	if err != nil {
		return vsphere.NAS{}, fmt.Errorf("the server says that it is at %q: %w", status.NFSAddr, err)
	}
	if status.Portmap == "" {
		return vsphere.NAS{}, fmt.Errorf("%w: the server runs without a portmapper, and ESXi asks one on port 111 where NFS is: `lifeboat serve --stop`, then start it without --portmap off", ErrUsage)
	}
	if address == "" {
		if nfs.Addr().IsUnspecified() {
			return vsphere.NAS{}, fmt.Errorf("%w: the server listens on all addresses: say with --address which one the hosts reach", ErrUsage)
		}
		address = nfs.Addr().String()
	}
	return vsphere.NAS{Name: w.datastore, Server: address, Path: ExportPath}, nil
}

func (w *vsphereWork) chooseHosts(ctx context.Context, p *recoverPlace, req RecoverRequest) error {
	hosts, err := w.vc.Hosts(ctx, req.Host)
	if err != nil {
		return err
	}
	var why []string
	for _, h := range hosts {
		switch {
		case !h.Connected:
			why = append(why, h.Name+" is not connected")
		case h.Maintenance:
			why = append(why, h.Name+" is in maintenance mode")
		default:
			p.hosts = append(p.hosts, h)
		}
	}
	if len(p.hosts) == 0 {
		return fmt.Errorf("%w: no host can run a VM now: %s", vsphere.ErrHost, strings.Join(why, ", "))
	}
	if req.Host != "" {
		return nil // a host, or all of a cluster
	}
	// The one where the VM was is as good as any, and the one that people look at.
	home := p.hosts[0]
	for _, vm := range p.inv.VMs {
		for _, h := range p.hosts {
			if vm.Name == req.Points[0].VM && vm.Host == h.Name {
				home = h
			}
		}
	}
	p.hosts = slices.DeleteFunc(p.hosts, func(h vsphere.Host) bool { return h.Ref != home.Ref && (h.Cluster == "" || h.Cluster != home.Cluster) })
	// VMs are registered on the first.
	slices.SortStableFunc(p.hosts, func(a, b vsphere.Host) int {
		return boolOrder(b.Ref == home.Ref) - boolOrder(a.Ref == home.Ref)
	})
	return nil
}

func boolOrder(b bool) int {
	if b {
		return 1
	}
	return 0
}

func choosePool(p *recoverPlace, name string) (vsphere.Ref, error) {
	if name == "" {
		return p.hosts[0].PoolRef, nil
	}
	var have []string
	for _, pool := range p.inv.Pools {
		if pool.Path == name || pool.Name == name || "Resources/"+name == pool.Path {
			return pool.Ref, nil
		}
		have = append(have, pool.Path)
	}
	return "", fmt.Errorf("resource pool %q: %w; there are %s", name, ErrNotFound, strings.Join(have, ", "))
}

func chooseFolder(p *recoverPlace, name string) (vsphere.Ref, error) {
	if name == "" {
		return "", nil
	}
	var have []string
	for _, f := range p.inv.Folders {
		if strings.Trim(f.Path, "/") == strings.Trim(name, "/") && f.Datacenter == p.hosts[0].Datacenter {
			return f.Ref, nil
		}
		have = append(have, f.Path)
	}
	return "", fmt.Errorf("VM folder %q: %w; there are %s", name, ErrNotFound, strings.Join(have, ", "))
}

// plan decides names and identity of one VM, and its session's.
func (r *recovering) plan(ctx context.Context) (*Recovery, error) {
	p := r.place
	saved, err := readConfig(ctx, r.repo, r.point)
	if err != nil {
		return nil, err
	}
	p.mu.Lock()
	defer p.mu.Unlock()
	r.session = r.sessionName()
	p.sessions[r.session] = true
	plan := vmPlan{folder: p.folder}
	if plan.folder == "" {
		plan.folder = folderOf(p, saved.vm)
	}
	id := vsphere.Identity{VCenter: r.vc.About().InstanceUUID}
	if r.req.KeepIdentity {
		if saved.vm == nil {
			return nil, fmt.Errorf("%w: restore point %s does not know the UUIDs of its VM: it was made of disk files", ErrUsage, r.point.ID)
		}
		id.VM = saved.vm.Identity.VM
		for _, vm := range p.inv.VMs {
			if strings.EqualFold(vm.Identity.VM, id.VM) {
				return nil, fmt.Errorf("%w: VM %q still is in the inventory: two cannot have the same UUIDs; remove it from there, or recover without keeping them", ErrBusy, vm.Name)
			}
		}
	} else {
		plan.instance, plan.bios = newUUID(), newUUID()
		id.VM = plan.instance
	}
	if plan.name, err = r.vmName(plan.folder); err != nil {
		return nil, err
	}
	plan.note = fmt.Sprintf("[Lifeboat: recovered from restore point %s of %s, taken %s. It runs from the backup appliance (%s, session %s): move it with `lifeboat migrate %[5]s`, or end it with `lifeboat stop %[5]s`.]",
		r.point.ID, r.point.VM, r.point.Time.UTC().Format("2006-01-02 15:04 UTC"), p.nas.Server, r.session)
	p.names[plan.name] = true
	r.vm = plan
	rec := &Recovery{
		VCenter: id.VCenter, Server: r.vc.About().Server, VM: plan.name, Identity: id, Datastore: p.nas.Name, Address: p.nas.Server,
		State: RecoveryPublishing, PowerOn: r.req.PowerOn, Note: plan.note,
	}
	for _, h := range p.hosts {
		rec.Hosts = append(rec.Hosts, h.Name)
	}
	return rec, nil
}

func (r *recovering) sessionName() string {
	if r.req.Session != "" {
		return r.req.Session
	}
	base := fileName(r.point.VM) + time.Now().UTC().Format("-20060102-150405")
	name := base
	for n := 2; ; n++ {
		if _, err := r.state.session(name); !r.place.sessions[name] && errors.Is(err, ErrNotFound) {
			return name
		}
		name = fmt.Sprintf("%s-%d", base, n)
	}
}

// folderOf is where the VM was, if that folder is still there.
func folderOf(p *recoverPlace, vm *vsphere.VM) vsphere.Ref {
	if vm == nil || vm.Folder == "" {
		return ""
	}
	for _, f := range p.inv.Folders {
		if f.Path == vm.Folder && f.Datacenter == p.hosts[0].Datacenter {
			return f.Ref
		}
	}
	return ""
}

// vmName is a name that is free in the folder. One that a person chose is not
// changed.
func (r *recovering) vmName(folder vsphere.Ref) (string, error) {
	if folder == "" {
		folder = r.place.hosts[0].FolderRef
	}
	taken := func(name string) bool {
		for _, vm := range r.place.inv.VMs {
			if vm.Name == name && vm.FolderRef == folder {
				return true
			}
		}
		return r.place.names[name]
	}
	if want := r.req.Name; want != "" {
		if taken(want) {
			return "", fmt.Errorf("%w: a VM called %q is in that folder; choose another --name", ErrBusy, want)
		}
		return want, nil
	}
	name := r.point.VM
	for n := 1; taken(name); n++ {
		suffix := " (recovered)"
		if n > 1 {
			suffix = fmt.Sprintf(" (recovered %d)", n)
		}
		name = shortened(r.point.VM, maxVMName-len(suffix)) + suffix
	}
	return name, nil
}

// maxVMName is the longest name of a VM in vSphere.
const maxVMName = 80

func shortened(s string, n int) string {
	r := []rune(s)
	return string(r[:min(len(r), n)])
}

// newUUID is a random UUID (RFC 9562, version 4).
func newUUID() string {
	var b [16]byte
	rand.Read(b[:]) // never fails (crypto/rand)
	b[6], b[8] = b[6]&0x0f|0x40, b[8]&0x3f|0x80
	return fmt.Sprintf("%x-%x-%x-%x-%x", b[:4], b[4:6], b[6:8], b[8:10], b[10:])
}

// LocalAddress is this host's address on the way to another: the one that the
// other reaches it at.
func LocalAddress(ctx context.Context, server string) (netip.Addr, error) {
	host := server
	if h, _, err := net.SplitHostPort(server); err == nil {
		host = h
	}
	// Nothing is sent: connecting a datagram socket only asks for the route.
	conn, err := new(net.Dialer).DialContext(ctx, "udp", net.JoinHostPort(host, "443"))
	if err != nil {
		return netip.Addr{}, fmt.Errorf("find the address at which %s reaches this host: %w; name it with --listen", host, err)
	}
	defer conn.Close()
	ap, err := netip.ParseAddrPort(conn.LocalAddr().String())
	return ap.Addr().Unmap(), err
}

// datastorePath is "[datastore] a/b".
func datastorePath(datastore string, elements ...string) string {
	return "[" + datastore + "] " + path.Join(elements...)
}
