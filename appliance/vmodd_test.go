package appliance

import (
	"bytes"
	"encoding/json"
	"errors"
	"slices"
	"strings"
	"testing"

	"github.com/vmware/govmomi/vim25/types"

	"lifeboat/internal/esxsim"
	"lifeboat/store"
	"lifeboat/vsphere"
)

// TestBackupVMOddMachines has VMs of every odd kind, and wants each to be backed
// up twice: in full, and then what changed.
func TestBackupVMOddMachines(t *testing.T) {
	t.Parallel()
	many := tracked("sixteen disks")
	for bus := range 4 {
		for range 4 {
			many.Disks = append(many.Disks, esxsim.DiskSpec{Size: mib, Controller: []string{"pvscsi", "lsilogic", "lsisas1068", "pvscsi"}[bus], Bus: bus})
		}
	}
	efi := tracked("efi", 2*mib)
	efi.Firmware, efi.SecureBoot, efi.NVRAM = "efi", true, []byte("boot order and keys")
	off := tracked("off", 2*mib)
	off.PowerOn = false
	suspended := tracked("suspended", 2*mib)
	suspended.PowerOn, suspended.Suspended = false, true
	mute := tracked("no tools", 2*mib)
	mute.Tools = false
	l := newVMLab(t, esxsim.Options{VMs: []esxsim.VMSpec{
		many, efi, off, suspended, mute, tracked("Prod / db%2f #1", 2*mib), tracked("naïve ☃ 雪", 2*mib), tracked(`back\slash`, 2*mib),
	}})
	for name, c := range map[string]struct {
		consistency store.Consistency
		note        string
		check       func(*store.Point)
	}{
		"sixteen disks": {store.FileSystemConsistent, "", func(pt *store.Point) {
			if len(pt.Disks) != 16 {
				t.Errorf("%d disks", len(pt.Disks))
			}
		}},
		"efi": {store.FileSystemConsistent, "", func(pt *store.Point) {
			saved, err := readConfig(t.Context(), l.repo, pt)
			if err != nil || string(saved.nvram) != "boot order and keys" || saved.vm == nil || !saved.vm.SecureBoot || !bytes.Contains(saved.vmx, []byte("efi")) {
				t.Errorf("%+v, %v", saved, err)
			}
		}},
		"off": {store.CrashConsistent, "", func(pt *store.Point) {
			if pt.Labels["power"] != "off" {
				t.Errorf("labels %v", pt.Labels)
			}
		}},
		"suspended":       {store.CrashConsistent, "its memory is not in the backup", nil},
		"no tools":        {store.CrashConsistent, "VMware Tools do not run", nil},
		"Prod / db%2f #1": {store.FileSystemConsistent, "", nil},
		"naïve ☃ 雪":       {store.FileSystemConsistent, "", nil},
		`back\slash`:      {store.FileSystemConsistent, "", nil},
	} {
		l.write(name, 0, 4096, 50_000)
		r := l.good(name, readAllocated)
		if r.Consistency != c.consistency || !says(append(r.Notes, ""), c.note) {
			t.Errorf("%s: %s, notes %q", name, r.Consistency, r.Notes)
		}
		pt, err := l.repo.Point(t.Context(), r.Point)
		if err != nil || pt.VM != name || pt.VMID != r.ID {
			t.Errorf("%s: %+v, %v", name, pt, err)
		}
		if c.check != nil {
			c.check(pt)
		}
		l.write(name, 0, 512<<10, 1000)
		l.good(name, readChanged)
	}
}

