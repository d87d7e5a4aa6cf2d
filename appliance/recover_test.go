package appliance

import (
	"bytes"
	"strings"
	"testing"

	"lifeboat/internal/esxsim"
	"lifeboat/vsphere"
)

// TestRecoverAndMigrate is the story: a VM dies, runs from its backup, keeps
// writing, moves home, and nothing is left.
func TestRecoverAndMigrate(t *testing.T) {
	t.Parallel()
	spec := testVM(t, "web 01/α", 2)
	spec.Networks = []string{"VM Network"}
	w := newRecoverWorld(t, nil, spec)
	got := w.recover(w.request("web 01/α"))[0]
	if got.VM != "web 01/α (recovered)" || got.State != RecoveryRunning || len(got.Steps) < 4 {
		t.Fatalf("%+v", got)
	}
	vm := w.vmNamed(got.VM)
	if vm.Power != vsphere.PoweredOn || vm.Identity == w.vmNamed("web 01/α").Identity {
		t.Errorf("power %s, identity %s", vm.Power, vm.Identity)
	}
	if !strings.Contains(vm.Annotation, "lifeboat migrate "+got.Session) {
		t.Errorf("its notes do not say what it is: %q", vm.Annotation)
	}
	for _, nic := range vm.NICs {
		if nic.Connected {
			t.Errorf("NIC %s is plugged in", nic.Label)
		}
	}
	want := w.disks["web 01/α"]
	for n := range want {
		w.sameDisk(got.VM, n, want[n])
		w.write(got.VM, n, want[n], int64(n+1)*100_000, bytes.Repeat([]byte("written while it runs from the backup"), 3000))
	}
	if err := Migrate(t.Context(), w.state, w.vc, MigrateRequest{Session: got.Session, Datastore: "datastore2"}); err != nil {
		t.Fatal(err)
	}
	for n := range want {
		w.sameDisk(got.VM, n, want[n])
	}
	vm = w.vmNamed(got.VM)
	if vm.Power != vsphere.PoweredOn || strings.Contains(vm.Annotation, "Lifeboat") {
		t.Errorf("after the move: power %s, notes %q", vm.Power, vm.Annotation)
	}
	w.onlyVMsLeft()
}

// TestStopLeavesNothing takes a running recovery down.
func TestStopLeavesNothing(t *testing.T) {
	t.Parallel()
	w := newRecoverWorld(t, nil, testVM(t, "db", 1))
	got := w.recover(w.request("db"))[0]
	w.write(got.VM, 0, bytes.Clone(w.disks["db"][0]), 5000, []byte("gone soon"))
	if err := Stop(t.Context(), w.state, w.vc, StopRequest{Session: got.Session}); err != nil {
		t.Fatal(err)
	}
	w.nothingLeft()
	w.sameDisk("db", 0, w.disks["db"][0])
}

// TestRunningVMSurvivesRestarts ends the server under a running VM, and the
// vCenter's sessions, and starts it again.
func TestRunningVMSurvivesRestarts(t *testing.T) {
	t.Parallel()
	w := newRecoverWorld(t, nil, testVM(t, "app", 1))
	got := w.recover(w.request("app"))[0]
	want := w.disks["app"][0]
	w.write(got.VM, 0, want, 1<<20, []byte("before the restart"))
	w.stopServer()
	w.startServer()
	w.sameDisk(got.VM, 0, want)
	w.write(got.VM, 0, want, 2<<20, []byte("after the restart"))
	w.sim.DropSessions()
	w.sameDisk(got.VM, 0, want)
	if err := Stop(t.Context(), w.state, w.vc, StopRequest{Session: got.Session}); err != nil {
		t.Fatal(err)
	}
	w.nothingLeft()
}

