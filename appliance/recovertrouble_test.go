package appliance

import (
	"bytes"
	"errors"
	"net"
	"net/netip"
	"os"
	"slices"
	"strings"
	"testing"

	"lifeboat/internal/esxsim"
	"lifeboat/store"
	"lifeboat/vsphere"
)

// TestRecoverSaysWhatIsWrong meets what a host or a vCenter may have against a
// recovery: each is told with what to do, and nothing is left of the attempt.
func TestRecoverSaysWhatIsWrong(t *testing.T) {
	t.Parallel()
	w := newRecoverWorld(t, func(o *esxsim.Options) { o.MaxNFSVolumes = 1 }, testVM(t, "web", 1))
	hosts, err := w.vc.Hosts(t.Context(), "")
	if err != nil {
		t.Fatal(err)
	}
	// mounted has somebody mount something on every host.
	mounted := func(t *testing.T, nas vsphere.NAS) (after func()) {
		const other = "elsewhere"
		if err := os.Mkdir(w.state.Datastore()+"/"+other, 0o700); err != nil {
			t.Fatal(err)
		}
		if err := w.server.tree.Attach(other); err != nil {
			t.Fatal(err)
		}
		for _, h := range hosts {
			if _, err := w.vc.MountNAS(t.Context(), h.Ref, nas); err != nil {
				t.Fatal(err)
			}
		}
		return func() {
			for _, h := range hosts {
				if err := w.vc.UnmountNAS(t.Context(), h.Ref, nas.Name); err != nil {
					t.Error(err)
				}
			}
			if err := w.server.tree.Detach(other); err != nil {
				t.Error(err)
			}
			os.Remove(w.state.Datastore() + "/" + other)
		}
	}
	for _, c := range []struct {
		name    string
		before  func(t *testing.T, req *RecoverRequest) (after func())
		is      error
		mention []string
	}{
		{"the VM's name is taken", func(_ *testing.T, req *RecoverRequest) func() {
			req.Name = "web"
			return nil
		}, ErrBusy, []string{`"web"`, "--name"}},
		{"the original is still there", func(_ *testing.T, req *RecoverRequest) func() {
			req.KeepIdentity = true
			return nil
		}, ErrBusy, []string{"still is in the inventory"}},
		{"a host that does not exist", func(_ *testing.T, req *RecoverRequest) func() {
			req.Host = "nowhere"
			return nil
		}, vsphere.ErrNotFound, []string{"nowhere"}},
		{"a folder that does not exist", func(_ *testing.T, req *RecoverRequest) func() {
			req.Folder = "No/Such"
			return nil
		}, ErrNotFound, []string{"No/Such"}},
		{"the datastore's name is another's", func(t *testing.T, _ *RecoverRequest) func() {
			return mounted(t, vsphere.NAS{Name: w.datastore(), Server: w.addr.String(), Path: ExportPath + "/elsewhere"})
		}, vsphere.ErrNameTaken, []string{"leftovers"}},
		{"the export is mounted under another name", func(t *testing.T, _ *RecoverRequest) func() {
			return mounted(t, vsphere.NAS{Name: "others", Server: w.addr.String(), Path: ExportPath})
		}, vsphere.ErrAlreadyMounted, []string{"others"}},
		{"NFS.MaxVolumes", func(t *testing.T, _ *RecoverRequest) func() {
			return mounted(t, vsphere.NAS{Name: "others", Server: w.addr.String(), Path: ExportPath + "/elsewhere"})
		}, vsphere.ErrMaxVolumes, []string{"NFS.MaxVolumes"}},
		{"the host cannot reach the server", func(_ *testing.T, req *RecoverRequest) func() {
			req.Address = "127.255.255.254"
			return nil
		}, vsphere.ErrNASUnreachable, []string{"111"}},
		{"registration fails", func(_ *testing.T, _ *RecoverRequest) func() {
			w.sim.FailTask("RegisterVM_Task", 1, nil)
			return w.sim.ClearFaults
		}, nil, nil},
		{"registration fails after it was done", func(_ *testing.T, _ *RecoverRequest) func() {
			w.sim.FailTaskLate("RegisterVM_Task", 1, nil)
			return w.sim.ClearFaults
		}, nil, nil},
		{"power-on fails", func(_ *testing.T, _ *RecoverRequest) func() {
			w.sim.FailTask("PowerOnVM_Task", 1, "InsufficientResourcesFault")
			return w.sim.ClearFaults
		}, nil, []string{"not on"}},
		{"a host is not connected", func(t *testing.T, req *RecoverRequest) func() {
			req.Host = hosts[0].Name
			if err := w.sim.DisconnectHost(hosts[0].Name); err != nil {
				t.Fatal(err)
			}
			return func() {
				if err := w.sim.ReconnectHost(hosts[0].Name); err != nil {
					t.Error(err)
				}
			}
		}, vsphere.ErrHost, []string{hosts[0].Name}},
	} {
		t.Run(c.name, func(t *testing.T) {
			w := *w
			w.t = t
			req := w.request("web")
			after := c.before(t, &req)
			_, err := Recover(t.Context(), w.state, w.repo, w.vc, req)
			if after != nil {
				after()
			}
			if err == nil || c.is != nil && !errors.Is(err, c.is) {
				t.Fatalf("error %v, want %v", err, c.is)
			}
			for _, text := range c.mention {
				if !strings.Contains(err.Error(), text) {
					t.Errorf("it does not mention %q: %v", text, err)
				}
			}
			w.nothingLeft()
		})
	}
}

