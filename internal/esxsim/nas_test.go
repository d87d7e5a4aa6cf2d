package esxsim

import (
	"bytes"
	"context"
	"fmt"
	"log/slog"
	"math/rand/v2"
	"os"
	"path/filepath"
	"strings"
	"testing"
	"time"

	"github.com/vmware/govmomi"
	"github.com/vmware/govmomi/find"
	"github.com/vmware/govmomi/object"
	"github.com/vmware/govmomi/vim25/mo"
	"github.com/vmware/govmomi/vim25/types"

	"lifeboat/disk"
	"lifeboat/disk/disktest"
	"lifeboat/nfsserver"
	tree "lifeboat/nfsserver/datastore"
)

// export is Lifeboat's NFS server with one VM, on a loopback address of its own.
type export struct {
	addr  string
	root  string
	disk  *disktest.Memory
	stop  func()
	start func()
}

const exportSize = 8 << 20

func newExport(t *testing.T) *export {
	t.Helper()
	if os.Geteuid() != 0 {
		t.Skip("not root: a host finds NFS servers through port 111, which only root can bind")
	}
	e := &export{
		addr: fmt.Sprintf("127.%d.%d.%d", 1+rand.IntN(254), rand.IntN(256), 1+rand.IntN(254)),
		root: t.TempDir(), disk: disktest.Random(1, exportSize, 0.5),
	}
	dir := filepath.Join(e.root, "s1", "db")
	if err := os.MkdirAll(dir, 0o755); err != nil {
		t.Fatal(err)
	}
	text, err := disk.NewDescriptor(disk.DescriptorSpec{Size: exportSize, File: "db-flat.vmdk", UUID: "60 00 c2 9d 01 02 03 04-05 06 07 08 09 0a 0b 0c"}).Encode()
	if err != nil {
		t.Fatal(err)
	}
	vmx := strings.Join([]string{
		`.encoding = "UTF-8"`, `config.version = "8"`, `virtualHW.version = "19"`, `displayName = "db (recovered)"`,
		`guestOS = "otherlinux-64"`, `memSize = "64"`, `numvcpus = "2"`, `uuid.action = "create"`, `annotation = "a|22b|22"`,
		`scsi0.present = "TRUE"`, `scsi0.virtualDev = "pvscsi"`, `scsi0:0.present = "TRUE"`, `scsi0:0.deviceType = "scsi-hardDisk"`,
		`scsi0:0.fileName = "db.vmdk"`, `ethernet0.present = "TRUE"`, `ethernet0.virtualDev = "vmxnet3"`,
		`ethernet0.networkName = "VM Network"`, `ethernet0.startConnected = "FALSE"`, `lifeboat.session = "s1"`,
	}, "\n")
	for name, content := range map[string]string{"db.vmx": vmx, "db.vmdk": string(text), "db-flat.vmdk": ""} {
		if err := os.WriteFile(filepath.Join(dir, name), []byte(content), 0o600); err != nil {
			t.Fatal(err)
		}
	}
	e.start = func() { e.stop = e.serve(t) }
	e.start()
	t.Cleanup(func() { e.stop() })
	return e
}

func (e *export) serve(t *testing.T) (stop func()) {
	t.Helper()
	exported, err := tree.Open(tree.Options{Root: e.root, FSID: 7, Key: [32]byte{1}})
	if err != nil {
		t.Fatal(err)
	}
	if err := exported.Bind("s1/db/db-flat.vmdk", e.disk); err != nil {
		t.Fatal(err)
	}
	if err := exported.Attach("s1"); err != nil {
		t.Fatal(err)
	}
	srv, err := nfsserver.New(nfsserver.Options{
		Tree: exported, NFSAddr: e.addr + ":2049", MountAddr: e.addr + ":20048", PortmapAddr: e.addr + ":111",
		Logger: slog.New(slog.DiscardHandler),
	})
	if err != nil {
		t.Fatal(err)
	}
	ctx, cancel := context.WithCancel(context.Background())
	if err := srv.Listen(ctx); err != nil {
		t.Fatal(err)
	}
	ended := make(chan error, 1)
	go func() { ended <- srv.Run(ctx) }()
	return func() {
		cancel()
		<-ended
		exported.Close()
	}
}

func (e *export) spec(name string) types.HostNasVolumeSpec {
	return types.HostNasVolumeSpec{RemoteHost: e.addr, RemotePath: nfsserver.ExportPath + "/s1", LocalPath: name, AccessMode: "readWrite", Type: "NFS"}
}

