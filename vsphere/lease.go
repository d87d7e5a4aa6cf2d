package vsphere

import (
	"context"
	"fmt"
	"io"
	"net/http"
	"net/url"
	"path"
	"strings"
	"sync"
	"sync/atomic"
	"time"

	"github.com/vmware/govmomi/vim25/methods"
	"github.com/vmware/govmomi/vim25/mo"
	"github.com/vmware/govmomi/vim25/types"
)

// Lease is the right to read or write a VM's disks over HTTP as
// stream-optimized VMDK files (NFC), in one pass each. It is renewed by a
// goroutine until Complete or Abort, one of which has to be called.
type Lease struct {
	Items []LeaseItem
	VM    Ref // that is read, or made

	c       *Client
	ref     types.ManagedObjectReference
	percent atomic.Int32
	end     sync.Once
	stop    context.CancelFunc
	stopped chan struct{}
}

// LeaseItem is one file that a lease offers or takes.
type LeaseItem struct {
	Key       string // of the device, as vSphere calls it: "/vm-42/VirtualLsiLogicController0:0"
	DeviceKey int32  // of the import's disk (CreateSpec.Disks); 0 = not told
	Name      string
	Size      int64 // bytes as the server expects them to be; 0 = not told
	Disk      bool

	url string
}

// ExportLease opens a snapshot's disks, or those of a VM that is off, for
// reading. Errors: ErrState, ErrBusy, ErrUnsupported.
func (c *Client) ExportLease(ctx context.Context, vmOrSnapshot Ref) (*Lease, error) {
	op := "export " + string(vmOrSnapshot)
	if vmOrSnapshot.Kind() == "VirtualMachine" {
		res, err := methods.ExportVm(ctx, c.session, &types.ExportVm{This: mor(vmOrSnapshot)})
		if err != nil {
			return nil, c.fail(op, err)
		}
		return c.openLease(ctx, op, res.Returnval)
	}
	res, err := methods.ExportSnapshot(ctx, c.session, &types.ExportSnapshot{This: mor(vmOrSnapshot)})
	if err != nil {
		return nil, c.fail(op, err)
	}
	return c.openLease(ctx, op, res.Returnval)
}

// ImportLease makes a VM as CreateVM does and opens its disks for writing: Write
// each, then Complete. Abort removes the VM again.
func (c *Client) ImportLease(ctx context.Context, s CreateSpec) (*Lease, error) {
	op := fmt.Sprintf("import the VM %q", s.Name)
	p, err := c.plan(ctx, op, &s)
	if err != nil {
		return nil, err
	}
	res, err := methods.ImportVApp(ctx, c.session, &types.ImportVApp{
		This: mor(s.Pool), Spec: &types.VirtualMachineImportSpec{ConfigSpec: p.spec}, Folder: morPtr(s.Folder), Host: morPtr(s.Host),
	})
	if err != nil {
		return nil, c.fail(op, err)
	}
	l, err := c.openLease(ctx, op, res.Returnval)
	if err != nil {
		return nil, err
	}
	next := 0 // a server lists the disks in the order in which they were asked for
	for i := range l.Items {
		if l.Items[i].Disk && next < len(s.Disks) {
			l.Items[i].DeviceKey = s.Disks[next].Key
			next++
		}
	}
	if next != len(s.Disks) {
		_ = l.Abort(context.WithoutCancel(ctx))
		return nil, &Error{Op: op, Kind: ErrFault, Text: fmt.Sprintf("the server takes %d of %d disks", next, len(s.Disks))}
	}
	return l, nil
}

// openLease waits until the server is ready and starts to renew.
func (c *Client) openLease(ctx context.Context, op string, ref types.ManagedObjectReference) (*Lease, error) {
	l := &Lease{c: c, ref: ref, stopped: make(chan struct{})}
	info, err := l.ready(ctx, op)
	if err != nil {
		close(l.stopped)
		_ = l.abort(context.WithoutCancel(ctx))
		return nil, err
	}
	l.VM = refOf(info.Entity)
	for _, d := range info.DeviceUrl {
		item, err := c.leaseItem(d)
		if err != nil {
			close(l.stopped)
			_ = l.abort(context.WithoutCancel(ctx))
			return nil, c.fail(op, err)
		}
		l.Items = append(l.Items, item)
	}
	every := time.Duration(info.LeaseTimeout) * time.Second / 4
	renew, stop := context.WithCancel(context.WithoutCancel(ctx))
	l.stop = stop
	go l.renew(renew, min(max(every, time.Second), time.Minute))
	return l, nil
}

func (l *Lease) ready(ctx context.Context, op string) (*types.HttpNfcLeaseInfo, error) {
	for pause := 20 * time.Millisecond; ; pause = min(2*pause, time.Second) {
		var o mo.HttpNfcLease
		if err := l.c.retrieveOne(ctx, op, l.ref, []string{"state", "info", "error"}, &o); err != nil {
			return nil, err
		}
		switch {
		case o.State == types.HttpNfcLeaseStateReady && o.Info != nil:
			return o.Info, nil
		case o.Error != nil:
			return nil, l.c.fail(op, &taskError{o.Error})
		case o.State != types.HttpNfcLeaseStateInitializing:
			return nil, &Error{Op: op, Kind: ErrFault, Text: fmt.Sprintf("the lease is %q", o.State)}
		}
		if !pausing(ctx, pause) {
			return nil, l.c.fail(op, context.Cause(ctx))
		}
	}
}