// TestBackupVMKeepsTheConfiguration wants in the point what a recovery needs.
func TestBackupVMKeepsTheConfiguration(t *testing.T) {
	t.Parallel()
	spec := tracked("app", 2*mib)
	spec.Folder, spec.Annotation = "Prod/Web", "owned by nobody"
	l := newVMLab(t, esxsim.Options{VMs: []esxsim.VMSpec{spec}})
	r := l.good("app", "")
	pt, err := l.repo.Point(t.Context(), r.Point)
	if err != nil {
		t.Fatal(err)
	}
	data, err := l.repo.Config(t.Context(), pt, configFileVM)
	if err != nil {
		t.Fatal(err)
	}
	var doc struct {
		VM vsphere.VM `json:"vm"`
	}
	if err := json.Unmarshal(data, &doc); err != nil {
		t.Fatal(err)
	}
	vm := doc.VM
	if vm.Name != "app" || vm.Folder != "Prod/Web" || vm.Annotation != "owned by nobody" || len(vm.NICs) != 1 || len(vm.Disks) != 1 || len(vm.Config) == 0 || vm.Identity.String() != pt.VMID {
		t.Errorf("%+v", vm)
	}
	saved, err := readSavedDisks(t.Context(), l.repo, pt)
	if err != nil || saved == nil || len(saved.Disks) != 1 || saved.Disks[0].ChangeID == "" || saved.Disks[0].UUID == "" || saved.Disks[0].Controller.Type == "" {
		t.Errorf("%+v, %v", saved, err)
	}
	if pt.Labels["transport"] != "folder" || pt.Labels["folder"] != "Prod/Web" || pt.Labels["vcenter"] == "" {
		t.Errorf("labels %v", pt.Labels)
	}
}

// TestBackupVMNamesWhatItLeavesOut: independent disks and physical raw device
// mappings are in no snapshot.
func TestBackupVMNamesWhatItLeavesOut(t *testing.T) {
	t.Parallel()
	spec := tracked("mixed", 2*mib)
	spec.Disks = append(spec.Disks, esxsim.DiskSpec{Size: mib, Mode: "independent_persistent"}, esxsim.DiskSpec{Size: mib, RDM: "physical"}, esxsim.DiskSpec{Size: mib, RDM: "virtual"})
	alone := tracked("only independent")
	alone.Disks = []esxsim.DiskSpec{{Size: mib, Mode: "independent_persistent"}}
	l := newVMLab(t, esxsim.Options{VMs: []esxsim.VMSpec{spec, alone}})
	r, err := l.back(nil, "mixed")
	if !errors.Is(err, ErrPartial) || r.Status != StatusWarning || len(r.Warnings) != 2 || !says(r.Warnings, "independent") || !says(r.Warnings, "raw device mapping") {
		t.Errorf("%v, %+v", err, r)
	}
	var how []string
	for _, d := range r.Disks {
		how = append(how, d.How)
	}
	if slices.Sort(how); !slices.Equal(how, []string{readAllocated, readAllocated, "left out", "left out"}) {
		t.Errorf("%v", how)
	}
	if r, err := l.back(nil, "only independent"); !errors.Is(err, ErrPartial) || r.Status != StatusSkipped {
		t.Errorf("%v, %+v", err, r)
	}
	excluded, err := l.back(func(q *BackupVMsRequest) { q.ExcludeDisks = []string{"Hard disk 2", "Hard disk 3", "Hard disk 4"} }, "mixed")
	if err != nil || excluded.Status != StatusDone || len(excluded.Notes) < 3 {
		t.Errorf("what was asked for is no warning: %v, %+v", err, excluded)
	}
	l.clean()
}

// TestBackupVMTemplate: a template has no snapshots; its files are read as they are.
func TestBackupVMTemplate(t *testing.T) {
	t.Parallel()
	l := newVMLab(t, esxsim.Options{VMs: []esxsim.VMSpec{{Name: "golden", Template: true, Disks: []esxsim.DiskSpec{{Size: 4 * mib}}}}})
	r := l.good("golden", "")
	if n := l.sim.Calls()["CreateSnapshot_Task"]; n != 0 {
		t.Errorf("%d snapshots of a template", n)
	}
	if r := l.good("golden", ""); r.NewBytes > 128<<10 { // its configuration
		t.Errorf("new bytes in a template that did not change: %+v", r)
	}
	if pt, err := l.repo.Point(t.Context(), r.Point); err != nil || pt.Labels["template"] != "yes" {
		t.Errorf("%v, %v", pt, err)
	}
}

