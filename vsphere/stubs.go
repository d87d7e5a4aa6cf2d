package vsphere

import (
	"context"
	"errors"
	"io"
)

// Client is a session at one server; see the package comment.
type Client struct{ opts Options }

// Inventory is everything at one time.
type Inventory struct {
	About      About
	VMs        []VM
	Hosts      []Host
	Datastores []Datastore
	Networks   []Network
	Folders    []Folder
	Pools      []Pool
}

// Lease is an NFC lease.
type Lease struct {
	Items []LeaseItem
}

// LeaseItem is one file that a lease offers or takes.
type LeaseItem struct {
	Key       string // of the device, as vSphere calls it
	DeviceKey int32  // 0 = not told
	Name      string
	Size      int64 // bytes as the server expects them to be; 0 = not told
	Disk      bool
}

// Guest are operations in a guest through VMware Tools.
type Guest struct{}

// Files are datastore files of one datacenter.
type Files struct{}

var errTodo = errors.New("not yet")

func Dial(ctx context.Context, o Options) (*Client, error)              { return nil, errTodo }
func (c *Client) Close(ctx context.Context) error                       { return errTodo }
func (c *Client) About() About                                          { return About{} }
func (c *Client) Calls() int64                                          { return 0 }
func (c *Client) CallsByMethod() map[string]int64                       { return nil }
func (c *Client) Inventory(ctx context.Context) (*Inventory, error)     { return nil, errTodo }
func (c *Client) LoadTags(ctx context.Context, inv *Inventory) error    { return errTodo }
func (c *Client) Watch(ctx context.Context, f func(Change) error) error { return errTodo }
func (inv *Inventory) Match(pattern string) ([]*VM, error)              { return nil, errTodo }
func (inv *Inventory) VM(id Identity) (*VM, bool)                       { return nil, false }
func (c *Client) VM(ctx context.Context, r Ref) (*VM, error)            { return nil, errTodo }
func (c *Client) FindVM(ctx context.Context, id Identity) (*VM, error)  { return nil, errTodo }

func (c *Client) EnableCBT(ctx context.Context, vm Ref) error { return errTodo }
func (c *Client) CreateSnapshot(ctx context.Context, vm Ref, s SnapshotSpec) (Ref, error) {
	return "", errTodo
}
func (c *Client) SnapshotVM(ctx context.Context, snapshot Ref) (*VM, error) { return nil, errTodo }
func (c *Client) RemoveSnapshot(ctx context.Context, snapshot Ref, o RemoveOptions) error {
	return errTodo
}
func (c *Client) Consolidate(ctx context.Context, vm Ref) error { return errTodo }
func (c *Client) ChangedAreas(ctx context.Context, vm, snapshot Ref, diskKey int32, changeID string, size int64) ([]Extent, error) {
	return nil, errTodo
}

func (c *Client) Preflight(ctx context.Context, p Purpose, targets ...Ref) ([]Missing, error) {
	return nil, errTodo
}

func (c *Client) Files(datacenter string) *Files { return nil }
func (c *Client) Download(ctx context.Context, dsPath string, off, length int64) (io.ReadCloser, error) {
	return nil, errTodo
}

func (c *Client) Upload(ctx context.Context, dsPath string, r io.Reader, size int64) error {
	return errTodo
}
func (c *Client) FileSize(ctx context.Context, dsPath string) (int64, error) { return 0, errTodo }
func (c *Client) DeleteFile(ctx context.Context, dsPath string) error        { return errTodo }
func (c *Client) MakeDir(ctx context.Context, dsPath string) error           { return errTodo }
func (f *Files) ReadRange(ctx context.Context, dsPath string, off int64, p []byte) (int, error) {
	return 0, errTodo
}
func (f *Files) Size(ctx context.Context, dsPath string) (int64, error) { return 0, errTodo }
func (f *Files) Download(ctx context.Context, dsPath string, off, length int64) (io.ReadCloser, error) {
	return nil, errTodo
}

func (f *Files) Upload(ctx context.Context, dsPath string, r io.Reader, size int64) error {
	return errTodo
}
func (f *Files) Delete(ctx context.Context, dsPath string) error { return errTodo }

