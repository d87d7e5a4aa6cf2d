package vddk_test

import (
	"testing"

	"lifeboat/disk"
	"lifeboat/disk/disktest"
	"lifeboat/internal/esxsim"
	"lifeboat/vddk"
	"lifeboat/vsphere"
)

// simulated is a VM on a simulated vCenter whose disk holds what img holds.
func simulated(t testing.TB, img disk.Image) (*esxsim.Sim, *vsphere.Client, *vsphere.VM) {
	t.Helper()
	sim, err := esxsim.Start(t.Context(), esxsim.Options{Dir: t.TempDir(), VMs: []esxsim.VMSpec{{
		Name: "web 1 ü", PowerOn: true, Disks: []esxsim.DiskSpec{{From: rawFile(t, img)}},
	}}})
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(sim.Close)
	c, err := vsphere.Dial(t.Context(), vsphere.Options{URL: sim.URL().String(), Thumbprint: sim.Thumbprint()})
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { c.Close(t.Context()) })
	inv, err := c.Inventory(t.Context())
	if err != nil {
		t.Fatal(err)
	}
	vms, err := inv.Match("web 1 ü")
	if err != nil || len(vms) != 1 {
		t.Fatalf("VMs: %v, %v", vms, err)
	}
	return sim, c, vms[0]
}

// frozen takes a snapshot and is the request for its disk through /folder.
func frozen(t testing.TB, c *vsphere.Client, vm *vsphere.VM) vddk.Request {
	t.Helper()
	snap, err := c.CreateSnapshot(t.Context(), vm.Ref, vsphere.SnapshotSpec{Name: "test"})
	if err != nil {
		t.Fatal(err)
	}
	v, err := c.SnapshotVM(t.Context(), snap)
	if err != nil {
		t.Fatal(err)
	}
	d := v.Disks[0]
	return vddk.Request{Key: d.Key, Size: d.Size, Path: d.File, Files: c.Files(vm.Datacenter)}
}

// TestSimulatedHost reads a running VM's disk through /folder of a simulated
// vCenter: the snapshot's, whatever the guest writes, through a lost session.
func TestSimulatedHost(t *testing.T) {
	want := random(30)
	sim, c, vm := simulated(t, want)
	src := open(t, frozen(t, c, vm), vddk.Options{})
	if err := sim.VM("web 1 ü").WriteDisk(0, make([]byte, 1<<20), 0); err != nil {
		t.Fatal(err)
	}
	sim.DropSessions()
	disktest.Equal(t, src, want)
}
