package esxsim

import (
	"errors"
	"os"
	"path/filepath"
	"strings"
	"testing"
	"time"

	"github.com/vmware/govmomi/vim25/methods"
	"github.com/vmware/govmomi/vim25/mo"
	"github.com/vmware/govmomi/vim25/types"

	"lifeboat/nfsserver/nfstest"
)

func TestMountsThatAreRefused(t *testing.T) {
	t.Parallel()
	e := newExport(t)
	s := start(t, Options{MaxNFSVolumes: 1})
	c := dial(t, s)
	dss, second := storage(t, c, "esx1.lab"), storage(t, c, "esx2.lab")
	for what, change := range map[string]func(*types.HostNasVolumeSpec){
		"no such export":          func(n *types.HostNasVolumeSpec) { n.RemotePath = "/nothing" },
		"nobody on port 111":      func(n *types.HostNasVolumeSpec) { n.RemoteHost = "127.255.255.254" },
		"a name that is too long": func(n *types.HostNasVolumeSpec) { n.LocalPath = strings.Repeat("x", 43) },
		"a datastore's name":      func(n *types.HostNasVolumeSpec) { n.LocalPath = "datastore1" },
	} {
		spec := e.spec("lifeboat")
		change(&spec)
		if _, err := dss.CreateNasDatastore(t.Context(), spec); err == nil {
			t.Errorf("%s: mounted", what)
		}
	}
	ds, err := dss.CreateNasDatastore(t.Context(), e.spec("lifeboat"))
	if err != nil {
		t.Fatal(err)
	}
	_, err = dss.CreateNasDatastore(t.Context(), e.spec("lifeboat"))
	refused[*types.DuplicateName](t, "the same again", err)
	_, err = dss.CreateNasDatastore(t.Context(), e.spec("other"))
	refused[*types.AlreadyExists](t, "the same under another name", err)
	deeper := e.spec("deeper")
	deeper.RemotePath += "/db"
	_, err = dss.CreateNasDatastore(t.Context(), deeper)
	refused[*types.PlatformConfigFault](t, "one more than NFS.MaxVolumes", err)
	again, err := second.CreateNasDatastore(t.Context(), e.spec("lifeboat"))
	if err != nil || again.Reference() != ds.Reference() {
		t.Errorf("on the second host: %v, %v", again, err)
	}
	if got := s.State().NAS; len(got) != 2 {
		t.Errorf("mounted: %v", got)
	}
	if err := errors.Join(dss.Remove(t.Context(), ds), second.Remove(t.Context(), ds)); err != nil {
		t.Error(err)
	}
	if got := s.State().NAS; len(got) != 0 {
		t.Errorf("left mounted: %v", got)
	}
}

func TestLostDatastoreTurnsInactive(t *testing.T) {
	t.Parallel()
	e := newExport(t)
	s := start(t, Options{Heartbeat: 20 * time.Millisecond, APDTimeout: 200 * time.Millisecond})
	c := dial(t, s)
	ds, err := storage(t, c, "esx1.lab").CreateNasDatastore(t.Context(), e.spec("lifeboat"))
	if err != nil {
		t.Fatal(err)
	}
	v := register(t, c, "[lifeboat] db/db.vmx")
	task, err := v.PowerOn(t.Context())
	wait(t, task, err)
	accessible := func(want bool) {
		t.Helper()
		var m mo.Datastore
		for end := time.Now().Add(20 * time.Second); ; time.Sleep(5 * time.Millisecond) {
			if err := ds.Properties(t.Context(), ds.Reference(), []string{"summary"}, &m); err != nil {
				t.Fatal(err)
			}
			if m.Summary.Accessible == want {
				return
			}
			if time.Now().After(end) {
				t.Fatalf("the datastore's accessible is not %v", want)
			}
		}
	}
	e.stop()
	accessible(false)
	if m := properties(t, v); m.Runtime.ConnectionState != types.VirtualMachineConnectionStateInaccessible {
		t.Errorf("the VM is %s", m.Runtime.ConnectionState)
	}
	if err := s.VM("db (recovered)").WriteDisk(0, []byte("x"), 0); !errors.Is(err, errDown) {
		t.Errorf("a write without a server: %v", err)
	}
	e.start()
	accessible(true)
	if err := s.VM("db (recovered)").WriteDisk(0, []byte("x"), 0); err != nil {
		t.Errorf("a write when it is back: %v", err)
	}
}

