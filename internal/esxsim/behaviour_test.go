package esxsim

import (
	"bytes"
	"context"
	"crypto/tls"
	"crypto/x509"
	"errors"
	"io"
	"net/http"
	"net/url"
	"os"
	"path/filepath"
	"reflect"
	"strings"
	"testing"
	"time"

	"github.com/google/go-cmp/cmp"
	"github.com/vmware/govmomi"
	faults "github.com/vmware/govmomi/fault"
	"github.com/vmware/govmomi/find"
	"github.com/vmware/govmomi/guest"
	"github.com/vmware/govmomi/object"
	"github.com/vmware/govmomi/vim25/methods"
	"github.com/vmware/govmomi/vim25/mo"
	"github.com/vmware/govmomi/vim25/soap"
	"github.com/vmware/govmomi/vim25/types"

	"lifeboat/disk"
)

// refused wants an error with a fault of F's type.
func refused[F types.BaseMethodFault](t *testing.T, what string, err error) {
	t.Helper()
	var f F
	if _, ok := faults.As(err, &f); !ok {
		t.Errorf("%s: %v, want a %T", what, err, f)
	}
}

func done(t *testing.T, task *object.Task, err error) error {
	t.Helper()
	if err != nil {
		return err
	}
	_, err = task.WaitForResult(t.Context())
	return err
}

func areas(t *testing.T, c *govmomi.Client, v *object.VirtualMachine, snapshot *types.ManagedObjectReference, key int32, id string, from int64) (types.DiskChangeInfo, error) {
	t.Helper()
	res, err := methods.QueryChangedDiskAreas(t.Context(), c.Client, &types.QueryChangedDiskAreas{
		This: v.Reference(), Snapshot: snapshot, DeviceKey: key, ChangeId: id, StartOffset: from,
	})
	if err != nil {
		return types.DiskChangeInfo{}, err
	}
	return res.Returnval, nil
}

func TestChangedAreasComeInWindows(t *testing.T) {
	t.Parallel()
	const n = 4500
	s := start(t, Options{CBTWindow: 128 << 20, VMs: []VMSpec{{Name: "big", CBT: true, Disks: []DiskSpec{{Size: 4 << 30}}}}})
	c := dial(t, s)
	v := machine(t, c, "big")
	guest := s.VM("big")
	for i := range int64(n) { // every second block, so that none join; then a gap
		if err := guest.WriteDisk(0, []byte{1}, i*2*block); err != nil {
			t.Fatal(err)
		}
	}
	if err := guest.WriteDisk(0, []byte{1}, 3<<30); err != nil {
		t.Fatal(err)
	}
	snap := snapshotOf(t, v, "s")
	key := guest.DiskKey(0)
	var got, calls, empty int
	for off := int64(0); off < 4<<30; calls++ {
		info, err := areas(t, c, v, &snap, key, "*", off)
		if err != nil {
			t.Fatal(err)
		}
		if len(info.ChangedArea) > maxAreas || info.StartOffset != off || info.Length <= 0 {
			t.Fatalf("an answer of %d areas from %d for %d", len(info.ChangedArea), info.StartOffset, info.Length)
		}
		if got += len(info.ChangedArea); len(info.ChangedArea) == 0 {
			empty++
		}
		off += info.Length
	}
	if got != n+1 || empty == 0 {
		t.Errorf("%d areas in %d answers, %d of them empty; want %d", got, calls, empty, n+1)
	}
	_, err := areas(t, c, v, &snap, key, "*", 4<<30)
	refused[*types.InvalidArgument](t, "asking at the end", err)
	_, err = areas(t, c, v, &snap, key, "52 00/1", 0)
	refused[*types.FileFault](t, "another UUID", err)
	_, err = areas(t, c, v, &snap, key, "nonsense", 0)
	refused[*types.InvalidArgument](t, "no change ID", err)
}

