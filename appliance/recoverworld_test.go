package appliance

import (
	"bytes"
	"context"
	"encoding/json"
	"fmt"
	"io"
	"log/slog"
	"math/rand/v2"
	"net/netip"
	"os"
	"path"
	"slices"
	"sync"
	"testing"

	"lifeboat/disk"
	"lifeboat/disk/disktest"
	"lifeboat/internal/esxsim"
	"lifeboat/store"
	"lifeboat/vsphere"
)

// recoverWorld is a simulated vSphere, a repository with restore points of its
// VMs, and an appliance with its server at an address of its own.
type recoverWorld struct {
	t      *testing.T
	dir    string
	sim    *esxsim.Sim
	vc     *vsphere.Client
	state  *State
	repo   *store.Repository
	addr   netip.Addr
	points map[string]*store.Point // by VM
	disks  map[string][][]byte     // what they hold

	server *Server
	stop   func()
}

const recoverDiskSize = 4 << 20

// needRoot skips where the server cannot have port 111.
func needRoot(t *testing.T) {
	t.Helper()
	if os.Geteuid() != 0 {
		t.Skip("needs root: ESXi asks for NFS on port 111, which others may not listen on")
	}
}

func newRecoverWorld(t *testing.T, change func(*esxsim.Options), vms ...esxsim.VMSpec) *recoverWorld {
	t.Helper()
	needRoot(t)
	w := &recoverWorld{t: t, dir: t.TempDir(), points: map[string]*store.Point{}, disks: map[string][][]byte{}}
	w.addr = netip.AddrFrom4([4]byte{127, byte(1 + rand.IntN(254)), byte(rand.IntN(255)), byte(1 + rand.IntN(254))})
	opts := esxsim.Options{Dir: t.TempDir(), VMs: vms}
	if change != nil {
		change(&opts)
	}
	var err error
	if w.sim, err = esxsim.Start(t.Context(), opts); err != nil {
		t.Fatal(err)
	}
	t.Cleanup(w.sim.Close)
	w.vc = w.dial()
	w.state = w.openState()
	if err := InitRepository(t.Context(), w.dir+"/repo", tracePassword, store.InitOptions{KDFTime: 1, KDFMemory: 8, KDFThreads: 1}); err != nil {
		t.Fatal(err)
	}
	w.repo = openTestRepo(t, w.dir+"/repo")
	for _, spec := range vms {
		w.backUp(spec.Name)
	}
	w.startServer()
	t.Cleanup(func() { w.stopServer() })
	return w
}

func openTestRepo(t *testing.T, url string) *store.Repository {
	t.Helper()
	repo, err := OpenRepository(t.Context(), url, tracePassword, store.Options{CacheBytes: 64 << 20, Logger: slog.New(slog.DiscardHandler)})
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { repo.Close() })
	return repo
}

func (w *recoverWorld) dial() *vsphere.Client {
	w.t.Helper()
	c, err := vsphere.Dial(w.t.Context(), w.vsphereOptions())
	if err != nil {
		w.t.Fatal(err)
	}
	w.t.Cleanup(func() { c.Close(context.Background()) })
	return c
}

func (w *recoverWorld) vsphereOptions() vsphere.Options {
	u := w.sim.URL()
	return vsphere.Options{URL: u.Host, Username: w.sim.Username(), Password: w.sim.Password(), Thumbprint: w.sim.Thumbprint()}
}

func (w *recoverWorld) openState() *State {
	w.t.Helper()
	st, err := OpenState(w.dir + "/state")
	if err != nil {
		w.t.Fatal(err)
	}
	return st
}

// startServer starts the appliance's server, as after a boot.
func (w *recoverWorld) startServer() {
	w.t.Helper()
	ctx, cancel := context.WithCancel(context.Background())
	s, err := NewServer(ctx, w.state, w.repo, ServeRequest{
		RepoURL: w.dir + "/repo", Listen: w.addr, NFSPort: 2049, MountPort: 20048, Portmap: netip.AddrPortFrom(w.addr, 111).String(), NoPrefetch: true,
	})
	if err != nil {
		cancel()
		w.t.Fatal(err)
	}
	done := make(chan error, 1)
	go func() { done <- s.Run(ctx) }()
	w.server = s
	w.stop = sync.OnceFunc(func() {
		cancel()
		if err := <-done; err != nil {
			w.t.Errorf("the server ended: %v", err)
		}
		if err := s.Close(); err != nil {
			w.t.Errorf("closing the server: %v", err)
		}
	})
}

