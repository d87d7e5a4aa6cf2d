package vsphere_test

import (
	"bytes"
	"context"
	"errors"
	"io"
	"math/rand/v2"
	"strings"
	"sync"
	"sync/atomic"
	"testing"
	"time"

	"lifeboat/internal/esxsim"
	"lifeboat/vsphere"
)

// vmOf finds the only VM that a pattern fits.
func vmOf(t *testing.T, c *vsphere.Client, pattern string) *vsphere.VM {
	t.Helper()
	inv, err := c.Inventory(t.Context())
	if err != nil {
		t.Fatal(err)
	}
	found, err := inv.Match(pattern)
	if err != nil {
		t.Fatal(err)
	}
	if len(found) != 1 {
		t.Fatalf("%d VMs fit %q", len(found), pattern)
	}
	return found[0]
}

// flat is the file with a disk's bytes.
func flat(descriptor string) string { return strings.TrimSuffix(descriptor, ".vmdk") + "-flat.vmdk" }

// TestBackup goes the way of a backup, twice, and reads every changed byte
// through /folder.
func TestBackup(t *testing.T) {
	t.Parallel()
	s := simulate(t, esxsim.Options{VMs: []esxsim.VMSpec{{
		Name: "db 100%/ü", Folder: "Prod/Datenbänke", Tools: true, PowerOn: true, Firmware: "efi", NVRAM: []byte("efi variables"),
		Disks: []esxsim.DiskSpec{{Size: 32 << 20, Controller: "pvscsi"}, {Size: 16 << 20, Controller: "nvme"}, {Size: 8 << 20, Mode: "independent_persistent"}},
	}}})
	c, guest := connect(t, s), s.VM("db 100%/ü")
	ctx := t.Context()
	content := make([]byte, 32<<20)
	write := func(off int64, n int) {
		t.Helper()
		for i := range n {
			content[off+int64(i)] = byte(rand.Uint32())
		}
		if err := guest.WriteDisk(0, content[off:off+int64(n)], off); err != nil {
			t.Fatal(err)
		}
	}
	vm := vmOf(t, c, "Prod/Datenbänke/db 100%*")
	if vm.Name != "db 100%/ü" || vm.Folder != "Prod/Datenbänke" || vm.Firmware != "efi" || vm.Power != vsphere.PoweredOn || len(vm.Disks) != 3 || vm.CBT {
		t.Fatalf("the VM is %+v", vm)
	}
	vcenter, id := guest.Identity()
	if vm.Identity != (vsphere.Identity{VCenter: vcenter, VM: id}) {
		t.Errorf("identity %v, want %s/%s", vm.Identity, vcenter, id)
	}
	if err := c.EnableCBT(ctx, vm.Ref); err != nil {
		t.Fatal(err)
	}
	snapshot := func(name string) *vsphere.VM {
		t.Helper()
		ref, err := c.CreateSnapshot(ctx, vm.Ref, vsphere.SnapshotSpec{Name: name, Description: "ours", Quiesce: true})
		if err != nil {
			t.Fatal(err)
		}
		v, err := c.SnapshotVM(ctx, ref)
		if err != nil {
			t.Fatal(err)
		}
		if v.CurrentSnapshot != ref || len(v.Snapshots) != 1 || v.Snapshots[0].Name != name || !v.Snapshots[0].Quiesced || v.Identity != vm.Identity {
			t.Fatalf("in the snapshot the VM is %+v", v)
		}
		return v
	}
	remove := func(v *vsphere.VM) {
		t.Helper()
		for range 2 { // again is no error
			if err := c.RemoveSnapshot(ctx, v.CurrentSnapshot, vsphere.RemoveOptions{}); err != nil {
				t.Fatal(err)
			}
		}
		if left := guest.Snapshots(); len(left) != 0 {
			t.Fatalf("snapshots %v are left", left)
		}
	}

	write(1<<20, 3000)
	first := snapshot("lifeboat-1/a")
	d := first.Disks[0]
	if d.ChangeID == "" || d.UUID == "" || d.Controller.Type != "pvscsi" || d.Size != 32<<20 || !d.Snapshotted() || vm.Disks[2].Snapshotted() || len(first.Disks) != 2 {
		t.Fatalf("disks in the snapshot: %+v", first.Disks)
	}
	files := c.Files(first.Datacenter)
	readAll := func(v *vsphere.VM, areas []vsphere.Extent, into []byte) {
		t.Helper()
		for _, a := range areas {
			p := make([]byte, a.Length)
			if n, err := files.ReadRange(ctx, flat(v.Disks[0].File), a.Offset, p); err != nil || n != len(p) {
				t.Fatalf("%d bytes, %v", n, err)
			}
			copy(into[a.Offset:], p)
		}
	}
	allocated, err := c.ChangedAreas(ctx, vm.Ref, first.CurrentSnapshot, d.Key, vsphere.Allocated, d.Size)
	if err != nil {
		t.Fatal(err)
	}
	copied := make([]byte, len(content))
	readAll(first, allocated, copied)
	if !bytes.Equal(copied, content) {
		t.Error("the allocated areas are not the whole disk")
	}
	for _, name := range []string{first.VMX, first.NVRAM} {
		size, err := files.Size(ctx, name)
		if err != nil || size == 0 {
			t.Errorf("%q has %d bytes, %v", name, size, err)
		}
	}
	remove(first)

	for i := range 40 {
		write(int64(i)<<19+5, 70_000)
	}
	second := snapshot("lifeboat-2")
	changed, err := c.ChangedAreas(ctx, vm.Ref, second.CurrentSnapshot, d.Key, d.ChangeID, d.Size)
	if err != nil {
		t.Fatal(err)
	}
	write(30<<20, 100) // after the snapshot: not in it
	readAll(second, changed, copied)
	clear(content[30<<20 : 30<<20+100])
	if !bytes.Equal(copied, content) {
		t.Error("the changed areas are not what changed")
	}
	if len(changed) < 40 {
		t.Errorf("%d changed areas", len(changed))
	}

	other := "52 00" + d.ChangeID[5:]
	for _, id := range []string{other, "nonsense", ""} {
		_, err = c.ChangedAreas(ctx, vm.Ref, second.CurrentSnapshot, d.Key, id, d.Size)
		says(t, err, vsphere.ErrChangeID)
	}
	if got, err := c.ChangedAreas(ctx, vm.Ref, second.CurrentSnapshot, d.Key, second.Disks[0].ChangeID, d.Size); err != nil || len(got) != 0 {
		t.Errorf("since itself: %v, %v", got, err)
	}
	remove(second)
	again, err := c.FindVM(ctx, vm.Identity)
	if err != nil || again.Ref != vm.Ref || !again.CBT || again.ConsolidationNeeded || len(again.Config) == 0 {
		t.Errorf("found again: %+v, %v", again, err)
	}
	t.Logf("calls: %v", c.CallsByMethod())
}