func TestLocksOfOthers(t *testing.T) {
	t.Parallel()
	e := newExport(t)
	o := Options{Heartbeat: 30 * time.Millisecond, LockTimeout: 800 * time.Millisecond}
	one, two := start(t, o), start(t, o)
	for i, s := range []*Sim{one, two} {
		c := dial(t, s)
		if _, err := storage(t, c, "esx1.lab").CreateNasDatastore(t.Context(), e.spec("lifeboat")); err != nil {
			t.Fatal(err)
		}
		task, err := register(t, c, "[lifeboat] db/db.vmx").PowerOn(t.Context())
		if err := done(t, task, err); i == 0 && err != nil {
			t.Fatal(err)
		} else if i == 1 {
			refused[*types.FileLocked](t, "another vCenter's VM on the same disk", err)
		}
	}
	one.mu.Lock() // its hosts die: nobody refreshes or removes the lock any more
	for _, d := range one.datastores {
		if d.nas != nil {
			d.nas.stop()
			clear(d.nas.locks)
		}
	}
	one.mu.Unlock()
	v := machine(t, dial(t, two), "db (recovered)")
	task, err := v.PowerOn(t.Context())
	wait(t, task, err)
}

func TestMovedOrCopied(t *testing.T) {
	t.Parallel()
	e := newExport(t)
	file := filepath.Join(e.root, "s1", "db", "db.vmx")
	text, err := os.ReadFile(file)
	if err != nil {
		t.Fatal(err)
	}
	changed := strings.Replace(string(text), `uuid.action = "create"`, `uuid.location = "56 4d 00 00 00 00 00 00-00 00 00 00 00 00 00 01"`, 1)
	if err := os.WriteFile(file, []byte(changed), 0o600); err != nil {
		t.Fatal(err)
	}
	s := start(t, Options{})
	c := dial(t, s)
	if _, err := storage(t, c, "esx1.lab").CreateNasDatastore(t.Context(), e.spec("lifeboat")); err != nil {
		t.Fatal(err)
	}
	v := register(t, c, "[lifeboat] db/db.vmx")
	before := properties(t, v).Config.Uuid
	task, err := v.PowerOn(t.Context())
	if err != nil {
		t.Fatal(err)
	}
	var q *types.VirtualMachineQuestionInfo
	for end := time.Now().Add(20 * time.Second); q == nil; time.Sleep(2 * time.Millisecond) {
		if q = properties(t, v).Runtime.Question; q == nil && time.Now().After(end) {
			t.Fatal("it does not ask")
		}
	}
	if err := v.Answer(t.Context(), q.Id, answerCopied); err != nil {
		t.Fatal(err)
	}
	wait(t, task, nil)
	if m := properties(t, v); m.Config.Uuid == before || m.Runtime.Question != nil {
		t.Errorf("a copied VM has the UUID %s as before, or still asks: %v", m.Config.Uuid, m.Runtime.Question)
	}
}

func TestRegistrationsThatAreRefused(t *testing.T) {
	t.Parallel()
	e := newExport(t)
	s := start(t, Options{})
	c := dial(t, s)
	if _, err := storage(t, c, "esx1.lab").CreateNasDatastore(t.Context(), e.spec("lifeboat")); err != nil {
		t.Fatal(err)
	}
	text, err := os.ReadFile(filepath.Join(e.root, "s1", "db", "db.vmx"))
	if err != nil {
		t.Fatal(err)
	}
	pool := s.pool
	try := func(path string) error {
		res, err := methods.RegisterVM_Task(t.Context(), c.Client, &types.RegisterVM_Task{This: s.vmFolder, Path: path, Pool: &pool})
		if err != nil {
			return err
		}
		return done(t, newTask(c, res.Returnval), nil)
	}
	for i, test := range []struct{ old, new, fault string }{
		{`virtualHW.version = "19"`, `virtualHW.version = "99"`, "VirtualHardwareVersionNotSupported"},
		{`memSize = "64"`, `memSize = "63"`, "GenericVmConfigFault"},
		{`memSize = "64"`, `memSize = 64`, "GenericVmConfigFault"},
		{`memSize = "64"`, "memSize = \"64\"\nMEMSIZE = \"64\"", "GenericVmConfigFault"},
		{`"db.vmdk"`, `"other.vmdk"`, "FileNotFound"},
		{`"db.vmdk"`, `"../db/db.vmdk"`, "FileNotFound"},
		{`"pvscsi"`, `"fastscsi"`, "GenericVmConfigFault"},
		{`scsi0:0.`, `scsi0:7.`, "GenericVmConfigFault"},
	} {
		bad := "bad" + itoa(i) + ".vmx" // a new one each: the server need not see changes made behind its back
		if err := os.WriteFile(filepath.Join(e.root, "s1", "db", bad), []byte(strings.ReplaceAll(string(text), test.old, test.new)), 0o600); err != nil {
			t.Fatal(err)
		}
		if err := try("[lifeboat] db/" + bad); err == nil || !strings.Contains(faultName(err), test.fault) {
			t.Errorf("with %s: %v (%s), want %s", test.new, err, faultName(err), test.fault)
		}
	}
	if err := try("[lifeboat] db/nothing.vmx"); faultName(err) != "NotFound" {
		t.Errorf("no file: %v", err)
	}
	if err := try("[lifeboat] db/db.vmx"); err != nil {
		t.Fatal(err)
	}
	if err := try("[lifeboat] db/db.vmx"); faultName(err) != "AlreadyExists" {
		t.Errorf("twice: %v", err)
	}
	if got := s.State().VMs; len(got) != 1 {
		t.Errorf("VMs: %+v", got)
	}
}

