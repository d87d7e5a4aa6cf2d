package esxsim

import (
	"context"
	"crypto/sha256"
	"errors"
	"fmt"
	"slices"
	"time"

	"github.com/vmware/govmomi/simulator"
	"github.com/vmware/govmomi/vim25/methods"
	"github.com/vmware/govmomi/vim25/soap"
	"github.com/vmware/govmomi/vim25/types"

	"lifeboat/nfsserver/nfstest"
)

// mount is one host's use of a NAS datastore.
type mount struct{ since time.Time }

// hostStorageCalls stands before HostDatastoreSystem.
type hostStorageCalls struct{ base }

// CreateNasDatastore mounts an export on one host [API]. The order of the
// checks is ours; the faults are the API's.
func (d *hostStorageCalls) CreateNasDatastore(_ *simulator.Context, req *types.CreateNasDatastore) soap.HasFault {
	r, f := d.s.mountNAS(req.This, req.Spec)
	if f != nil {
		return &methods.CreateNasDatastoreBody{Fault_: fault(f, describe(f))}
	}
	return &methods.CreateNasDatastoreBody{Res: &types.CreateNasDatastoreResponse{Returnval: r}}
}

func (s *Sim) mountNAS(storage ref, spec types.HostNasVolumeSpec) (ref, types.BaseMethodFault) {
	s.mu.Lock()
	h := s.hostOfStorage(storage)
	f := s.nasAllowed(h, spec)
	s.mu.Unlock()
	if f != nil {
		return ref{}, f
	}
	// The host mounts for itself, also what another host has mounted.
	var client *nfsClient
	var err error
	s.front.meter.waiting(func() { client, err = mountNFS(s.ctx, spec.RemoteHost, spec.RemotePath, s.opts.APDTimeout) })
	if err != nil {
		return ref{}, mountFault(spec, err)
	}
	s.mu.Lock()
	defer s.mu.Unlock()
	if f := s.nasAllowed(h, spec); f != nil { // somebody was faster
		_ = client.close()
		return ref{}, f
	}
	known := s.nasMounted(spec)
	if known != nil {
		_ = client.close()
	} else {
		known = s.newNAS(spec, client)
	}
	h.nas[known] = &mount{time.Now()}
	s.showMounts(known)
	add := func(list []ref) []ref {
		if slices.Contains(list, known.ref) {
			return list
		}
		return append(slices.Clone(list), known.ref)
	}
	s.relist(h.ref, "datastore", add)
	s.relistStorage(h, add)
	s.relist(s.dc, "datastore", add)
	if s.cluster != nil {
		s.relist(s.cluster.Self, "datastore", add)
	}
	return known.ref, nil
}

// nasAllowed are the checks before anything is tried. Sim.mu is held.
func (s *Sim) nasAllowed(h *host, spec types.HostNasVolumeSpec) types.BaseMethodFault {
	switch {
	case h == nil:
		return &types.ManagedObjectNotFound{}
	case spec.RemoteHost == "":
		return &types.InvalidArgument{InvalidProperty: "spec.remoteHost"}
	case spec.RemotePath == "" || spec.RemotePath[0] != '/':
		return &types.InvalidArgument{InvalidProperty: "spec.remotePath"}
	case spec.LocalPath == "" || len(spec.LocalPath) > 42: // [KB 2046653]
		return &types.InvalidName{Name: spec.LocalPath}
	case spec.Type != "" && spec.Type != "NFS":
		return &types.InvalidArgument{InvalidProperty: "spec.type"}
	}
	for d := range h.nas {
		if d.name == spec.LocalPath {
			return &types.DuplicateName{Name: spec.LocalPath, Object: d.ref}
		}
		if d.nas.nfs.remote == spec.RemoteHost && d.nas.nfs.path == spec.RemotePath {
			return said(&types.AlreadyExists{Name: d.name}, "vim.fault.AlreadyExists", "The specified key, name, or identifier '%s' already exists.", d.name)
		}
	}
	for _, d := range s.datastores {
		same := d.nas != nil && d.nas.nfs.remote == spec.RemoteHost && d.nas.nfs.path == spec.RemotePath
		if d.name == spec.LocalPath && !same {
			return &types.DuplicateName{Name: spec.LocalPath, Object: d.ref}
		}
		if same && d.name != spec.LocalPath {
			return said(&types.AlreadyExists{Name: d.name}, "vim.fault.AlreadyExists", "The specified key, name, or identifier '%s' already exists.", d.name)
		}
	}
	if len(h.nas) >= s.opts.MaxNFSVolumes { // [KB 2239]
		return hostConfigFault("NFS has reached the maximum number of supported volumes.")
	}
	return nil
}

func hostConfigFault(text string) types.BaseMethodFault {
	return said(&types.PlatformConfigFault{Text: text}, "vob.vmfs.nfs.mount",
		"An error occurred during host configuration: Operation failed, diagnostics report: %s", text)
}