func (c *Client) ExportLease(ctx context.Context, vmOrSnapshot Ref) (*Lease, error) {
	return nil, errTodo
}

func (c *Client) ImportLease(ctx context.Context, s CreateSpec) (*Lease, error) { return nil, errTodo }

func (l *Lease) Open(ctx context.Context, item int) (io.ReadCloser, error) { return nil, errTodo }
func (l *Lease) Write(ctx context.Context, item int, r io.Reader) error    { return errTodo }
func (l *Lease) Progress(percent int)                                      {}
func (l *Lease) Complete(ctx context.Context) error                        { return errTodo }
func (l *Lease) Abort(ctx context.Context) error                           { return errTodo }

func (c *Client) Hosts(ctx context.Context, name string) ([]Host, error)     { return nil, errTodo }
func (c *Client) MountNAS(ctx context.Context, host Ref, n NAS) (Ref, error) { return "", errTodo }
func (c *Client) UnmountNAS(ctx context.Context, host Ref, name string) error {
	return errTodo
}
func (c *Client) NASDatastores(ctx context.Context) ([]NASMount, error) { return nil, errTodo }

func (c *Client) RegisterVM(ctx context.Context, s RegisterSpec) (Ref, error) { return "", errTodo }
func (c *Client) Unregister(ctx context.Context, vm Ref) error                { return errTodo }
func (c *Client) PowerOn(ctx context.Context, vm Ref) error                   { return errTodo }
func (c *Client) PowerOff(ctx context.Context, vm Ref) error                  { return errTodo }
func (c *Client) Shutdown(ctx context.Context, vm Ref) error                  { return errTodo }
func (c *Client) Reconfigure(ctx context.Context, vm Ref, s ChangeSpec) error { return errTodo }
func (c *Client) OverrideDRSHA(ctx context.Context, vm Ref, on bool) error    { return errTodo }
func (c *Client) Relocate(ctx context.Context, vm Ref, s RelocateSpec, progress func(Progress)) error {
	return errTodo
}

func (c *Client) AttachDisk(ctx context.Context, vm Ref, s AttachSpec) (key int32, err error) {
	return 0, errTodo
}

func (c *Client) DetachDisk(ctx context.Context, vm Ref, key int32, keepFile bool) error {
	return errTodo
}

func (c *Client) CreateVM(ctx context.Context, s CreateSpec) (*Created, error) { return nil, errTodo }

func (c *Client) CreateDisk(ctx context.Context, vm Ref, s DiskSpec) (Disk, error) {
	return Disk{}, errTodo
}
func (c *Client) DeleteVM(ctx context.Context, vm Ref) error               { return errTodo }
func (c *Client) Screenshot(ctx context.Context, vm Ref) ([]byte, error)   { return nil, errTodo }
func (c *Client) RevertToSnapshot(ctx context.Context, snapshot Ref) error { return errTodo }

func (c *Client) Guest(ctx context.Context, vm Ref, a GuestAuth) (*Guest, error) { return nil, errTodo }
func (g *Guest) Close(ctx context.Context) error                                 { return errTodo }
func (g *Guest) Upload(ctx context.Context, path string, r io.Reader, size int64, a GuestFileAttrs, overwrite bool) error {
	return errTodo
}

func (g *Guest) Download(ctx context.Context, path string) (io.ReadCloser, int64, error) {
	return nil, 0, errTodo
}
func (g *Guest) MakeDir(ctx context.Context, path string, parents bool) error { return errTodo }
func (g *Guest) List(ctx context.Context, path string) ([]GuestFile, error) { return nil, errTodo }

func (g *Guest) SetAttributes(ctx context.Context, path string, a GuestFileAttrs) error {
	return errTodo
}

func (g *Guest) Rename(ctx context.Context, from, to string, overwrite bool) error { return errTodo }

func (g *Guest) Remove(ctx context.Context, path string) error { return errTodo }

func (g *Guest) TempDir(ctx context.Context, prefix string) (string, error) { return "", errTodo }

func (g *Guest) RunProgram(ctx context.Context, p GuestProgram) (exit int32, err error) {
	return 0, errTodo
}