// TestFailedMigrationLeavesTheVMRunning has the vCenter fail, before and after it
// did anything.
func TestFailedMigrationLeavesTheVMRunning(t *testing.T) {
	t.Parallel()
	w := newRecoverWorld(t, nil, testVM(t, "web", 1))
	got := w.recover(w.request("web"))[0]
	want := w.disks["web"][0]
	w.sim.FailTask("RelocateVM_Task", 1, nil)
	err := Migrate(t.Context(), w.state, w.vc, MigrateRequest{Session: got.Session, Datastore: "datastore2"})
	if err == nil || !strings.Contains(err.Error(), "runs on from the backup") || !strings.Contains(err.Error(), "try again") {
		t.Fatalf("a failed move: %v", err)
	}
	w.write(got.VM, 0, want, 7000, []byte("still writing"))
	if rec, err := w.state.session(got.Session); err != nil || rec.Recovery.State != RecoveryRunning {
		t.Errorf("the session: %+v %v", rec, err)
	}
	if err := Migrate(t.Context(), w.state, w.vc, MigrateRequest{Session: got.Session, Datastore: "nowhere"}); err == nil {
		t.Fatal("moved to a datastore that does not exist")
	}
	// The task did its work and the news of it was lost: the VM has moved.
	w.sim.FailTaskLate("RelocateVM_Task", 1, nil)
	if err := Migrate(t.Context(), w.state, w.vc, MigrateRequest{Session: got.Session, Datastore: "datastore2"}); err == nil {
		t.Fatal("nothing was said of a task that failed")
	}
	w.sameDisk(got.VM, 0, want)
	w.onlyVMsLeft()
}

// TestManyAtOnce recovers several VMs with one request; names that clash are
// made different.
func TestManyAtOnce(t *testing.T) {
	t.Parallel()
	var specs []esxsim.VMSpec
	var names []string
	for _, name := range []string{"a", "b", "c", "d", "e"} {
		specs, names = append(specs, testVM(t, name, 1)), append(names, name)
	}
	w := newRecoverWorld(t, nil, specs...)
	got := w.recover(w.request(names...))
	more := w.recover(w.request("a"))
	if more[0].VM != "a (recovered 2)" {
		t.Errorf("the second is called %q", more[0].VM)
	}
	for i, r := range got {
		w.sameDisk(r.VM, 0, w.disks[names[i]][0])
	}
	for _, r := range append(got, more...) {
		if err := Stop(t.Context(), w.state, w.vc, StopRequest{Session: r.Session}); err != nil {
			t.Fatal(err)
		}
	}
	w.nothingLeft()
}

// TestMigrateByCopy moves a VM that keeps writing to other storage without Storage
// vMotion: the new one has its place, its name, its addresses and all its data.
func TestMigrateByCopy(t *testing.T) {
	t.Parallel()
	w := newRecoverWorld(t, nil, testVM(t, "web", 2))
	got := w.recover(w.request("web"))[0]
	was := w.vmNamed(got.VM)
	want := w.disks["web"]
	w.write(got.VM, 0, want[0], 100_000, []byte("before the copy"))
	passes := 0
	req := CopyVMRequest{
		Session: got.Session, Datastore: "datastore2", PerDisk: map[int]string{1: "datastore1"},
		Transports: Transports{Datastores: map[string]string{"datastore1": w.sim.DatastoreDir("datastore1"), "datastore2": w.sim.DatastoreDir("datastore2")}},
		hook: func(place string) {
			if place == "pass" {
				passes++
				w.write(got.VM, passes%2, want[passes%2], int64(passes)<<19, bytes.Repeat([]byte{byte(passes)}, 70_000))
			}
		},
	}
	w.sim.FailTask("RelocateVM_Task", -1, nil)
	if err := MigrateByCopy(t.Context(), w.state, w.repo, w.vc, req); err != nil {
		t.Fatal(err)
	}
	if passes < 2 {
		t.Errorf("%d passes", passes)
	}
	for n := range want {
		w.sameDisk(got.VM, n, want[n])
	}
	vm := w.vmNamed(got.VM)
	if vm.Power != vsphere.PoweredOn || vm.Disks[0].Datastore != "datastore2" || vm.Disks[1].Datastore != "datastore1" || vm.BIOSUUID != was.BIOSUUID {
		t.Errorf("the VM is %s, on %s and %s", vm.Power, vm.Disks[0].Datastore, vm.Disks[1].Datastore)
	}
	for i, nic := range vm.NICs {
		if nic.MAC != was.NICs[i].MAC {
			t.Errorf("NIC %s was %s", nic.MAC, was.NICs[i].MAC)
		}
	}
	if len(w.newVMs()) != 1 || strings.Contains(vm.Annotation, "Lifeboat") || vm.ExtraConfig[copiedKey] != "" {
		t.Errorf("VMs %q, notes %q", w.newVMs(), vm.Annotation)
	}
	w.onlyVMsLeft()
	points, err := w.repo.Points(t.Context())
	if err != nil || len(points) != 1 {
		t.Errorf("%d points are there (%v)", len(points), err)
	}
}