func TestChangeIDsEndWithRevertResizeAndMove(t *testing.T) {
	t.Parallel()
	s := start(t, Options{VMs: []VMSpec{{Name: "a", CBT: true, Disks: []DiskSpec{{Size: 4 << 20}}}}})
	c := dial(t, s)
	v := machine(t, c, "a")
	key := s.VM("a").DiskKey(0)
	idOf := func() string {
		t.Helper()
		snap := snapshotOf(t, v, "look")
		defer func() {
			if err := done(t, first(v.RemoveSnapshot(t.Context(), "look", false, nil)), nil); err != nil {
				t.Error(err)
			}
		}()
		var m mo.VirtualMachineSnapshot
		if err := v.Properties(t.Context(), snap, nil, &m); err != nil {
			t.Fatal(err)
		}
		return diskOf(m.Config.Hardware.Device, key).Backing.(*types.VirtualDiskFlatVer2BackingInfo).ChangeId
	}
	uuid := func(id string) string { u, _, _ := strings.Cut(id, "/"); return u }
	one, two := idOf(), idOf()
	if uuid(one) != uuid(two) || one == two || uuid(one) == "" {
		t.Errorf("change IDs %q and %q", one, two)
	}
	d := firstDisk(properties(t, v))
	d.CapacityInBytes, d.CapacityInKB = 8<<20, 8<<10
	task, err := v.Reconfigure(t.Context(), types.VirtualMachineConfigSpec{DeviceChange: []types.BaseVirtualDeviceConfigSpec{
		&types.VirtualDeviceConfigSpec{Operation: types.VirtualDeviceConfigSpecOperationEdit, Device: d},
	}})
	wait(t, task, err)
	three := idOf()
	if uuid(three) == uuid(two) || s.VM("a").DiskSize(0) != 8<<20 {
		t.Errorf("after a resize to %d: %q", s.VM("a").DiskSize(0), three)
	}
	target := s.datastoreRef(t, "datastore2")
	task, err = v.Relocate(t.Context(), types.VirtualMachineRelocateSpec{Datastore: &target}, "")
	wait(t, task, err)
	if four := idOf(); uuid(four) == uuid(three) {
		t.Errorf("after a move: %q", four)
	}
}

func first[A, B any](a A, _ B) A { return a }

func TestTrackingNeedsAStunWithoutSnapshots(t *testing.T) {
	t.Parallel()
	s := start(t, Options{VMs: []VMSpec{{Name: "a", PowerOn: true, Disks: []DiskSpec{{Size: 1 << 20}}}}})
	c := dial(t, s)
	v := machine(t, c, "a")
	snapshotOf(t, v, "a person's")
	on := true
	task, err := v.Reconfigure(t.Context(), types.VirtualMachineConfigSpec{ChangeTrackingEnabled: &on})
	wait(t, task, err)
	snap := snapshotOf(t, v, "ours")
	_, err = areas(t, c, v, &snap, s.VM("a").DiskKey(0), "*", 0)
	refused[*types.FileFault](t, "tracking that is not in effect", err)
	task, err = v.RemoveAllSnapshot(t.Context(), nil)
	wait(t, task, err)
	snap = snapshotOf(t, v, "ours")
	if _, err = areas(t, c, v, &snap, s.VM("a").DiskKey(0), "*", 0); err != nil {
		t.Errorf("tracking that is in effect: %v", err)
	}
}