// TestUnchangedVMCosts counts what a backup of a VM that did not change asks.
func TestUnchangedVMCosts(t *testing.T) {
	t.Parallel()
	s := simulate(t, esxsim.Options{VMs: []esxsim.VMSpec{{Name: "still", PowerOn: true, Tools: true, CBT: true, Disks: []esxsim.DiskSpec{{Size: 1 << 20}, {Size: 1 << 20}}}}})
	c := connect(t, s)
	ctx := t.Context()
	round := func(since []string) []string {
		t.Helper()
		vm := vmOf(t, c, "still")
		if _, err := c.Preflight(ctx, vsphere.ForBackup, vm.Ref); err != nil {
			t.Fatal(err)
		}
		ref, err := c.CreateSnapshot(ctx, vm.Ref, vsphere.SnapshotSpec{Name: "x", Quiesce: true})
		if err != nil {
			t.Fatal(err)
		}
		snap, err := c.SnapshotVM(ctx, ref)
		if err != nil {
			t.Fatal(err)
		}
		var ids []string
		for i, d := range snap.Disks {
			id := vsphere.Allocated
			if since != nil {
				id = since[i]
			}
			if _, err := c.ChangedAreas(ctx, vm.Ref, ref, d.Key, id, d.Size); err != nil {
				t.Fatal(err)
			}
			ids = append(ids, d.ChangeID)
		}
		r, err := c.Files(snap.Datacenter).Download(ctx, snap.VMX, 0, -1)
		if err != nil {
			t.Fatal(err)
		}
		if vmx, err := io.ReadAll(r); err != nil || !bytes.Contains(vmx, []byte("displayName")) {
			t.Fatalf(".vmx: %q, %v", vmx, err)
		}
		r.Close()
		if err := c.RemoveSnapshot(ctx, ref, vsphere.RemoveOptions{}); err != nil {
			t.Fatal(err)
		}
		if v, err := c.VM(ctx, vm.Ref); err != nil || v.ConsolidationNeeded {
			t.Fatalf("%+v, %v", v, err)
		}
		return ids
	}
	ids := round(nil)
	before := c.Calls()
	round(ids)
	if n := c.Calls() - before; n > 20 {
		t.Errorf("%d calls for a VM with two disks that did not change, want 20 at most (25 with the login): %v", n, c.CallsByMethod())
	} else {
		t.Logf("%d calls", n)
	}
}

