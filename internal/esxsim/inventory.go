package esxsim

import (
	"context"
	"fmt"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"sync"
	"time"

	vimfault "github.com/vmware/govmomi/fault"
	"github.com/vmware/govmomi/object"
	"github.com/vmware/govmomi/simulator"
	"github.com/vmware/govmomi/simulator/esx"
	"github.com/vmware/govmomi/simulator/vpx"
	"github.com/vmware/govmomi/vapi/rest"
	"github.com/vmware/govmomi/vapi/tags"
	"github.com/vmware/govmomi/vim25"
	"github.com/vmware/govmomi/vim25/mo"
	"github.com/vmware/govmomi/vim25/soap"
	"github.com/vmware/govmomi/vim25/types"
)

// host is one ESXi host.
type host struct {
	obj  *simulator.HostSystem
	ref  ref
	name string
	gone bool // disconnected
	// nas are the NAS datastores that this host has mounted.
	nas map[*datastore]*mount
}

const (
	datacenterName = "Lab"
	clusterName    = "Cluster"
	tagCategory    = "Lifeboat"
)

// building makes inventories one after the other: govmomi's simulator writes to
// templates of its package while it makes hosts and licences.
var building sync.Mutex

func (s *Sim) buildInventory() error {
	building.Lock()
	defer building.Unlock()
	ctx := simulator.NewContext()
	content, root := vpx.ServiceContent, vpx.RootFolder
	if s.opts.Standalone {
		content, root = esx.ServiceContent, esx.RootFolder
	}
	content.About.InstanceUuid = s.opts.InstanceUUID
	if s.opts.Standalone {
		content.About.InstanceUuid = "" // a host has none [API: AboutInfo]
	}
	s.svc = simulator.New(simulator.NewServiceInstance(ctx, content, root))
	s.reg = ctx.Map
	client, err := vim25.NewClient(s.ctx, s.svc)
	if err != nil {
		return err
	}
	if s.opts.Standalone {
		err = s.adoptHost(client)
	} else {
		err = s.buildCluster(client)
	}
	if err != nil {
		return err
	}
	if err := s.addNetworks(client); err != nil {
		return err
	}
	for _, name := range s.opts.Datastores {
		if err := s.addLocalDatastore(name); err != nil {
			return err
		}
	}
	s.addGuestAuth()
	s.installHandler()
	return nil
}

func (s *Sim) adoptHost(client *vim25.Client) error {
	h := s.reg.Any("HostSystem").(*simulator.HostSystem)
	id := randomUUID()
	h.Hardware.SystemInfo.Uuid, h.Summary.Hardware.Uuid = id, id
	s.hosts = []*host{{obj: h, ref: h.Self, name: h.Name, nas: map[*datastore]*mount{}}}
	dc := s.reg.Any("Datacenter").(*simulator.Datacenter)
	s.dc, s.vmFolder = dc.Self, dc.VmFolder
	s.pool = s.reg.Any("ResourcePool").Reference()
	return nil
}

func (s *Sim) buildCluster(client *vim25.Client) error {
	dc, err := object.NewRootFolder(client).CreateDatacenter(s.ctx, datacenterName)
	if err != nil {
		return err
	}
	folders, err := dc.Folders(s.ctx)
	if err != nil {
		return err
	}
	cluster, err := folders.HostFolder.CreateCluster(s.ctx, clusterName, types.ClusterConfigSpecEx{})
	if err != nil {
		return err
	}
	s.dc, s.vmFolder = dc.Reference(), folders.VmFolder.Reference()
	s.cluster = s.reg.Get(cluster.Reference()).(*simulator.ClusterComputeResource)
	s.pool = *s.cluster.ResourcePool
	for i := range s.opts.Hosts {
		name := fmt.Sprintf("esx%d.lab", i+1)
		t, err := cluster.AddHost(s.ctx, types.HostConnectSpec{HostName: name}, true, nil, nil)
		if err != nil {
			return err
		}
		info, err := t.WaitForResult(s.ctx, nil)
		if err != nil {
			return err
		}
		h := s.reg.Get(info.Result.(ref)).(*simulator.HostSystem)
		id := randomUUID()
		h.Hardware.SystemInfo.Uuid, h.Summary.Hardware.Uuid = id, id
		s.hosts = append(s.hosts, &host{obj: h, ref: h.Self, name: name, nas: map[*datastore]*mount{}})
	}
	return nil
}

