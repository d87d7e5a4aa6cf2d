package main

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"strconv"
	"syscall"
	"time"

	"lifeboat/internal/esxsim"
)

// The server has an address of its own here: 111 of the others is a peer's.
const vsphereListen = "127.0.0.20"

// vsphereLab is a simulated vCenter and a Lifeboat whose every command is a
// process of its own. The simulator shares the processors with what is measured;
// the time in which it did something itself can be left out.
type vsphereLab struct {
	*repo
	sim *esxsim.Sim
}

func (b *bench) newVSphereLab(ctx context.Context, name string, vms ...esxsim.VMSpec) (*vsphereLab, error) {
	r, err := b.newRepo(ctx, name)
	if err != nil {
		return nil, err
	}
	dir := b.path(name + "-vsphere")
	if err := os.Mkdir(dir, 0o700); err != nil {
		return nil, err
	}
	sim, err := esxsim.Start(ctx, esxsim.Options{Dir: dir, VMs: vms})
	if err != nil {
		return nil, err
	}
	r.extra = []string{
		"GOVC_URL=" + sim.URL().Host, "GOVC_USERNAME=" + sim.Username(), "GOVC_PASSWORD=" + sim.Password(),
		"GOVC_TLS_KNOWN_HOSTS=" + sim.KnownHosts(), "GOVC_PASSWORD_FILE=", "GOVC_INSECURE=", "GOVC_TLS_CA_CERTS=",
	}
	return &vsphereLab{repo: r, sim: sim}, nil
}

// do runs a command and decodes its document.
func (l *vsphereLab) do(ctx context.Context, result any, args ...string) (usage, error) {
	out, used, err := timed(ctx, l.env(), l.b.opt.binary, append([]string{"--json"}, args...)...)
	if err == nil && result != nil {
		err = json.Unmarshal(out, result)
	}
	return used, err
}

func (l *vsphereLab) close() error {
	err := l.stopServer()
	l.sim.Close()
	l.remove()
	return errors.Join(err, os.RemoveAll(l.b.path(filepath.Base(l.dir)+"-vsphere")))
}

// stopServer ends the server in the background, if there is one, and returns when
// it is gone.
func (l *vsphereLab) stopServer() error {
	ctx, cancel := context.WithTimeout(context.Background(), stopWithin)
	defer cancel()
	var status struct {
		PID int `json:"pid"`
	}
	if _, err := l.do(ctx, &status, "serve", "--status"); err != nil || status.PID <= 1 {
		return nil // none runs
	}
	if _, err := l.do(ctx, nil, "serve", "--stop"); err != nil {
		return err
	}
	for syscall.Kill(status.PID, 0) == nil {
		if err := pause(ctx, 5*time.Millisecond); err != nil {
			return errors.Join(fmt.Errorf("the server does not end: %w", err), syscall.Kill(status.PID, syscall.SIGKILL))
		}
	}
	return nil
}

// vsphere: what the product promises of a vCenter.
func (b *bench) vsphere(ctx context.Context) error {
	return errors.Join(b.vsphereRecover(ctx), b.vsphereMany(ctx), b.vsphereCalls(ctx), b.vsphereTransports(ctx))
}

// recoverOnce recovers points and takes them down again. What counts is the time
// from the command to the guests' first instruction, which is when power-on
// returns, less the simulator's own.
func (l *vsphereLab) recoverOnce(ctx context.Context, points ...string) (sample, error) {
	var doc struct {
		VMs []struct {
			Session string `json:"session"`
			State   string `json:"state"`
			Steps   []struct {
				Name    string  `json:"step"`
				Seconds float64 `json:"seconds"`
			} `json:"steps"`
		} `json:"vms"`
	}
	busy := l.sim.Busy()
	args := append([]string{"recover", "--power-on", "--listen", vsphereListen, "--host", "esx1.lab"}, points...)
	used, err := l.do(ctx, &doc, args...)
	if err != nil {
		return sample{}, err
	}
	busy = l.sim.Busy() - busy
	stop := []string{"stop", "--yes"}
	steps := 0.0
	for _, vm := range doc.VMs {
		if vm.State != "running" {
			return sample{}, fmt.Errorf("session %s is %s", vm.Session, vm.State)
		}
		stop = append(stop, vm.Session)
		for _, s := range vm.Steps {
			steps += s.Seconds
		}
	}
	s := sample{(used.wall - busy).Seconds(), notes{
		"by the clock s": used.wall.Seconds(), "CPU s": used.cpu.Seconds(), "steps of a VM s": steps / float64(len(doc.VMs)), "VMs": float64(len(doc.VMs)),
	}}
	_, err = l.do(ctx, nil, stop...)
	return s, err
}

