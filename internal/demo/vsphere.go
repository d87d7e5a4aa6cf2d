package demo

import (
	"context"
	"errors"
	"fmt"
	"math/rand/v2"
	"os"
	"path/filepath"
	"strings"
	"time"

	"lifeboat/internal/esxsim"
	"lifeboat/internal/guestimage"
)

// The inventory of the vSphere story. Lifeboat's server has an address of its
// own, as an appliance would.
const (
	webVM, dataVM    = "web", "orders"
	dataSize         = 64 << 20
	production       = "datastore1"
	target           = "datastore2"
	rescue           = "rescue"
	vcenterAddress   = "127.0.0.10:0"
	applianceAddress = "127.0.0.20"
)

// RunVSphere tells the story of a VM that dies in a vCenter: two VMs are
// protected, one is deleted, runs again from its restore point, and is moved to
// production storage while it works. The vCenter and its hosts are simulated
// (package esxsim); the guest, its disks, the mounts and every byte are real.
func RunVSphere(ctx context.Context, opt Options, finish func(*VSphereReport) error) error {
	return enter(ctx, opt, func(st *stage) error {
		s := &vsphereStory{visitor: visitor{stage: st}}
		s.report.Accelerator = st.accelerator()
		err := s.tell(ctx)
		s.cleanUp()
		if err != nil {
			return err
		}
		s.report.Proofs = s.proofs
		if opt.Keep {
			s.report.WorkDir = st.work
		}
		return finish(&s.report)
	})
}

// vsphereStory is the state of one telling.
type vsphereStory struct {
	visitor
	sim       *esxsim.Sim
	data      []byte // what the disk of dataVM holds
	recovered string // name of the VM that runs from its restore point
	report    VSphereReport
}

func (s *vsphereStory) tell(ctx context.Context) error {
	return s.play(ctx, []scene{
		{"A vCenter with two hosts, two datastores and two VMs, one of them a Debian that boots", s.production},
		{"Protect both: snapshot, read, remove the snapshot", s.protect},
		{"They change", s.change},
		{"Back them up again: the hosts say what changed, and only that is read", s.protectAgain},
		{"Disaster: somebody deletes " + webVM + " with all its files", s.disaster},
		{"Recover it: a host mounts the restore point and runs the VM from it", s.recover},
		{"Log in and work in the recovered VM", s.goOn},
		{"Kill the server under the running VM; migrate starts it again and moves the VM, live", s.migrate},
		{"End the server: the VM does not need it any more", s.withoutServer},
		{"Nothing is left on the vSphere; every byte in the repository is right", s.settle},
	})
}

// cleanUp ends what still runs: VMs first, then what they run from.
func (s *vsphereStory) cleanUp() {
	if s.sim != nil {
		s.sim.Close()
	}
	ctx, cancel := context.WithTimeout(context.Background(), stopWithin)
	defer cancel()
	if err := s.stopServer(ctx); err != nil && !errors.Is(err, errNoServer) {
		s.say.sayf("       the server did not end in order, and is killed: %v", err)
		_ = s.killServer(context.Background())
	}
}

func (s *vsphereStory) production(ctx context.Context) error {
	disk, err := guestimage.DebianDisk(ctx, s.opt.CacheDir, s.say.say)
	if err != nil {
		return err
	}
	dir := filepath.Join(s.work, "vsphere")
	if err := os.MkdirAll(dir, 0o700); err != nil {
		return err
	}
	s.sim, err = esxsim.Start(ctx, esxsim.Options{
		Dir: dir, Listen: vcenterAddress, Boot: true, Datastores: []string{production, target},
		VMs: []esxsim.VMSpec{
			{Name: webVM, Tools: true, PowerOn: true, MemoryMB: memoryMiB, Disks: []esxsim.DiskSpec{{From: disk}}},
			{Name: dataVM, Tools: true, Disks: []esxsim.DiskSpec{{Size: dataSize}}},
		},
	})
	if err != nil {
		return err
	}
	s.env = []string{
		"GOVC_URL=" + s.sim.URL().Host, "GOVC_USERNAME=" + s.sim.Username(), "GOVC_PASSWORD=" + s.sim.Password(),
		"GOVC_TLS_KNOWN_HOSTS=" + s.sim.KnownHosts(), "GOVC_PASSWORD_FILE=", "GOVC_INSECURE=", "GOVC_TLS_CA_CERTS=",
	}
	began := time.Now()
	s.data = make([]byte, dataSize)
	if err := s.writeData(0, dataSize/2); err != nil {
		return err
	}
	if err := s.enterGuest(ctx, webVM); err != nil {
		return err
	}
	s.report.OwnToLogin = time.Since(began).Seconds()
	s.say.sayf("       %s asks for a login after %.1f s", webVM, s.report.OwnToLogin)
	return nil
}