// TestTakenSessionIsLeftAlone asks for a session that is there: the VM that runs
// in it goes on.
func TestTakenSessionIsLeftAlone(t *testing.T) {
	t.Parallel()
	w := newRecoverWorld(t, nil, testVM(t, "web", 1))
	got := w.recover(w.request("web"))[0]
	req := w.request("web")
	req.Session = got.Session
	if _, err := Recover(t.Context(), w.state, w.repo, w.vc, req); !errors.Is(err, ErrBusy) {
		t.Fatalf("a session that exists: %v", err)
	}
	if _, err := Attach(t.Context(), w.state, w.repo, w.vc, AttachRequest{Point: req.Points[0], RepoURL: req.RepoURL, VM: "web", Session: got.Session}); !errors.Is(err, ErrBusy) {
		t.Fatalf("a session that exists: %v", err)
	}
	w.sameDisk(got.VM, 0, w.disks["web"][0])
	if err := Stop(t.Context(), w.state, w.vc, StopRequest{Session: got.Session}); err != nil {
		t.Fatal(err)
	}
	w.nothingLeft()
}

// TestPort111Taken has somebody else there, as rpcbind is on many machines.
func TestPort111Taken(t *testing.T) {
	t.Parallel()
	needRoot(t)
	w := newRecoverWorld(t, nil)
	w.stopServer()
	taken, err := net.Listen("tcp", netip.AddrPortFrom(w.addr, 111).String())
	if err != nil {
		t.Fatal(err)
	}
	_, err = NewServer(t.Context(), w.state, w.repo, ServeRequest{Listen: w.addr, NFSPort: 2049, MountPort: 20048, Portmap: taken.Addr().String()})
	if err == nil || !strings.Contains(err.Error(), "rpcbind") || !strings.Contains(err.Error(), "--listen") {
		t.Errorf("with port 111 taken: %v", err)
	}
	taken.Close()
	w.startServer()
}

// TestKeptIdentity gives the VM that takes its original's place the same UUIDs
// and MAC addresses, plugged in where it was.
func TestKeptIdentity(t *testing.T) {
	t.Parallel()
	w := newRecoverWorld(t, nil, testVM(t, "web", 1))
	was, err := w.vc.VM(t.Context(), w.vmNamed("web").Ref)
	if err != nil {
		t.Fatal(err)
	}
	if err := w.vc.DeleteVM(t.Context(), was.Ref); err != nil {
		t.Fatal(err)
	}
	req := w.request("web")
	req.KeepIdentity, req.KeepNetworks = true, true
	got := w.recover(req)[0]
	vm := w.vmNamed("web")
	if vm.Identity != was.Identity || vm.BIOSUUID != was.BIOSUUID || got.Identity != was.Identity {
		t.Errorf("identity %s %s, was %s %s", vm.Identity, vm.BIOSUUID, was.Identity, was.BIOSUUID)
	}
	for i, nic := range vm.NICs {
		if nic.MAC != was.NICs[i].MAC || nic.Network != was.NICs[i].Network {
			t.Errorf("NIC %+v, was %+v", nic, was.NICs[i])
		}
	}
	w.sameDisk("web", 0, w.disks["web"][0])
	if err := Migrate(t.Context(), w.state, w.vc, MigrateRequest{Session: got.Session, Datastore: "datastore1"}); err != nil {
		t.Fatal(err)
	}
	w.sameDisk("web", 0, w.disks["web"][0])
	w.onlyVMsLeft()
}

