package appliance

import (
	"cmp"
	"context"
	"errors"
	"fmt"
	"io"
	"io/fs"
	"log/slog"
	"path"
	"path/filepath"
	"slices"
	"strings"

	"lifeboat/vddk"
	"lifeboat/vsphere"
)

// Transports says by which ways disks are reached. The zero value offers those
// that need nothing but the vCenter.
type Transports struct {
	// Only forces transports; see vddk.Options.Transport.
	Only string
	// Buffers and Spool are vddk.Options'.
	Buffers int
	Spool   string
	// Library is VMware's, and Login what it needs to use it: without a password
	// it is not tried.
	Library vddk.Library
	Login   struct{ Username, Password, Thumbprint string }
	// Datastores are directories of this machine at which datastores are mounted,
	// by the datastores' names.
	Datastores map[string]string
	// Proxy is the VM that Lifeboat runs in, for disks to be attached to.
	Proxy HotAddProxy

	proxy *vsphere.VM // found in the inventory; nil: no hot-add
	state *State
}

// inside looks whether Lifeboat runs in one of the VMs of an inventory.
func (t Transports) inside(s *State, inv *vsphere.Inventory) Transports {
	t.proxy, t.state = t.Proxy.find(inv), s
	return t
}

// Check refuses names of transports that there are not, before anything is done.
func (t Transports) Check() error {
	known := []string{vddk.File, vddk.HotAdd, vddk.VDDK, vddk.NBDSSL, vddk.NBD, vddk.SAN, vddk.Folder, vddk.NFC}
	for name := range strings.SplitSeq(t.Only, ",") {
		if name = strings.TrimSpace(name); t.Only != "" && !slices.Contains(known, name) {
			return fmt.Errorf("%w: there is no transport %q; there are %s", ErrUsage, name, strings.Join(known, ", "))
		}
	}
	return nil
}

// request says which disk is meant and offers the ways to it. snapshot is empty
// for a disk that is not in use.
func (t Transports) request(c *vsphere.Client, vm *vsphere.VM, snapshot vsphere.Ref, d vsphere.Disk) vddk.Request {
	leased := snapshot
	if leased == "" {
		leased = vm.Ref
	}
	r := vddk.Request{
		Key: d.Key, Size: d.Size, Path: d.File, LocalPath: t.local(d.File),
		VM: string(vm.Ref), Snapshot: string(snapshot), Library: t.Library,
		Files: dsFiles{c.Files(vm.Datacenter)}, Lease: leaser{c, leased, vm.Disks},
	}
	if t.proxy != nil && snapshot != "" {
		r.HotAdd = hotAdder{t.state, c, t.proxy, d, cmp.Or(t.Proxy.Devices, devicesByID)}
	}
	if t.Login.Password != "" {
		r.Server, r.Username, r.Password = c.About().Server, t.Login.Username, t.Login.Password
		r.Thumbprint = cmp.Or(t.Login.Thumbprint, c.Thumbprint()) // of who is known by a known_hosts file or an authority of the user's
	}
	return r
}

// options are how a disk is opened.
func (t Transports) options(limiter vddk.Limiter, log *slog.Logger) vddk.Options {
	return vddk.Options{Transport: t.Only, Buffers: t.Buffers, Spool: t.Spool, Limiter: limiter, Logger: log}
}

// local is a datastore path as a file of this machine, or empty. A path that
// leads out of the datastore is none.
func (t Transports) local(dsPath string) string {
	name, file, ok := vsphere.SplitPath(dsPath)
	dir := t.Datastores[name]
	if !ok || dir == "" || !filepath.IsLocal(file) {
		return ""
	}
	return filepath.Join(dir, file)
}

// dsFiles are the files of a datacenter for package vddk, which goes on trying
// unless an error says that it is of no use.
type dsFiles struct{ *vsphere.Files }

// ReadRange implements vddk.FileReader.
func (f dsFiles) ReadRange(ctx context.Context, dsPath string, off int64, p []byte) (int, error) {
	n, err := f.Files.ReadRange(ctx, dsPath, off, p)
	return n, finalError(err)
}

// Size implements vddk.FileReader.
func (f dsFiles) Size(ctx context.Context, dsPath string) (int64, error) {
	n, err := f.Files.Size(ctx, dsPath)
	return n, finalError(err)
}

// Upload implements vddk.FileWriter.
func (f dsFiles) Upload(ctx context.Context, dsPath string, r io.Reader, size int64) error {
	return finalError(f.Files.Upload(ctx, dsPath, r, size))
}

// finalError marks what asking again does not mend.
func finalError(err error) error {
	switch {
	case errors.Is(err, vsphere.ErrNotFound):
		return fmt.Errorf("%w (%w)", err, fs.ErrNotExist)
	case errors.Is(err, vsphere.ErrCertificate), errors.Is(err, vsphere.ErrCredentials), errors.Is(err, vsphere.ErrPermission):
		return fmt.Errorf("%w (%w)", err, fs.ErrPermission)
	}
	return err
}

// leaser exports the disks of a VM or snapshot for package vddk.
type leaser struct {
	client *vsphere.Client
	of     vsphere.Ref
	disks  []vsphere.Disk
}

// Export implements vddk.Leaser.
func (l leaser) Export(ctx context.Context) (vddk.Lease, error) {
	lease, err := l.client.ExportLease(ctx, l.of)
	if err != nil {
		return nil, err
	}
	return exportLease{lease, l.disks}, nil
}

type exportLease struct {
	lease *vsphere.Lease
	disks []vsphere.Disk
}

// Disk implements vddk.Lease.
func (l exportLease) Disk(ctx context.Context, key int32) (io.ReadCloser, error) {
	i, err := l.item(key)
	if err != nil {
		return nil, err
	}
	return l.lease.Open(ctx, i)
}

// item finds a disk in the lease, which calls it by the controller that it hangs
// on and not by its key: "/vm-42/ParaVirtualSCSIController0:1".
func (l exportLease) item(key int32) (int, error) {
	place, disks, last := "", 0, 0
	for _, d := range l.disks {
		if d.Key == key {
			place = leasePlace(d)
		}
	}
	for i, item := range l.lease.Items {
		if !item.Disk {
			continue
		}
		if item.DeviceKey == key || place != "" && path.Base(item.Key) == place {
			return i, nil
		}
		disks, last = disks+1, i
	}
	if disks == 1 && len(l.disks) == 1 {
		return last, nil
	}
	return 0, fmt.Errorf("which of the %d disks of the export is at %q is not clear: %w", disks, place, ErrNotFound)
}

// leasePlace is where a disk is as leases say it, or empty.
func leasePlace(d vsphere.Disk) string {
	controller := map[string]string{
		"lsilogic": "VirtualLsiLogicController", "lsisas1068": "VirtualLsiLogicSASController", "pvscsi": "ParaVirtualSCSIController",
		"buslogic": "VirtualBusLogicController", "nvme": "VirtualNVMEController", "sata": "VirtualAHCIController", "ide": "VirtualIDEController",
	}[d.Controller.Type]
	if controller == "" {
		return ""
	}
	return fmt.Sprintf("%s%d:%d", controller, d.Controller.Bus, d.Unit)
}

// Progress implements vddk.Lease.
func (l exportLease) Progress(percent int) { l.lease.Progress(percent) }

// Close implements vddk.Lease.
func (l exportLease) Close(ctx context.Context, why error) error {
	if why != nil {
		return l.lease.Abort(ctx)
	}
	return l.lease.Complete(ctx)
}