func storage(t *testing.T, c *govmomi.Client, host string) *object.HostDatastoreSystem {
	t.Helper()
	f := find.NewFinder(c.Client)
	dc, err := f.DefaultDatacenter(t.Context())
	if err != nil {
		t.Fatal(err)
	}
	f.SetDatacenter(dc)
	h, err := f.HostSystem(t.Context(), host)
	if err != nil {
		t.Fatal(err)
	}
	dss, err := h.ConfigManager().DatastoreSystem(t.Context())
	if err != nil {
		t.Fatal(err)
	}
	return dss
}

// register puts the exported VM into the inventory.
func register(t *testing.T, c *govmomi.Client, path string) *object.VirtualMachine {
	t.Helper()
	f := find.NewFinder(c.Client)
	dc, err := f.DefaultDatacenter(t.Context())
	if err != nil {
		t.Fatal(err)
	}
	f.SetDatacenter(dc)
	folders, err := dc.Folders(t.Context())
	if err != nil {
		t.Fatal(err)
	}
	pool, err := f.DefaultResourcePool(t.Context())
	if err != nil {
		t.Fatal(err)
	}
	task, err := folders.VmFolder.RegisterVM(t.Context(), path, "", false, pool, nil)
	return object.NewVirtualMachine(c.Client, wait(t, task, err).(types.ManagedObjectReference))
}

func TestRecoverFromNFS(t *testing.T) {
	t.Parallel()
	e := newExport(t)
	s := start(t, Options{Heartbeat: 50 * time.Millisecond})
	c := dial(t, s)
	dss := storage(t, c, "esx1.lab")
	ds, err := dss.CreateNasDatastore(t.Context(), e.spec("lifeboat"))
	if err != nil {
		t.Fatal(err)
	}
	v := register(t, c, "[lifeboat] db/db.vmx")
	m := properties(t, v)
	if m.Name != "db (recovered)" || m.Config.Hardware.NumCPU != 2 || m.Config.Annotation != `a"b"` {
		t.Errorf("registered as %q with %d CPUs and %q", m.Name, m.Config.Hardware.NumCPU, m.Config.Annotation)
	}
	task, err := v.PowerOn(t.Context())
	wait(t, task, err)
	locks, err := filepath.Glob(filepath.Join(e.root, "s1", "db", ".lck-*"))
	if err != nil || len(locks) != 1 {
		t.Fatalf("the running VM has the locks %v, %v", locks, err)
	}
	guest := s.VM("db (recovered)")
	want := make([]byte, exportSize)
	if _, err := e.disk.ReadAt(want, 0); err != nil {
		t.Fatal(err)
	}
	got := make([]byte, exportSize)
	if err := guest.ReadDisk(0, got, 0); err != nil || !bytes.Equal(got, want) {
		t.Fatalf("the guest reads something else: %v", err)
	}
	copy(want[3<<20+5:], "written before the server restarts")
	if err := guest.WriteDisk(0, want[3<<20+5:3<<20+39], 3<<20+5); err != nil {
		t.Fatal(err)
	}
	e.stop()
	e.start()
	copy(want[5<<20:], "written after")
	if err := guest.WriteDisk(0, want[5<<20:5<<20+13], 5<<20); err != nil {
		t.Fatalf("after a restart of the server: %v", err)
	}
	if err := dss.Remove(t.Context(), ds); err == nil {
		t.Error("the datastore was removed under a VM")
	}
	target := s.datastoreRef(t, "datastore2")
	task, err = v.Relocate(t.Context(), types.VirtualMachineRelocateSpec{Datastore: &target}, "")
	wait(t, task, err)
	if err := guest.ReadDisk(0, got, 0); err != nil || !bytes.Equal(got, want) {
		t.Errorf("after the move the guest reads something else: %v", err)
	}
	m = properties(t, v)
	if len(m.Datastore) != 1 || m.Datastore[0] != target {
		t.Errorf("after the move the VM is on %v", m.Datastore)
	}
	if err := dss.Remove(t.Context(), ds); err != nil {
		t.Errorf("removing the datastore: %v", err)
	}
	if left, _ := filepath.Glob(filepath.Join(e.root, "s1", "db", ".*")); len(left) != 0 {
		t.Errorf("left on the export: %v", left)
	}
	var host mo.HostSystem
	if err := v.Properties(t.Context(), *m.Runtime.Host, []string{"datastore"}, &host); err != nil || len(host.Datastore) != 2 {
		t.Errorf("the host has the datastores %v, %v", host.Datastore, err)
	}
}

func (s *Sim) datastoreRef(t *testing.T, name string) types.ManagedObjectReference {
	t.Helper()
	s.mu.Lock()
	defer s.mu.Unlock()
	d, err := s.datastoreNamed(name)
	if err != nil {
		t.Fatal(err)
	}
	return d.ref
}
