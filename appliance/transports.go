package appliance

import (
	"context"
	"fmt"
	"io"
	"log/slog"
	"path/filepath"

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
	Login   struct{ Server, Username, Password, Thumbprint string }
	// Datastores are directories of this machine at which datastores are mounted,
	// by the datastores' names.
	Datastores map[string]string
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
		Files: c.Files(vm.Datacenter), Lease: leaser{c, leased},
	}
	if t.Login.Password != "" {
		r.Server, r.Username, r.Password, r.Thumbprint = t.Login.Server, t.Login.Username, t.Login.Password, t.Login.Thumbprint
	}
	return r
}

// options are how a disk is opened.
func (t Transports) options(limiter vddk.Limiter, log *slog.Logger) vddk.Options {
	return vddk.Options{Transport: t.Only, Buffers: t.Buffers, Spool: t.Spool, Limiter: limiter, Logger: log}
}

// local is a datastore path as a file of this machine, or empty. A path that
// leads out of the datastore is none.
func (t Transports) local(path string) string {
	name, file, ok := vsphere.SplitPath(path)
	dir := t.Datastores[name]
	if !ok || dir == "" || !filepath.IsLocal(file) {
		return ""
	}
	return filepath.Join(dir, file)
}

// leaser exports the disks of a VM or snapshot for package vddk.
type leaser struct {
	client *vsphere.Client
	of     vsphere.Ref
}

// Export implements vddk.Leaser.
func (l leaser) Export(ctx context.Context) (vddk.Lease, error) {
	lease, err := l.client.ExportLease(ctx, l.of)
	if err != nil {
		return nil, err
	}
	return exportLease{lease}, nil
}

type exportLease struct{ lease *vsphere.Lease }

// Disk implements vddk.Lease.
func (l exportLease) Disk(ctx context.Context, key int32) (io.ReadCloser, error) {
	for i, item := range l.lease.Items {
		if item.Disk && item.DeviceKey == key {
			return l.lease.Open(ctx, i)
		}
	}
	return nil, fmt.Errorf("the export has no disk with the key %d: %w", key, ErrNotFound)
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
