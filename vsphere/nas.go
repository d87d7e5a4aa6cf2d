package vsphere

import (
	"context"
	"errors"
	"fmt"
	"strings"

	"github.com/vmware/govmomi/vim25/methods"
	"github.com/vmware/govmomi/vim25/mo"
	"github.com/vmware/govmomi/vim25/types"
)

// NAS names an NFSv3 export and the datastore it becomes.
type NAS struct {
	Name     string // of the datastore
	Server   string // as the hosts reach it; the same text on every host of a cluster, or vSphere sees two datastores
	Path     string // of the export
	ReadOnly bool
}

// NASMount is an NFS export that a host has mounted as a datastore.
type NASMount struct {
	Datastore Ref    `json:"datastore"`
	Name      string `json:"name"`
	Host      Ref    `json:"host"`
	HostName  string `json:"host_name"`
	Server    string `json:"server"`
	Path      string `json:"path"`
	Mounted   bool   `json:"mounted"`
	Active    bool   `json:"active"` // false: "inactive", its server does not answer
	VMs       []Ref  `json:"vms"`    // registered on it, from any host
}

// MountNAS mounts an export on a host as a datastore. Errors: ErrNameTaken,
// *MountedError (ErrAlreadyMounted), ErrMaxVolumes, ErrNASUnreachable, ErrHost,
// ErrPermission. When the very same mount (name, server and path) is there
// already, its datastore is returned together with the *MountedError.
func (c *Client) MountNAS(ctx context.Context, host Ref, n NAS) (Ref, error) {
	op := fmt.Sprintf("mount %s:%s as datastore %q on %s", n.Server, n.Path, n.Name, host)
	system, err := c.datastoreSystem(ctx, op, host)
	if err != nil {
		return "", err
	}
	mode := types.HostMountModeReadWrite
	if n.ReadOnly {
		mode = types.HostMountModeReadOnly
	}
	res, err := methods.CreateNasDatastore(ctx, c.session, &types.CreateNasDatastore{
		This: system,
		Spec: types.HostNasVolumeSpec{
			RemoteHost: n.Server, RemotePath: n.Path, LocalPath: wireName(n.Name), AccessMode: string(mode),
			Type: string(types.HostFileSystemVolumeFileSystemTypeNFS),
		},
	})
	if err == nil {
		return refOf(res.Returnval), nil
	}
	return c.mountRefused(ctx, host, n, c.fail(op, err))
}

// mountRefused finds out what a refused mount means. Hosts use a handful of
// faults for it, with the reason in their text.
func (c *Client) mountRefused(ctx context.Context, host Ref, n NAS, err error) (Ref, error) {
	var e *Error
	if !errors.As(err, &e) {
		return "", err
	}
	text := strings.ToLower(e.Detail)
	refine := func(kind error, sentence string) error {
		return &Error{Op: e.Op, Kind: kind, Fault: e.Fault, Text: sentence, Detail: e.Detail, Err: err}
	}
	switch {
	case e.Fault == "DuplicateName" || e.Fault == "AlreadyExists":
		return c.whoseMount(ctx, host, n, refine)
	case e.Kind == ErrMaxVolumes || strings.Contains(text, "maximum"):
		v, _ := byName("NasConnectionLimitReached")
		return "", refine(ErrMaxVolumes, v.text)
	case strings.Contains(text, "denied"):
		return "", refine(ErrNASUnreachable, "the NFS server does not let the host mount it; check which addresses may mount the export")
	case e.Fault == "PlatformConfigFault" || e.Fault == "HostConfigFault" || e.Fault == "NasConfigFault" || e.Kind == ErrNASUnreachable:
		return "", refine(ErrNASUnreachable, nasHint)
	}
	return "", err
}

