package appliance

import (
	"bytes"
	"context"
	"encoding/binary"
	"errors"
	"log/slog"
	"math/rand/v2"
	"slices"
	"strings"
	"testing"
	"time"

	"github.com/vmware/govmomi"
	"github.com/vmware/govmomi/object"
	"github.com/vmware/govmomi/vim25/types"

	"lifeboat/disk"
	"lifeboat/internal/esxsim"
	"lifeboat/store"
	"lifeboat/vsphere"
)

// vmLab is a simulated vCenter, an appliance and its repository.
type vmLab struct {
	t      *testing.T
	sim    *esxsim.Sim
	client *vsphere.Client
	state  *State
	repo   *store.Repository
	url    string
}

func newVMLab(t *testing.T, o esxsim.Options) *vmLab {
	t.Helper()
	o.Dir = t.TempDir()
	sim, err := esxsim.Start(context.Background(), o)
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(sim.Close)
	l := &vmLab{t: t, sim: sim, state: openTestState(t), url: t.TempDir()}
	if err := InitRepository(t.Context(), l.url, []byte("pw"), store.InitOptions{KDFTime: 1, KDFMemory: 8, KDFThreads: 1}); err != nil {
		t.Fatal(err)
	}
	l.state.pause = time.Millisecond
	l.repo = l.openRepo()
	l.client = l.dial()
	return l
}

func (l *vmLab) openRepo() *store.Repository {
	l.t.Helper()
	repo, err := OpenRepository(l.t.Context(), l.url, []byte("pw"), store.Options{CacheBytes: 16 << 20, Logger: slog.New(slog.DiscardHandler)})
	if err != nil {
		l.t.Fatal(err)
	}
	l.t.Cleanup(func() { repo.Close() })
	return repo
}

func (l *vmLab) dial() *vsphere.Client {
	l.t.Helper()
	c, err := vsphere.Dial(l.t.Context(), l.options())
	if err != nil {
		l.t.Fatal(err)
	}
	l.t.Cleanup(func() { _ = c.Close(context.Background()) })
	return c
}

func (l *vmLab) options() vsphere.Options {
	return vsphere.Options{URL: l.sim.URL().Host, Username: l.sim.Username(), Password: l.sim.Password(), Thumbprint: l.sim.Thumbprint()}
}

// back backs VMs up and returns what became of the first.
func (l *vmLab) back(change func(*BackupVMsRequest), patterns ...string) (*VMResult, error) {
	l.t.Helper()
	report, err := l.backAll(change, patterns...)
	if report == nil || len(report.VMs) == 0 {
		l.t.Fatalf("nothing was backed up: %v", err)
	}
	return report.VMs[0], err
}

func (l *vmLab) backAll(change func(*BackupVMsRequest), patterns ...string) (*VMBackupReport, error) {
	l.t.Helper()
	req := BackupVMsRequest{Patterns: patterns, AuditEvery: -1, Logger: slog.New(slog.DiscardHandler), Workers: 2}
	if change != nil {
		change(&req)
	}
	return l.state.BackupVMs(l.t.Context(), l.repo, l.client, req)
}

// good backs one VM up and wants nothing to be said about it, and the point to be
// what the guest has.
func (l *vmLab) good(vm string, how string) *VMResult {
	l.t.Helper()
	r, err := l.back(nil, vm)
	if err != nil || r.Status != StatusDone {
		l.t.Fatalf("%s: %v, %+v", vm, err, r)
	}
	for _, d := range r.Disks {
		if how != "" && d.How != how {
			l.t.Fatalf("%s, %s was read %s (%s), want %s", vm, d.Label, d.How, d.Why, how)
		}
	}
	l.same(r.Point, vm)
	l.clean()
	return r
}

// same wants a point's disks to be what the guest reads now.
func (l *vmLab) same(point, vm string) {
	l.t.Helper()
	if at := l.difference(point, vm); at != "" {
		l.t.Fatalf("point %s of %s is not what the guest has: %s", point, vm, at)
	}
}