// mountFault is what a host says when a mount fails [KB 1005948, KB 1003967].
func mountFault(spec types.HostNasVolumeSpec, err error) types.BaseMethodFault {
	var status nfstest.MountStatus
	what := "Unable to connect to NFS server."
	if errors.As(err, &status) {
		what = "The mount request was denied by the NFS server. Check that the export exists and that the client is permitted to mount it."
		if status == nfstest.MountNoEnt {
			what = "The NFS server denied the mount request: no such export."
		}
	}
	return hostConfigFault(fmt.Sprintf("Mount failed: %s:%s failed to mount: %s (%v)", spec.RemoteHost, spec.RemotePath, what, err))
}

// nasMounted is the datastore of an export that some host has. Sim.mu is held.
func (s *Sim) nasMounted(spec types.HostNasVolumeSpec) *datastore {
	for _, d := range s.datastores {
		if d.nas != nil && d.name == spec.LocalPath && d.nas.nfs.remote == spec.RemoteHost && d.nas.nfs.path == spec.RemotePath {
			return d
		}
	}
	return nil
}

// newNAS makes the datastore of a mount. Sim.mu is held.
func (s *Sim) newNAS(spec types.HostNasVolumeSpec, client *nfsClient) *datastore {
	n := &nasVolume{nfs: client, stale: s.opts.LockTimeout, locks: map[*nfsFile]struct{}{}}
	sum := sha256.Sum256([]byte(s.InstanceUUID() + s.opts.Dir))
	copy(n.owner[:], sum[:])
	obj := &simulator.Datastore{}
	obj.Name = spec.LocalPath
	url := fmt.Sprintf("ds:///vmfs/volumes/%x-%x/", sum[16:20], sum[20:24])
	obj.Info = &types.NasDatastoreInfo{
		DatastoreInfo: types.DatastoreInfo{Name: spec.LocalPath, Url: url, MaxFileSize: 1 << 46},
		Nas: &types.HostNasVolume{
			HostFileSystemVolume: types.HostFileSystemVolume{Name: spec.LocalPath, Type: "NFS"},
			RemoteHost:           spec.RemoteHost, RemotePath: spec.RemotePath, RemoteHostNames: []string{spec.RemoteHost},
		},
	}
	obj.Summary = types.DatastoreSummary{Name: spec.LocalPath, Url: url, Type: "NFS", Accessible: true, MaintenanceMode: "normal"}
	obj.Capability = types.DatastoreCapability{DirectoryHierarchySupported: true, PerFileThinProvisioningSupported: true}
	_ = client.do(false, func(c *nfstest.Client) error {
		stat, err := c.Fsstat(client.root)
		obj.Summary.Capacity, obj.Summary.FreeSpace = int64(stat.Total), int64(stat.Avail)
		return err
	})
	folder := s.reg.Get(s.dc).(*simulator.Datacenter).DatastoreFolder
	obj.Parent = &folder
	obj.Self = ref{Type: "Datastore", Value: fmt.Sprintf("datastore-%d", 1000+s.taskNumber.Add(1))}
	obj.Summary.Datastore = &obj.Self
	browser := &simulator.HostDatastoreBrowser{}
	browser.Datastore = []ref{obj.Self}
	obj.Browser = s.reg.Put(browser).Reference()
	s.relist(folder, "childEntity", func(list []ref) []ref { return append(slices.Clone(list), obj.Self) })
	s.reg.Put(obj)
	d := &datastore{sim: s, obj: obj, ref: obj.Self, name: spec.LocalPath, vol: n, nas: n}
	s.datastores[d.ref] = d
	ctx, stop := context.WithCancel(s.ctx)
	n.stop = stop
	s.running.Add(1)
	go func() {
		defer s.running.Done()
		s.watchNAS(ctx, d)
	}()
	return d
}

// watchNAS is the heartbeat of a NAS datastore for as long as it is mounted.
func (s *Sim) watchNAS(ctx context.Context, d *datastore) {
	t := time.NewTicker(s.opts.Heartbeat)
	defer t.Stop()
	for {
		select {
		case <-ctx.Done():
			return
		case <-t.C:
		}
		if !d.nas.heartbeat() {
			continue
		}
		s.mu.Lock()
		if s.datastores[d.ref] == d {
			s.showMounts(d)
			for _, v := range s.vms {
				s.publish(v)
			}
		}
		s.mu.Unlock()
	}
}

// showMounts publishes who has a datastore and whether it can be reached.
func (s *Sim) showMounts(d *datastore) {
	active := d.nas.active()
	info := types.HostMountInfo{
		Path: "/vmfs/volumes/" + d.name, AccessMode: "readWrite", Mounted: types.NewBool(true), Accessible: types.NewBool(active),
	}
	if !active {
		info.InaccessibleReason = "AllPathsDown_Start"
	}
	hosts := []types.DatastoreHostMount{}
	for _, h := range s.hosts {
		if h.nas[d] != nil {
			hosts = append(hosts, types.DatastoreHostMount{Key: h.ref, MountInfo: info})
		}
	}
	s.update(d.obj, []types.PropertyChange{
		{Name: "host", Val: hosts},
		{Name: "summary.accessible", Val: active},
		{Name: "summary.multipleHostAccess", Val: len(hosts) > 1},
	})
}