func (w *recoverWorld) stopServer() { w.stop() }

// backUp makes a restore point of a VM, with all that a backup keeps.
func (w *recoverWorld) backUp(name string) *store.Point {
	w.t.Helper()
	ctx := w.t.Context()
	vm := w.vmNamed(name)
	full, err := w.vc.VM(ctx, vm.Ref)
	if err != nil {
		w.t.Fatal(err)
	}
	doc, err := json.Marshal(map[string]any{"vm": full})
	if err != nil {
		w.t.Fatal(err)
	}
	config := map[string][]byte{configFileVM: doc}
	r, err := w.vc.Files(full.Datacenter).Download(ctx, full.VMX, 0, -1)
	if err != nil {
		w.t.Fatal(err)
	}
	if config[path.Base(full.VMX)], err = io.ReadAll(r); err != nil {
		w.t.Fatal(err)
	}
	r.Close()
	ing, err := w.repo.NewIngest(ctx, store.IngestOptions{})
	if err != nil {
		w.t.Fatal(err)
	}
	defer ing.Close()
	p, err := ing.Begin(store.PointSpec{VM: name, VMID: full.Identity.String(), Config: config, Parent: w.points[name]})
	if err != nil {
		w.t.Fatal(err)
	}
	w.disks[name] = nil
	for n, d := range full.Disks {
		data := w.read(name, n)
		if err := p.AddDisk(ctx, store.DiskSpec{Key: int(d.Key), Label: d.Label}, disktest.FromBytes(data), nil, nil); err != nil {
			w.t.Fatal(err)
		}
		w.disks[name] = append(w.disks[name], bytes.Clone(data))
	}
	pt, err := p.Commit(ctx)
	if err != nil {
		w.t.Fatal(err)
	}
	w.points[name] = pt
	return pt
}

// read is what the guest of a VM would read from its n-th disk.
func (w *recoverWorld) read(vm string, n int) []byte {
	w.t.Helper()
	m := w.sim.VM(vm)
	if m == nil {
		w.t.Fatalf("there is no VM %q", vm)
	}
	data := make([]byte, m.DiskSize(n))
	if err := m.ReadDisk(n, data, 0); err != nil {
		w.t.Fatalf("VM %q reads disk %d: %v", vm, n, err)
	}
	return data
}

// write is a guest that writes; what it wrote is in want afterwards.
func (w *recoverWorld) write(vm string, n int, want []byte, off int64, p []byte) {
	w.t.Helper()
	copy(want[off:], p)
	if err := w.sim.VM(vm).WriteDisk(n, p, off); err != nil {
		w.t.Fatalf("VM %q writes disk %d: %v", vm, n, err)
	}
	if err := w.sim.VM(vm).SyncDisk(n); err != nil {
		w.t.Fatal(err)
	}
}

func (w *recoverWorld) inventory() *vsphere.Inventory {
	w.t.Helper()
	inv, err := w.vc.Inventory(w.t.Context())
	if err != nil {
		w.t.Fatal(err)
	}
	return inv
}

func (w *recoverWorld) vmNamed(name string) *vsphere.VM {
	w.t.Helper()
	inv := w.inventory()
	i := slices.IndexFunc(inv.VMs, func(vm vsphere.VM) bool { return vm.Name == name })
	if i < 0 {
		w.t.Fatalf("no VM %q in the inventory", name)
	}
	return &inv.VMs[i]
}

func (w *recoverWorld) request(vms ...string) RecoverRequest {
	req := RecoverRequest{RepoURL: w.dir + "/repo", PowerOn: true, Address: w.addr.String()}
	for _, vm := range vms {
		req.Points = append(req.Points, w.points[vm])
	}
	return req
}

func (w *recoverWorld) recover(req RecoverRequest) []Recovered {
	w.t.Helper()
	out, err := Recover(w.t.Context(), w.state, w.repo, w.vc, req)
	if err != nil {
		w.t.Fatal(err)
	}
	return out
}