func TestHotAddAndRemove(t *testing.T) {
	t.Parallel()
	e := newExport(t)
	s := start(t, Options{VMs: []VMSpec{{Name: "proxy", PowerOn: true, Disks: []DiskSpec{{Size: 1 << 20}}}}})
	c := dial(t, s)
	for _, h := range []string{"esx1.lab", "esx2.lab"} {
		if _, err := storage(t, c, h).CreateNasDatastore(t.Context(), e.spec("lifeboat")); err != nil {
			t.Fatal(err)
		}
	}
	v := machine(t, c, "proxy")
	m := properties(t, v)
	d := &types.VirtualDisk{}
	d.Key, d.ControllerKey = -1, firstDisk(m).ControllerKey
	d.Backing = &types.VirtualDiskFlatVer2BackingInfo{
		VirtualDeviceFileBackingInfo: types.VirtualDeviceFileBackingInfo{FileName: "[lifeboat] db/db.vmdk"},
		DiskMode:                     string(types.VirtualDiskModeIndependent_nonpersistent),
	}
	if err := v.AddDevice(t.Context(), d); err != nil {
		t.Fatal(err)
	}
	proxy := s.VM("proxy")
	want, got := make([]byte, 512), make([]byte, 512)
	if _, err := e.disk.ReadAt(want, 1<<20); err != nil {
		t.Fatal(err)
	}
	if err := proxy.ReadDisk(1, got, 1<<20); err != nil || string(got) != string(want) {
		t.Errorf("the added disk reads something else: %v", err)
	}
	if err := proxy.WriteDisk(1, []byte("thrown away"), 1<<20); err != nil {
		t.Fatal(err)
	}
	added := diskOf(properties(t, v).Config.Hardware.Device, proxy.DiskKey(1))
	if b := added.Backing.(*types.VirtualDiskFlatVer2BackingInfo); b.FileName != "[lifeboat] db/db.vmdk" || b.Uuid != "6000c29d-0102-0304-0506-0708090a0b0c" && !strings.EqualFold(b.Uuid, "6000C29d-0102-0304-0506-0708090a0b0c") {
		t.Errorf("the added disk is %s with the UUID %s", b.FileName, b.Uuid)
	}
	if err := v.RemoveDevice(t.Context(), true, added); err != nil {
		t.Fatal(err)
	}
	if _, err := e.disk.ReadAt(got, 1<<20); err != nil || string(got) != string(want) {
		t.Errorf("a nonpersistent disk was written to: %v", err)
	}
	left, err := filepath.Glob(filepath.Join(s.DatastoreDir("datastore1"), "proxy", "*REDO*"))
	if err != nil || len(left) != 0 {
		t.Errorf("left: %v, %v", left, err)
	}
}

func TestLockFileName(t *testing.T) {
	t.Parallel()
	if got, want := lockFileName(0x0102030405060708), ".lck-0807060504030201"; got != want {
		t.Errorf("%s, want %s", got, want)
	}
	if fsError(nfstest.NoEnt) == nil || !errors.Is(fsError(nfstest.NoEnt), os.ErrNotExist) {
		t.Error("NFS3ERR_NOENT is no fs.ErrNotExist")
	}
}
