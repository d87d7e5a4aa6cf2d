package esxsim

import (
	"context"
	"crypto/sha1"
	"errors"
	"fmt"
	"io"
	"iter"
	"net/http"
	"os"
	"strings"
	"time"

	"github.com/vmware/govmomi/simulator"
	"github.com/vmware/govmomi/vim25/methods"
	"github.com/vmware/govmomi/vim25/mo"
	"github.com/vmware/govmomi/vim25/soap"
	"github.com/vmware/govmomi/vim25/types"

	"lifeboat/disk"
)

// leasePath is where leases' devices are, as on a host.
const leasePath = "/nfc/"

// leaseObject is an HttpNfcLease in the registry.
type leaseObject struct{ mo.HttpNfcLease }

// lease is permission to read the disks of a VM or snapshot, or to write those
// of one that is being imported, as streamOptimized VMDKs over HTTP [API:
// HttpNfcLease]. It ends when nobody reports progress for its timeout.
type lease struct {
	obj     *leaseObject
	entity  ref
	token   string
	devices map[string]*layer // by the last part of the URL
	imports *vm               // nil: an export
	timer   *time.Timer
	ended   bool
}

// ExportVm [API]: of a VM that is off.
func (d *vmCalls) ExportVm(_ *simulator.Context, req *types.ExportVm) soap.HasFault { //nolint:revive // the method's name
	d.s.mu.Lock()
	defer d.s.mu.Unlock()
	v := d.s.vms[req.This]
	switch {
	case v == nil:
		return &methods.ExportVmBody{Fault_: fault(&types.ManagedObjectNotFound{Obj: req.This}, "")}
	case v.power == poweredOn:
		return &methods.ExportVmBody{Fault_: fault(wrongPower(v, poweredOff), "")}
	}
	r := d.s.exportLease(v, func(disk *vdisk) *layer { return disk.top })
	return &methods.ExportVmBody{Res: &types.ExportVmResponse{Returnval: r}}
}

// ExportSnapshot [API].
func (d *snapshotCalls) ExportSnapshot(_ *simulator.Context, req *types.ExportSnapshot) soap.HasFault {
	n, f := d.s.findSnapshot(req.This)
	if f != nil {
		return &methods.ExportSnapshotBody{Fault_: f}
	}
	d.s.mu.Lock()
	defer d.s.mu.Unlock()
	r := d.s.exportLease(n.vm, func(disk *vdisk) *layer { return n.layers[disk.key] })
	return &methods.ExportSnapshotBody{Res: &types.ExportSnapshotResponse{Returnval: r}}
}

// exportLease makes a lease with the disks that of gives. Sim.mu is held.
func (s *Sim) exportLease(v *vm, of func(*vdisk) *layer) ref {
	l := s.newLease(v)
	for i, d := range v.disks {
		if at := of(d); at != nil {
			s.addDevice(l, v, d, at, i)
		}
	}
	s.openLease(l)
	return l.obj.Self
}

func (s *Sim) newLease(v *vm) *lease {
	l := &lease{obj: &leaseObject{}, entity: v.ref, token: randomToken(), devices: map[string]*layer{}}
	l.obj.Self = ref{Type: "HttpNfcLease", Value: fmt.Sprintf("session[%s]lease-%d", l.token, s.taskNumber.Add(1))}
	l.obj.State = types.HttpNfcLeaseStateInitializing
	l.obj.Info = &types.HttpNfcLeaseInfo{Lease: l.obj.Self, Entity: v.ref, LeaseTimeout: int32(s.opts.LeaseTimeout / time.Second)}
	return l
}

func (s *Sim) addDevice(l *lease, v *vm, d *vdisk, at *layer, i int) {
	name := fmt.Sprintf("disk-%d.vmdk", i)
	l.devices[name] = at
	_, c := v.deviceByKey(d.controller)
	place := fmt.Sprintf("%T%d:%d", c, busNumber(c), d.unit)
	place = strings.TrimPrefix(place, "*types.")
	sum := sha1.Sum(s.front.cert.Load().Certificate[0]) // as the API has it, for recognising, not for trusting
	pairs := make([]string, len(sum))
	for j, b := range sum {
		pairs[j] = fmt.Sprintf("%02X", b)
	}
	l.obj.Info.DeviceUrl = append(l.obj.Info.DeviceUrl, types.HttpNfcLeaseDeviceUrl{
		Key: "/" + v.ref.Value + "/" + place, ImportKey: "/" + v.name + "/" + place,
		Url:           "https://" + s.front.addr + leasePath + l.token + "/" + name,
		SslThumbprint: strings.Join(pairs, ":"), Disk: types.NewBool(true), TargetId: name,
	})
	l.obj.Info.TotalDiskCapacityInKB += at.size / 1024
}