// repeat measures with nothing to compare with.
func (b *bench) repeat(ctx context.Context, f Figure, once measure) error {
	var pairs []pair
	for range b.opt.rounds {
		s, err := once(ctx)
		if err != nil {
			return fmt.Errorf("%s: %w", f.What, err)
		}
		pairs = append(pairs, pair{ours: s})
	}
	b.add(f.alone(pairs))
	return nil
}

// alone fills in what was measured without a peer.
func (f Figure) alone(pairs []pair) Figure {
	for i := range pairs {
		pairs[i].peer.value = 1
	}
	f = f.from(pairs)
	f.Peer, f.Ratio = 0, Spread{}
	return f
}

// vsphereRecover: one VM, as small as a test's and as large as ESXi makes them.
func (b *bench) vsphereRecover(ctx context.Context) (err error) {
	l, err := b.newVSphereLab(ctx, "recover")
	if err != nil {
		return err
	}
	defer func() { err = errors.Join(err, l.close()) }()
	for vm, size := range map[string]int64{"huge": hugeDisk, "small": smallDisk} {
		file, err := b.sparse(ctx, vm, size)
		if err != nil {
			return err
		}
		if _, _, err := l.backup(ctx, vm, file); err != nil {
			return err
		}
		if err := os.Remove(file); err != nil {
			return err
		}
	}
	once := func(vm string) measure {
		return func(ctx context.Context) (sample, error) { return l.recoverOnce(ctx, vm+"@latest") }
	}
	f := Figure{What: "recover: command to first instruction, 1 GiB disk, server started too", Unit: "s"}
	err = b.repeat(ctx, f, func(ctx context.Context) (sample, error) {
		if err := l.stopServer(); err != nil {
			return sample{}, err
		}
		return once("small")(ctx)
	})
	if err != nil {
		return err
	}
	f.Target, f.AtMost = 1, true
	f.What = "recover: command to first instruction, 1 GiB disk"
	if err := b.repeat(ctx, f, once("small")); err != nil {
		return err
	}
	f.What = "recover: command to first instruction, 62 TiB disk"
	return b.repeat(ctx, f, once("huge"))
}

// vsphereMany: twenty at once.
func (b *bench) vsphereMany(ctx context.Context) (err error) {
	const many = 20
	var vms []esxsim.VMSpec
	var points []string
	for n := range many {
		name := "vm" + strconv.Itoa(n)
		vms = append(vms, esxsim.VMSpec{Name: name, PowerOn: true, Disks: []esxsim.DiskSpec{{Size: 64 << 20}}})
		points = append(points, name+"@latest")
	}
	l, err := b.newVSphereLab(ctx, "many", vms...)
	if err != nil {
		return err
	}
	defer func() { err = errors.Join(err, l.close()) }()
	filler, err := b.fillerPiece(ctx, 4<<20)
	if err != nil {
		return err
	}
	for n := range many {
		if err := l.sim.VM("vm"+strconv.Itoa(n)).WriteDisk(0, filler, int64(n)<<20); err != nil {
			return err
		}
	}
	if _, err := l.do(ctx, nil, "backup", "vm", "--all"); err != nil {
		return err
	}
	f := Figure{What: "recover: command to first instruction of all, 20 VMs at once", Unit: "s", Target: 5, AtMost: true}
	return b.repeat(ctx, f, func(ctx context.Context) (sample, error) { return l.recoverOnce(ctx, points...) })
}

// fillerPiece is the first n bytes of the filler.
func (b *bench) fillerPiece(ctx context.Context, n int) ([]byte, error) {
	name, err := b.filler(ctx)
	if err != nil {
		return nil, err
	}
	f, err := os.Open(name)
	if err != nil {
		return nil, err
	}
	defer f.Close()
	p := make([]byte, n)
	_, err = f.ReadAt(p, 0)
	return p, err
}