// TestChangedAreasInManyAnswers: an answer is 2,000 areas or a part of the disk.
func TestChangedAreasInManyAnswers(t *testing.T) {
	t.Parallel()
	s := simulate(t, esxsim.Options{CBTWindow: 100 << 20, VMs: []esxsim.VMSpec{{Name: "big", PowerOn: true, CBT: true, Disks: []esxsim.DiskSpec{{Size: 1 << 30}}}}})
	c, guest := connect(t, s), s.VM("big")
	ctx := t.Context()
	vm := vmOf(t, c, "big")
	snap := func() *vsphere.VM {
		t.Helper()
		ref, err := c.CreateSnapshot(ctx, vm.Ref, vsphere.SnapshotSpec{Name: "s"})
		if err != nil {
			t.Fatal(err)
		}
		v, err := c.SnapshotVM(ctx, ref)
		if err != nil {
			t.Fatal(err)
		}
		return v
	}
	one := snap()
	const step = 192 << 10 // so that tracked blocks do not touch
	n := 0
	for off := int64(step); off < 700<<20; off += step {
		if err := guest.WriteDisk(0, []byte{1}, off); err != nil {
			t.Fatal(err)
		}
		n++
	}
	two := snap()
	got, err := c.ChangedAreas(ctx, vm.Ref, two.CurrentSnapshot, one.Disks[0].Key, one.Disks[0].ChangeID, one.Disks[0].Size)
	if err != nil {
		t.Fatal(err)
	}
	if len(got) != n || n < 3000 {
		t.Errorf("%d areas, want %d", len(got), n)
	}
	for i, e := range got {
		if want := int64(i+1) * step; e.Offset > want || e.Offset+e.Length <= want {
			t.Fatalf("area %d is %+v and does not hold %d", i, e, want)
		}
	}
	if calls := s.Calls()["QueryChangedDiskAreas"]; calls < 8 || calls > 20 {
		t.Errorf("%d questions", calls)
	}
}

func TestSnapshotRefused(t *testing.T) {
	t.Parallel()
	s := simulate(t, esxsim.Options{VMs: []esxsim.VMSpec{
		{Name: "app", PowerOn: true, Tools: true, Disks: []esxsim.DiskSpec{{Size: 1 << 20}}},
		{Name: "held", Disks: []esxsim.DiskSpec{{Size: 1 << 20}}},
	}})
	c := connect(t, s)
	ctx := t.Context()
	app := vmOf(t, c, "app").Ref
	if err := s.QuiesceFails("app", true); err != nil {
		t.Fatal(err)
	}
	_, err := c.CreateSnapshot(ctx, app, vsphere.SnapshotSpec{Name: "q", Quiesce: true})
	says(t, err, vsphere.ErrQuiesce, "brought to rest")
	ref, err := c.CreateSnapshot(ctx, app, vsphere.SnapshotSpec{Name: "q"})
	if err != nil {
		t.Fatal(err)
	}
	says(t, c.EnableCBT(ctx, app), vsphere.ErrState, "snapshots")
	s.FailTask("RemoveSnapshot_Task", 1, "TaskInProgress")
	says(t, c.RemoveSnapshot(ctx, ref, vsphere.RemoveOptions{}), vsphere.ErrBusy)
	if err := c.RemoveSnapshot(ctx, ref, vsphere.RemoveOptions{}); err != nil {
		t.Fatal(err)
	}
	for fault, kind := range map[string]error{
		"NoPermission": vsphere.ErrPermission, "InvalidPowerState": vsphere.ErrState, "NoDiskSpace": vsphere.ErrSpace, "FileLocked": vsphere.ErrLocked,
		"HostNotConnected": vsphere.ErrHost, "NotSupported": vsphere.ErrUnsupported, "RestrictedVersion": vsphere.ErrLicence, "RequestCanceled": vsphere.ErrCancelled,
		"SystemError": vsphere.ErrFault, "ManagedObjectNotFound": vsphere.ErrNotFound,
	} {
		s.Fail("CreateSnapshot_Task", 1, fault)
		_, err = c.CreateSnapshot(ctx, app, vsphere.SnapshotSpec{Name: "no"})
		says(t, err, kind, `"no"`, fault)
		s.FailTask("CreateSnapshot_Task", 1, fault)
		_, err = c.CreateSnapshot(ctx, app, vsphere.SnapshotSpec{Name: "no"})
		says(t, err, kind, fault)
	}
	_, err = c.CreateSnapshot(ctx, "VirtualMachine:vm-nowhere", vsphere.SnapshotSpec{Name: "no"})
	says(t, err, vsphere.ErrNotFound)
	host := vmOf(t, c, "app").Host
	if err := s.DisconnectHost(host); err != nil {
		t.Fatal(err)
	}
	_, err = c.CreateSnapshot(ctx, app, vsphere.SnapshotSpec{Name: "no"})
	says(t, err, vsphere.ErrHost)
}

