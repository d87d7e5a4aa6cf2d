package appliance

import (
	"bytes"
	"context"
	"encoding/binary"
	"errors"
	"io"
	"log/slog"
	"sync"
	"sync/atomic"
	"syscall"
	"testing"

	"lifeboat/internal/esxsim"
	"lifeboat/store"
	"lifeboat/store/backend"
	"lifeboat/vsphere"
)

// once calls f when the first disk is about to be read.
func once(f func()) func(*BackupVMsRequest) {
	var only sync.Once
	return func(q *BackupVMsRequest) {
		q.Started = func(string, string, int64) func(store.Progress) {
			only.Do(f)
			return nil
		}
	}
}

func TestBackupVMQuiesceFailure(t *testing.T) {
	t.Parallel()
	l := newVMLab(t, esxsim.Options{VMs: []esxsim.VMSpec{tracked("db", 2*mib)}})
	if err := l.sim.QuiesceFails("db", true); err != nil {
		t.Fatal(err)
	}
	r, err := l.back(nil, "db")
	if !errors.Is(err, ErrPartial) || r.Status != StatusWarning || r.Consistency != store.CrashConsistent || !says(r.Warnings, "could not be brought to rest") {
		t.Errorf("%v, %+v", err, r)
	}
	pt, err := l.repo.Point(t.Context(), r.Point)
	if err != nil || pt.Consistency != store.CrashConsistent || pt.Labels["quiesce-error"] == "" {
		t.Errorf("%v, %+v", err, pt)
	}
	l.same(r.Point, "db")
	l.clean()
	quiet, err := l.back(func(q *BackupVMsRequest) { q.NoQuiesce = true }, "db")
	if err != nil || quiet.Consistency != store.CrashConsistent {
		t.Errorf("without asking the guest: %v, %+v", err, quiet)
	}
}

// TestBackupVMRemovalFailure: a host that refuses for a while is asked again; one
// that goes on refusing is said, and the next backup removes what was left.
func TestBackupVMRemovalFailure(t *testing.T) {
	t.Parallel()
	l := newVMLab(t, esxsim.Options{VMs: []esxsim.VMSpec{tracked("web", 2*mib)}})
	l.sim.FailTask("RemoveSnapshot_Task", 2, "TaskInProgress")
	l.good("web", "")
	l.sim.FailTask("RemoveSnapshot_Task", -1, "TaskInProgress")
	r, err := l.back(nil, "web")
	if !errors.Is(err, ErrPartial) || r.Point == "" || r.Status != StatusWarning || !says(r.Warnings, "may still be there") {
		t.Errorf("%v, %+v", err, r)
	}
	l.same(r.Point, "web")
	if n := len(l.sim.VM("web").Snapshots()); n != 1 {
		t.Fatalf("%d snapshots: the failure was none", n)
	}
	l.sim.ClearFaults()
	done, err := l.state.Reconcile(t.Context(), l.client, slog.New(slog.DiscardHandler))
	if err != nil || len(done) != 1 || done[0].Problem != "" {
		t.Errorf("%v, %+v", err, done)
	}
	l.clean()

	// The journal is lost, with everything in the state directory but who we are.
	l.sim.FailTask("RemoveSnapshot_Task", -1, nil)
	if _, err := l.back(nil, "web"); !errors.Is(err, ErrPartial) {
		t.Fatal(err)
	}
	l.sim.ClearFaults()
	all, err := l.state.intents()
	if err != nil || len(all) != 1 {
		t.Fatalf("%v, %v", all, err)
	}
	if err := l.state.done(all[0].ID); err != nil {
		t.Fatal(err)
	}
	if r := l.good("web", ""); !says(r.Notes, "removed 1 snapshot that an earlier backup left") {
		t.Errorf("notes %q", r.Notes)
	}
}

// TestBackupVMConsolidates: a removal that leaves files behind is followed up.
func TestBackupVMConsolidates(t *testing.T) {
	t.Parallel()
	l := newVMLab(t, esxsim.Options{VMs: []esxsim.VMSpec{tracked("web", 2*mib)}})
	if err := l.sim.MergeFails("web", true); err != nil {
		t.Fatal(err)
	}
	r, err := l.back(once(func() { l.write("web", 0, 0, 1000) }), "web")
	if !errors.Is(err, ErrPartial) || r.Point == "" {
		t.Errorf("%v, %+v", err, r)
	}
	if err := l.sim.MergeFails("web", false); err != nil {
		t.Fatal(err)
	}
	if _, err := l.state.Reconcile(t.Context(), l.client, slog.New(slog.DiscardHandler)); err != nil {
		t.Fatal(err)
	}
	vm, err := l.client.FindVM(t.Context(), identity2(t, r.ID))
	if err != nil || vm.ConsolidationNeeded {
		t.Errorf("%v, %+v", err, vm)
	}
	l.clean()
}

