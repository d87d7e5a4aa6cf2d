package appliance

import (
	"log/slog"
	"os"
	"path/filepath"
	"strings"
	"testing"
	"time"

	"lifeboat/internal/esxsim"
	"lifeboat/vsphere"
)

// TestBackupVMByHotAdd has the disk attached to our own VM, where a test stands
// for the kernel that makes a device of it.
func TestBackupVMByHotAdd(t *testing.T) {
	t.Parallel()
	l := newVMLab(t, esxsim.Options{VMs: []esxsim.VMSpec{tracked("web", 4*mib), tracked("appliance", mib)}})
	l.write("web", 0, 0, mib)
	own, err := l.client.FindVM(t.Context(), identity3(l, "appliance"))
	if err != nil {
		t.Fatal(err)
	}
	web, err := l.client.FindVM(t.Context(), identity3(l, "web"))
	if err != nil {
		t.Fatal(err)
	}
	devices := t.TempDir()
	link := filepath.Join(devices, "wwn-0x"+strings.ToLower(strings.ReplaceAll(web.Disks[0].UUID, "-", "")))
	hotadd := func(q *BackupVMsRequest) {
		q.Transports.Only = "hotadd"
		q.Transports.Proxy = HotAddProxy{UUID: swapped(own.BIOSUUID), Devices: devices}
	}
	stop := make(chan struct{})
	done := make(chan struct{})
	go func() {
		defer close(done)
		for {
			select {
			case <-stop:
				return
			case <-time.After(5 * time.Millisecond): // the simulation tells nobody of disks
			}
			if l.sim.VM("appliance").Disks() == 2 {
				_ = os.Symlink(filepath.Join(l.sim.DatastoreDir("datastore1"), "web", "web-flat.vmdk"), link)
			} else {
				_ = os.Remove(link)
			}
		}
	}()
	r, err := l.back(hotadd, "web")
	if err != nil || r.Transport != "hotadd" {
		t.Errorf("%v, %+v", err, r)
	}
	l.same(r.Point, "web")
	if n := l.sim.VM("appliance").Disks(); n != 1 {
		t.Errorf("%d disks at our own VM", n)
	}
	close(stop)
	<-done
	_ = os.Remove(link)

	// A process that died with the disk attached, found by the next one.
	dead, err := OpenState(l.state.dir)
	if err != nil {
		t.Fatal(err)
	}
	snap, err := dead.takeSnapshot(t.Context(), l.client, web, newJobID(), false)
	if err != nil {
		t.Fatal(err)
	}
	at, err := l.client.SnapshotVM(t.Context(), snap.ref)
	if err != nil {
		t.Fatal(err)
	}
	go func() {
		for l.sim.VM("appliance").Disks() != 2 {
			time.Sleep(time.Millisecond) // likewise
		}
		_ = os.WriteFile(link, nil, 0o600)
	}()
	if _, _, err := (hotAdder{dead, l.client, own, at.Disks[0], devices}).Attach(t.Context()); err != nil {
		t.Fatal(err)
	}
	dead.mark.drop()
	got, err := l.state.Reconcile(t.Context(), l.client, slog.New(slog.DiscardHandler))
	if err != nil || len(got) != 2 || got[0].Intent.Kind != IntentHotAdd || got[0].Problem != "" || got[1].Problem != "" {
		t.Errorf("%v, %+v", err, got)
	}
	if n := l.sim.VM("appliance").Disks(); n != 1 {
		t.Errorf("%d disks at our own VM after reconciling", n)
	}
	l.same(r.Point, "web")
	l.clean()
}

func TestSwappedUUIDs(t *testing.T) {
	if got := swapped("564d1234-5678-9abc-def0-123456789abc"); got != "34124d56-7856-bc9a-def0-123456789abc" || swapped(got) != "564d1234-5678-9abc-def0-123456789abc" {
		t.Error(got)
	}
	inv := &vsphere.Inventory{VMs: []vsphere.VM{{Name: "a", BIOSUUID: "34124D56-7856-bc9a-def0-123456789abc"}}}
	if vm := (HotAddProxy{UUID: "564d1234-5678-9abc-def0-123456789abc"}).find(inv); vm == nil {
		t.Error("not found by the other order")
	}
	if vm := (HotAddProxy{UUID: "x"}).find(inv); vm != nil {
		t.Error("found by nonsense")
	}
}