// TestBackupVMLeavesSnapshotsOfPersonsAlone, and goes on incrementally around them.
func TestBackupVMLeavesSnapshotsOfPersonsAlone(t *testing.T) {
	t.Parallel()
	l := newVMLab(t, esxsim.Options{VMs: []esxsim.VMSpec{tracked("web", 4*mib)}})
	l.write("web", 0, 0, 100_000)
	l.good("web", readAllocated)
	admin := l.admin("web")
	l.wait(admin.CreateSnapshot(t.Context(), "before the update", "mine", false, false))
	l.wait(admin.CreateSnapshot(t.Context(), "lifeboat-0123456789abcdef", "also mine, whatever it is called", false, false))
	l.write("web", 0, mib, 100_000)
	r, err := l.back(nil, "web")
	if err != nil || r.Status != StatusDone {
		t.Fatalf("%v, %+v", err, r)
	}
	l.same(r.Point, "web")
	if got := l.sim.VM("web").Snapshots(); !slices.Equal(got, []string{"before the update", "lifeboat-0123456789abcdef"}) {
		t.Errorf("snapshots %q", got)
	}
	t.Logf("read %s through %s: %+v", r.Disks[0].How, r.Transport, r)
}

// TestBackupVMTrackingOnTheWay: tracking is switched on, and said; while a person's
// snapshot keeps it from that, the VM is read whole.
func TestBackupVMTrackingOnTheWay(t *testing.T) {
	t.Parallel()
	fresh := tracked("fresh", 4*mib)
	fresh.CBT = false
	held := fresh
	held.Name = "held"
	l := newVMLab(t, esxsim.Options{VMs: []esxsim.VMSpec{fresh, held}})
	l.write("fresh", 0, 0, 100_000)
	if r := l.good("fresh", ""); !says(r.Notes, "is now on") {
		t.Errorf("notes %q", r.Notes)
	}
	l.write("fresh", 0, 2*mib, 1000)
	l.good("fresh", readChanged)

	l.wait(l.admin("held").CreateSnapshot(t.Context(), "a person's", "", false, false))
	r, err := l.back(nil, "held")
	if err != nil || !says(r.Notes, "cannot be switched on while the VM has snapshots") || r.Disks[0].How != readWhole {
		t.Errorf("%v, %+v", err, r)
	}
}

// TestBackupVMLinkedClone: its disks are deltas on another VM's.
func TestBackupVMLinkedClone(t *testing.T) {
	t.Parallel()
	base, clone := tracked("base", 4*mib), tracked("clone")
	clone.LinkedFrom = "base"
	l := newVMLab(t, esxsim.Options{VMs: []esxsim.VMSpec{base, clone}})
	l.write("clone", 0, mib, 100_000)
	r, err := l.back(nil, "clone")
	if err != nil {
		t.Fatalf("%v, %+v", err, r)
	}
	l.same(r.Point, "clone")
	t.Logf("read %s through %s", r.Disks[0].How, r.Transport)
}

