package vsphere

import (
	"bytes"
	"context"
	"crypto/tls"
	"errors"
	"fmt"
	"slices"
	"sync"
	"testing"
	"time"

	"github.com/vmware/govmomi/object"
	"github.com/vmware/govmomi/simulator"
	_ "github.com/vmware/govmomi/vapi/simulator"
)

// vcsim starts govmomi's own simulator: no more than the protocol's other side,
// for what needs thousands of objects. What a real vSphere does beyond it is
// tested against internal/esxsim.
func vcsim(t testing.TB, edit func(*simulator.Model)) *simulator.Server {
	t.Helper()
	m := simulator.VPX()
	if edit != nil {
		edit(m)
	}
	if err := m.Create(); err != nil {
		t.Fatal(err)
	}
	t.Cleanup(m.Remove)
	m.Service.TLS = new(tls.Config)
	m.Service.RegisterEndpoints = true
	s := m.Service.NewServer()
	t.Cleanup(s.Close)
	return s
}

func dialed(t testing.TB, s *simulator.Server) *Client {
	t.Helper()
	c, err := Dial(context.Background(), Options{URL: s.URL.Host, Username: "user", Password: "pass", Insecure: true, KeepAlive: -1})
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { _ = c.Close(context.Background()) })
	return c
}

// thousand is a vCenter with 1,000 VMs. The simulator takes a minute to create
// so many, and no time to have them.
func thousand(t testing.TB) *Client {
	t.Helper()
	var model *simulator.Model
	s := vcsim(t, func(m *simulator.Model) { m.Cluster, m.ClusterHost, m.Host, m.Machine, model = 2, 2, 0, 5, m })
	ctx := model.Service.Context
	all := ctx.Map.All("VirtualMachine")
	for i := len(all); i < 1000; i++ {
		from := ctx.Map.Get(all[i%len(all)].Reference()).(*simulator.VirtualMachine)
		vm := &simulator.VirtualMachine{VirtualMachine: from.VirtualMachine}
		config := *from.Config
		config.InstanceUuid = fmt.Sprintf("50000000-0000-0000-0000-%012d", i)
		vm.Config, vm.Self.Value, vm.Name = &config, fmt.Sprintf("vm-%d", 5000+i), fmt.Sprintf("vm%d", i)
		ctx.Map.Put(vm)
		folder := ctx.Map.Get(*from.Parent).(*simulator.Folder)
		folder.ChildEntity = append(folder.ChildEntity, vm.Self)
	}
	return dialed(t, s)
}

func TestInventoryOfAThousand(t *testing.T) {
	c := thousand(t)
	before := c.Calls()
	start := time.Now()
	inv, err := c.Inventory(t.Context())
	if err != nil {
		t.Fatal(err)
	}
	took, calls := time.Since(start), c.Calls()-before
	if len(inv.VMs) != 1000 || len(inv.Hosts) != 4 || len(inv.Datastores) == 0 || len(inv.Networks) == 0 || len(inv.Pools) == 0 {
		t.Errorf("%d VMs, %d hosts, %d datastores, %d networks, %d pools", len(inv.VMs), len(inv.Hosts), len(inv.Datastores), len(inv.Networks), len(inv.Pools))
	}
	if n := c.CallsByMethod(); n["RetrievePropertiesEx"] != 1 || calls != 2 {
		t.Errorf("%d calls for 1,000 VMs, want one retrieval of two pages: %v", calls, n)
	}
	t.Logf("1,000 VMs in %v, %d calls", took, calls)
	seen := map[Identity]bool{}
	for _, v := range inv.VMs {
		if v.Identity.VM == "" || v.Name == "" || v.Host == "" || v.Pool == "" || v.Datacenter == "" || len(v.Disks) == 0 || len(v.NICs) == 0 || v.NICs[0].Network == "" || v.VMX == "" {
			t.Fatalf("VM %+v", v)
		}
		if got, ok := inv.VM(v.Identity); !ok || got.Ref != v.Ref || seen[v.Identity] {
			t.Fatalf("identity %v", v.Identity)
		}
		seen[v.Identity] = true
	}
}

func BenchmarkInventory1000(b *testing.B) {
	c := thousand(b)
	for b.Loop() {
		if _, err := c.Inventory(context.Background()); err != nil {
			b.Fatal(err)
		}
	}
}

// TestVMIsTheSameAsInInventory: the two ways to describe a VM agree.
func TestVMIsTheSameAsInInventory(t *testing.T) {
	c := dialed(t, vcsim(t, func(m *simulator.Model) { m.Folder, m.App, m.Pool = 1, 1, 1 }))
	inv, err := c.Inventory(t.Context())
	if err != nil {
		t.Fatal(err)
	}
	for _, v := range inv.VMs {
		full, err := c.VM(t.Context(), v.Ref)
		if err != nil {
			t.Fatal(err)
		}
		again := *full
		again.Config, again.NVRAM, v.NVRAM = nil, "", ""
		if !sameVM(again, v) {
			t.Errorf("VM says      %+v\ninventory says %+v", again, v)
		}
		config, err := decodeConfig(full.Config)
		if err != nil || len(config.Hardware.Device) == 0 || config.InstanceUuid != v.Identity.VM {
			t.Fatalf("configuration %s: %v", full.Config, err)
		}
		if raw, err := encodeConfig(config); err != nil || !bytes.Equal(raw, full.Config) {
			t.Errorf("configuration does not come back as it was: %v", err)
		}
	}
}

