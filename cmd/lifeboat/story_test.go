package main

import (
	"bytes"
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"math/rand/v2"
	"os"
	"os/exec"
	"path/filepath"
	"slices"
	"strings"
	"sync"
	"testing"
	"time"

	"lifeboat/internal/esxsim"
)

// The story of the product, with real bytes: two VMs are protected, change, are
// protected again; one is deleted; both run from their restore points, one of them
// as it was before; they write while the server is killed under them and while
// one is moved live; in the end nothing is left. Every disk is compared with what
// its guest wrote.

const (
	storyWeb  = "web"
	storyData = "Bücher & Co" // a name that needs care on the way
)

func TestStoryVSphere(t *testing.T) {
	s := newVSphereStory(t)
	if err := s.tell(-1); err != nil {
		t.Fatal(err)
	}
}

// TestStoryVSphereSeesACorruptedRead tells the same story with one bit wrong in
// what one backup reads: if that does not fail, the story proves nothing.
func TestStoryVSphereSeesACorruptedRead(t *testing.T) {
	s := newVSphereStory(t)
	err := s.tell(storyChange + 777)
	if err == nil || !strings.Contains(err.Error(), fmt.Sprintf("differs at %d", storyChange+777)) {
		t.Fatalf("one bit was wrong in what was backed up, and the story ended with: %v", err)
	}
}

// storyChange is where web's guest writes between the backups.
const storyChange = 5 << 20

type vsphereStory struct {
	*vsphereWorld
	rng  *rand.ChaCha8
	want map[string][][]byte // what the disks hold, by VM
}

func newVSphereStory(t *testing.T) *vsphereStory {
	return &vsphereStory{
		vsphereWorld: newVSphereWorld(t,
			esxsim.VMSpec{Name: storyWeb, Tools: true, PowerOn: true, Disks: []esxsim.DiskSpec{{Size: 16 << 20}, {Size: 4 << 20}}},
			esxsim.VMSpec{Name: storyData, Tools: true, PowerOn: true, Disks: []esxsim.DiskSpec{{Size: 8 << 20}}}),
		rng: rand.NewChaCha8([32]byte{4}),
		want: map[string][][]byte{
			storyWeb:  {make([]byte, 16<<20), make([]byte, 4<<20)},
			storyData: {make([]byte, 8<<20)},
		},
	}
}

// write is a guest that writes random bytes and has them made durable; as is the
// VM's first name, by which what its disks hold is known.
func (s *vsphereStory) write(vm, as string, disk, off, n int) error {
	p := s.want[as][disk][off : off+n]
	_, _ = s.rng.Read(p)
	m := s.sim.VM(vm)
	return errors.Join(m.WriteDisk(disk, p, int64(off)), m.SyncDisk(disk))
}

func (s *vsphereStory) same(vm string, want [][]byte) error {
	for n := range want {
		if err := s.sameDisk(vm, n, want[n]); err != nil {
			return err
		}
	}
	return nil
}

func (s *vsphereStory) tell(corrupt int64) error {
	first, err := s.protect(corrupt)
	if err != nil {
		return err
	}
	if err := s.sim.Lose(storyWeb); err != nil {
		return err
	}
	vms, err := s.recover(storyWeb+"@latest", first.point)
	if err != nil {
		return err
	}
	if len(vms) != 2 || vms[0].State != "running" || vms[1].State != "running" {
		return fmt.Errorf("recovered: %+v", vms)
	}
	web, data := vms[0], vms[1]
	if err := errors.Join(s.same(web.VM, s.want[storyWeb]), s.same(data.VM, first.disks)); err != nil {
		return fmt.Errorf("what runs from the backup: %w", err)
	}
	if err := s.moveWhileItWrites(web); err != nil {
		return err
	}
	return s.end(web, data)
}

// earlier is storyData's first restore point and what its disks held.
type earlier struct {
	point string
	disks [][]byte
}

func (s *vsphereStory) protect(corrupt int64) (first earlier, err error) {
	err = errors.Join(s.write(storyWeb, storyWeb, 0, 0, 3<<20), s.write(storyWeb, storyWeb, 1, 1<<20, 1<<20), s.write(storyData, storyData, 0, 2<<20, 4<<20))
	if err != nil {
		return first, err
	}
	whole, err := s.backup()
	if err != nil {
		return first, err
	}
	first = earlier{point: whole[storyData].Point, disks: [][]byte{bytes.Clone(s.want[storyData][0])}}
	err = errors.Join(s.write(storyWeb, storyWeb, 0, storyChange, 200_000), s.write(storyData, storyData, 0, 3<<20, 70_000))
	if err != nil {
		return first, err
	}
	if corrupt >= 0 {
		if err := s.sim.CorruptRead(storyWeb, 0, corrupt); err != nil {
			return first, err
		}
	}
	changed, err := s.backup()
	for vm, r := range changed {
		if r.Read == 0 || r.Read > whole[vm].Read/2 {
			err = errors.Join(err, fmt.Errorf("the second backup of %s read %d bytes, the first %d: it is no incremental", vm, r.Read, whole[vm].Read))
		}
	}
	return first, err
}