// openLease makes a lease ready and starts its clock.
func (s *Sim) openLease(l *lease) {
	s.reg.Put(l.obj)
	s.leases[l.obj.Self] = l
	l.timer = time.AfterFunc(s.opts.LeaseTimeout, func() {
		s.endLease(l, types.HttpNfcLeaseStateError, &types.Timedout{})
	})
	s.update(l.obj, []types.PropertyChange{{Name: "state", Val: types.HttpNfcLeaseStateReady}})
}

// endLease ends a lease that has not ended.
func (s *Sim) endLease(l *lease, state types.HttpNfcLeaseState, why types.BaseMethodFault) {
	s.mu.Lock()
	defer s.mu.Unlock()
	if l.ended {
		return
	}
	l.ended = true
	l.timer.Stop()
	if why != nil {
		s.update(l.obj, []types.PropertyChange{{Name: "error", Val: &types.LocalizedMethodFault{Fault: why, LocalizedMessage: describe(why)}}})
	}
	s.update(l.obj, []types.PropertyChange{{Name: "state", Val: state}})
	if v := l.imports; v != nil && s.vms[v.ref] == v {
		if v.busy = nil; state == types.HttpNfcLeaseStateError {
			s.leave(v)
			_ = s.removeFiles(v)
		}
	}
}

// leaseCalls stands before HttpNfcLease.
type leaseCalls struct{ base }

func (d *leaseCalls) lease(this ref) (*lease, *soap.Fault) {
	d.s.mu.Lock()
	defer d.s.mu.Unlock()
	l := d.s.leases[this]
	if l == nil {
		return nil, fault(&types.ManagedObjectNotFound{Obj: this}, "")
	}
	if l.ended {
		return nil, fault(&types.InvalidState{}, "The lease is over.")
	}
	return l, nil
}

// HttpNfcLeaseProgress keeps the lease alive [API].
func (d *leaseCalls) HttpNfcLeaseProgress(_ *simulator.Context, req *types.HttpNfcLeaseProgress) soap.HasFault { //nolint:revive // the method's name
	l, f := d.lease(req.This)
	if f != nil {
		return &methods.HttpNfcLeaseProgressBody{Fault_: f}
	}
	l.timer.Reset(d.s.opts.LeaseTimeout)
	d.s.update(l.obj, []types.PropertyChange{{Name: "transferProgress", Val: req.Percent}})
	return &methods.HttpNfcLeaseProgressBody{Res: &types.HttpNfcLeaseProgressResponse{}}
}

// HttpNfcLeaseComplete [API].
func (d *leaseCalls) HttpNfcLeaseComplete(_ *simulator.Context, req *types.HttpNfcLeaseComplete) soap.HasFault { //nolint:revive // the method's name
	l, f := d.lease(req.This)
	if f != nil {
		return &methods.HttpNfcLeaseCompleteBody{Fault_: f}
	}
	d.s.endLease(l, types.HttpNfcLeaseStateDone, nil)
	return &methods.HttpNfcLeaseCompleteBody{Res: &types.HttpNfcLeaseCompleteResponse{}}
}

// HttpNfcLeaseAbort ends a lease; what was imported is gone [API].
func (d *leaseCalls) HttpNfcLeaseAbort(_ *simulator.Context, req *types.HttpNfcLeaseAbort) soap.HasFault { //nolint:revive // the method's name
	l, f := d.lease(req.This)
	if f != nil {
		return &methods.HttpNfcLeaseAbortBody{Fault_: f}
	}
	why := types.BaseMethodFault(&types.RequestCanceled{})
	if req.Fault != nil && req.Fault.Fault != nil {
		why = req.Fault.Fault
	}
	d.s.endLease(l, types.HttpNfcLeaseStateError, why)
	return &methods.HttpNfcLeaseAbortBody{Res: &types.HttpNfcLeaseAbortResponse{}}
}

// poolCalls stands before ResourcePool.
type poolCalls struct{ base }

// ImportVApp makes a VM whose disks are then written through the lease [API].
func (d *poolCalls) ImportVApp(_ *simulator.Context, req *types.ImportVApp) soap.HasFault {
	spec, ok := req.Spec.(*types.VirtualMachineImportSpec)
	if !ok {
		return &methods.ImportVAppBody{Fault_: fault(&types.NotSupported{}, "Only a single VM can be imported.")}
	}
	folder := d.s.vmFolder
	if req.Folder != nil {
		folder = *req.Folder
	}
	v, f := d.s.create(folder, req.This, req.Host, &spec.ConfigSpec)
	if f != nil {
		return &methods.ImportVAppBody{Fault_: fault(f, describe(f))}
	}
	d.s.mu.Lock()
	defer d.s.mu.Unlock()
	l := d.s.newLease(v)
	l.imports = v
	for i, disk := range v.disks {
		d.s.addDevice(l, v, disk, disk.top, i)
	}
	d.s.openLease(l)
	return &methods.ImportVAppBody{Res: &types.ImportVAppResponse{Returnval: l.obj.Self}}
}

