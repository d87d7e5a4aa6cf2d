package vsphere_test

import (
	"context"
	"errors"
	"fmt"
	"log/slog"
	"math/rand/v2"
	"os"
	"path/filepath"
	"strings"
	"sync"
	"testing"
	"time"

	"lifeboat/disk"
	"lifeboat/disk/disktest"
	"lifeboat/internal/esxsim"
	"lifeboat/nfsserver"
	"lifeboat/nfsserver/datastore"
	"lifeboat/vsphere"
)

const exportedSize = 4 << 20

// export serves the folder s1/db with a VM in it over NFS, on a loopback
// address of its own, and returns the datastore that it is.
func export(t *testing.T) vsphere.NAS {
	t.Helper()
	if os.Geteuid() != 0 {
		t.Skip("not root: a host finds NFS servers through port 111, which only root can bind")
	}
	root := t.TempDir()
	dir := filepath.Join(root, "s1", "db")
	if err := os.MkdirAll(dir, 0o755); err != nil {
		t.Fatal(err)
	}
	descriptor, err := disk.NewDescriptor(disk.DescriptorSpec{Size: exportedSize, File: "db-flat.vmdk", UUID: "60 00 c2 9d 01 02 03 04-05 06 07 08 09 0a 0b 0c"}).Encode()
	if err != nil {
		t.Fatal(err)
	}
	vmx := strings.Join([]string{
		`.encoding = "UTF-8"`, `config.version = "8"`, `virtualHW.version = "19"`, `displayName = "db (recovered)"`,
		`guestOS = "otherlinux-64"`, `memSize = "64"`, `numvcpus = "2"`, `uuid.action = "create"`,
		`scsi0.present = "TRUE"`, `scsi0.virtualDev = "pvscsi"`, `scsi0:0.present = "TRUE"`, `scsi0:0.deviceType = "scsi-hardDisk"`,
		`scsi0:0.fileName = "db.vmdk"`, `ethernet0.present = "TRUE"`, `ethernet0.virtualDev = "vmxnet3"`,
		`ethernet0.networkName = "VM Network"`, `ethernet0.startConnected = "FALSE"`, `lifeboat.session = "s1"`,
	}, "\n")
	for name, content := range map[string]string{"db.vmx": vmx, "db.vmdk": string(descriptor), "db-flat.vmdk": ""} {
		if err := os.WriteFile(filepath.Join(dir, name), []byte(content), 0o600); err != nil {
			t.Fatal(err)
		}
	}
	tree, err := datastore.Open(datastore.Options{Root: root, FSID: 7, Key: [32]byte{1}})
	if err != nil {
		t.Fatal(err)
	}
	if err := tree.Bind("s1/db/db-flat.vmdk", disktest.Random(1, exportedSize, 0.5)); err != nil {
		t.Fatal(err)
	}
	if err := tree.Attach("s1"); err != nil {
		t.Fatal(err)
	}
	addr := fmt.Sprintf("127.%d.%d.%d", 1+rand.IntN(254), rand.IntN(256), 1+rand.IntN(254))
	srv, err := nfsserver.New(nfsserver.Options{
		Tree: tree, NFSAddr: addr + ":2049", MountAddr: addr + ":20048", PortmapAddr: addr + ":111", Logger: slog.New(slog.DiscardHandler),
	})
	if err != nil {
		t.Fatal(err)
	}
	ctx, stop := context.WithCancel(context.Background())
	if err := srv.Listen(ctx); err != nil {
		t.Fatal(err)
	}
	ended := make(chan error, 1)
	go func() { ended <- srv.Run(ctx) }()
	t.Cleanup(func() {
		stop()
		<-ended
		tree.Close()
	})
	return vsphere.NAS{Name: "lifeboat-0123abcd", Server: addr, Path: nfsserver.ExportPath + "/s1"}
}

