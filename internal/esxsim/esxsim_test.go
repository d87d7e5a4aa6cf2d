package esxsim

import (
	"bytes"
	"context"
	"net/url"
	"testing"

	"github.com/vmware/govmomi"
	"github.com/vmware/govmomi/find"
	"github.com/vmware/govmomi/object"
	"github.com/vmware/govmomi/vim25/methods"
	"github.com/vmware/govmomi/vim25/mo"
	"github.com/vmware/govmomi/vim25/types"
)

// start is a simulation for a test.
func start(t *testing.T, o Options) *Sim {
	t.Helper()
	o.Dir = t.TempDir()
	s, err := Start(context.Background(), o)
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(s.Close)
	return s
}

// dial is a client that trusts the simulation's certificate.
func dial(t *testing.T, s *Sim) *govmomi.Client {
	t.Helper()
	c, err := govmomi.NewClient(t.Context(), s.URL(), true)
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { _ = c.Logout(context.Background()) })
	return c
}

func machine(t *testing.T, c *govmomi.Client, name string) *object.VirtualMachine {
	t.Helper()
	f := find.NewFinder(c.Client)
	dc, err := f.DefaultDatacenter(t.Context())
	if err != nil {
		t.Fatal(err)
	}
	f.SetDatacenter(dc)
	v, err := f.VirtualMachine(t.Context(), name)
	if err != nil {
		t.Fatal(err)
	}
	return v
}

func wait(t *testing.T, task *object.Task, err error) any {
	t.Helper()
	if err != nil {
		t.Fatal(err)
	}
	info, err := task.WaitForResult(t.Context())
	if err != nil {
		t.Fatal(err)
	}
	return info.Result
}

func properties(t *testing.T, v *object.VirtualMachine) mo.VirtualMachine {
	t.Helper()
	var m mo.VirtualMachine
	if err := v.Properties(t.Context(), v.Reference(), nil, &m); err != nil {
		t.Fatal(err)
	}
	return m
}

func firstDisk(m mo.VirtualMachine) *types.VirtualDisk {
	for _, d := range m.Config.Hardware.Device {
		if disk, ok := d.(*types.VirtualDisk); ok {
			return disk
		}
	}
	return nil
}

func TestSnapshotAndChangedAreas(t *testing.T) {
	t.Parallel()
	s := start(t, Options{VMs: []VMSpec{{Name: "db", CBT: true, Tools: true, PowerOn: true, Disks: []DiskSpec{{Size: 64 << 20}}}}})
	c := dial(t, s)
	v := machine(t, c, "db")
	guest := s.VM("db")
	write := func(off int64, what byte, n int) {
		t.Helper()
		if err := guest.WriteDisk(0, bytes.Repeat([]byte{what}, n), off); err != nil {
			t.Fatal(err)
		}
	}
	write(1<<20, 1, 100)
	first := snapshotOf(t, v, "one")
	write(5<<20+10, 2, 200<<10)
	second := snapshotOf(t, v, "two")
	write(9<<20, 3, 10)

	var snap mo.VirtualMachineSnapshot
	if err := v.Properties(t.Context(), first, nil, &snap); err != nil {
		t.Fatal(err)
	}
	key := guest.DiskKey(0)
	id := diskOf(snap.Config.Hardware.Device, key).Backing.(*types.VirtualDiskFlatVer2BackingInfo).ChangeId
	if id == "" {
		t.Fatal("the first snapshot has no change ID")
	}
	res, err := methods.QueryChangedDiskAreas(t.Context(), c.Client, &types.QueryChangedDiskAreas{
		This: v.Reference(), Snapshot: &second, DeviceKey: key, ChangeId: id,
	})
	if err != nil {
		t.Fatal(err)
	}
	areas := res.Returnval.ChangedArea
	if len(areas) != 1 || areas[0].Start != 5<<20 || areas[0].Length != 256<<10 || res.Returnval.Length != 64<<20 {
		t.Errorf("changed areas are %+v", res.Returnval)
	}
	got := make([]byte, 100)
	if err := guest.ReadDisk(0, got, 5<<20+10); err != nil || got[0] != 2 {
		t.Errorf("the guest reads %v, %v", got[:4], err)
	}
	for _, name := range []string{"one", "two"} {
		task, err := v.RemoveSnapshot(t.Context(), name, false, nil)
		wait(t, task, err)
	}
	m := properties(t, v)
	if m.Snapshot != nil || m.Runtime.ConsolidationNeeded {
		t.Errorf("snapshots %v, consolidation needed %v", m.Snapshot, m.Runtime.ConsolidationNeeded)
	}
	if b := firstDisk(m).Backing.(*types.VirtualDiskFlatVer2BackingInfo); b.Parent != nil || b.FileName != "[datastore1] db/db.vmdk" {
		t.Errorf("the disk stands on %s with parent %v", b.FileName, b.Parent)
	}
	for off, want := range map[int64]byte{1 << 20: 1, 5<<20 + 10: 2, 9 << 20: 3} {
		if err := guest.ReadDisk(0, got[:1], off); err != nil || got[0] != want {
			t.Errorf("at %d the guest reads %d, %v; want %d", off, got[0], err, want)
		}
	}
}

func snapshotOf(t *testing.T, v *object.VirtualMachine, name string) types.ManagedObjectReference {
	t.Helper()
	task, err := v.CreateSnapshot(t.Context(), name, "", false, false)
	return wait(t, task, err).(types.ManagedObjectReference)
}

func diskOf(devices []types.BaseVirtualDevice, key int32) *types.VirtualDisk {
	for _, d := range devices {
		if disk, ok := d.(*types.VirtualDisk); ok && disk.Key == key {
			return disk
		}
	}
	return nil
}

func TestLogin(t *testing.T) {
	t.Parallel()
	s := start(t, Options{Users: map[string]string{"backup": "secret"}})
	for _, u := range []struct {
		user, password string
		ok             bool
	}{{s.Username(), s.Password(), true}, {"backup", "secret", true}, {"backup", "wrong", false}, {"nobody", "", false}} {
		at := s.URL()
		at.User = url.UserPassword(u.user, u.password)
		_, err := govmomi.NewClient(t.Context(), at, true)
		if (err == nil) != u.ok {
			t.Errorf("login as %s: %v", u.user, err)
		}
	}
}