// TestBackupVMInterrupted: whoever presses Ctrl-C leaves nothing on the vSphere.
func TestBackupVMInterrupted(t *testing.T) {
	t.Parallel()
	l := newVMLab(t, esxsim.Options{VMs: []esxsim.VMSpec{tracked("web", 2*mib), tracked("db", 2*mib)}})
	ctx, cancel := context.WithCancel(t.Context())
	req := BackupVMsRequest{All: true, Logger: slog.New(slog.DiscardHandler)}
	once(cancel)(&req)
	report, err := l.state.BackupVMs(ctx, l.repo, l.client, req)
	if !errors.Is(err, context.Canceled) {
		t.Errorf("%v, %+v", err, report)
	}
	if pts, err := l.repo.Points(t.Context()); err != nil || len(pts) != 0 {
		t.Errorf("%v, %v", pts, err)
	}
	if l.sim.Calls()["CreateSnapshot_Task"] == 0 {
		t.Error("it was interrupted before it began: this proves nothing")
	}
	l.clean()
}

// TestBackupVMFullRepository: no room is an error of the VM, and nothing is left.
func TestBackupVMFullRepository(t *testing.T) {
	t.Parallel()
	l := newVMLab(t, esxsim.Options{VMs: []esxsim.VMSpec{tracked("web", 8*mib)}})
	l.write("web", 0, 0, 4*mib)
	b, err := OpenBackend(t.Context(), l.url, nil)
	if err != nil {
		t.Fatal(err)
	}
	small := &fullBackend{Backend: b, room: 2 * mib}
	l.repo, err = store.Open(t.Context(), small, []byte("pw"), store.Options{Logger: slog.New(slog.DiscardHandler)})
	if err != nil {
		t.Fatal(err)
	}
	defer l.repo.Close()
	if _, err := l.back(nil, "web"); !errors.Is(err, syscall.ENOSPC) {
		t.Errorf("%v", err)
	}
	l.clean()
}

// fullBackend has room for so many more bytes.
type fullBackend struct {
	backend.Backend
	room int64
	mu   sync.Mutex
}

func (f *fullBackend) Create(ctx context.Context, name string, mode backend.Mode) (backend.Writer, error) {
	w, err := f.Backend.Create(ctx, name, mode)
	if err != nil {
		return nil, err
	}
	return &fullWriter{w, f}, nil
}

type fullWriter struct {
	backend.Writer
	f *fullBackend
}

func (w *fullWriter) Write(p []byte) (int, error) {
	w.f.mu.Lock()
	defer w.f.mu.Unlock()
	if w.f.room -= int64(len(p)); w.f.room < 0 {
		return 0, syscall.ENOSPC
	}
	return w.Writer.Write(p)
}

var _ io.Writer = (*fullWriter)(nil)

// TestBackupVMThroughARestart: the vCenter is started anew in the middle.
func TestBackupVMThroughARestart(t *testing.T) {
	t.Parallel()
	l := newVMLab(t, esxsim.Options{VMs: []esxsim.VMSpec{tracked("web", 16*mib)}})
	l.write("web", 0, 0, 12*mib)
	var restarted error
	r, err := l.back(once(func() { restarted = l.sim.Restart() }), "web")
	if restarted != nil {
		t.Fatal(restarted)
	}
	if err != nil {
		t.Fatalf("%v, %+v", err, r)
	}
	l.same(r.Point, "web")
	l.clean()
}

// TestBackupVMCertificateChange: a server with another certificate is not believed
// to be the same. What could not be removed there is, once a person has said so.
func TestBackupVMCertificateChange(t *testing.T) {
	t.Parallel()
	l := newVMLab(t, esxsim.Options{VMs: []esxsim.VMSpec{tracked("web", 16*mib)}})
	l.write("web", 0, 0, 12*mib)
	var rotated error
	_, err := l.back(once(func() { rotated = errors.Join(l.sim.RotateCertificate(), l.sim.Restart()) }), "web")
	if rotated != nil {
		t.Fatal(rotated)
	}
	if !errors.Is(err, vsphere.ErrCertificate) {
		t.Errorf("%v", err)
	}
	if all, err := l.state.intents(); err != nil || len(all) != 1 || !all[0].abandoned() {
		t.Errorf("the journal has %v, %v", all, err)
	}
	l.client = l.dial()
	if done, err := l.state.Reconcile(t.Context(), l.client, slog.New(slog.DiscardHandler)); err != nil || len(done) != 1 {
		t.Errorf("%v, %v", done, err)
	}
	l.clean()
	l.good("web", "")
}