func TestSnapshotsThatAreRefusedOrIncomplete(t *testing.T) {
	t.Parallel()
	s := start(t, Options{VMs: []VMSpec{
		{Name: "db", PowerOn: true, Tools: true, Disks: []DiskSpec{
			{Size: 1 << 20}, {Size: 1 << 20, Mode: "independent_persistent"}, {Size: 1 << 20, RDM: "physical"},
		}},
		{Name: "mute", PowerOn: true, Disks: []DiskSpec{{Size: 1 << 20}}},
		{Name: "template", Template: true, Disks: []DiskSpec{{Size: 1 << 20}}},
	}})
	c := dial(t, s)
	db, mute := machine(t, c, "db"), machine(t, c, "mute")
	if err := s.QuiesceFails("db", true); err != nil {
		t.Fatal(err)
	}
	err := done(t, first(db.CreateSnapshot(t.Context(), "q", "", false, true)), nil)
	refused[*types.ApplicationQuiesceFault](t, "quiescing", err)
	snap := snapshotOf(t, db, "crash-consistent")
	var m mo.VirtualMachineSnapshot
	if err := db.Properties(t.Context(), snap, nil, &m); err != nil {
		t.Fatal(err)
	}
	disks := 0
	for _, d := range m.Config.Hardware.Device {
		if _, ok := d.(*types.VirtualDisk); ok {
			disks++
		}
	}
	if disks != 1 {
		t.Errorf("the snapshot has %d disks: independent disks and physical RDMs are not part of it", disks)
	}
	wait(t, first(mute.CreateSnapshot(t.Context(), "q", "", false, true)), nil)
	if tree := properties(t, mute).Snapshot.RootSnapshotList; tree[0].Quiesced {
		t.Error("a VM without Tools has a quiesced snapshot")
	}
	err = done(t, first(machine(t, c, "template").CreateSnapshot(t.Context(), "q", "", false, false)), nil)
	refused[*types.InvalidState](t, "a template's snapshot", err)
}

func TestMergeFailsAndIsRepaired(t *testing.T) {
	t.Parallel()
	s := start(t, Options{VMs: []VMSpec{{Name: "a", Disks: []DiskSpec{{Size: 1 << 20}}}}})
	c := dial(t, s)
	v := machine(t, c, "a")
	snapshotOf(t, v, "s")
	if err := s.VM("a").WriteDisk(0, []byte("kept"), 100); err != nil {
		t.Fatal(err)
	}
	if err := s.MergeFails("a", true); err != nil {
		t.Fatal(err)
	}
	err := done(t, first(v.RemoveSnapshot(t.Context(), "s", false, nil)), nil)
	refused[*types.FileLocked](t, "removing", err)
	if m := properties(t, v); m.Snapshot != nil || !m.Runtime.ConsolidationNeeded {
		t.Errorf("snapshot %v, consolidation needed %v", m.Snapshot, m.Runtime.ConsolidationNeeded)
	}
	if err := s.MergeFails("a", false); err != nil {
		t.Fatal(err)
	}
	res, err := methods.ConsolidateVMDisks_Task(t.Context(), c.Client, &types.ConsolidateVMDisks_Task{This: v.Reference()})
	if err != nil {
		t.Fatal(err)
	}
	wait(t, object.NewTask(c.Client, res.Returnval), nil)
	st := s.State().VMs[0]
	want := VMState{Name: "a", Power: "poweredOff", Host: st.Host, Home: "[datastore1] a/a.vmx", Disks: []string{"[datastore1] a/a.vmdk"}}
	if diff := cmp.Diff(want, st); diff != "" {
		t.Errorf("after the repair (-want +got):\n%s", diff)
	}
	got := make([]byte, 4)
	if err := s.VM("a").ReadDisk(0, got, 100); err != nil || string(got) != "kept" {
		t.Errorf("the disk has %q, %v", got, err)
	}
}

func TestLinkedCloneHoldsItsParent(t *testing.T) {
	t.Parallel()
	s := start(t, Options{VMs: []VMSpec{{Name: "gold", Disks: []DiskSpec{{Size: 1 << 20}}}, {Name: "clone", LinkedFrom: "gold"}}})
	c := dial(t, s)
	if err := s.VM("clone").WriteDisk(0, []byte("c"), 0); err != nil {
		t.Fatal(err)
	}
	gold := machine(t, c, "gold")
	if err := done(t, first(gold.RemoveAllSnapshot(t.Context(), nil)), nil); err != nil {
		t.Fatal(err)
	}
	if m := properties(t, gold); !m.Runtime.ConsolidationNeeded {
		t.Error("a disk that a linked clone stands on was merged into")
	}
	if err := s.VM("gold").WriteDisk(0, []byte("g"), 0); err != nil {
		t.Fatal(err)
	}
	got := make([]byte, 1)
	if err := s.VM("clone").ReadDisk(0, got, 0); err != nil || got[0] != 'c' {
		t.Errorf("the clone reads %q, %v", got, err)
	}
	if err := done(t, first(machine(t, c, "clone").Destroy(t.Context())), nil); err != nil {
		t.Fatal(err)
	}
	if err := s.VM("gold").ReadDisk(0, got, 0); err != nil || got[0] != 'g' {
		t.Errorf("after its clone is gone gold reads %q, %v", got, err)
	}
}