// TestRecovery goes the way of a recovery: mount on all hosts, register,
// change, power on, move away, and leave nothing.
func TestRecovery(t *testing.T) {
	t.Parallel()
	nas := export(t)
	s := simulate(t, esxsim.Options{Heartbeat: 50 * time.Millisecond, Networks: []string{"Isolated"}})
	c := connect(t, s)
	ctx := t.Context()
	hosts, err := c.Hosts(ctx, "")
	if err != nil || len(hosts) != 2 {
		t.Fatalf("%d hosts, %v", len(hosts), err)
	}
	cluster, err := c.Hosts(ctx, hosts[0].Cluster)
	if err != nil || len(cluster) != 2 {
		t.Fatalf("%d hosts in the cluster %q, %v", len(cluster), hosts[0].Cluster, err)
	}
	_, err = c.Hosts(ctx, "nobody")
	says(t, err, vsphere.ErrNotFound, hosts[0].Name, hosts[0].Cluster)
	var mounts []vsphere.Ref
	for _, h := range hosts {
		ref, err := c.MountNAS(ctx, h.Ref, nas)
		if err != nil {
			t.Fatal(err)
		}
		mounts = append(mounts, ref)
	}
	if mounts[0] != mounts[1] {
		t.Errorf("two hosts have mounted two datastores: %v", mounts)
	}
	list, err := c.NASDatastores(ctx)
	if err != nil || len(list) != 2 || !list[0].Active || list[0].Server != nas.Server || list[0].Path != nas.Path || list[0].Name != nas.Name {
		t.Fatalf("mounts are %+v, %v", list, err)
	}

	vm, err := c.RegisterVM(ctx, vsphere.RegisterSpec{Path: "[" + nas.Name + "] db/db.vmx", Name: "db/ü (recovered)", Host: hosts[0].Ref})
	if err != nil {
		t.Fatal(err)
	}
	v, err := c.VM(ctx, vm)
	if err != nil {
		t.Fatal(err)
	}
	if v.Name != "db/ü (recovered)" || v.HostRef != hosts[0].Ref || len(v.NICs) != 1 || v.NICs[0].Network != "VM Network" || v.NICs[0].Connected || v.ExtraConfig["lifeboat.session"] != "s1" || v.Disks[0].Datastore != nas.Name {
		t.Fatalf("registered as %+v", v)
	}
	_, err = c.RegisterVM(ctx, vsphere.RegisterSpec{Path: "[" + nas.Name + "] db/db.vmx", Name: "db2", Host: hosts[0].Ref})
	says(t, err, vsphere.ErrExists)
	_, err = c.RegisterVM(ctx, vsphere.RegisterSpec{Path: "[" + nas.Name + "] db/none.vmx", Name: "db2", Host: hosts[0].Ref})
	says(t, err, vsphere.ErrNotFound)

	note, yes := "recovered by Lifeboat", true
	change := vsphere.ChangeSpec{
		Annotation: &note, ExtraConfig: map[string]string{"lifeboat.point": "abc"},
		NICs: []vsphere.NICChange{{Key: v.NICs[0].Key, Network: "Isolated", StartConnect: &yes}},
	}
	if err := c.Reconfigure(ctx, vm, change); err != nil {
		t.Fatal(err)
	}
	for _, on := range []bool{true, true, false, false} {
		if err := c.OverrideDRSHA(ctx, vm, on); err != nil {
			t.Fatalf("override %t: %v", on, err)
		}
	}
	if v, err = c.VM(ctx, vm); err != nil || v.Annotation != note || v.ExtraConfig["lifeboat.point"] != "abc" || v.NICs[0].Network != "Isolated" {
		t.Fatalf("changed to %+v, %v", v, err)
	}
	bad := vsphere.ChangeSpec{NICs: []vsphere.NICChange{{Key: v.NICs[0].Key, Network: "nowhere"}}}
	says(t, c.Reconfigure(ctx, vm, bad), vsphere.ErrNotFound, "nowhere", "Isolated")

	for range 2 {
		if err := c.PowerOn(ctx, vm); err != nil {
			t.Fatal(err)
		}
	}
	says(t, c.Unregister(ctx, vm), vsphere.ErrState)
	says(t, c.UnmountNAS(ctx, hosts[0].Ref, nas.Name), vsphere.ErrInUse)
	says(t, c.Relocate(ctx, vm, vsphere.RelocateSpec{Datastore: "nowhere"}, nil), vsphere.ErrNotFound, "nowhere")

	var mu sync.Mutex
	var seen []vsphere.Progress
	err = c.Relocate(ctx, vm, vsphere.RelocateSpec{Datastore: "datastore1", PerDisk: map[int32]string{v.Disks[0].Key: "datastore2"}}, func(p vsphere.Progress) {
		mu.Lock()
		defer mu.Unlock()
		seen = append(seen, p)
	})
	if err != nil {
		t.Fatal(err)
	}
	if v, err = c.VM(ctx, vm); err != nil || v.Power != vsphere.PoweredOn || v.Disks[0].Datastore != "datastore2" || !strings.HasPrefix(v.VMX, "[datastore1]") {
		t.Fatalf("moved to %+v, %v", v, err)
	}
	t.Logf("progress: %v", seen)

	for _, h := range hosts {
		for range 2 {
			if err := c.UnmountNAS(ctx, h.Ref, nas.Name); err != nil {
				t.Fatal(err)
			}
		}
	}
	if list, err = c.NASDatastores(ctx); err != nil || len(list) != 0 {
		t.Errorf("mounts left: %+v, %v", list, err)
	}
	for range 2 {
		if err := c.PowerOff(ctx, vm); err != nil {
			t.Fatal(err)
		}
	}
	for range 2 {
		if err := c.Unregister(ctx, vm); err != nil {
			t.Fatal(err)
		}
	}
	_, err = c.VM(ctx, vm)
	says(t, err, vsphere.ErrNotFound)
}

