package appliance

import (
	"testing"

	"lifeboat/internal/esxsim"
	"lifeboat/store"
)

func TestBackupVMFullThenIncremental(t *testing.T) {
	t.Parallel()
	l := newVMLab(t, esxsim.Options{VMs: []esxsim.VMSpec{tracked("web", 16*mib, 8*mib)}})
	l.write("web", 0, mib, 300_000)
	l.write("web", 1, 2*mib, 100_000)
	first := l.good("web", readAllocated)
	if first.Consistency != store.FileSystemConsistent || first.Transport != "folder" {
		t.Errorf("%+v", first)
	}
	l.write("web", 0, 9*mib, 70_000)
	second := l.good("web", readChanged)
	if second.ReadBytes == 0 || second.ReadBytes > 2*mib {
		t.Errorf("%d bytes were read for 70,000 that changed", second.ReadBytes)
	}
	unchanged := l.good("web", readChanged)
	if unchanged.ReadBytes != 0 {
		t.Errorf("%d bytes were read although nothing changed", unchanged.ReadBytes)
	}
	if unchanged.Calls > 25 || unchanged.Calls == 0 {
		t.Errorf("%d calls to the vCenter for a VM that did not change", unchanged.Calls)
	}
	t.Logf("calls: first %d, changed %d, unchanged %d; in all %v", first.Calls, second.Calls, unchanged.Calls, l.client.CallsByMethod())
}
