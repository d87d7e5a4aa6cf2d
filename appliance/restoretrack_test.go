package appliance

import (
	"bytes"
	"context"
	"log/slog"
	"testing"

	"lifeboat/vsphere"
)

// TestRestoreWhoseVMComesLate: the answer to the VM's making was lost, and nothing
// of it is there yet. The intent stays for the next command.
func TestRestoreWhoseVMComesLate(t *testing.T) {
	t.Parallel()
	w := newRecoverWorld(t, nil, testVM(t, "web", 1))
	ctx, cancel := context.WithCancel(t.Context())
	if _, err := Restore(ctx, w.state, w.repo, w.vc, RestoreRequest{Point: w.points["web"], Datastore: "datastore2", hook: func(at string) {
		if at == "begun" {
			cancel()
		}
	}}); err == nil {
		t.Fatal("an interrupted restore said nothing")
	}
	intents, err := w.state.intents()
	if err != nil || len(intents) != 1 || !intents[0].abandoned() {
		t.Fatalf("%v %+v", err, intents)
	}
	if _, err := w.vc.CreateVM(t.Context(), vsphere.CreateSpec{
		Name: "late", Host: w.inventory().Hosts[0].Ref, Datastore: "datastore2", Notes: intents[0].Object["note"],
	}); err != nil {
		t.Fatal(err)
	}
	if _, err := w.state.Reconcile(t.Context(), w.vc, slog.New(slog.DiscardHandler)); err != nil {
		t.Fatal(err)
	}
	w.nothingLeft()
}

// TestRestoreOverIsNoSecret: what a restore writes to a disk no change tracking
// sees. The next backup and the next restore over the VM must know of it.
func TestRestoreOverIsNoSecret(t *testing.T) {
	t.Parallel()
	w, _ := restorable(t)
	transports := Transports{Datastores: map[string]string{"datastore1": w.sim.DatastoreDir("datastore1")}}
	first, later := w.points["web"], w.read("web", 0)
	backup := func() *VMResult {
		t.Helper()
		report, err := w.state.BackupVMs(t.Context(), w.repo, w.vc, BackupVMsRequest{Patterns: []string{"web"}, NoQuiesce: true})
		if err != nil {
			t.Fatal(err)
		}
		return report.VMs[0]
	}
	second, err := w.repo.Point(t.Context(), backup().Point)
	if err != nil {
		t.Fatal(err)
	}
	if _, err := RestoreOver(t.Context(), w.state, w.repo, w.vc, RestoreOverRequest{Point: first, NoSnapshot: true, Transports: transports}); err != nil {
		t.Fatal(err)
	}
	then := w.read("web", 0)
	got := backup()
	pt, err := w.repo.Point(t.Context(), got.Point)
	if err != nil {
		t.Fatal(err)
	}
	img, err := w.repo.OpenDisk(t.Context(), pt, 0)
	if err != nil {
		t.Fatal(err)
	}
	defer img.Close()
	if !bytes.Equal(readAll(t, img), then) {
		t.Errorf("the point after a restore is not what the VM has: %+v", got.Disks)
	}
	if again := backup(); again.Disks[0].How != readChanged {
		t.Errorf("the point after that one was read %q", again.Disks[0].How)
	}
	if _, err := RestoreOver(t.Context(), w.state, w.repo, w.vc, RestoreOverRequest{Point: second, NoSnapshot: true, Transports: transports}); err != nil {
		t.Fatal(err)
	}
	w.sameDisk("web", 0, later)
}