func TestFolderOverHTTP(t *testing.T) {
	t.Parallel()
	s := start(t, Options{VMs: []VMSpec{{Name: "a b%c", PowerOn: true, Disks: []DiskSpec{{Size: 1 << 20}}}}})
	c := dial(t, s)
	v := machine(t, c, "a b%25c")
	if err := s.VM("a b%c").WriteDisk(0, []byte("frozen"), 4096); err != nil {
		t.Fatal(err)
	}
	ds := datastoreOf(t, c, "datastore1")
	const flat = "a b_c/a b_c-flat.vmdk"
	if _, _, err := ds.Download(t.Context(), flat, &soap.DefaultDownload); err == nil {
		t.Error("the disk of a running VM was read")
	}
	snapshotOf(t, v, "s")
	if err := s.VM("a b%c").WriteDisk(0, []byte("later!"), 4096); err != nil {
		t.Fatal(err)
	}
	if got, status := fetch(t, s, flat, "bytes=4096-4101"); status != http.StatusPartialContent || got != "frozen" {
		t.Errorf("a range is %q (%d)", got, status)
	}
	if err := ds.Upload(t.Context(), strings.NewReader("text"), "new dir/x.txt", nil); err != nil {
		t.Fatal(err)
	}
	if got, err := os.ReadFile(filepath.Join(s.DatastoreDir("datastore1"), "new dir", "x.txt")); err != nil || string(got) != "text" {
		t.Errorf("uploaded %q, %v", got, err)
	}
	s.DropSessions()
	if _, _, err := ds.Download(t.Context(), "new dir/x.txt", &soap.DefaultDownload); err == nil {
		t.Error("a file was read without a session")
	}
	if err := s.CorruptRead("a b%c", 0, 4098); err != nil {
		t.Fatal(err)
	}
	if got, _ := fetch(t, s, flat, "bytes=4090-4101"); got == "\x00\x00\x00\x00\x00\x00frozen" || len(got) != 12 {
		t.Errorf("a corrupted read is %q", got)
	}
}

// fetch reads a range of a file of datastore1 with name and password.
func fetch(t *testing.T, s *Sim, file, span string) (body string, status int) {
	t.Helper()
	u := &url.URL{Scheme: "https", Host: s.front.addr, Path: "/folder/" + file, RawQuery: "dcPath=Lab&dsName=datastore1"}
	r, err := http.NewRequestWithContext(t.Context(), http.MethodGet, u.String(), nil)
	if err != nil {
		t.Fatal(err)
	}
	r.SetBasicAuth(s.Username(), s.Password())
	r.Header.Set("Range", span)
	pool := x509.NewCertPool()
	ca, err := os.ReadFile(s.CAFile())
	if err != nil || !pool.AppendCertsFromPEM(ca) {
		t.Fatal("no CA file", err)
	}
	hc := &http.Client{Transport: &http.Transport{TLSClientConfig: &tls.Config{RootCAs: pool}}}
	defer hc.CloseIdleConnections()
	res, err := hc.Do(r)
	if err != nil {
		t.Fatal(err)
	}
	defer res.Body.Close()
	b, err := io.ReadAll(res.Body)
	if err != nil {
		t.Fatal(err)
	}
	return string(b), res.StatusCode
}