// TestBackupVMWhenDisksChange: whatever happens to a VM's disks between two
// backups, the second is right and the history goes on.
func TestBackupVMWhenDisksChange(t *testing.T) {
	t.Parallel()
	for name, c := range map[string]struct {
		change func(l *vmLab)
		how    string
		says   string
	}{
		"grown": {func(l *vmLab) {
			d := l.device("vm", 0)
			d.CapacityInBytes, d.CapacityInKB = 6*mib, 6*mib/1024
			l.wait(l.admin("vm").Reconfigure(l.t.Context(), types.VirtualMachineConfigSpec{
				DeviceChange: []types.BaseVirtualDeviceConfigSpec{&types.VirtualDeviceConfigSpec{Operation: types.VirtualDeviceConfigSpecOperationEdit, Device: d}},
			}))
			l.write("vm", 0, 5*mib, 1000)
		}, "", "size changed"},
		"reverted": {func(l *vmLab) {
			admin := l.admin("vm")
			l.wait(admin.RevertToSnapshot(l.t.Context(), "a person's", true))
			l.write("vm", 0, 100, 100)
		}, "", ""},
		"tracking reset": {func(l *vmLab) {
			no, yes := false, true
			admin := l.admin("vm")
			l.wait(admin.RemoveAllSnapshot(l.t.Context(), nil))
			l.wait(admin.Reconfigure(l.t.Context(), types.VirtualMachineConfigSpec{ChangeTrackingEnabled: &no}))
			l.wait(admin.CreateSnapshot(l.t.Context(), "stun", "", false, false))
			l.wait(admin.RemoveAllSnapshot(l.t.Context(), nil))
			l.wait(admin.Reconfigure(l.t.Context(), types.VirtualMachineConfigSpec{ChangeTrackingEnabled: &yes}))
			l.write("vm", 0, 3*mib, 1000)
		}, "", "was read in full"},
	} {
		t.Run(name, func(t *testing.T) {
			t.Parallel()
			l := newVMLab(t, esxsim.Options{VMs: []esxsim.VMSpec{tracked("vm", 4*mib)}})
			l.write("vm", 0, 0, 300_000)
			if name == "reverted" {
				l.wait(l.admin("vm").CreateSnapshot(t.Context(), "a person's", "", false, false))
				l.write("vm", 0, mib, 300_000)
			}
			first, err := l.back(nil, "vm")
			if err != nil {
				t.Fatal(err)
			}
			if name == "grown" { // a disk with snapshots cannot grow
				l.clean()
			}
			c.change(l)
			r, err := l.back(nil, "vm")
			if err != nil || c.how != "" && r.Disks[0].How != c.how || c.says != "" && !says(append(r.Notes, r.Warnings...), c.says) {
				t.Errorf("%v, %+v", err, r)
			}
			l.same(r.Point, "vm")
			a, err1 := l.repo.Point(t.Context(), first.Point)
			b, err2 := l.repo.Point(t.Context(), r.Point)
			if err1 != nil || err2 != nil || a.VMID != b.VMID || b.Parent != a.ID {
				t.Errorf("%v, %v: %+v, %+v", err1, err2, a, b)
			}
		})
	}
}

// TestBackupVMKnowsAVMByWhoItIs: another name, another reference, and another VM
// under the old name.
func TestBackupVMKnowsAVMByWhoItIs(t *testing.T) {
	t.Parallel()
	l := newVMLab(t, esxsim.Options{VMs: []esxsim.VMSpec{tracked("web", 4*mib), tracked("other", 4*mib)}})
	l.write("web", 0, 0, 100_000)
	l.write("other", 0, 0, 200_000)
	first := l.good("web", readAllocated)
	l.wait(l.admin("web").Rename(t.Context(), "web-old"))
	l.wait(l.admin("other").Rename(t.Context(), "web"))
	l.write("web-old", 0, mib, 1000)
	r := l.good("web-old", readChanged)
	if r.ID != first.ID || !says(r.Notes, `called "web" before`) {
		t.Errorf("%+v", r)
	}
	if r := l.good("web", readAllocated); r.ID == first.ID {
		t.Errorf("another VM's history was taken for its own: %+v", r)
	}
	// Registered again, a VM has another reference.
	vm, err := l.client.FindVM(t.Context(), identity2(t, first.ID))
	if err != nil {
		t.Fatal(err)
	}
	if err := l.client.PowerOff(t.Context(), vm.Ref); err != nil {
		t.Fatal(err)
	}
	if err := l.client.Unregister(t.Context(), vm.Ref); err != nil {
		t.Fatal(err)
	}
	ref, err := l.client.RegisterVM(t.Context(), vsphere.RegisterSpec{Path: vm.VMX, Name: "web-new", Host: vm.HostRef, Folder: vm.FolderRef, Pool: vm.PoolRef})
	if err != nil {
		t.Fatal(err)
	}
	if ref == vm.Ref {
		t.Error("the same reference: this proves nothing")
	}
	r, err = l.back(nil, "web-new")
	if err != nil || r.ID != first.ID {
		t.Errorf("%v, %+v", err, r)
	}
	l.same(r.Point, "web-new")
}

func identity2(t *testing.T, s string) vsphere.Identity {
	t.Helper()
	id, err := vsphere.ParseIdentity(s)
	if err != nil {
		t.Fatal(err)
	}
	return id
}