// TestSessionLost: whatever is going on when sessions end goes on after one login.
func TestSessionLost(t *testing.T) {
	t.Parallel()
	s := simulate(t, esxsim.Options{VMs: []esxsim.VMSpec{{Name: "a", PowerOn: true, Disks: []esxsim.DiskSpec{{Size: 1 << 20}}}}})
	c := connect(t, s)
	ctx := t.Context()
	vm := vmOf(t, c, "a")
	for range 3 {
		s.DropSessions()
		logins := s.Calls()["Login"]
		var all sync.WaitGroup
		var failed atomic.Pointer[error]
		for range 12 {
			all.Go(func() {
				if _, err := c.VM(ctx, vm.Ref); err != nil {
					failed.Store(&err)
				}
			})
		}
		all.Wait()
		if err := failed.Load(); err != nil {
			t.Fatal(*err)
		}
		if n := s.Calls()["Login"] - logins; n != 1 {
			t.Errorf("%d logins, want one", n)
		}
	}
	steps := map[string]func() error{
		"snapshot": func() error {
			ref, err := c.CreateSnapshot(ctx, vm.Ref, vsphere.SnapshotSpec{Name: "s"})
			if err == nil {
				err = c.RemoveSnapshot(ctx, ref, vsphere.RemoveOptions{})
			}
			return err
		},
		"file":      func() error { _, err := c.FileSize(ctx, vm.VMX); return err },
		"inventory": func() error { _, err := c.Inventory(ctx); return err },
		"mounts":    func() error { _, err := c.NASDatastores(ctx); return err },
	}
	for name, step := range steps {
		s.DropSessions()
		if err := step(); err != nil {
			t.Errorf("%s: %v", name, err)
		}
	}
	// In the middle of waiting for a task.
	for _, method := range []string{"CreateFilter", "WaitForUpdatesEx", "DestroyPropertyFilter"} {
		s.Fail(method, 1, "NotAuthenticated")
		if err := steps["snapshot"](); err != nil {
			t.Errorf("%s refused: %v", method, err)
		}
	}
	if left := s.VM("a").Snapshots(); len(left) != 0 {
		t.Errorf("snapshots %v are left: a call was made twice", left)
	}
	if n := s.Calls()["CreateSnapshot_Task"]; n != 4+1 {
		t.Errorf("CreateSnapshot_Task was called %d times, want 5 (one refused for want of a session)", n)
	}
}

// TestRestart: a vCenter that starts anew is waited for by calls that change
// nothing.
func TestRestart(t *testing.T) {
	t.Parallel()
	s := simulate(t, esxsim.Options{VMs: []esxsim.VMSpec{{Name: "a", PowerOn: true, Disks: []esxsim.DiskSpec{{Size: 1 << 20}}}}})
	c := connect(t, s)
	vm := vmOf(t, c, "a")
	ctx, stop := context.WithCancel(t.Context())
	defer stop()
	var n atomic.Int64
	failed := make(chan error, 1)
	go func() {
		for ctx.Err() == nil {
			if _, err := c.VM(ctx, vm.Ref); err != nil && ctx.Err() == nil {
				failed <- err
				return
			}
			n.Add(1)
		}
		failed <- nil
	}()
	for range 3 {
		for seen := n.Load(); n.Load() < seen+3; {
			time.Sleep(time.Millisecond)
		}
		if err := s.Restart(); err != nil {
			t.Fatal(err)
		}
	}
	for seen := n.Load(); n.Load() < seen+3; {
		time.Sleep(time.Millisecond)
	}
	stop()
	if err := <-failed; err != nil {
		t.Fatal(err)
	}
}