// TestBackupVMTwoAppliances protect the same VM at the same time, and neither
// touches the other's snapshot.
func TestBackupVMTwoAppliances(t *testing.T) {
	t.Parallel()
	l := newVMLab(t, esxsim.Options{VMs: []esxsim.VMSpec{tracked("web", 4*mib)}})
	l.write("web", 0, 0, mib)
	other := *l
	other.state, other.client = openTestState(t), l.dial()
	var inner *VMResult
	var innerErr error
	outer, err := l.back(once(func() {
		if n := len(l.sim.VM("web").Snapshots()); n != 1 {
			t.Errorf("%d snapshots", n)
		}
		inner, innerErr = other.back(nil, "web")
		if n := len(l.sim.VM("web").Snapshots()); n != 1 {
			t.Errorf("%d snapshots after the other one was done", n)
		}
	}), "web")
	if err != nil || innerErr != nil {
		t.Fatalf("%v, %v", err, innerErr)
	}
	l.same(outer.Point, "web")
	l.same(inner.Point, "web")
	l.clean()
	other.clean()
	// The same appliance twice is another matter.
	var busy error
	if _, err := l.back(once(func() { _, busy = l.back(nil, "web") }), "web"); err != nil || !errors.Is(busy, ErrBusy) {
		t.Errorf("%v, %v", err, busy)
	}
	l.clean()
}

// TestBackupVMAuditCatchesLies: tracking that leaves changes out makes points
// wrong. Only the audit can know; it says so, and from then on all is read.
func TestBackupVMAuditCatchesLies(t *testing.T) {
	t.Parallel()
	l := newVMLab(t, esxsim.Options{VMs: []esxsim.VMSpec{tracked("web", 4*mib)}})
	l.write("web", 0, 0, mib)
	audit := func(q *BackupVMsRequest) { q.AuditEvery = 2 }
	if _, err := l.back(audit, "web"); err != nil {
		t.Fatal(err)
	}
	l.write("web", 0, 2*mib, 1000)
	if r, err := l.back(audit, "web"); err != nil || r.Disks[0].Audited {
		t.Fatalf("%v, %+v", err, r)
	}
	l.write("web", 0, 3*mib, 1000)
	if r, err := l.back(audit, "web"); err != nil || !r.Disks[0].Audited || r.Disks[0].Missed != 0 {
		t.Fatalf("an audit with nothing to find: %v, %+v", err, r)
	}
	if err := l.sim.LieCBT("web", 0, true); err != nil {
		t.Fatal(err)
	}
	l.write("web", 0, mib, 100_000)
	r, err := l.back(audit, "web")
	if err != nil {
		t.Fatal(err)
	}
	if l.difference(r.Point, "web") == "" {
		t.Fatal("the lie had no effect: this proves nothing")
	}
	r, err = l.back(audit, "web")
	if !errors.Is(err, ErrPartial) || !r.Disks[0].Audited || r.Disks[0].Missed == 0 || !says(r.Warnings, "has missed") {
		t.Errorf("the audit: %v, %+v", err, r)
	}
	l.same(r.Point, "web")
	for range 3 {
		l.write("web", 0, mib, 50_000)
		r, err = l.back(audit, "web")
		if !errors.Is(err, ErrPartial) || r.Disks[0].How == readChanged {
			t.Errorf("after it was caught: %v, %+v", err, r)
		}
		l.same(r.Point, "web")
	}
	l.clean()
}

// TestBackupVMCorruptedReadIsSeen proves the tests: what is read wrong makes a
// point that is not what the guest has.
func TestBackupVMCorruptedReadIsSeen(t *testing.T) {
	t.Parallel()
	l := newVMLab(t, esxsim.Options{VMs: []esxsim.VMSpec{tracked("web", 2*mib)}})
	l.write("web", 0, 0, mib)
	if err := l.sim.CorruptRead("web", 0, 12345); err != nil {
		t.Fatal(err)
	}
	r, err := l.back(nil, "web")
	if err != nil {
		t.Fatal(err)
	}
	if l.difference(r.Point, "web") == "" {
		t.Error("a corrupted read was not seen")
	}
}