// TestMountRefused: what stands in the way is told apart.
func TestMountRefused(t *testing.T) {
	t.Parallel()
	nas := export(t)
	s := simulate(t, esxsim.Options{MaxNFSVolumes: 1})
	c := connect(t, s)
	ctx := t.Context()
	hosts, err := c.Hosts(ctx, "")
	if err != nil {
		t.Fatal(err)
	}
	one, two := hosts[0].Ref, hosts[1].Ref
	taken := nas
	taken.Name = "datastore1"
	_, err = c.MountNAS(ctx, one, taken)
	says(t, err, vsphere.ErrNameTaken, "datastore1")
	dead := nas
	dead.Server = fmt.Sprintf("127.%d.%d.1", 1+rand.IntN(254), rand.IntN(256))
	_, err = c.MountNAS(ctx, one, dead)
	says(t, err, vsphere.ErrNASUnreachable, "111", "2049", "rpcbind")
	absent := nas
	absent.Path = "/no/such/export"
	_, err = c.MountNAS(ctx, one, absent)
	says(t, err, vsphere.ErrNASUnreachable)
	ref, err := c.MountNAS(ctx, one, nas)
	if err != nil {
		t.Fatal(err)
	}
	var already *vsphere.MountedError
	again, err := c.MountNAS(ctx, one, nas)
	if !errors.As(err, &already) || !errors.Is(err, vsphere.ErrAlreadyMounted) || again != ref || already.Name != nas.Name {
		t.Errorf("mounted twice: %v, %v", again, err)
	}
	renamed := nas
	renamed.Name = "other"
	for _, host := range []vsphere.Ref{one, two} {
		_, err = c.MountNAS(ctx, host, renamed)
		says(t, err, vsphere.ErrAlreadyMounted, nas.Name)
	}
	more := nas
	more.Name, more.Path = "more", nas.Path+"/db"
	_, err = c.MountNAS(ctx, one, more)
	says(t, err, vsphere.ErrMaxVolumes, "NFS.MaxVolumes")
	if err := s.DisconnectHost(hosts[1].Name); err != nil {
		t.Fatal(err)
	}
	_, err = c.MountNAS(ctx, two, nas)
	says(t, err, vsphere.ErrHost)
	// What is no NFS mount is never unmounted.
	if err := c.UnmountNAS(ctx, one, "datastore1"); err != nil {
		t.Fatal(err)
	}
	if s.Calls()["RemoveDatastore"] != 0 {
		t.Error("a datastore that is no NFS mount was to be removed")
	}
}

// TestAttach: a disk goes to another VM while it runs, and back.
func TestAttach(t *testing.T) {
	t.Parallel()
	s := simulate(t, esxsim.Options{VMs: []esxsim.VMSpec{
		{Name: "owner", Disks: []esxsim.DiskSpec{{Size: 1 << 20}}},
		{Name: "proxy", PowerOn: true, Disks: []esxsim.DiskSpec{{Size: 1 << 20}, {Size: 1 << 20, Controller: "nvme"}}},
	}})
	c := connect(t, s)
	ctx := t.Context()
	owner, proxy := vmOf(t, c, "owner"), vmOf(t, c, "proxy")
	for _, mode := range []string{"independent_nonpersistent", ""} {
		key, err := c.AttachDisk(ctx, proxy.Ref, vsphere.AttachSpec{File: owner.Disks[0].File, Mode: mode})
		if err != nil {
			t.Fatal(err)
		}
		v, err := c.VM(ctx, proxy.Ref)
		if err != nil || len(v.Disks) != 3 {
			t.Fatalf("%+v, %v", v, err)
		}
		for range 2 {
			if err := c.DetachDisk(ctx, proxy.Ref, key, true); err != nil {
				t.Fatal(err)
			}
		}
		if v, err = c.VM(ctx, proxy.Ref); err != nil || len(v.Disks) != 2 {
			t.Fatalf("%+v, %v", v, err)
		}
	}
	if n, err := c.FileSize(ctx, flat(owner.Disks[0].File)); n != 1<<20 || err != nil {
		t.Errorf("the disk's file after it was detached: %d bytes, %v", n, err)
	}
	_, err := c.AttachDisk(ctx, proxy.Ref, vsphere.AttachSpec{File: "[datastore1] none/none.vmdk"})
	says(t, err, vsphere.ErrNotFound)
	d, err := c.CreateDisk(ctx, proxy.Ref, vsphere.DiskSpec{Size: 3 << 20, Thin: true})
	if err != nil || d.Size != 3<<20 || d.Key == 0 {
		t.Fatalf("made %+v, %v", d, err)
	}
	if err := c.DetachDisk(ctx, proxy.Ref, d.Key, false); err != nil {
		t.Fatal(err)
	}
	_, err = c.FileSize(ctx, d.File)
	says(t, err, vsphere.ErrNotFound)
}

