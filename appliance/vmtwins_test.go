package appliance

import (
	"strings"
	"testing"

	"github.com/vmware/govmomi/vim25/types"

	"lifeboat/internal/esxsim"
)

// TestBackupVMTwins: of two VMs that nothing tells apart none is backed up, or one
// would get the other's history.
func TestBackupVMTwins(t *testing.T) {
	t.Parallel()
	l := newVMLab(t, esxsim.Options{VMs: []esxsim.VMSpec{tracked("web", mib), tracked("copy", mib), tracked("db", mib)}})
	l.wait(l.admin("copy").Reconfigure(t.Context(), types.VirtualMachineConfigSpec{InstanceUuid: identity3(l, "web").VM}))
	report, err := l.backAll(func(q *BackupVMsRequest) { q.All, q.Patterns = true, nil })
	if err == nil || len(report.VMs) != 3 {
		t.Fatalf("%v, %+v", err, report)
	}
	for _, r := range report.VMs {
		if twin := r.VM != "db"; twin != (r.Status == StatusFailed) || twin && !strings.Contains(r.Error, "same instanceUuid") {
			t.Errorf("%+v", r)
		}
	}
	l.clean()
}

// TestHotAddThatFailedLate: the disk was attached, and the news of it was an error.
// It must be gone before another transport, and the snapshot's end, have their turn.
func TestHotAddThatFailedLate(t *testing.T) {
	t.Parallel()
	l := newVMLab(t, esxsim.Options{VMs: []esxsim.VMSpec{tracked("web", mib), tracked("appliance", mib)}})
	own, err := l.client.FindVM(t.Context(), identity3(l, "appliance"))
	if err != nil {
		t.Fatal(err)
	}
	l.sim.FailTaskLate("ReconfigVM_Task", 1, nil)
	r, err := l.back(func(q *BackupVMsRequest) {
		q.Transports.Proxy = HotAddProxy{UUID: own.BIOSUUID, Devices: t.TempDir()}
	}, "web")
	if err != nil || r.Transport != "folder" {
		t.Errorf("%v, %+v", err, r)
	}
	if n := l.sim.VM("appliance").Disks(); n != 1 {
		t.Errorf("%d disks at our own VM", n)
	}
	l.clean()
}
