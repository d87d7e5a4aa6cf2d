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
	"strings"
	"syscall"
	"testing"
	"time"

	"lifeboat/appliance"
	"lifeboat/internal/esxsim"
	"lifeboat/store"
)

// vsphereWorld is a simulated vCenter, and a repository and a state directory of
// a Lifeboat whose every command is a process of its own, as a person would start
// it. Its server has a loopback address that no other test has.
type vsphereWorld struct {
	workspace
	sim  *esxsim.Sim
	addr string
}

func newVSphereWorld(t *testing.T, vms ...esxsim.VMSpec) *vsphereWorld {
	t.Helper()
	if os.Geteuid() != 0 {
		t.Skip("needs root: the hosts look for the server's port mapper at port 111")
	}
	w := &vsphereWorld{
		workspace: workspace{t, t.TempDir()},
		addr:      fmt.Sprintf("127.%d.%d.%d", 1+rand.IntN(254), rand.IntN(255), 1+rand.IntN(254)),
	}
	cheap := store.InitOptions{KDFTime: 1, KDFMemory: 8, KDFThreads: 1}
	if err := appliance.InitRepository(t.Context(), w.path("repo"), []byte("test"), cheap); err != nil {
		t.Fatal(err)
	}
	dir := w.path("vsphere")
	if err := os.Mkdir(dir, 0o700); err != nil {
		t.Fatal(err)
	}
	sim, err := esxsim.Start(context.Background(), esxsim.Options{Dir: dir, VMs: vms})
	if err != nil {
		t.Fatal(err)
	}
	w.sim = sim
	t.Cleanup(sim.Close)
	t.Cleanup(w.endServer)
	return w
}

// start begins a command.
func (w *vsphereWorld) start(args ...string) (*exec.Cmd, *bytes.Buffer, *bytes.Buffer, error) {
	cmd := w.command(append([]string{"--json"}, args...)...)
	cmd.Env = append(cmd.Env, "GOVC_URL="+w.sim.URL().Host, "GOVC_USERNAME="+w.sim.Username(), "GOVC_PASSWORD="+w.sim.Password(),
		"GOVC_TLS_KNOWN_HOSTS="+w.sim.KnownHosts(), "GOVC_PASSWORD_FILE=", "GOVC_INSECURE=", "GOVC_TLS_CA_CERTS=")
	var stdout, stderr bytes.Buffer
	cmd.Stdout, cmd.Stderr = &stdout, &stderr
	return cmd, &stdout, &stderr, cmd.Start()
}

// do runs a command to its end and decodes its document, if result is not nil.
func (w *vsphereWorld) do(result any, args ...string) error {
	cmd, stdout, stderr, err := w.start(args...)
	if err != nil {
		return err
	}
	if err := cmd.Wait(); err != nil {
		return fmt.Errorf("lifeboat %q: %w: %s", args, err, stderr.Bytes())
	}
	if result == nil {
		return nil
	}
	if err := json.Unmarshal(stdout.Bytes(), result); err != nil {
		return fmt.Errorf("lifeboat %q printed %q: %w", args, stdout.Bytes(), err)
	}
	return nil
}

// recovered is what recover prints of a VM.
type recovered struct {
	Session string `json:"session"`
	VM      string `json:"vm"`
	State   string `json:"state"`
}

func (w *vsphereWorld) recover(args ...string) ([]recovered, error) {
	var doc struct {
		VMs []recovered `json:"vms"`
	}
	err := w.do(&doc, append([]string{"recover", "--power-on", "--listen", w.addr}, args...)...)
	return doc.VMs, err
}

// sessions are those that there are.
func (w *vsphereWorld) sessions() ([]string, error) {
	var list []struct {
		Session string `json:"session"`
	}
	err := w.do(&list, "session", "ls")
	var names []string
	for _, s := range list {
		names = append(names, s.Session)
	}
	return names, err
}

// serverPID is the server's process, 0 when there is none.
func (w *vsphereWorld) serverPID() int {
	st, err := appliance.OpenState(w.path("state"))
	if err != nil {
		return 0
	}
	ctx, cancel := context.WithTimeout(context.Background(), 10*time.Second)
	defer cancel()
	status, err := st.Control().Status(ctx)
	if err != nil {
		return 0
	}
	return status.PID
}

// killServer kills the server, if there is one, and returns when it is gone.
func (w *vsphereWorld) killServer() error { return w.signalServer(syscall.SIGKILL) }

// endServer has no server outlive the test.
func (w *vsphereWorld) endServer() {
	if err := w.signalServer(syscall.SIGTERM); err != nil {
		w.t.Error(errors.Join(err, w.killServer()))
	}
}

func (w *vsphereWorld) signalServer(sig syscall.Signal) error {
	pid := w.serverPID()
	if pid <= 1 {
		return nil
	}
	if err := syscall.Kill(pid, sig); err != nil {
		return err
	}
	for end := time.Now().Add(20 * time.Second); syscall.Kill(pid, 0) == nil; time.Sleep(5 * time.Millisecond) {
		if time.Now().After(end) {
			return fmt.Errorf("the server, process %d, does not end", pid)
		}
	}
	return nil
}

// sameDisk compares what a VM's guest reads with what it should.
func (w *vsphereWorld) sameDisk(vm string, n int, want []byte) error {
	m := w.sim.VM(vm)
	if m == nil {
		return fmt.Errorf("there is no VM %q", vm)
	}
	got := make([]byte, m.DiskSize(n))
	if err := m.ReadDisk(n, got, 0); err != nil {
		return fmt.Errorf("VM %q reads disk %d: %w", vm, n, err)
	}
	if len(got) != len(want) {
		return fmt.Errorf("disk %d of VM %q has %d bytes, want %d", n, vm, len(got), len(want))
	}
	for i := range want {
		if got[i] != want[i] {
			return fmt.Errorf("disk %d of VM %q differs at %d", n, vm, i)
		}
	}
	return nil
}

// left is what Lifeboat has on the vSphere, from the simulator's own inventory:
// nil when there is nothing but VMs on datastores of the vSphere's.
func (w *vsphereWorld) left() []string {
	var found []string
	state := w.sim.State()
	for _, d := range state.NAS {
		found = append(found, "datastore "+d)
	}
	for _, task := range state.Tasks {
		found = append(found, "task "+task)
	}
	for _, vm := range state.VMs {
		for _, name := range vm.Snapshots {
			found = append(found, "snapshot "+name+" of "+vm.Name)
		}
		if vm.Deltas > 0 || vm.ConsolidateNeeded || vm.Question {
			found = append(found, fmt.Sprintf("%s has %d deltas (consolidation needed: %t, question: %t)", vm.Name, vm.Deltas, vm.ConsolidateNeeded, vm.Question))
		}
		for key, value := range vm.Extra {
			if strings.HasPrefix(key, "lifeboat.") {
				found = append(found, fmt.Sprintf("%s carries %s=%s", vm.Name, key, value))
			}
		}
	}
	return found
}