func (c *Client) leaseItem(d types.HttpNfcLeaseDeviceUrl) (LeaseItem, error) {
	u, err := c.elsewhere(d.Url, d.SslThumbprint)
	if err != nil {
		return LeaseItem{}, err
	}
	item := LeaseItem{Key: d.Key, Name: d.TargetId, Size: d.FileSize, Disk: d.Disk != nil && *d.Disk, url: u}
	if d.ImportKey != "" {
		item.Key = d.ImportKey
	}
	if item.Name == "" {
		item.Name = path.Base(u)
	}
	if d.Disk == nil {
		item.Disk = strings.HasSuffix(item.Name, ".vmdk")
	}
	return item, nil
}

// elsewhere is a URL that the server gave, often one of its hosts: "*" stands for
// the server itself. A thumbprint that came with it is trusted as the server is.
func (c *Client) elsewhere(raw, thumbprint string) (string, error) {
	own := c.vim.URL()
	u, err := url.Parse(strings.Replace(raw, "//*", "//"+own.Host, 1))
	if err != nil || u.Host == "" || (u.Scheme != "https" && u.Scheme != own.Scheme) {
		return "", fmt.Errorf("the server gives an address that cannot be used: %q", raw)
	}
	if thumbprint != "" {
		c.trust.accept(u.Host, thumbprint)
	}
	return u.String(), nil
}

func (l *Lease) renew(ctx context.Context, every time.Duration) {
	defer close(l.stopped)
	for pausing(ctx, every) {
		_, err := methods.HttpNfcLeaseProgress(ctx, l.c.session, &types.HttpNfcLeaseProgress{This: l.ref, Percent: l.percent.Load()})
		if err != nil && ctx.Err() == nil {
			l.c.log.Warn("NFC lease could not be renewed", "lease", l.ref.Value, "error", err)
		}
	}
}

// Progress says how far the transfer is, 0 to 100; it is shown in the server's
// task list.
func (l *Lease) Progress(percent int) { l.percent.Store(int32(min(max(percent, 0), 100))) }

// Open reads an item from its beginning. The caller closes the reader.
func (l *Lease) Open(ctx context.Context, item int) (io.ReadCloser, error) {
	op := "read " + l.Items[item].Name + " by lease"
	res, err := l.c.send(ctx, http.MethodGet, l.Items[item].url, nil, nil, 0)
	if err != nil {
		return nil, l.c.fail(op, err)
	}
	if res.StatusCode != http.StatusOK {
		res.Body.Close()
		return nil, refused(op, res)
	}
	return &exactBody{body: res.Body, left: res.ContentLength, open: res.ContentLength < 0}, nil
}

// Write writes an item: a stream-optimized VMDK for a disk.
func (l *Lease) Write(ctx context.Context, item int, r io.Reader) error {
	it := l.Items[item]
	op := "write " + it.Name + " by lease"
	method, header := http.MethodPost, http.Header{"Content-Type": {"application/x-vnd.vmware-streamVmdk"}}
	if !it.Disk {
		method, header = http.MethodPut, http.Header{"Content-Type": {"application/octet-stream"}, "Overwrite": {"t"}}
	}
	res, err := l.c.send(ctx, method, it.url, header, r, -1)
	if err != nil {
		return l.c.fail(op, err)
	}
	defer res.Body.Close()
	if res.StatusCode != http.StatusOK && res.StatusCode != http.StatusCreated {
		return refused(op, res)
	}
	return nil
}

// Complete ends the lease: all was read, or what was written becomes the VM.
func (l *Lease) Complete(ctx context.Context) error {
	err := error(nil)
	l.end.Do(func() {
		l.quiet()
		_, err = methods.HttpNfcLeaseComplete(ctx, l.c.session, &types.HttpNfcLeaseComplete{This: l.ref})
	})
	return l.c.fail("end the lease of "+string(l.VM), err)
}

// Abort ends the lease; a VM that it was making is removed by the server.
func (l *Lease) Abort(ctx context.Context) error {
	err := error(nil)
	l.end.Do(func() {
		l.quiet()
		err = l.abort(ctx)
	})
	return l.c.fail("give up the lease of "+string(l.VM), err)
}

func (l *Lease) abort(ctx context.Context) error {
	ctx, cancel := context.WithTimeout(ctx, 30*time.Second)
	defer cancel()
	_, err := methods.HttpNfcLeaseAbort(ctx, l.c.session, &types.HttpNfcLeaseAbort{This: l.ref})
	return err
}

// quiet ends the renewing.
func (l *Lease) quiet() {
	if l.stop != nil {
		l.stop()
	}
	<-l.stopped
}