func TestLeases(t *testing.T) {
	t.Parallel()
	s := start(t, Options{VMs: []VMSpec{{Name: "a", PowerOn: true, Disks: []DiskSpec{{Size: 3 << 20}}}}})
	c := dial(t, s)
	v := machine(t, c, "a")
	if err := s.VM("a").WriteDisk(0, bytes.Repeat([]byte("x"), 5000), 1<<20); err != nil {
		t.Fatal(err)
	}
	_, err := v.Export(t.Context())
	refused[*types.InvalidPowerState](t, "exporting a running VM", err)
	snap := snapshotOf(t, v, "s")
	lease, err := v.ExportSnapshot(t.Context(), &snap)
	if err != nil {
		t.Fatal(err)
	}
	info, err := lease.Wait(t.Context(), nil)
	if err != nil || len(info.Items) != 1 {
		t.Fatalf("%+v, %v", info, err)
	}
	file := filepath.Join(t.TempDir(), "disk.vmdk")
	updater := lease.StartUpdater(t.Context(), info)
	err = lease.DownloadFile(t.Context(), file, info.Items[0], soap.DefaultDownload)
	updater.Done()
	if err != nil {
		t.Fatal(err)
	}
	if err := lease.Complete(t.Context()); err != nil {
		t.Fatal(err)
	}
	img, err := disk.Open(t.Context(), file, disk.OpenOptions{})
	if err != nil {
		t.Fatal(err)
	}
	defer img.Close()
	got := make([]byte, 5001)
	if _, err := img.ReadAt(got, 1<<20); err != nil || img.Size() != 3<<20 || string(got) != strings.Repeat("x", 5000)+"\x00" {
		t.Errorf("exported %d bytes: %v", img.Size(), err)
	}
	imported(t, s, c, file)
}

// imported writes the stream into a new VM through an import lease.
func imported(t *testing.T, s *Sim, c *govmomi.Client, file string) {
	t.Helper()
	scsi := &types.ParaVirtualSCSIController{}
	scsi.Key, scsi.SharedBus = -1, types.VirtualSCSISharingNoSharing
	d := &types.VirtualDisk{CapacityInKB: 3 << 10}
	d.Key, d.ControllerKey = -2, -1
	d.Backing = &types.VirtualDiskFlatVer2BackingInfo{DiskMode: "persistent", ThinProvisioned: types.NewBool(true)}
	add := func(dev types.BaseVirtualDevice, op types.VirtualDeviceConfigSpecFileOperation) types.BaseVirtualDeviceConfigSpec {
		return &types.VirtualDeviceConfigSpec{Operation: "add", FileOperation: op, Device: dev}
	}
	spec := &types.VirtualMachineImportSpec{ConfigSpec: types.VirtualMachineConfigSpec{
		Name: "imported", Files: &types.VirtualMachineFileInfo{VmPathName: "[datastore2]"},
		DeviceChange: []types.BaseVirtualDeviceConfigSpec{add(scsi, ""), add(d, "create")},
	}}
	pool := object.NewResourcePool(c.Client, s.pool)
	lease, err := pool.ImportVApp(t.Context(), spec, nil, nil)
	if err != nil {
		t.Fatal(err)
	}
	info, err := lease.Wait(t.Context(), nil)
	if err != nil || len(info.DeviceUrl) != 1 {
		t.Fatalf("%+v, %v", info, err)
	}
	f, err := os.Open(file)
	if err != nil {
		t.Fatal(err)
	}
	defer f.Close()
	fi, err := f.Stat()
	if err != nil {
		t.Fatal(err)
	}
	u, err := c.ParseURL(info.DeviceUrl[0].Url)
	if err != nil {
		t.Fatal(err)
	}
	upload := soap.DefaultUpload
	upload.ContentLength, upload.Method = fi.Size(), http.MethodPut
	if err := c.Upload(t.Context(), f, u, &upload); err != nil {
		t.Fatal(err)
	}
	if err := lease.Complete(t.Context()); err != nil {
		t.Fatal(err)
	}
	got := make([]byte, 1)
	if err := s.VM("imported").ReadDisk(0, got, 1<<20+4999); err != nil || got[0] != 'x' {
		t.Errorf("the imported disk has %q, %v", got, err)
	}
}