// TestAttachAndDetach gives one disk of a point to a running VM and takes it
// away; a snapshot of the VM meanwhile does not hold it.
func TestAttachAndDetach(t *testing.T) {
	t.Parallel()
	w := newRecoverWorld(t, nil, testVM(t, "old", 2), testVM(t, "helper", 1))
	helper := w.vmNamed("helper")
	if err := w.vc.PowerOn(t.Context(), helper.Ref); err != nil {
		t.Fatal(err)
	}
	got, err := Attach(t.Context(), w.state, w.repo, w.vc, AttachRequest{
		Point: w.points["old"], RepoURL: w.dir + "/repo", Disks: []int{1}, VM: "helper", Address: w.addr.String(),
	})
	if err != nil {
		t.Fatal(err)
	}
	want := w.disks["old"][1]
	w.sameDisk("helper", 1, want)
	w.write("helper", 1, want, 4096, []byte("into the session"))
	w.sameDisk("helper", 1, want)
	w.sameDisk("helper", 0, w.disks["helper"][0])
	if len(got.Disks) != 1 || got.Disks[0].Number != 1 {
		t.Errorf("%+v", got)
	}
	if err := Migrate(t.Context(), w.state, w.vc, MigrateRequest{Session: got.Session, Datastore: "datastore1"}); !errors.Is(err, ErrUsage) {
		t.Errorf("disks that are attached were migrated: %v", err)
	}
	if err := Stop(t.Context(), w.state, w.vc, StopRequest{Session: got.Session}); err != nil {
		t.Fatal(err)
	}
	if vm := w.vmNamed("helper"); len(vm.Disks) != 1 || vm.Power != vsphere.PoweredOn {
		t.Errorf("the VM has %d disks and is %s", len(vm.Disks), vm.Power)
	}
	w.nothingLeft()
	if _, err := Attach(t.Context(), w.state, w.repo, w.vc, AttachRequest{Point: w.points["old"], Disks: []int{2}, VM: "helper"}); !errors.Is(err, ErrNotFound) {
		t.Errorf("a disk that is not there: %v", err)
	}
}

// TestKeepWhileItRuns makes a point of a recovered VM that goes on writing.
func TestKeepWhileItRuns(t *testing.T) {
	t.Parallel()
	w := newRecoverWorld(t, nil, testVM(t, "web", 2))
	got := w.recover(w.request("web"))[0]
	want := w.disks["web"]
	w.write(got.VM, 0, want[0], 3<<20, []byte("kept"))
	w.write(got.VM, 1, want[1], 1<<20, []byte("kept, too"))
	then := [][]byte{bytes.Clone(want[0]), bytes.Clone(want[1])}
	kept, err := w.state.Control().Keep(t.Context(), KeepRequest{Session: got.Session, Tool: "test"})
	if err != nil {
		t.Fatal(err)
	}
	w.write(got.VM, 0, want[0], 3<<20, []byte("afterwards"))
	if len(kept) != 1 || len(kept[0].Config) == 0 || kept[0].VMID != w.points["web"].VMID {
		t.Fatalf("%+v", kept)
	}
	for n := range then {
		img, err := w.repo.OpenDisk(t.Context(), kept[0], n)
		if err != nil {
			t.Fatal(err)
		}
		if !bytes.Equal(readAll(t, img), then[n]) {
			t.Errorf("disk %d of the kept point is not what was written", n)
		}
		img.Close()
	}
	if err := Stop(t.Context(), w.state, w.vc, StopRequest{Session: got.Session}); err != nil {
		t.Fatal(err)
	}
	// The new point runs, too.
	again := w.recover(RecoverRequest{Points: []*store.Point{kept[0]}, RepoURL: w.dir + "/repo", Address: w.addr.String()})[0]
	w.sameDisk(again.VM, 0, then[0])
	if vm := w.vmNamed(again.VM); vm.Power != vsphere.PoweredOff {
		t.Errorf("nobody asked for power: %s", vm.Power)
	}
	if err := Stop(t.Context(), w.state, w.vc, StopRequest{Session: again.Session}); err != nil {
		t.Fatal(err)
	}
	w.nothingLeft()
}