func TestBackupVMDisksComeAndGo(t *testing.T) {
	t.Parallel()
	l := newVMLab(t, esxsim.Options{VMs: []esxsim.VMSpec{tracked("vm", 2*mib, 2*mib)}})
	l.write("vm", 0, 0, 1000)
	l.write("vm", 1, 0, 1000)
	l.good("vm", readAllocated)
	ref := vsphere.Ref(l.sim.VM("vm").Ref())
	if err := l.client.DetachDisk(t.Context(), ref, l.sim.VM("vm").DiskKey(1), true); err != nil {
		t.Fatal(err)
	}
	if r := l.good("vm", readChanged); !says(r.Notes, "not there any more") || len(r.Disks) != 1 {
		t.Errorf("%+v", r)
	}
	if _, err := l.client.CreateDisk(t.Context(), ref, vsphere.DiskSpec{Size: 3 * mib, Thin: true}); err != nil {
		t.Fatal(err)
	}
	l.write("vm", 1, mib, 1000)
	r := l.good("vm", "")
	if !says(r.Notes, "is new") || len(r.Disks) != 2 || r.Disks[0].How != readChanged {
		t.Errorf("%+v", r)
	}
}

func TestBackupVMSelection(t *testing.T) {
	t.Parallel()
	specs := []esxsim.VMSpec{tracked("web1", mib), tracked("web2", mib), tracked("db1", mib), tracked("run", mib), tracked("moved", mib)}
	specs[0].Folder, specs[1].Folder, specs[2].Tags = "Prod/Web", "Prod/Web", []string{"gold"}
	// Marks of sessions: one VM runs from a Lifeboat, the other is somewhere else by now.
	specs[3].Extra, specs[4].Extra = map[string]string{extraSession: "s1"}, map[string]string{extraSession: "s2"}
	specs[3].Disks[0].Datastore = "lifeboat-00000000"
	l := newVMLab(t, esxsim.Options{VMs: specs, Datastores: []string{"datastore1", "datastore2", "lifeboat-00000000"}})
	for want, change := range map[string]func(*BackupVMsRequest){
		"db1 moved web1 web2": func(q *BackupVMsRequest) { q.All = true },
		"db1 moved web2":      func(q *BackupVMsRequest) { q.All, q.Exclude = true, []string{"web1"} },
		"web1 web2":           func(q *BackupVMsRequest) { q.Patterns = []string{"folder:Prod"} },
		"db1":                 func(q *BackupVMsRequest) { q.Patterns = []string{"tag:gold"} },
		"run":                 func(q *BackupVMsRequest) { q.Patterns = []string{"run"} },
		"web1":                func(q *BackupVMsRequest) { q.Patterns = []string{"Prod/Web/*", "web1"}; q.Exclude = []string{"web2"} },
	} {
		var q BackupVMsRequest
		change(&q)
		vms, err := SelectVMs(t.Context(), l.client, q)
		var names []string
		for _, vm := range vms {
			names = append(names, vm.Name)
		}
		slices.Sort(names)
		if got := strings.Join(names, " "); err != nil || got != want {
			t.Errorf("%q, want %q: %v", got, want, err)
		}
	}
	for name, c := range map[string]struct {
		req  BackupVMsRequest
		want error
	}{
		"nothing":     {BackupVMsRequest{}, ErrUsage},
		"both":        {BackupVMsRequest{All: true, Patterns: []string{"x"}}, ErrUsage},
		"nobody":      {BackupVMsRequest{Patterns: []string{"mail*"}}, ErrNotFound},
		"all but all": {BackupVMsRequest{All: true, Exclude: []string{"*"}}, ErrNotFound},
	} {
		if _, err := SelectVMs(t.Context(), l.client, c.req); !errors.Is(err, c.want) {
			t.Errorf("%s: %v", name, err)
		}
	}
	report, err := l.backAll(nil, "web*", "db1")
	if err != nil || len(report.VMs) != 3 {
		t.Fatalf("%v, %+v", err, report)
	}
	for _, r := range report.VMs {
		if r.Status != StatusDone {
			t.Errorf("%+v", r)
		}
		l.same(r.Point, r.VM)
	}
	l.clean()
}
