package vsphere_test

import (
	"bytes"
	"io"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"testing"
	"time"

	"lifeboat/disk"
	"lifeboat/internal/esxsim"
	"lifeboat/vsphere"
)

func TestGuest(t *testing.T) {
	t.Parallel()
	s := simulate(t, esxsim.Options{VMs: []esxsim.VMSpec{
		{Name: "web", PowerOn: true, Tools: true, GuestUser: "root", GuestPassword: "s3cret", GuestProgram: func(program, args, _ string) int { return len(program) + len(args) }},
		{Name: "bare", PowerOn: true},
	}})
	c := connect(t, s)
	ctx := t.Context()
	web := vmOf(t, c, "web").Ref
	auth := vsphere.GuestAuth{Username: "root", Password: "s3cret"}
	_, err := c.Guest(ctx, web, vsphere.GuestAuth{Username: "root", Password: "wr0ng"})
	says(t, err, vsphere.ErrGuestCredentials, "root")
	if strings.Contains(err.Error(), "wr0ng") {
		t.Errorf("an error tells a password: %v", err)
	}
	_, err = c.Guest(ctx, vmOf(t, c, "bare").Ref, auth)
	says(t, err, vsphere.ErrGuestTools)
	g, err := c.Guest(ctx, web, auth)
	if err != nil {
		t.Fatal(err)
	}
	defer g.Close(ctx)
	if err := g.MakeDir(ctx, "/srv/a b/ü", true); err != nil {
		t.Fatal(err)
	}
	content := bytes.Repeat([]byte("content"), 50_000)
	when := time.Date(2024, 2, 29, 12, 0, 0, 0, time.UTC)
	name := "/srv/a b/ü/file 100%"
	if err := g.Upload(ctx, name, bytes.NewReader(content), int64(len(content)), vsphere.GuestFileAttrs{Mode: 0o640, Modified: when}, false); err != nil {
		t.Fatal(err)
	}
	says(t, g.Upload(ctx, name, bytes.NewReader(content), int64(len(content)), vsphere.GuestFileAttrs{}, false), vsphere.ErrExists)
	if err := g.Upload(ctx, "/srv/empty", bytes.NewReader(nil), 0, vsphere.GuestFileAttrs{}, false); err != nil {
		t.Errorf("an empty file: %v", err)
	}
	inside, err := os.ReadFile(filepath.Join(s.VM("web").GuestDir(), name))
	if err != nil || !bytes.Equal(inside, content) {
		t.Errorf("in the guest: %d bytes, %v", len(inside), err)
	}
	r, size, err := g.Download(ctx, name)
	if err != nil || size != int64(len(content)) {
		t.Fatalf("%d bytes, %v", size, err)
	}
	back, err := io.ReadAll(r)
	r.Close()
	if err != nil || !bytes.Equal(back, content) {
		t.Errorf("back: %d bytes, %v", len(back), err)
	}
	list, err := g.List(ctx, "/srv/a b/ü")
	if err != nil || len(list) != 1 || list[0].Path != "file 100%" || list[0].Size != int64(len(content)) || list[0].Type != "file" {
		t.Errorf("listed %+v, %v", list, err)
	}
	if err := g.Rename(ctx, name, "/srv/moved", false); err != nil {
		t.Fatal(err)
	}
	if err := g.Remove(ctx, "/srv/moved"); err != nil {
		t.Fatal(err)
	}
	_, _, err = g.Download(ctx, "/srv/moved")
	says(t, err, vsphere.ErrNotFound)
	tmp, err := g.TempDir(ctx, "lifeboat-")
	if err != nil || !strings.Contains(tmp, "lifeboat-") {
		t.Errorf("%q, %v", tmp, err)
	}
	if err := g.RemoveDir(ctx, tmp, true); err != nil {
		t.Error(err)
	}
	if exit, err := g.RunProgram(ctx, vsphere.GuestProgram{Path: "/bin/x", Args: "abc"}); err != nil || exit != 9 {
		t.Errorf("exit code %d, %v", exit, err)
	}
}