// writeData has dataVM's owner write n random bytes to its disk.
func (s *vsphereStory) writeData(off, n int) error {
	var seed [32]byte
	seed[0], seed[1] = byte(off>>20), byte(n>>20)
	_, _ = rand.NewChaCha8(seed).Read(s.data[off : off+n])
	vm := s.sim.VM(dataVM)
	return errors.Join(vm.WriteDisk(0, s.data[off:off+n], int64(off)), vm.SyncDisk(0))
}

// enterGuest logs in at the serial line of a VM that boots.
func (s *vsphereStory) enterGuest(ctx context.Context, vm string) error {
	s.machine, s.shell = nil, nil
	if m := s.sim.VM(vm); m != nil {
		s.machine = m.Machine()
	}
	if s.machine == nil {
		return fmt.Errorf("VM %q does not run", vm)
	}
	s.machine.Console().Tee(s.opt.Console)
	return s.login(ctx)
}

func (s *vsphereStory) protect(ctx context.Context) error {
	if err := s.lifeboat(ctx, nil, "init"); err != nil {
		return err
	}
	if err := s.write(ctx, "before-the-first-backup", "before the first backup"); err != nil {
		return err
	}
	b, err := s.backup(ctx)
	s.report.First = b
	return err
}

func (s *vsphereStory) change(ctx context.Context) error {
	if err := s.writeData(10<<20, 1<<20); err != nil {
		return err
	}
	return s.write(ctx, "before-the-disaster", "before the disaster")
}

func (s *vsphereStory) protectAgain(ctx context.Context) error {
	b, err := s.backup(ctx)
	if err != nil {
		return err
	}
	s.report.Second = b
	if b.Read > s.report.First.Read/2 {
		return fmt.Errorf("%s were read again of %s, as if nobody knew what had changed", mib(b.Read), mib(s.report.First.Read))
	}
	return nil
}

// backup protects all VMs.
func (s *vsphereStory) backup(ctx context.Context) (VSphereBackup, error) {
	var doc struct {
		VMs []struct {
			VM        string `json:"vm"`
			Point     string `json:"point"`
			Status    string `json:"status"`
			Transport string `json:"transport"`
			Calls     int64  `json:"vcenter_calls"`
			Read      int64  `json:"read_bytes"`
			New       int64  `json:"new_bytes"`
			Stored    int64  `json:"stored_bytes"`
		} `json:"vms"`
	}
	var b VSphereBackup
	began := time.Now()
	if err := s.lifeboat(ctx, &doc, "backup", "vm", "--all"); err != nil {
		return b, err
	}
	b.Took = time.Since(began).Seconds()
	if len(doc.VMs) != 2 {
		return b, fmt.Errorf("%d VMs were backed up, want 2", len(doc.VMs))
	}
	for _, vm := range doc.VMs {
		b.Read, b.New, b.Stored, b.Calls = b.Read+vm.Read, b.New+vm.New, b.Stored+vm.Stored, b.Calls+vm.Calls
		s.say.sayf("       %s: point %s, read %s through %s, new %s, stored %s, %d calls", vm.VM, vm.Point, mib(vm.Read), vm.Transport, mib(vm.New), mib(vm.Stored), vm.Calls)
	}
	s.say.sayf("       both after %.1f s", b.Took)
	return b, s.noSnapshots()
}

func (s *vsphereStory) noSnapshots() error {
	for _, vm := range s.sim.State().VMs {
		if len(vm.Snapshots) > 0 || vm.Deltas > 0 {
			return fmt.Errorf("VM %s is left with the snapshots %q and %d deltas", vm.Name, vm.Snapshots, vm.Deltas)
		}
	}
	return nil
}

func (s *vsphereStory) disaster(context.Context) error {
	s.machine, s.shell = nil, nil
	if err := s.sim.Lose(webVM); err != nil {
		return err
	}
	left, err := os.ReadDir(s.sim.DatastoreDir(production))
	if err != nil {
		return err
	}
	var names []string
	for _, e := range left {
		names = append(names, e.Name())
	}
	s.say.sayf("       on %s there is now: %s", production, strings.Join(names, ", "))
	return nil
}