// serveLease moves a device's bytes.
func (s *Sim) serveLease(w http.ResponseWriter, r *http.Request) {
	token, name, _ := strings.Cut(strings.TrimPrefix(r.URL.Path, leasePath), "/")
	s.mu.Lock()
	var l *lease
	for _, o := range s.leases {
		if o.token == token && !o.ended {
			l = o
		}
	}
	var at *layer
	if l != nil {
		at = l.devices[name]
	}
	s.mu.Unlock()
	switch {
	case at == nil:
		http.NotFound(w, r)
	case r.Method == http.MethodGet && l.imports == nil:
		s.sendStream(w, r, l, at)
	case (r.Method == http.MethodPut || r.Method == http.MethodPost) && l.imports != nil:
		if err := s.takeStream(r, at); err != nil {
			http.Error(w, err.Error(), http.StatusInternalServerError)
			return
		}
		w.WriteHeader(http.StatusCreated)
	default:
		http.Error(w, "method not allowed", http.StatusMethodNotAllowed)
	}
}

func (s *Sim) sendStream(w http.ResponseWriter, r *http.Request, l *lease, at *layer) {
	w.Header().Set("Content-Type", "application/x-vnd.vmware-streamVmdk")
	img := layerImage{s, at}
	out := writerFunc(func(p []byte) (int, error) {
		s.mu.Lock()
		over := l.ended
		s.mu.Unlock()
		if over {
			return 0, errors.New("the lease is over")
		}
		return w.Write(p)
	})
	if err := disk.WriteVMDK(r.Context(), out, img, disk.VMDKOptions{}); err != nil {
		s.log.Debug("sending a disk", "err", err)
		panic(http.ErrAbortHandler)
	}
}

type writerFunc func([]byte) (int, error)

func (f writerFunc) Write(p []byte) (int, error) { return f(p) }

// takeStream writes a disk that comes as a streamOptimized VMDK.
func (s *Sim) takeStream(r *http.Request, at *layer) error {
	f, err := os.CreateTemp(s.sockets, "import-*.vmdk")
	if err != nil {
		return err
	}
	defer os.Remove(f.Name())
	defer f.Close()
	if _, err := io.Copy(f, r.Body); err != nil {
		return err
	}
	img, err := disk.Open(r.Context(), f.Name(), disk.OpenOptions{Format: disk.FormatVMDK})
	if err != nil {
		return err
	}
	defer img.Close()
	if img.Size() > at.size {
		return fmt.Errorf("the stream is of a disk of %d bytes, not of %d", img.Size(), at.size)
	}
	if _, err := at.handle(); err != nil {
		return err
	}
	return fill(r.Context(), at, img)
}

// layerImage is a layer as package disk has it, with the injected error.
type layerImage struct {
	s *Sim
	l *layer
}

var _ disk.Mapper = layerImage{}

func (i layerImage) Size() int64  { return i.l.size }
func (i layerImage) Close() error { return nil }

func (i layerImage) ReadAt(p []byte, off int64) (int, error) {
	n, err := i.l.ReadAt(p, off)
	i.s.mu.Lock()
	c := i.s.corrupt
	i.s.mu.Unlock()
	for base := i.l; c != nil && base != nil; base = base.parent {
		if base == c.layer && c.off >= off && c.off < off+int64(n) {
			p[c.off-off] ^= 0x10
		}
	}
	return n, err
}

// Extents is what the chain has allocated.
func (i layerImage) Extents(_ context.Context, within disk.Extent) iter.Seq2[disk.Extent, error] {
	return func(yield func(disk.Extent, error) bool) {
		all, err := i.l.allocated()
		if err != nil {
			yield(disk.Extent{}, err)
			return
		}
		at, end := within.Offset, min(within.Offset+within.Length, i.l.size)
		for _, e := range append(all, extent{i.l.size, 0}) {
			from, to := max(e.off, at), min(e.off+e.length, end)
			if gap := min(max(from, at), end); gap > at {
				if !yield(disk.Extent{Offset: at, Length: gap - at, Hole: true}, nil) {
					return
				}
				at = gap
			}
			if to > from {
				if !yield(disk.Extent{Offset: from, Length: to - from}, nil) {
					return
				}
				at = to
			}
		}
	}
}