func (s *Sim) addNetworks(client *vim25.Client) error {
	for _, h := range s.hosts {
		if h.obj.ConfigManager.NetworkSystem == nil {
			continue
		}
		ns := object.NewHostNetworkSystem(client, *h.obj.ConfigManager.NetworkSystem)
		for _, name := range s.opts.Networks {
			spec := types.HostPortGroupSpec{Name: name, VswitchName: "vSwitch0"}
			// The second host has a network of the same name: one network for vCenter.
			if err := ns.AddPortGroup(s.ctx, spec); err != nil && !vimfault.Is(err, &types.DuplicateName{}) {
				return fmt.Errorf("network %q: %w", name, err)
			}
			n, ok := s.network(name)
			if !ok {
				return fmt.Errorf("network %q was not made", name)
			}
			networks := append(slices.Clone(h.obj.Network), n.Reference())
			s.reg.Update(s.background(), h.obj, []types.PropertyChange{{Name: "network", Val: networks}})
		}
	}
	return nil
}

// addLocalDatastore makes a VMFS datastore that all hosts see: a directory.
func (s *Sim) addLocalDatastore(name string) error {
	dir := filepath.Join(s.opts.Dir, "datastores", name)
	if err := os.MkdirAll(dir, 0o755); err != nil {
		return err
	}
	var self ref
	for _, h := range s.hosts {
		dss := s.reg.Get(*h.obj.ConfigManager.DatastoreSystem).(*simulator.HostDatastoreSystem)
		res := dss.CreateLocalDatastore(s.background(), &types.CreateLocalDatastore{This: dss.Self, Name: name, Path: dir})
		if f := res.Fault(); f != nil {
			return soap.WrapSoapFault(f)
		}
		for _, r := range dss.Datastore {
			if ds := s.reg.Get(r).(*simulator.Datastore); ds.Name == name {
				self = r
			}
		}
	}
	obj := s.reg.Get(self).(*simulator.Datastore)
	obj.Summary.Type = string(types.HostFileSystemVolumeFileSystemTypeVMFS)
	obj.Summary.MultipleHostAccess = types.NewBool(len(s.hosts) > 1)
	s.datastores[self] = &datastore{sim: s, obj: obj, ref: self, name: name, vol: localVolume{dir}}
	return nil
}

// folder finds or makes a folder below the datacenter's vm folder.
func (s *Sim) folder(path string) (ref, error) {
	at := s.vmFolder
	for _, name := range strings.Split(path, "/") {
		if name == "" {
			continue
		}
		f := s.reg.Get(at).(*simulator.Folder)
		if child := s.reg.FindByName(name, f.ChildEntity); child != nil && child.Reference().Type == "Folder" {
			at = child.Reference()
			continue
		}
		res := f.CreateFolder(s.background(), &types.CreateFolder{This: at, Name: name})
		if bad := res.Fault(); bad != nil {
			return ref{}, soap.WrapSoapFault(bad)
		}
		f = s.reg.Get(at).(*simulator.Folder)
		at = s.reg.FindByName(name, f.ChildEntity).Reference()
	}
	return at, nil
}

// network finds a network by name in the datacenter.
func (s *Sim) network(name string) (mo.Entity, bool) {
	dc := s.reg.Get(s.dc).(*simulator.Datacenter)
	e := s.reg.FindByName(name, dc.Network)
	return e, e != nil
}