// TestCertificateChanges: a server with another certificate is not talked to,
// and not waited for.
func TestCertificateChanges(t *testing.T) {
	t.Parallel()
	s := simulate(t, esxsim.Options{})
	c := connect(t, s)
	if err := s.RotateCertificate(); err != nil {
		t.Fatal(err)
	}
	if err := s.Restart(); err != nil {
		t.Fatal(err)
	}
	_, err := c.Inventory(t.Context())
	says(t, err, vsphere.ErrCertificate, "has changed", s.Thumbprint())
}

// TestInterrupted: a caller that goes away leaves a task that has ended or is told of.
func TestInterrupted(t *testing.T) {
	t.Parallel()
	s := simulate(t, esxsim.Options{VMs: []esxsim.VMSpec{{Name: "a", PowerOn: true, Disks: []esxsim.DiskSpec{{Size: 1 << 20}}}}})
	c := connect(t, s)
	vm := vmOf(t, c, "a")
	for _, during := range []string{"CreateSnapshot_Task", "CreateFilter"} {
		s.Delay(during, 200*time.Millisecond)
		ctx, cancel := context.WithCancel(t.Context())
		seen := s.Calls()[during]
		go func() {
			for s.Calls()[during] == seen {
				time.Sleep(time.Millisecond)
			}
			cancel()
		}()
		ref, err := c.CreateSnapshot(ctx, vm.Ref, vsphere.SnapshotSpec{Name: "s"})
		if err != nil || ctx.Err() == nil {
			t.Fatalf("interrupted at %s: the snapshot was taken, and that is not told: %v", during, err)
		}
		s.ClearFaults()
		if err := c.RemoveSnapshot(t.Context(), ref, vsphere.RemoveOptions{}); err != nil {
			t.Fatal(err)
		}
	}
	ctx, cancel := context.WithCancel(t.Context())
	cancel()
	_, err := c.Inventory(ctx)
	if !errors.Is(err, context.Canceled) || !strings.Contains(err.Error(), "interrupted") {
		t.Errorf("got %v", err)
	}
}

func TestFiles(t *testing.T) {
	t.Parallel()
	s := simulate(t, esxsim.Options{})
	c := connect(t, s)
	ctx := t.Context()
	data := make([]byte, 100_000)
	for i := range data {
		data[i] = byte(rand.Uint32())
	}
	for _, name := range []string{"[datastore1] a/plain", "[datastore2] mit Leerzeichen/ü 100% +#?&;.bin", "[datastore1] top"} {
		if err := c.Upload(ctx, name, bytes.NewReader(data), int64(len(data))); err != nil {
			t.Fatal(err)
		}
		if n, err := c.FileSize(ctx, name); n != int64(len(data)) || err != nil {
			t.Errorf("%s: %d bytes, %v", name, n, err)
		}
		for _, r := range [][2]int64{{0, -1}, {0, 10}, {99_990, 10}, {5000, 50_000}, {70_000, -1}, {99_990, 100}, {5, 0}} {
			f, err := c.Download(ctx, name, r[0], r[1])
			if err != nil {
				t.Fatal(err)
			}
			got, err := io.ReadAll(f)
			f.Close()
			end := int64(len(data))
			if r[1] >= 0 {
				end = min(end, r[0]+r[1])
			}
			if err != nil || !bytes.Equal(got, data[r[0]:end]) {
				t.Errorf("%s %v: %d bytes, %v", name, r, len(got), err)
			}
		}
		p := make([]byte, 100)
		if n, err := c.Files("").ReadRange(ctx, name, 99_950, p); n != 50 || !errors.Is(err, io.EOF) {
			t.Errorf("across the end: %d, %v", n, err)
		}
		if err := c.DeleteFile(ctx, name); err != nil {
			t.Errorf("%s: %v", name, err)
		}
		_, err := c.FileSize(ctx, name)
		says(t, err, vsphere.ErrNotFound, name)
		_, err = c.Download(ctx, name, 0, 5)
		says(t, err, vsphere.ErrNotFound)
	}
	_, err := c.FileSize(ctx, "[nowhere] a")
	says(t, err, vsphere.ErrNotFound, "nowhere")
	for _, bad := range []string{"a/b", "[datastore1", "[datastore1] a/../../b", ""} {
		_, err := c.Download(ctx, bad, 0, 1)
		says(t, err, vsphere.ErrInvalid)
	}
	s.DropSessions()
	if err := c.Upload(ctx, "[datastore1] again", bytes.NewReader(data), int64(len(data))); err != nil {
		t.Errorf("after the session was lost: %v", err)
	}
}