func TestGuestOperations(t *testing.T) {
	t.Parallel()
	ran := ""
	s := start(t, Options{VMs: []VMSpec{{
		Name: "a", PowerOn: true, Tools: true, Disks: []DiskSpec{{Size: 1 << 20}},
		GuestProgram: func(program, arguments, _ string) int { ran = program + " " + arguments; return 3 },
	}}})
	c := dial(t, s)
	v := machine(t, c, "a")
	ops := guest.NewOperationsManager(c.Client, v.Reference())
	auth := &types.NamePasswordAuthentication{Username: "root", Password: "guest"}
	files, err := ops.FileManager(t.Context())
	if err != nil {
		t.Fatal(err)
	}
	err = files.MakeDirectory(t.Context(), &types.NamePasswordAuthentication{Username: "root", Password: "no"}, "/srv", false)
	refused[*types.InvalidGuestLogin](t, "a wrong password", err)
	if err := files.MakeDirectory(t.Context(), auth, "/srv/deep", true); err != nil {
		t.Fatal(err)
	}
	u, err := files.InitiateFileTransferToGuest(t.Context(), auth, "/srv/deep/f", &types.GuestPosixFileAttributes{Permissions: 0o640}, 5, false)
	if err != nil {
		t.Fatal(err)
	}
	at, err := files.TransferURL(t.Context(), u)
	if err != nil {
		t.Fatal(err)
	}
	upload := soap.DefaultUpload
	upload.ContentLength = 5
	if err := c.Upload(t.Context(), strings.NewReader("hello"), at, &upload); err != nil {
		t.Fatal(err)
	}
	if fi, err := os.Stat(filepath.Join(s.VM("a").GuestDir(), "srv/deep/f")); err != nil || fi.Size() != 5 || fi.Mode().Perm() != 0o640 {
		t.Errorf("in the guest: %v, %v", fi, err)
	}
	_, err = files.InitiateFileTransferToGuest(t.Context(), auth, "/srv/deep/f", &types.GuestPosixFileAttributes{}, 5, false)
	refused[*types.FileAlreadyExists](t, "not overwriting", err)
	_, err = files.InitiateFileTransferFromGuest(t.Context(), auth, "/../../etc/passwd")
	refused[*types.FileNotFound](t, "a path that leads out", err)
	list, err := files.ListFiles(t.Context(), auth, "/srv/deep", 0, 0, "")
	if err != nil || len(list.Files) != 1 || list.Files[0].Path != "f" {
		t.Errorf("listed %+v, %v", list, err)
	}
	processes, err := ops.ProcessManager(t.Context())
	if err != nil {
		t.Fatal(err)
	}
	pid, err := processes.StartProgram(t.Context(), auth, &types.GuestProgramSpec{ProgramPath: "/bin/sh", Arguments: "-c true"})
	if err != nil {
		t.Fatal(err)
	}
	if info, err := processes.ListProcesses(t.Context(), auth, []int64{pid}); err != nil || len(info) != 1 || info[0].ExitCode != 3 || ran != "/bin/sh -c true" {
		t.Errorf("%+v, %v, ran %q", info, err, ran)
	}
}

func TestPrivileges(t *testing.T) {
	t.Parallel()
	s := start(t, Options{VMs: []VMSpec{{Name: "a", Folder: "Prod", Disks: []DiskSpec{{Size: 1 << 20}}}, {Name: "b", Disks: []DiskSpec{{Size: 1 << 20}}}}})
	c := dial(t, s)
	a, b := machine(t, c, "Prod/a"), machine(t, c, "b")
	const privilege = "VirtualMachine.State.CreateSnapshot"
	s.Deny(s.Username(), privilege, "Prod")
	_, err := a.CreateSnapshot(t.Context(), "s", "", false, false)
	refused[*types.NoPermission](t, "a snapshot", err)
	snapshotOf(t, b, "s")
	res, err := methods.HasPrivilegeOnEntities(t.Context(), c.Client, &types.HasPrivilegeOnEntities{
		This: *c.ServiceContent.AuthorizationManager, SessionId: sessionKey(t, c),
		Entity: []types.ManagedObjectReference{a.Reference(), b.Reference()}, PrivId: []string{privilege},
	})
	if err != nil || len(res.Returnval) != 2 || res.Returnval[0].PrivAvailability[0].IsGranted || !res.Returnval[1].PrivAvailability[0].IsGranted {
		t.Errorf("privileges %+v, %v", res, err)
	}
}