// TestCreateFromConfig: the configuration that was kept with a backup makes the
// VM again.
func TestCreateFromConfig(t *testing.T) {
	t.Parallel()
	s := simulate(t, esxsim.Options{VMs: []esxsim.VMSpec{{
		Name: "old", Firmware: "efi", MemoryMB: 96, CPUs: 3, GuestID: "debian12_64Guest", Networks: []string{"VM Network"}, SecureBoot: true, TPM: true,
		Disks: []esxsim.DiskSpec{{Size: 1 << 20, Controller: "pvscsi"}, {Size: 2 << 20, Controller: "pvscsi"}, {Size: 3 << 20, Controller: "nvme"}, {Size: 4 << 20, Controller: "lsilogic", Bus: 1}},
	}}})
	c := connect(t, s)
	ctx := t.Context()
	old, err := c.VM(ctx, vmOf(t, c, "old").Ref)
	if err != nil {
		t.Fatal(err)
	}
	spec := vsphere.CreateSpec{Name: "new/1", Host: old.HostRef, Datastore: "datastore2", Config: old.Config, Notes: "restored", KeepMACs: true}
	for _, d := range old.Disks {
		spec.Disks = append(spec.Disks, vsphere.DiskSpec{Key: d.Key, Size: d.Size, Thin: true, Controller: d.Controller, Unit: d.Unit})
	}
	made, err := c.CreateVM(ctx, spec)
	if err != nil {
		t.Fatal(err)
	}
	v, err := c.VM(ctx, made.Ref)
	if err != nil {
		t.Fatal(err)
	}
	if v.Name != "new/1" || v.MemoryMB != 96 || v.CPUs != 3 || v.Firmware != "efi" || v.GuestID != old.GuestID || v.Annotation != "restored" || v.Identity == old.Identity {
		t.Errorf("made %+v of %+v", v, old)
	}
	if len(v.NICs) != 1 || v.NICs[0].MAC != old.NICs[0].MAC || v.NICs[0].Network != "VM Network" {
		t.Errorf("adapters %+v, want %+v", v.NICs, old.NICs)
	}
	for _, d := range old.Disks {
		n := made.Disks[d.Key]
		if n.Size != d.Size || n.Controller.Type != d.Controller.Type || n.Controller.Bus != d.Controller.Bus || n.Unit != d.Unit || n.Datastore != "datastore2" {
			t.Errorf("disk %+v became %+v", d, n)
		}
	}
	if old.TPM && !strings.Contains(strings.Join(made.LeftOut, "\n"), "TPM") {
		t.Errorf("left out: %q", made.LeftOut)
	}
	_, err = c.CreateVM(ctx, spec)
	says(t, err, vsphere.ErrExists)
	if err := c.DeleteVM(ctx, made.Ref); err != nil {
		t.Fatal(err)
	}
	_, err = c.FileSize(ctx, v.VMX)
	says(t, err, vsphere.ErrNotFound)
	generic, err := c.CreateVM(ctx, vsphere.CreateSpec{Name: "plain", Host: old.HostRef, Datastore: "datastore1", Disks: []vsphere.DiskSpec{{Key: 1, Size: 1 << 20}, {Key: 2, Size: 2 << 20}}})
	if err != nil || len(generic.Disks) != 2 {
		t.Fatalf("%+v, %v", generic, err)
	}
}