// TestLeftovers loses the state of an appliance while it has things on a vSphere:
// they are found by name and removed; what a person made stays.
func TestLeftovers(t *testing.T) {
	t.Parallel()
	w := newRecoverWorld(t, nil, testVM(t, "web", 1), testVM(t, "helper", 1))
	got := w.recover(w.request("web"))[0]
	attached, err := Attach(t.Context(), w.state, w.repo, w.vc, AttachRequest{Point: w.points["web"], RepoURL: w.dir + "/repo", VM: "helper", Address: w.addr.String()})
	if err != nil {
		t.Fatal(err)
	}
	if found, err := Leftovers(t.Context(), w.state, w.vc, LeftoversRequest{Clean: true}); err != nil || len(found) > 0 {
		t.Fatalf("what is in use was called left over: %+v %v", found, err)
	}
	for _, session := range []string{got.Session, attached.Session} {
		if err := w.server.Detach(session); err != nil {
			t.Fatal(err)
		}
		if err := DiscardSession(w.state, session); err != nil {
			t.Fatal(err)
		}
	}
	half, err := w.vc.CreateVM(t.Context(), vsphere.CreateSpec{
		Name: "half", Host: w.inventory().Hosts[0].Ref, Datastore: "datastore1", Notes: (&vsphereWork{appliance: applianceOf(t, w.state)}).restoreMark(w.points["web"], "1"),
	})
	if err != nil {
		t.Fatalf("%v %v", half, err)
	}
	found, err := Leftovers(t.Context(), w.state, w.vc, LeftoversRequest{})
	if err != nil {
		t.Fatal(err)
	}
	var kinds []string
	for _, l := range found {
		kinds = append(kinds, l.Kind)
	}
	if slices.Sort(kinds); !slices.Equal(slices.Compact(kinds), []string{"datastore", "disk", "vm"}) {
		t.Fatalf("found %+v", found)
	}
	found, err = Leftovers(t.Context(), w.state, w.vc, LeftoversRequest{Clean: true})
	if err != nil {
		t.Fatal(err)
	}
	for _, l := range found {
		if !l.Cleaned {
			t.Errorf("not removed: %+v", l)
		}
	}
	w.nothingLeft()
	w.sameDisk("helper", 0, w.disks["helper"][0])
}

func applianceOf(t *testing.T, st *State) string {
	t.Helper()
	id, err := st.ApplianceID()
	if err != nil {
		t.Fatal(err)
	}
	return id
}

// TestMovedByHand has a person move the VM with the vSphere client: stop leaves it
// alone and takes only what is ours.
func TestMovedByHand(t *testing.T) {
	t.Parallel()
	w := newRecoverWorld(t, nil, testVM(t, "web", 1))
	got := w.recover(w.request("web"))[0]
	if err := w.vc.Relocate(t.Context(), w.vmNamed(got.VM).Ref, vsphere.RelocateSpec{Datastore: "datastore2"}, nil); err != nil {
		t.Fatal(err)
	}
	if err := Stop(t.Context(), w.state, w.vc, StopRequest{Session: got.Session}); err != nil {
		t.Fatal(err)
	}
	if vm := w.vmNamed(got.VM); vm.Power != vsphere.PoweredOn {
		t.Errorf("somebody's VM was switched %s", vm.Power)
	}
	w.sameDisk(got.VM, 0, w.disks["web"][0])
	w.onlyVMsLeft()
}

// TestRecoverOnAStandaloneHost has no vCenter, cluster, DRS or HA.
func TestRecoverOnAStandaloneHost(t *testing.T) {
	t.Parallel()
	w := newRecoverWorld(t, func(o *esxsim.Options) { o.Standalone = true }, testVM(t, "web", 1))
	got := w.recover(w.request("web"))[0]
	w.sameDisk(got.VM, 0, w.disks["web"][0])
	if err := Migrate(t.Context(), w.state, w.vc, MigrateRequest{Session: got.Session, Datastore: "datastore2"}); err != nil {
		// A host alone has no Storage vMotion: there is the copy.
		if err := MigrateByCopy(t.Context(), w.state, w.repo, w.vc, CopyVMRequest{Session: got.Session, Datastore: "datastore2"}); err != nil {
			t.Fatal(err)
		}
	}
	w.sameDisk(got.VM, 0, w.disks["web"][0])
	w.onlyVMsLeft()
}