func TestMissingPrivileges(t *testing.T) {
	t.Parallel()
	s := simulate(t, esxsim.Options{
		Users: map[string]string{"backup@lab": "pw"},
		VMs:   []esxsim.VMSpec{{Name: "a/b", Folder: "Prod", Disks: []esxsim.DiskSpec{{Size: 1 << 20}}}},
	})
	o := options(s)
	o.Username, o.Password = "backup@lab", "pw"
	c, err := vsphere.Dial(t.Context(), o)
	if err != nil {
		t.Fatal(err)
	}
	defer c.Close(t.Context())
	ctx := t.Context()
	vm := vmOf(t, c, "a/b")
	if missing, err := c.Preflight(ctx, vsphere.ForBackup, vm.Ref); err != nil || len(missing) != 0 {
		t.Fatalf("missing %v, %v", missing, err)
	}
	s.Deny("backup@lab", "VirtualMachine.State.CreateSnapshot", "a/b")
	s.Deny("backup@lab", "VirtualMachine.Config.DiskLease", "a/b")
	before := c.Calls()
	missing, err := c.Preflight(ctx, vsphere.ForBackup, vm.Ref)
	if err != nil {
		t.Fatal(err)
	}
	var got []string
	for _, m := range missing {
		got = append(got, m.String())
	}
	want := []string{"VirtualMachine.State.CreateSnapshot on /" + vm.Datacenter + "/vm/Prod/a%2fb", "VirtualMachine.Config.DiskLease on /" + vm.Datacenter + "/vm/Prod/a%2fb"}
	if !slices.Equal(got, want) {
		t.Errorf("missing %q, want %q", got, want)
	}
	if n := c.Calls() - before; n != 2 {
		t.Errorf("%d calls", n)
	}
	_, err = c.CreateSnapshot(ctx, vm.Ref, vsphere.SnapshotSpec{Name: "s"})
	says(t, err, vsphere.ErrPermission, "VirtualMachine.State.CreateSnapshot")
}

func TestScreenshot(t *testing.T) {
	t.Parallel()
	s := simulate(t, esxsim.Options{VMs: []esxsim.VMSpec{{Name: "on", PowerOn: true}, {Name: "off"}}})
	c := connect(t, s)
	png, err := c.Screenshot(t.Context(), vmOf(t, c, "on").Ref)
	if err != nil || !bytes.HasPrefix(png, []byte("\x89PNG")) {
		t.Errorf("%d bytes, %v", len(png), err)
	}
	_, err = c.Screenshot(t.Context(), vmOf(t, c, "off").Ref)
	says(t, err, vsphere.ErrState)
}

// TestLease: a snapshot's disk comes out as a stream-optimized VMDK.
func TestLease(t *testing.T) {
	t.Parallel()
	s := simulate(t, esxsim.Options{VMs: []esxsim.VMSpec{{Name: "x", PowerOn: true, Disks: []esxsim.DiskSpec{{Size: 4 << 20}}}}})
	c, guest := connect(t, s), s.VM("x")
	ctx := t.Context()
	want := bytes.Repeat([]byte("lease!"), 20_000)
	if err := guest.WriteDisk(0, want, 1<<20); err != nil {
		t.Fatal(err)
	}
	snap, err := c.CreateSnapshot(ctx, vmOf(t, c, "x").Ref, vsphere.SnapshotSpec{Name: "s"})
	if err != nil {
		t.Fatal(err)
	}
	l, err := c.ExportLease(ctx, snap)
	if err != nil {
		t.Fatal(err)
	}
	at := slices.IndexFunc(l.Items, func(i vsphere.LeaseItem) bool { return i.Disk })
	if at < 0 {
		t.Fatalf("items %+v", l.Items)
	}
	r, err := l.Open(ctx, at)
	if err != nil {
		t.Fatal(err)
	}
	vmdk, err := io.ReadAll(r)
	r.Close()
	if err != nil {
		t.Fatal(err)
	}
	l.Progress(100)
	for range 2 {
		if err := l.Complete(ctx); err != nil {
			t.Fatal(err)
		}
	}
	file := filepath.Join(t.TempDir(), "x.vmdk")
	if err := os.WriteFile(file, vmdk, 0o600); err != nil {
		t.Fatal(err)
	}
	img, err := disk.Open(ctx, file, disk.OpenOptions{})
	if err != nil {
		t.Fatal(err)
	}
	defer img.Close()
	got := make([]byte, len(want))
	if _, err := img.ReadAt(got, 1<<20); err != nil || !bytes.Equal(got, want) {
		t.Errorf("the exported disk is another: %v", err)
	}

	in, err := c.ImportLease(ctx, vsphere.CreateSpec{
		Name: "imported", Host: vmOf(t, c, "x").HostRef, Datastore: "datastore1",
		Disks: []vsphere.DiskSpec{{Key: 7, Size: 4 << 20, Thin: true}},
	})
	if err != nil {
		t.Fatal(err)
	}
	at = slices.IndexFunc(in.Items, func(i vsphere.LeaseItem) bool { return i.DeviceKey == 7 })
	if at < 0 {
		t.Fatalf("items %+v", in.Items)
	}
	if err := in.Write(ctx, at, bytes.NewReader(vmdk)); err != nil {
		t.Fatal(err)
	}
	if err := in.Complete(ctx); err != nil {
		t.Fatal(err)
	}
	if err := s.VM("imported").ReadDisk(0, got, 1<<20); err != nil || !bytes.Equal(got, want) {
		t.Errorf("the imported disk is another: %v", err)
	}
}
