package vsphere

import (
	"context"
	"fmt"
	"slices"
	"strconv"
	"strings"

	"github.com/vmware/govmomi/vim25/methods"
	"github.com/vmware/govmomi/vim25/mo"
	"github.com/vmware/govmomi/vim25/types"
)

var (
	hostProps    = []string{"name", "parent", "runtime.connectionState", "runtime.inMaintenanceMode", "summary.config", "summary.hardware", "datastore", "network"}
	clusterProps = []string{"name", "parent", "resourcePool", "configurationEx"}
)

func (t *tree) describeHost(o *mo.HostSystem) Host {
	dc, dcPath := t.datacenter(o.Self)
	h := Host{
		Ref: refOf(o.Self), Name: plainName(o.Name), Datacenter: dcPath, ClusterRef: refOfPtr(o.Parent),
		Connected:   o.Runtime.ConnectionState == types.HostSystemConnectionStateConnected,
		Maintenance: o.Runtime.InMaintenanceMode,
		VMotion:     o.Summary.Config.VmotionEnabled,
	}
	if p := o.Summary.Config.Product; p != nil {
		h.Version, h.MaxHardware = p.Version, newestHardware(p.Version)
	}
	if hw := o.Summary.Hardware; hw != nil {
		h.Hardware = hw.Uuid
	}
	if dc != nil {
		h.FolderRef = refOf(dc.VmFolder)
	}
	if o.Parent != nil {
		t.describeCompute(&h, t.objects[*o.Parent])
	}
	for _, d := range o.Datastore {
		h.Datastores = append(h.Datastores, t.name(&d))
	}
	for _, n := range o.Network {
		h.Networks = append(h.Networks, t.name(&n))
	}
	return h
}

func (t *tree) describeCompute(h *Host, o any) {
	switch c := o.(type) {
	case *mo.ComputeResource:
		h.PoolRef = refOfPtr(c.ResourcePool)
	case *mo.ClusterComputeResource:
		h.PoolRef, h.Cluster = refOfPtr(c.ResourcePool), plainName(c.Name)
		if cfg, ok := c.ConfigurationEx.(*types.ClusterConfigInfoEx); ok {
			h.DRS, h.HA = isTrue(cfg.DrsConfig.Enabled), isTrue(cfg.DasConfig.Enabled)
		}
	}
}

// newestHardware is the newest virtual hardware that a version of ESXi runs
// (VMware KB 1003746). The minor releases of 6.7 cannot be told apart by the
// version: the older one's is right for both.
func newestHardware(version string) string {
	var major, minor, update int
	fields := strings.SplitN(version, ".", 4)
	for i, into := range []*int{&major, &minor, &update} {
		if i < len(fields) {
			*into, _ = strconv.Atoi(fields[i])
		}
	}
	var n int
	switch {
	case major >= 9:
		n = 22
	case major == 8:
		n = 20
		if update >= 2 {
			n = 21
		}
	case major == 7:
		n = 17 + min(update, 2)
	case major == 6:
		n = 11
		if minor >= 7 {
			n = 14
		} else if minor >= 5 {
			n = 13
		}
	case major == 5:
		n = 8
		if minor >= 5 {
			n = 10
		} else if minor >= 1 {
			n = 9
		}
	default:
		return ""
	}
	return fmt.Sprintf("vmx-%d", n)
}

// Hosts finds a host by its name, or the hosts of a cluster by the cluster's
// name; "" is all there are. NFS.MaxVolumes and vMotion are told too. Errors:
// ErrNotFound (names those that there are), ErrAmbiguous.
func (c *Client) Hosts(ctx context.Context, name string) ([]Host, error) {
	op := "find the host or cluster " + strconv.Quote(name)
	inv, err := c.Inventory(ctx)
	if err != nil {
		return nil, err
	}
	hosts, err := inv.HostsNamed(name)
	if err != nil {
		return nil, c.fail(op, err)
	}
	return hosts, c.maxVolumes(ctx, hosts)
}

// HostsNamed is Client.Hosts in an inventory that is there already; it does not
// tell NFS.MaxVolumes.
func (inv *Inventory) HostsNamed(name string) ([]Host, error) {
	op := "find the host or cluster " + strconv.Quote(name)
	var byHost, byCluster []Host
	clusters := map[Ref]bool{}
	var names []string
	for _, h := range inv.Hosts {
		names = append(names, h.Name)
		if name == "" || strings.EqualFold(h.Name, name) {
			byHost = append(byHost, h)
		}
		if h.Cluster != "" {
			names = append(names, h.Cluster)
			if strings.EqualFold(h.Cluster, name) || strings.EqualFold(h.Datacenter+"/"+h.Cluster, name) {
				byCluster, clusters[h.ClusterRef] = append(byCluster, h), true
			}
		}
	}
	switch {
	case len(byHost) > 0:
		return byHost, nil
	case len(clusters) > 1:
		return nil, &Error{Op: op, Kind: ErrAmbiguous, Text: "several datacenters have a cluster of this name; say DATACENTER/CLUSTER"}
	case len(byCluster) > 0:
		return byCluster, nil
	}
	slices.Sort(names)
	return nil, &Error{Op: op, Kind: ErrNotFound, Text: "there are these: " + strings.Join(slices.Compact(names), ", ")}
}

// maxVolumes asks each host for NFS.MaxVolumes; one that does not tell has 0.
func (c *Client) maxVolumes(ctx context.Context, hosts []Host) error {
	refs := make([]types.ObjectSpec, len(hosts))
	for i, h := range hosts {
		refs[i] = types.ObjectSpec{Obj: mor(h.Ref)}
	}
	objects, err := c.retrieve(ctx, types.PropertyFilterSpec{
		ObjectSet: refs,
		PropSet:   []types.PropertySpec{{Type: "HostSystem", PathSet: []string{"configManager.advancedOption"}}},
	})
	if err != nil {
		return c.fail("look at the hosts", err)
	}
	for _, o := range objects {
		v, err := load(o)
		h, ok := v.(*mo.HostSystem)
		if err != nil || !ok || h.ConfigManager.AdvancedOption == nil {
			continue
		}
		res, err := methods.QueryOptions(ctx, c.session, &types.QueryOptions{This: *h.ConfigManager.AdvancedOption, Name: "NFS.MaxVolumes"})
		if err != nil {
			continue // NFS.MaxVolumes helps with advice only
		}
		for _, opt := range res.Returnval {
			n, err := strconv.Atoi(fmt.Sprint(opt.GetOptionValue().Value))
			i := slices.IndexFunc(hosts, func(x Host) bool { return x.Ref == refOf(h.Self) })
			if err == nil && i >= 0 {
				hosts[i].MaxNFSVolumes = n
			}
		}
	}
	return nil
}