func (c *Client) whoseMount(ctx context.Context, host Ref, n NAS, refine func(error, string) error) (Ref, error) {
	mounts, err := c.NASDatastores(ctx)
	if err != nil {
		return "", refine(ErrNameTaken, "a datastore of this name, or this export, is there already")
	}
	var elsewhere error // under another name, on another host: one datastore has one name
	for _, m := range mounts {
		if m.Path != n.Path || !strings.EqualFold(m.Server, n.Server) {
			continue
		}
		already := &MountedError{Host: m.HostName, Name: m.Name, Server: m.Server, Path: m.Path}
		switch {
		case m.Host == host && m.Name == n.Name:
			return m.Datastore, already
		case m.Host == host:
			return "", already
		case m.Name != n.Name:
			elsewhere = already
		}
	}
	if elsewhere != nil {
		return "", elsewhere
	}
	return "", refine(ErrNameTaken, fmt.Sprintf("another datastore is called %q; rename one of them", n.Name))
}

func (c *Client) datastoreSystem(ctx context.Context, op string, host Ref) (types.ManagedObjectReference, error) {
	var h mo.HostSystem
	if err := c.retrieveOne(ctx, op, mor(host), []string{"configManager.datastoreSystem"}, &h); err != nil {
		return types.ManagedObjectReference{}, err
	}
	if h.ConfigManager.DatastoreSystem == nil {
		return types.ManagedObjectReference{}, &Error{Op: op, Kind: ErrHost, Text: "the host does not offer to manage its datastores; is it connected?"}
	}
	return *h.ConfigManager.DatastoreSystem, nil
}

// UnmountNAS unmounts an NFS datastore from a host, by its name; that it is not
// there is no error. It never touches a datastore that is no NFS mount. Errors:
// ErrInUse (a VM is registered on it, or a host has files open).
func (c *Client) UnmountNAS(ctx context.Context, host Ref, name string) error {
	op := fmt.Sprintf("unmount the datastore %q from %s", name, host)
	mounts, err := c.NASDatastores(ctx)
	if err != nil {
		return c.fail(op, err)
	}
	for _, m := range mounts {
		if m.Host != host || m.Name != name {
			continue
		}
		system, err := c.datastoreSystem(ctx, op, host)
		if err != nil {
			return err
		}
		_, err = methods.RemoveDatastore(ctx, c.session, &types.RemoveDatastore{This: system, Datastore: mor(m.Datastore)})
		if err != nil && !isGone(err, mor(m.Datastore)) {
			return c.fail(op, err)
		}
	}
	return nil
}

// NASDatastores lists the NFS mounts of all hosts, with one call: an export
// that three hosts have mounted comes three times.
func (c *Client) NASDatastores(ctx context.Context) ([]NASMount, error) {
	op := "list the NFS datastores of " + c.about.Server
	objects, err := c.retrieve(ctx, types.PropertyFilterSpec{
		ObjectSet: []types.ObjectSpec{{Obj: c.vim.ServiceContent.RootFolder, SelectSet: wholeInventory()}},
		PropSet: []types.PropertySpec{
			{Type: "Datastore", PathSet: []string{"name", "info", "host", "vm", "summary"}},
			{Type: "HostSystem", PathSet: []string{"name"}},
		},
	})
	if err != nil {
		return nil, c.fail(op, err)
	}
	t, err := newTree(objects)
	if err != nil {
		return nil, c.fail(op, err)
	}
	var out []NASMount
	for _, o := range t.order {
		if d, ok := o.(*mo.Datastore); ok {
			out = append(out, t.describeMounts(d)...)
		}
	}
	return out, nil
}

func (t *tree) describeMounts(d *mo.Datastore) []NASMount {
	m := NASMount{Datastore: refOf(d.Self), Name: plainName(d.Name)}
	nas, ok := d.Info.(*types.NasDatastoreInfo)
	switch {
	case ok && nas.Nas != nil:
		m.Server, m.Path = nas.Nas.RemoteHost, nas.Nas.RemotePath
	case !ok && !strings.HasPrefix(d.Summary.Type, "NFS"):
		return nil
	}
	for _, v := range d.Vm {
		m.VMs = append(m.VMs, refOf(v))
	}
	var out []NASMount
	for _, h := range d.Host {
		on := m
		on.Host, on.HostName = refOf(h.Key), t.name(&h.Key)
		// Unset means "as usual" (API reference, HostMountInfo).
		on.Mounted = h.MountInfo.Mounted == nil || *h.MountInfo.Mounted
		on.Active = h.MountInfo.Accessible == nil || *h.MountInfo.Accessible
		out = append(out, on)
	}
	return out
}