type backedUp struct {
	VM     string `json:"vm"`
	Point  string `json:"point"`
	Status string `json:"status"`
	Read   int64  `json:"read_bytes"`
}

func (s *vsphereStory) backup() (map[string]backedUp, error) {
	var doc struct {
		VMs []backedUp `json:"vms"`
	}
	if err := s.do(&doc, "backup", "vm", "--all"); err != nil {
		return nil, err
	}
	out := map[string]backedUp{}
	for _, r := range doc.VMs {
		out[r.VM] = r
	}
	if len(out) != 2 || len(s.left()) > 0 {
		return nil, fmt.Errorf("backed up: %+v; left on the vSphere: %q", doc.VMs, s.left())
	}
	return out, nil
}

// moveWhileItWrites kills the server and moves the VM, whose guest writes all the
// time: every write is acknowledged, late perhaps, and none is lost.
func (s *vsphereStory) moveWhileItWrites(web recovered) error {
	s.sim.SlowMoves(20 * time.Millisecond)
	moved := make(chan struct{})
	var guest sync.WaitGroup
	var wrote int
	var trouble error
	guest.Go(func() {
		for n := 0; trouble == nil; n++ {
			select {
			case <-moved:
				return
			case <-time.After(2 * time.Millisecond): // a guest that also thinks
			}
			trouble = s.write(web.VM, storyWeb, n%2, n*37_000%(3<<20), 8_000)
			wrote++
		}
	})
	err := s.killServer()
	if err == nil {
		err = s.do(nil, "migrate", web.Session, "--datastore", "datastore2")
	}
	close(moved)
	guest.Wait()
	if err := errors.Join(err, trouble); err != nil {
		return err
	}
	if wrote < 10 {
		return fmt.Errorf("the guest wrote %d times while it was moved: this proves nothing", wrote)
	}
	s.t.Logf("%d writes while the server was dead and the VM moved", wrote)
	return s.same(web.VM, s.want[storyWeb])
}

func (s *vsphereStory) end(web, data recovered) error {
	if err := s.do(nil, "stop", data.Session, "--yes"); err != nil {
		return err
	}
	if err := s.do(nil, "serve", "--stop"); err != nil {
		return err
	}
	if err := errors.Join(s.same(web.VM, s.want[storyWeb]), s.same(storyData, s.want[storyData])); err != nil {
		return fmt.Errorf("in the end: %w", err)
	}
	sessions, err := s.sessions()
	if err != nil || len(sessions) > 0 || len(s.left()) > 0 {
		return fmt.Errorf("sessions are left: %q, on the vSphere: %q (%w)", sessions, s.left(), err)
	}
	var names []string
	for _, vm := range s.sim.State().VMs {
		names = append(names, vm.Name)
		for _, d := range vm.Disks {
			if vm.Name == web.VM && !strings.HasPrefix(d, "[datastore2] ") {
				return fmt.Errorf("disk %s of %s was not moved", d, vm.Name)
			}
		}
	}
	if !slices.Equal(names, slices.Sorted(slices.Values([]string{storyData, web.VM}))) {
		return fmt.Errorf("the VMs are %q", names)
	}
	return s.do(nil, "verify")
}

// TestEndToEndVSphere is `lifeboat demo --vsphere`: the same story with a Debian
// that boots.
func TestEndToEndVSphere(t *testing.T) {
	if os.Getenv("LIFEBOAT_E2E") == "" {
		t.Skip("boots a VM twice: LIFEBOAT_E2E=1, as make test and make e2e set it")
	}
	ctx, cancel := context.WithTimeout(t.Context(), 20*time.Minute)
	defer cancel()
	dir := t.TempDir()
	cmd := exec.CommandContext(ctx, os.Args[0], "--json", "demo", "--vsphere", "--work", filepath.Join(dir, "work"))
	cmd.Env = append(os.Environ(), actAsProgram+"=1")
	cmd.Cancel = func() error { return cmd.Process.Signal(os.Interrupt) }
	var story bytes.Buffer
	cmd.Stderr = &story
	out, err := cmd.Output()
	if err != nil {
		t.Fatalf("the demo failed: %v\n%s", err, story.String())
	}
	var report struct {
		Proofs []struct {
			Checked []string `json:"checked"`
		} `json:"proofs"`
		GuestPause float64 `json:"guest_pause_seconds"`
		Recover    float64 `json:"command_to_running_own_seconds"`
	}
	if err := json.Unmarshal(out, &report); err != nil {
		t.Fatalf("the demo printed %q: %v", out, err)
	}
	for i, want := range []int{2, 2, 1, 1} {
		if len(report.Proofs) != 4 || len(report.Proofs[i].Checked) != want {
			t.Fatalf("files written and read back: %+v", report.Proofs)
		}
	}
	if report.GuestPause < 1 {
		t.Errorf("the guest paused for %.1f s: the server was not killed under it", report.GuestPause)
	}
	assertNoProcesses(t, dir)
	t.Logf("%s", out)
}