func sameVM(a, b VM) bool {
	sameNIC := slices.Equal(a.NICs, b.NICs)
	sameDisks := slices.Equal(a.Disks, b.Disks)
	return sameNIC && sameDisks && a.Identity == b.Identity && a.Name == b.Name && a.Folder == b.Folder && a.Datacenter == b.Datacenter &&
		a.Pool == b.Pool && a.Host == b.Host && a.FolderRef == b.FolderRef && a.PoolRef == b.PoolRef && a.HostRef == b.HostRef && a.Power == b.Power &&
		a.VMX == b.VMX && a.CBTSupported == b.CBTSupported && a.MemoryMB == b.MemoryMB && a.Version == b.Version
}

func TestWatch(t *testing.T) {
	s := vcsim(t, func(m *simulator.Model) { m.Machine = 1 })
	c := dialed(t, s)
	ctx, cancel := context.WithCancel(t.Context())
	defer cancel()
	changes := make(chan Change, 100)
	done := make(chan error, 1)
	stop := errors.New("enough")
	inv, err := c.Inventory(ctx)
	if err != nil {
		t.Fatal(err)
	}
	last := inv.VMs[len(inv.VMs)-1].Ref
	go func() {
		done <- c.Watch(ctx, func(ch Change) error {
			if ch.VM != nil && ch.VM.Power == PoweredOff && ch.Ref == last {
				return stop
			}
			changes <- ch
			return nil
		})
	}()
	next := func(want ChangeKind, f func(Change) bool) Change {
		t.Helper()
		for {
			select {
			case ch := <-changes:
				if ch.Kind == want && f(ch) {
					return ch
				}
			case err := <-done:
				t.Fatalf("Watch ended: %v", err)
			case <-time.After(5 * time.Second):
				t.Fatalf("no %s seen", want)
			}
		}
	}
	first := next(Appeared, func(ch Change) bool { return ch.Ref == inv.VMs[0].Ref })
	if first.VM.Name == "" || first.VM.Datacenter == "" || first.VM.Host == "" || len(first.VM.Disks) == 0 {
		t.Errorf("appeared: %+v", first.VM)
	}
	if err := c.PowerOff(ctx, first.Ref); err != nil {
		t.Fatal(err)
	}
	next(Modified, func(ch Change) bool { return ch.Ref == first.Ref && ch.VM.Power == PoweredOff })
	if err := c.DeleteVM(ctx, first.Ref); err != nil {
		t.Fatal(err)
	}
	next(Vanished, func(ch Change) bool { return ch.Ref == first.Ref })
	if err := c.PowerOff(ctx, last); err != nil {
		t.Fatal(err)
	}
	select {
	case err := <-done:
		if !errors.Is(err, stop) {
			t.Errorf("Watch ended with %v", err)
		}
	case <-time.After(5 * time.Second):
		t.Error("Watch does not end when its function fails")
	}
}

func TestTags(t *testing.T) {
	s := vcsim(t, nil)
	c := dialed(t, s)
	inv, err := c.Inventory(t.Context())
	if err != nil {
		t.Fatal(err)
	}
	if _, err := inv.Match("tag:backup"); err == nil {
		t.Error("tags are asked for that nobody has read")
	}
	if err := c.LoadTags(t.Context(), inv); err != nil {
		t.Fatal(err)
	}
	if got, err := inv.Match("tag:backup"); err != nil || len(got) != 0 {
		t.Errorf("%v, %v", got, err)
	}
}

// TestPrivilegesExist: every privilege that a preflight asks for is one that a
// vCenter knows, and on all that may be asked a user with all has all.
func TestPrivilegesExist(t *testing.T) {
	s := vcsim(t, nil)
	c := dialed(t, s)
	roles, err := object.NewAuthorizationManager(c.vim).RoleList(t.Context())
	if err != nil {
		t.Fatal(err)
	}
	known := map[string]bool{}
	for _, id := range roles.ByName("Admin").Privilege {
		known[id] = true
	}
	for _, p := range []Purpose{ForBackup, ForRecover, ForMigrate, ForRestore, ForAttach, ForHotAdd, ForGuest, ForLab} {
		needs := Needs(p)
		if len(needs) == 0 {
			t.Errorf("%s wants nothing", p)
		}
		for kind, list := range needs {
			for _, id := range list {
				if !known[id] {
					t.Errorf("%s on %s: vCenter knows no privilege %s", p, kind, id)
				}
			}
		}
	}
}

// TestManyTasksAtOnce: each wait has a collector for itself, and they are kept.
func TestManyTasksAtOnce(t *testing.T) {
	s := vcsim(t, func(m *simulator.Model) { m.Cluster, m.Host, m.Machine = 1, 0, 20 })
	c := dialed(t, s)
	inv, err := c.Inventory(t.Context())
	if err != nil {
		t.Fatal(err)
	}
	for range 2 {
		var all sync.WaitGroup
		for _, v := range inv.VMs {
			all.Go(func() {
				ref, err := c.CreateSnapshot(t.Context(), v.Ref, SnapshotSpec{Name: "s"})
				if err == nil {
					err = c.RemoveSnapshot(t.Context(), ref, RemoveOptions{})
				}
				if err != nil {
					t.Error(err)
				}
			})
		}
		all.Wait()
	}
	if n := c.CallsByMethod()["CreatePropertyCollector"]; n > 19 {
		t.Errorf("%d collectors for 20 at once", n)
	}
	if len(c.collectors.free) > 20 {
		t.Errorf("%d collectors are kept", len(c.collectors.free))
	}
}
