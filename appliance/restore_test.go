package appliance

import (
	"bytes"
	"errors"
	"strings"
	"testing"

	"lifeboat/internal/esxsim"
	"lifeboat/vsphere"
)

// restorable is a world whose VM was backed up by the real thing, with change
// tracking, and has been written to since. It returns what the VM was.
func restorable(t *testing.T) (*recoverWorld, [][]byte) {
	t.Helper()
	spec := testVM(t, "web", 2)
	spec.CBT, spec.NVRAM = true, []byte("firmware settings")
	w := newRecoverWorld(t, func(o *esxsim.Options) { o.VMs[0] = spec }, spec)
	report, err := w.state.BackupVMs(t.Context(), w.repo, w.vc, BackupVMsRequest{Patterns: []string{"web"}, NoQuiesce: true})
	if err != nil {
		t.Fatal(err)
	}
	if w.points["web"], err = w.repo.Point(t.Context(), report.VMs[0].Point); err != nil {
		t.Fatal(err)
	}
	var then [][]byte
	for n := range 2 {
		then = append(then, w.read("web", n))
		w.write("web", n, bytes.Clone(then[n]), 300_000, bytes.Repeat([]byte("after the backup"), 5000))
	}
	return w, then
}

// TestRestoreToANewVM makes a VM of a point, on two datastores, beside the one
// that is there.
func TestRestoreToANewVM(t *testing.T) {
	t.Parallel()
	w, then := restorable(t)
	got, err := Restore(t.Context(), w.state, w.repo, w.vc, RestoreRequest{
		Point: w.points["web"], Datastore: "datastore2", PerDisk: map[int]string{1: "datastore1"}, PowerOn: true,
	})
	if err != nil {
		t.Fatal(err)
	}
	vm := w.vmNamed(got.VM)
	for n := range then {
		w.sameDisk(got.VM, n, then[n])
	}
	if vm.Disks[0].Datastore != "datastore2" || vm.Disks[1].Datastore != "datastore1" || vm.Power != vsphere.PoweredOn {
		t.Errorf("disks on %s and %s, the VM is %s", vm.Disks[0].Datastore, vm.Disks[1].Datastore, vm.Power)
	}
	if vm.Identity == w.vmNamed("web").Identity || strings.Contains(vm.Annotation, "under way") {
		t.Errorf("identity %s, notes %q", vm.Identity, vm.Annotation)
	}
	if _, err := Restore(t.Context(), w.state, w.repo, w.vc, RestoreRequest{Point: w.points["web"], Datastore: "datastore2", KeepIdentity: true}); !errors.Is(err, ErrBusy) {
		t.Errorf("two VMs with the same UUIDs: %v", err)
	}
	w.sim.FailTask("ReconfigVM_Task", -1, nil)
	if _, err := Restore(t.Context(), w.state, w.repo, w.vc, RestoreRequest{Point: w.points["web"], Datastore: "datastore2", Name: "never"}); err == nil {
		t.Error("a restore that failed said nothing")
	}
	w.sim.ClearFaults()
	if names := w.newVMs(); len(names) != 1 {
		t.Errorf("VMs %q", names)
	}
}

// TestRestoreOver turns a VM back: only what differs is written, and found by
// change tracking where there is any.
func TestRestoreOver(t *testing.T) {
	t.Parallel()
	w, then := restorable(t)
	transports := Transports{Datastores: map[string]string{"datastore1": w.sim.DatastoreDir("datastore1")}}
	req := RestoreOverRequest{Point: w.points["web"], Transports: transports}
	if err := w.vc.PowerOn(t.Context(), w.vmNamed("web").Ref); err != nil {
		t.Fatal(err)
	}
	if _, err := RestoreOver(t.Context(), w.state, w.repo, w.vc, req); !errors.Is(err, ErrBusy) {
		t.Fatalf("a VM that is on: %v", err)
	}
	// Nothing here can write above a snapshot: said before anything is written.
	req.PowerOff, req.NoSnapshot = true, false
	if _, err := RestoreOver(t.Context(), w.state, w.repo, w.vc, req); err == nil || !strings.Contains(err.Error(), "--safety-point") {
		t.Fatalf("a snapshot in the way: %v", err)
	}
	now := [][]byte{w.read("web", 0), w.read("web", 1)}
	if len(w.vmNamed("web").Snapshots) != 0 || bytes.Equal(now[0], then[0]) {
		t.Fatal("a restore that was refused has left something")
	}
	req.SafetyPoint, req.PowerOn = true, true
	got, err := RestoreOver(t.Context(), w.state, w.repo, w.vc, req)
	if err != nil {
		t.Fatal(err)
	}
	for n, d := range got.Disks {
		w.sameDisk("web", n, then[n])
		if d.How != "changed" || d.Written != 2*overwriteBlock {
			t.Errorf("disk %d: %+v", n, d)
		}
	}
	pt, err := w.repo.Point(t.Context(), got.SafetyPoint)
	if err != nil {
		t.Fatal(err)
	}
	for n := range now {
		img, err := w.repo.OpenDisk(t.Context(), pt, n)
		if err != nil {
			t.Fatal(err)
		}
		if !bytes.Equal(readAll(t, img), now[n]) {
			t.Errorf("disk %d of the safety point is not what the VM had", n)
		}
		img.Close()
	}
	if vm := w.vmNamed("web"); vm.Power != vsphere.PoweredOn || len(vm.Snapshots) != 0 {
		t.Errorf("the VM is %s, snapshots %v", vm.Power, vm.Snapshots)
	}
	w.nothingLeft()
}

// TestRestoreOverWithoutChangeTracking finds what differs by reading.
func TestRestoreOverWithoutChangeTracking(t *testing.T) {
	t.Parallel()
	w, then := restorable(t)
	w.sim.Fail("QueryChangedDiskAreas", -1, "FileFault")
	got, err := RestoreOver(t.Context(), w.state, w.repo, w.vc, RestoreOverRequest{Point: w.points["web"], VM: "web", NoSnapshot: true})
	if err != nil {
		t.Fatal(err)
	}
	for n, d := range got.Disks {
		w.sameDisk("web", n, then[n])
		if d.How != "compared" || d.Written != 2*overwriteBlock {
			t.Errorf("disk %d: %+v", n, d)
		}
	}
}