func (s *Sim) hostByRef(r ref) *host {
	for _, h := range s.hosts {
		if h.ref == r {
			return h
		}
	}
	return nil
}

func (s *Sim) hostByName(name string) *host {
	for _, h := range s.hosts {
		if h.name == name {
			return h
		}
	}
	return nil
}

// DisconnectHost cuts a host off from vCenter: its VMs run on, calls that need
// it fail with HostNotConnected. ReconnectHost undoes it.
func (s *Sim) DisconnectHost(name string) error { return s.connect(name, false) }

// ReconnectHost undoes DisconnectHost.
func (s *Sim) ReconnectHost(name string) error { return s.connect(name, true) }

func (s *Sim) connect(name string, on bool) error {
	s.mu.Lock()
	defer s.mu.Unlock()
	h := s.hostByName(name)
	if h == nil {
		return fmt.Errorf("esxsim: there is no host %q", name)
	}
	h.gone = !on
	state := types.HostSystemConnectionStateConnected
	if h.gone {
		state = types.HostSystemConnectionStateNotResponding
	}
	s.update(h.obj, []types.PropertyChange{
		{Name: "runtime.connectionState", Val: state},
		{Name: "summary.runtime.connectionState", Val: state},
	})
	for _, v := range s.vms {
		if v.host == h {
			s.publish(v)
		}
	}
	return nil
}

// hostGone is the fault of calls that need a host that is not there.
func (s *Sim) hostGone(this ref) types.BaseMethodFault {
	s.mu.Lock()
	defer s.mu.Unlock()
	var h *host
	switch this.Type {
	case "VirtualMachine":
		if v := s.vms[this]; v != nil {
			h = v.host
		}
	case "VirtualMachineSnapshot":
		if snap := s.snapshots[this]; snap != nil {
			h = snap.vm.host
		}
	case "HostDatastoreSystem":
		h = s.hostOfStorage(this)
	}
	if h == nil || !h.gone {
		return nil
	}
	return said(&types.HostNotConnected{}, "msg.host.notresponding", "Unable to communicate with the remote host, since it is disconnected.")
}

func (s *Sim) hostOfStorage(this ref) *host {
	for _, h := range s.hosts {
		if h.obj.ConfigManager.DatastoreSystem != nil && *h.obj.ConfigManager.DatastoreSystem == this {
			return h
		}
	}
	return nil
}

// attachTags gives VMs their tags through the API, as an administrator would.
func (s *Sim) attachTags() error {
	wanted := map[string][]mo.Reference{}
	for _, spec := range s.opts.VMs {
		for _, tag := range spec.Tags {
			wanted[tag] = append(wanted[tag], s.vmByName(spec.Name).ref)
		}
	}
	if len(wanted) == 0 || s.opts.Standalone {
		return nil
	}
	ctx, cancel := context.WithTimeout(s.ctx, time.Minute)
	defer cancel()
	sc := soap.NewClient(s.URL(), true)
	vc, err := vim25.NewClient(ctx, sc)
	if err != nil {
		return err
	}
	rc := rest.NewClient(vc)
	if err := rc.Login(ctx, s.URL().User); err != nil {
		return fmt.Errorf("tags: %w", err)
	}
	defer func() { _ = rc.Logout(ctx) }()
	m := tags.NewManager(rc)
	category, err := m.CreateCategory(ctx, &tags.Category{Name: tagCategory, Cardinality: "MULTIPLE"})
	if err != nil {
		return fmt.Errorf("tags: %w", err)
	}
	for name, vms := range wanted {
		id, err := m.CreateTag(ctx, &tags.Tag{Name: name, CategoryID: category})
		if err != nil {
			return fmt.Errorf("tag %q: %w", name, err)
		}
		for _, v := range vms {
			if err := m.AttachTag(ctx, id, v); err != nil {
				return fmt.Errorf("tag %q: %w", name, err)
			}
		}
	}
	return nil
}