func TestBackupVMRefusals(t *testing.T) {
	t.Parallel()
	l := newVMLab(t, esxsim.Options{VMs: []esxsim.VMSpec{tracked("web", 2*mib), tracked("db", 2*mib)}})
	bad := l.options()
	bad.Password = "wrong"
	if _, err := vsphere.Dial(t.Context(), bad); !errors.Is(err, vsphere.ErrCredentials) {
		t.Errorf("wrong password: %v", err)
	}
	vm, err := l.client.FindVM(t.Context(), identity3(l, "db"))
	if err != nil {
		t.Fatal(err)
	}
	if err := l.sim.DisconnectHost(vm.Host); err != nil {
		t.Fatal(err)
	}
	report, err := l.backAll(nil, "web", "db")
	if !errors.Is(err, ErrPartial) || len(report.VMs) != 2 {
		t.Fatalf("%v, %+v", err, report)
	}
	for _, r := range report.VMs {
		if want := map[string]VMStatus{"web": StatusDone, "db": StatusFailed}[r.VM]; r.Status != want {
			t.Errorf("%s: %+v", r.VM, r)
		}
	}
	l.clean()
}

func identity3(l *vmLab, vm string) vsphere.Identity {
	vc, id := l.sim.VM(vm).Identity()
	return vsphere.Identity{VCenter: vc, VM: id}
}

// TestBackupVMSnapshotTaskFailures: whatever way the snapshot fails, nothing is
// left, and a call whose outcome is not known is looked after.
func TestBackupVMSnapshotTaskFailures(t *testing.T) {
	t.Parallel()
	l := newVMLab(t, esxsim.Options{VMs: []esxsim.VMSpec{tracked("web", 2*mib)}})
	for name, fail := range map[string]func(){
		"refused":      func() { l.sim.Fail("CreateSnapshot_Task", 1, "InvalidState") },
		"task failed":  func() { l.sim.FailTask("CreateSnapshot_Task", 1, "NoDiskSpace") },
		"failed late":  func() { l.sim.FailTaskLate("CreateSnapshot_Task", 1, "SystemError") },
		"no areas":     func() { l.sim.Fail("QueryChangedDiskAreas", 1, "SystemError") },
		"session lost": func() { l.sim.Fail("CreateSnapshot_Task", 1, "NotAuthenticated") },
	} {
		fail()
		r, err := l.back(nil, "web")
		t.Logf("%s: %v %v", name, err, r.Warnings)
		if (err == nil) != (name == "session lost" || name == "no areas") && !errors.Is(err, ErrPartial) && r.Status != StatusFailed {
			t.Errorf("%s: %v, %+v", name, err, r)
		}
		l.sim.ClearFaults()
		l.clean()
	}
}

// TestBackupVMLeavesSwapOut, and brings it back when it is not swap any more.
func TestBackupVMLeavesSwapOut(t *testing.T) {
	t.Parallel()
	l := newVMLab(t, esxsim.Options{VMs: []esxsim.VMSpec{tracked("web", 16*mib)}})
	d := mbrDisk(16*mib, [2]int{mib, 4 * mib}, [2]int{6 * mib, 8 * mib})
	mkswap(d[6*mib:], 8*mib/swapPage)
	if err := l.sim.VM("web").WriteDisk(0, d, 0); err != nil {
		t.Fatal(err)
	}
	want := bytes.Clone(d)
	clear(want[6*mib+swapPage : 14*mib])
	check := func(r *VMResult, want []byte) {
		t.Helper()
		pt, err := l.repo.Point(t.Context(), r.Point)
		if err != nil {
			t.Fatal(err)
		}
		img, err := l.repo.OpenDisk(t.Context(), pt, 0)
		if err != nil {
			t.Fatal(err)
		}
		defer img.Close()
		got := make([]byte, len(want))
		if _, err := img.ReadAt(got, 0); err != nil {
			t.Fatal(err)
		}
		for i := range got {
			if got[i] != want[i] {
				t.Errorf("the point differs at %d", i)
				return
			}
		}
	}
	r, err := l.back(nil, "web")
	if err != nil || r.Disks[0].Swap != 8*mib-swapPage || r.ReadBytes > 9*mib {
		t.Errorf("%v, %+v", err, r)
	}
	check(r, want)
	l.write("web", 0, 8*mib, mib) // the guest swaps
	r, err = l.back(nil, "web")
	if err != nil || r.Disks[0].How != readChanged || r.ReadBytes != 0 {
		t.Errorf("%v, %+v", err, r)
	}
	check(r, want)
	// mkswap of half of it: what is behind is not swap space any more, and the
	// guest writes nothing there.
	var last [4]byte
	binary.LittleEndian.PutUint32(last[:], 4*mib/swapPage-1)
	if err := l.sim.VM("web").WriteDisk(0, last[:], 6*mib+swapLastPage); err != nil {
		t.Fatal(err)
	}
	if err := l.sim.VM("web").ReadDisk(0, want, 0); err != nil {
		t.Fatal(err)
	}
	clear(want[6*mib+swapPage : 10*mib])
	r, err = l.back(nil, "web")
	if err != nil || r.Disks[0].How != readChanged {
		t.Errorf("%v, %+v", err, r)
	}
	check(r, want)
	r, err = l.back(func(q *BackupVMsRequest) { q.KeepSwap = true }, "web")
	if err != nil || r.Disks[0].Swap != 0 {
		t.Errorf("%v, %+v", err, r)
	}
	l.same(r.Point, "web")
}