func (l *vmLab) difference(point, vm string) string {
	l.t.Helper()
	pt, err := l.repo.Point(l.t.Context(), point)
	if err != nil {
		l.t.Fatal(err)
	}
	guest := l.sim.VM(vm)
	keys := map[int32]int{}
	for n := range guest.Disks() {
		keys[guest.DiskKey(n)] = n
	}
	for i, d := range pt.Disks {
		n, ok := keys[int32(d.Key)]
		if !ok || guest.DiskSize(n) != d.Size {
			return d.Label + " has another size, or is not there"
		}
		img, err := l.repo.OpenDisk(l.t.Context(), pt, i)
		if err != nil {
			l.t.Fatal(err)
		}
		got, want := make([]byte, d.Size), make([]byte, d.Size)
		if _, err := img.ReadAt(got, 0); err != nil {
			l.t.Fatal(err)
		}
		if err := errors.Join(guest.ReadDisk(n, want, 0), img.Close()); err != nil {
			l.t.Fatal(err)
		}
		if !bytes.Equal(got, want) {
			return d.Label
		}
	}
	return ""
}

// clean wants nothing of ours on the vSphere, and nothing in the journal.
func (l *vmLab) clean() {
	l.t.Helper()
	for _, vm := range l.vms() {
		for _, name := range l.sim.VM(vm).Snapshots() {
			if strings.HasPrefix(name, snapshotPrefix) {
				l.t.Errorf("%s still has the snapshot %s", vm, name)
			}
		}
	}
	all, err := l.state.intents()
	if err != nil {
		l.t.Error(err)
	}
	for _, in := range all {
		if in.Object["ref"] != "" || !in.abandoned() { // else it may still have come
			l.t.Errorf("the journal has %+v", in)
		}
	}
}

func (l *vmLab) vms() []string {
	l.t.Helper()
	inv, err := l.client.Inventory(l.t.Context())
	if err != nil {
		l.t.Fatal(err)
	}
	var names []string
	for _, vm := range inv.VMs {
		names = append(names, vm.Name)
	}
	return names
}

// write has the guest write n bytes at random to a disk.
func (l *vmLab) write(vm string, disk int, off int64, n int) {
	l.t.Helper()
	p := make([]byte, n)
	rng := rand.New(rand.NewPCG(uint64(off), rand.Uint64()))
	for i := 0; i+8 <= n; i += 8 {
		binary.LittleEndian.PutUint64(p[i:], rng.Uint64())
	}
	if err := l.sim.VM(vm).WriteDisk(disk, p, off); err != nil {
		l.t.Fatal(err)
	}
}

// tracked is a VM with change tracking on and a disk of size bytes.
func tracked(name string, sizes ...int64) esxsim.VMSpec {
	spec := esxsim.VMSpec{Name: name, CBT: true, Tools: true, PowerOn: true}
	for _, n := range sizes {
		spec.Disks = append(spec.Disks, esxsim.DiskSpec{Size: n})
	}
	return spec
}

// admin is the VM in the hands of an administrator.
func (l *vmLab) admin(vm string) *object.VirtualMachine {
	l.t.Helper()
	u := l.sim.URL()
	c, err := govmomi.NewClient(l.t.Context(), u, true)
	if err != nil {
		l.t.Fatal(err)
	}
	l.t.Cleanup(func() { _ = c.Logout(context.Background()) })
	kind, value, _ := strings.Cut(l.sim.VM(vm).Ref(), ":")
	return object.NewVirtualMachine(c.Client, types.ManagedObjectReference{Type: kind, Value: value})
}

func (l *vmLab) wait(task *object.Task, err error) {
	l.t.Helper()
	if err == nil {
		err = task.Wait(l.t.Context())
	}
	if err != nil {
		l.t.Fatal(err)
	}
}

// device is the n-th disk as the configuration has it.
func (l *vmLab) device(vm string, n int) *types.VirtualDisk {
	l.t.Helper()
	list, err := l.admin(vm).Device(l.t.Context())
	if err != nil {
		l.t.Fatal(err)
	}
	d, ok := list.FindByKey(l.sim.VM(vm).DiskKey(n)).(*types.VirtualDisk)
	if !ok {
		l.t.Fatalf("%s has no disk %d", vm, n)
	}
	return d
}

func says(texts []string, part string) bool {
	return slices.ContainsFunc(texts, func(s string) bool { return strings.Contains(s, part) })
}

var _ disk.Image = solid{}
