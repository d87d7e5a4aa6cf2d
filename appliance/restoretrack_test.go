package appliance

import (
	"bytes"
	"testing"
)

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