// TestBackupVMsKeepToLimits: never more disks are open than are allowed.
func TestBackupVMsKeepToLimits(t *testing.T) {
	t.Parallel()
	var specs []esxsim.VMSpec
	for _, name := range []string{"a", "b", "c", "d"} {
		specs = append(specs, tracked(name, mib, mib, mib))
	}
	l := newVMLab(t, esxsim.Options{Hosts: 1, VMs: specs})
	var now, most atomic.Int64
	report, err := l.backAll(func(q *BackupVMsRequest) {
		q.Limits = Limits{PerDatastore: 2, VMs: 4}
		q.Started = func(string, string, int64) func(store.Progress) {
			if n := now.Add(1); n > most.Load() {
				most.Store(n)
			}
			var ended sync.Once
			return func(p store.Progress) {
				if p.Done == p.Total {
					ended.Do(func() { now.Add(-1) })
				}
			}
		}
	}, "*")
	if err != nil || len(report.VMs) != 4 || most.Load() > 2 || most.Load() == 0 {
		t.Errorf("%v, up to %d disks at once", err, most.Load())
	}
	l.clean()
}

// TestBackupVMMissingPrivileges: each is named as vSphere calls it, and where it
// is missing, before anything is done.
func TestBackupVMMissingPrivileges(t *testing.T) {
	t.Parallel()
	l := newVMLab(t, esxsim.Options{VMs: []esxsim.VMSpec{tracked("web", mib), tracked("db", mib)}})
	l.sim.Deny(l.sim.Username(), "VirtualMachine.State.CreateSnapshot", "web")
	l.sim.Deny(l.sim.Username(), "VirtualMachine.Provisioning.DiskRandomRead", "web")
	report, err := l.backAll(nil, "web", "db")
	if !errors.Is(err, ErrPartial) || len(report.VMs) != 2 {
		t.Fatalf("%v, %+v", err, report)
	}
	for _, r := range report.VMs {
		switch {
		case r.VM == "db" && r.Status != StatusDone:
			t.Errorf("%+v", r)
		case r.VM == "web" && (r.Status != StatusFailed || !says([]string{r.Error}, "VirtualMachine.State.CreateSnapshot on ") ||
			!says([]string{r.Error}, "DiskRandomRead") || !says([]string{r.Error}, "/web")):
			t.Errorf("%+v", r)
		}
	}
	if n := l.sim.Calls()["CreateSnapshot_Task"]; n != 1 {
		t.Errorf("%d snapshots were asked for", n)
	}
	if _, err := l.back(nil, "web"); !errors.Is(err, vsphere.ErrPermission) {
		t.Errorf("alone: %v", err)
	}
	l.sim.AllowAll()
	// One that only some transports need is no reason not to try.
	l.sim.Deny(l.sim.Username(), "Datastore.FileManagement", "")
	r, err := l.back(nil, "web")
	if r.Status == StatusFailed && !says([]string{r.Error}, "Datastore.FileManagement") {
		t.Errorf("%v, %+v", err, r)
	}
	t.Logf("without Datastore.FileManagement: %v, %s", err, r.Transport)
	l.clean()
}