// names of the VMs that the inventory has beside those that were there first.
func (w *recoverWorld) newVMs() []string {
	var names []string
	for _, vm := range w.inventory().VMs {
		if _, was := w.points[vm.Name]; !was {
			names = append(names, vm.Name)
		}
	}
	return names
}

// nothingLeft fails the test if anything of a recovery is left anywhere.
func (w *recoverWorld) nothingLeft() {
	w.t.Helper()
	if names := w.newVMs(); len(names) > 0 {
		w.t.Errorf("VMs are left: %q", names)
	}
	w.onlyVMsLeft()
}

// onlyVMsLeft is nothingLeft after a migration.
func (w *recoverWorld) onlyVMsLeft() {
	w.t.Helper()
	for _, vm := range w.inventory().VMs {
		if mark := vm.ExtraConfig[sessionKey]; mark != "" {
			w.t.Errorf("VM %q carries the mark %q", vm.Name, mark)
		}
		for _, d := range vm.Disks {
			if ds, _ := splitDatastorePath(d.File); ds == w.datastore() {
				w.t.Errorf("VM %q has %s", vm.Name, d.File)
			}
		}
		for _, s := range vm.Snapshots {
			w.t.Errorf("VM %q has the snapshot %q", vm.Name, s.Name)
		}
	}
	mounts, err := w.vc.NASDatastores(w.t.Context())
	if err != nil {
		w.t.Fatal(err)
	}
	for _, m := range mounts {
		w.t.Errorf("datastore %s is left on %s", m.Name, m.HostName)
	}
	sessions, err := w.state.sessions()
	if err != nil {
		w.t.Fatal(err)
	}
	for _, s := range sessions {
		w.t.Errorf("session %s is left (%s)", s.Name, s.Recovery.State)
	}
	intents, err := w.state.intents()
	if err != nil {
		w.t.Fatal(err)
	}
	for _, in := range intents {
		if in.Kind == IntentSnapshot && in.Object["ref"] == "" {
			continue // its request may still be on its way: it is looked for a while longer
		}
		w.t.Errorf("intent %s of %s is left: %v", in.Kind, in.Session, in.Object)
	}
	if entries, _ := os.ReadDir(w.state.Datastore()); len(entries) > 0 {
		w.t.Errorf("files are left in the export: %v", entries)
	}
}

func (w *recoverWorld) datastore() string {
	id, err := w.state.ApplianceID()
	if err != nil {
		w.t.Fatal(err)
	}
	return "lifeboat-" + id[:8]
}

// sameDisk compares what a VM reads with what it should.
func (w *recoverWorld) sameDisk(vm string, n int, want []byte) {
	w.t.Helper()
	got := w.read(vm, n)
	if bytes.Equal(got, want) {
		return
	}
	for i := range want {
		if i >= len(got) || got[i] != want[i] {
			w.t.Fatalf("VM %q, disk %d: first difference at %d of %d", vm, n, i, len(want))
		}
	}
}

// testVM is a VM with disks of random content.
func testVM(t *testing.T, name string, disks int) esxsim.VMSpec {
	t.Helper()
	spec := esxsim.VMSpec{Name: name, Tools: true}
	for n := range disks {
		file := fmt.Sprintf("%s/%d.raw", t.TempDir(), n)
		f, err := os.Create(file)
		if err != nil {
			t.Fatal(err)
		}
		if err := f.Truncate(recoverDiskSize); err != nil {
			t.Fatal(err)
		}
		img := disktest.Random(uint64(len(name))<<8|uint64(n), 1<<20, 0.8)
		for i := range 3 {
			var part [64 << 10]byte
			if err := readFull(img, part[:], int64(i)*(64<<10)); err != nil {
				t.Fatal(err)
			}
			if _, err := f.WriteAt(part[:], int64(i)*(1<<20)); err != nil {
				t.Fatal(err)
			}
		}
		if err := f.Close(); err != nil {
			t.Fatal(err)
		}
		spec.Disks = append(spec.Disks, esxsim.DiskSpec{From: file})
	}
	return spec
}

var _ disk.Image = (*diskCut)(nil)