func sessionKey(t *testing.T, c *govmomi.Client) string {
	t.Helper()
	u, err := c.SessionManager.UserSession(t.Context())
	if err != nil {
		t.Fatal(err)
	}
	return u.Key
}

func TestSessionsTasksAndRestarts(t *testing.T) {
	t.Parallel()
	s := start(t, Options{VMs: []VMSpec{{Name: "a", Disks: []DiskSpec{{Size: 1 << 20}}}}})
	c := dial(t, s)
	v := machine(t, c, "a")
	s.DropSessions()
	_, err := v.CreateSnapshot(t.Context(), "s", "", false, false)
	refused[*types.NotAuthenticated](t, "without a session", err)
	if err := c.SessionManager.Login(t.Context(), s.URL().User); err != nil {
		t.Fatal(err)
	}
	s.FailTask("CreateSnapshot_Task", 1, "NoDiskSpace")
	refused[*types.NoDiskSpace](t, "an injected failure", done(t, first(v.CreateSnapshot(t.Context(), "s", "", false, false)), nil))
	s.FailTaskLate("CreateSnapshot_Task", 1, nil)
	refused[*types.SystemError](t, "an injected late failure", done(t, first(v.CreateSnapshot(t.Context(), "late", "", false, false)), nil))
	if got := s.VM("a").Snapshots(); !cmp.Equal(got, []string{"late"}) {
		t.Errorf("snapshots %v", got)
	}
	s.SlowMoves(50 * time.Millisecond)
	target := s.datastoreRef(t, "datastore2")
	task, err := v.Relocate(t.Context(), types.VirtualMachineRelocateSpec{Datastore: &target}, "")
	if err != nil {
		t.Fatal(err)
	}
	_, err = v.CreateSnapshot(t.Context(), "s", "", false, false)
	refused[*types.TaskInProgress](t, "a second task", err)
	if err := s.Restart(); err != nil {
		t.Fatal(err)
	}
	c = dial(t, s)
	var m mo.Task
	err = c.RetrieveOne(t.Context(), task.Reference(), nil, &m)
	refused[*types.ManagedObjectNotFound](t, "a task after the restart", err)
	s.VM("a").v.wait(t)
	if got := s.State().VMs[0].Home; got != "[datastore2] a/a.vmx" {
		t.Errorf("what a host does goes on without vCenter; the VM is at %s", got)
	}
}

// wait waits until no task has the VM.
func (v *vm) wait(t *testing.T) {
	t.Helper()
	for end := time.Now().Add(20 * time.Second); time.Now().Before(end); time.Sleep(2 * time.Millisecond) {
		v.sim.mu.Lock()
		idle := v.busy == nil
		v.sim.mu.Unlock()
		if idle {
			return
		}
	}
	t.Fatal("a task does not end")
}

func TestMoveIsCancelledOrFails(t *testing.T) {
	t.Parallel()
	s := start(t, Options{VMs: []VMSpec{{Name: "a", PowerOn: true, Disks: []DiskSpec{{Size: 8 << 20}, {Size: 1 << 20}}}}})
	c := dial(t, s)
	v := machine(t, c, "a")
	target := s.datastoreRef(t, "datastore2")
	before := s.State()
	s.FailMoveAt(50)
	err := done(t, first(v.Relocate(t.Context(), types.VirtualMachineRelocateSpec{Datastore: &target}, "")), nil)
	refused[*types.SystemError](t, "a move", err)
	s.FailMoveAt(-1)
	s.SlowMoves(20 * time.Millisecond)
	task, err := v.Relocate(t.Context(), types.VirtualMachineRelocateSpec{Datastore: &target}, "")
	if err != nil {
		t.Fatal(err)
	}
	if err := task.Cancel(t.Context()); err != nil {
		t.Fatal(err)
	}
	refused[*types.RequestCanceled](t, "a cancelled move", done(t, task, nil))
	if diff := cmp.Diff(before, s.State()); diff != "" {
		t.Errorf("after moves that failed (-before +after):\n%s", diff)
	}
	if left, err := os.ReadDir(s.DatastoreDir("datastore2")); err != nil || len(left) != 0 {
		t.Errorf("left on the target: %v, %v", left, err)
	}
	s.SlowMoves(0)
	task, err = v.Relocate(t.Context(), types.VirtualMachineRelocateSpec{Disk: []types.VirtualMachineRelocateSpecDiskLocator{
		{DiskId: s.VM("a").DiskKey(1), Datastore: target},
	}}, "")
	wait(t, task, err)
	if got, want := s.State().VMs[0].Disks, []string{"[datastore1] a/a.vmdk", "[datastore2] a/a_1.vmdk"}; !cmp.Equal(got, want) {
		t.Errorf("disks on %v, want %v", got, want)
	}
}