// RemoveDatastore unmounts on one host [API]: ResourceInUse while that host has
// a VM on it.
func (d *hostStorageCalls) RemoveDatastore(_ *simulator.Context, req *types.RemoveDatastore) soap.HasFault {
	d.s.mu.Lock()
	h, ds := d.s.hostOfStorage(req.This), d.s.datastores[req.Datastore]
	f := d.s.removable(h, ds)
	var last *nfsClient
	if f == nil {
		last = d.s.unmount(h, ds)
	}
	d.s.mu.Unlock()
	if f != nil {
		return &methods.RemoveDatastoreBody{Fault_: fault(f, describe(f))}
	}
	if last != nil {
		d.s.front.meter.waiting(last.umount)
	}
	return &methods.RemoveDatastoreBody{Res: &types.RemoveDatastoreResponse{}}
}

func (s *Sim) removable(h *host, d *datastore) types.BaseMethodFault {
	if h == nil || d == nil || d.nas != nil && h.nas[d] == nil {
		return &types.NotFound{}
	}
	for _, v := range s.vms {
		if v.host == h && slices.Contains(s.datastoresOf(v), d.ref) {
			return said(&types.ResourceInUse{Type: "Datastore", Name: d.name}, "vim.fault.ResourceInUse", "The resource '%s' is in use.", d.name)
		}
	}
	if d.nas == nil {
		return hostConfigFault("the VMFS volume is part of the simulation")
	}
	return nil
}

// unmount takes a datastore from a host, and out of the inventory when it was
// the last. Then its client is returned, to be told. Sim.mu is held.
func (s *Sim) unmount(h *host, d *datastore) *nfsClient {
	delete(h.nas, d)
	drop := func(list []ref) []ref {
		return slices.DeleteFunc(slices.Clone(list), func(r ref) bool { return r == d.ref })
	}
	s.relist(h.ref, "datastore", drop)
	s.relistStorage(h, drop)
	for _, other := range s.hosts {
		if other.nas[d] != nil {
			s.showMounts(d)
			return nil
		}
	}
	s.relist(s.dc, "datastore", drop)
	if s.cluster != nil {
		s.relist(s.cluster.Self, "datastore", drop)
	}
	s.relist(*d.obj.Parent, "childEntity", drop)
	delete(s.datastores, d.ref)
	for at, l := range s.layers {
		if l.at.ds == d {
			delete(s.layers, at)
		}
	}
	s.reg.Remove(s.background(), d.obj.Browser)
	s.reg.Remove(s.background(), d.ref)
	d.nas.stop()
	return d.nas.nfs
}

// relistStorage changes the list that a host's HostDatastoreSystem keeps.
func (s *Sim) relistStorage(h *host, change func([]ref) []ref) {
	ctx := s.background()
	dss := s.reg.Get(*h.obj.ConfigManager.DatastoreSystem).(*simulator.HostDatastoreSystem)
	s.reg.WithLock(ctx, dss, func() {
		s.reg.Update(ctx, dss, []types.PropertyChange{{Name: "datastore", Val: change(dss.Datastore)}})
	})
}

// datastoreCalls stands before Datastore.
type datastoreCalls struct{ base }

// DestroyDatastore unmounts everywhere [API].
func (d *datastoreCalls) DestroyDatastore(_ *simulator.Context, req *types.DestroyDatastore) soap.HasFault {
	if f := d.s.destroyDatastore(req.This); f != nil {
		return &methods.DestroyDatastoreBody{Fault_: fault(f, describe(f))}
	}
	return &methods.DestroyDatastoreBody{Res: &types.DestroyDatastoreResponse{}}
}

func (s *Sim) destroyDatastore(this ref) types.BaseMethodFault {
	s.mu.Lock()
	d := s.datastores[this]
	if d == nil || d.nas == nil {
		s.mu.Unlock()
		return &types.NotSupported{}
	}
	var last *nfsClient
	for _, h := range s.hosts {
		if h.nas[d] == nil {
			continue
		}
		if f := s.removable(h, d); f != nil {
			s.mu.Unlock()
			return f
		}
		last = s.unmount(h, d)
	}
	s.mu.Unlock()
	if last != nil {
		s.front.meter.waiting(last.umount)
	}
	return nil
}

// RefreshDatastore [API].
func (d *datastoreCalls) RefreshDatastore(_ *simulator.Context, req *types.RefreshDatastore) soap.HasFault {
	return &methods.RefreshDatastoreBody{Res: &types.RefreshDatastoreResponse{}}
}