func TestDisconnectedHost(t *testing.T) {
	t.Parallel()
	s := start(t, Options{VMs: []VMSpec{{Name: "a", Host: "esx1.lab", Disks: []DiskSpec{{Size: 1 << 20}}}}})
	c := dial(t, s)
	v := machine(t, c, "a")
	if err := s.DisconnectHost("esx1.lab"); err != nil {
		t.Fatal(err)
	}
	_, err := v.PowerOn(t.Context())
	refused[*types.HostNotConnected](t, "power-on", err)
	if m := properties(t, v); m.Runtime.ConnectionState != types.VirtualMachineConnectionStateDisconnected {
		t.Errorf("the VM is %s", m.Runtime.ConnectionState)
	}
	if err := errors.Join(s.ReconnectHost("esx1.lab"), done(t, first(v.PowerOn(t.Context())), nil)); err != nil {
		t.Error(err)
	}
}

func TestStandalone(t *testing.T) {
	t.Parallel()
	s := start(t, Options{Standalone: true, VMs: []VMSpec{{Name: "a", Disks: []DiskSpec{{Size: 1 << 20}}}}})
	c := dial(t, s)
	if c.IsVC() || c.ServiceContent.About.InstanceUuid != "" {
		t.Errorf("it says that it is %+v", c.ServiceContent.About)
	}
	v := machine(t, c, "a")
	task, err := v.PowerOn(t.Context())
	wait(t, task, err)
	snapshotOf(t, v, "s")
}

func datastoreOf(t *testing.T, c *govmomi.Client, name string) *object.Datastore {
	t.Helper()
	f := find.NewFinder(c.Client)
	dc, err := f.DefaultDatacenter(t.Context())
	if err != nil {
		t.Fatal(err)
	}
	f.SetDatacenter(dc)
	ds, err := f.Datastore(t.Context(), name)
	if err != nil {
		t.Fatal(err)
	}
	return ds
}

func TestTagsAndFolders(t *testing.T) {
	t.Parallel()
	s := start(t, Options{VMs: []VMSpec{{Name: "a/b", Folder: "Prod/Web", Tags: []string{"gold"}, Disks: []DiskSpec{{Size: 1 << 20}}}}})
	c := dial(t, s)
	v := machine(t, c, "Prod/Web/a%2fb")
	if m := properties(t, v); m.Name != "a%2fb" || m.Config.Files.VmPathName != "[datastore1] a_b/a_b.vmx" {
		t.Errorf("the VM is %q at %s", m.Name, m.Config.Files.VmPathName)
	}
	if err := done(t, first(v.Destroy(context.WithoutCancel(t.Context()))), nil); err != nil {
		t.Fatal(err)
	}
	if left, err := os.ReadDir(s.DatastoreDir("datastore1")); err != nil || len(left) != 0 {
		t.Errorf("left: %v, %v", left, err)
	}
}

func newTask(c *govmomi.Client, r types.ManagedObjectReference) *object.Task {
	return object.NewTask(c.Client, r)
}

// faultName is the type of an error's fault; "" when it has none.
func faultName(err error) string {
	var f types.BaseMethodFault
	if _, ok := faults.As(err, &f); !ok {
		return ""
	}
	return reflect.TypeOf(f).Elem().Name()
}
