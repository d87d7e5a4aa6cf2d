package demo

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"syscall"
	"time"
)

func (s *vsphereStory) recover(ctx context.Context) error {
	var doc struct {
		VMs []struct {
			VM    string `json:"vm"`
			Host  string `json:"host"`
			Steps []struct {
				Name    string  `json:"step"`
				Seconds float64 `json:"seconds"`
			} `json:"steps"`
		} `json:"vms"`
	}
	command, busy := time.Now(), s.sim.Busy()
	err := s.lifeboat(ctx, &doc, "recover", webVM+"@latest", "--session", rescue, "--power-on", "--listen", applianceAddress)
	if err != nil {
		return err
	}
	took := time.Since(command)
	s.report.Recover, s.report.RecoverOwn = took.Seconds(), (took - (s.sim.Busy() - busy)).Seconds()
	if len(doc.VMs) != 1 {
		return fmt.Errorf("%d VMs were recovered, want 1", len(doc.VMs))
	}
	s.recovered = doc.VMs[0].VM
	var steps []string
	for _, step := range doc.VMs[0].Steps {
		steps = append(steps, fmt.Sprintf("%s %.2f s", step.Name, step.Seconds))
	}
	s.say.sayf("       %q is on, on %s, after %.2f s (%s; the rest is starting the program and the server)", s.recovered, doc.VMs[0].Host, s.report.Recover, strings.Join(steps, ", "))
	if err := s.enterGuest(ctx, s.recovered); err != nil {
		return err
	}
	s.report.ToLogin = time.Since(command).Seconds()
	s.say.sayf("       login prompt after %.1f s; from its own disk it took %.1f s", s.report.ToLogin, s.report.OwnToLogin)
	return nil
}

func (s *vsphereStory) goOn(ctx context.Context) error {
	if err := s.check(ctx, "in the recovery"); err != nil {
		return err
	}
	return s.write(ctx, "in-recovery", "while running from the backup")
}

// migrate kills the server with SIGKILL while the guest writes and syncs ten
// times a second. The next command finds that VMs wait for a server, starts one,
// and then moves the VM; the guest writes all the time.
func (s *vsphereStory) migrate(ctx context.Context) error {
	beat, err := s.startHeartbeat(ctx)
	if err != nil {
		return err
	}
	if err := s.killServer(ctx); err != nil {
		return err
	}
	if err := pause(ctx, downFor); err != nil {
		return err
	}
	began := time.Now()
	if err := s.lifeboat(ctx, nil, "migrate", rescue, "--datastore", target); err != nil {
		return err
	}
	s.report.Move = time.Since(began).Seconds()
	longest, err := beat.stop(ctx)
	if err != nil {
		return fmt.Errorf("the guest did not survive the server's death and the move: %w", err)
	}
	s.report.GuestPause = longest.Seconds()
	s.say.sayf("       on %s after %.1f s; the longest pause between two synced writes in the guest, the server's death included: %.1f s", target, s.report.Move, s.report.GuestPause)
	return s.write(ctx, "after-the-move", "after the move")
}

func (s *vsphereStory) withoutServer(ctx context.Context) error {
	if err := s.stopServer(ctx); err != nil {
		return err
	}
	if err := s.check(ctx, "after the move, without the server"); err != nil {
		return err
	}
	if err := s.sim.VM(s.recovered).Died(); err != nil {
		return fmt.Errorf("the VM lost its disks: %w", err)
	}
	ctx, cancel := context.WithTimeout(ctx, bootWithin)
	defer cancel()
	if err := s.machine.Powerdown(ctx); err != nil {
		return err
	}
	return s.machine.Wait(ctx)
}

// settle asks both sides what is left: Lifeboat, and the vSphere itself.
func (s *vsphereStory) settle(ctx context.Context) error {
	for _, list := range []string{"leftovers", "session ls"} {
		var left []json.RawMessage
		if err := s.lifeboat(ctx, &left, strings.Fields(list)...); err != nil {
			return err
		}
		if len(left) > 0 {
			return fmt.Errorf("lifeboat %s: %s", list, left)
		}
	}
	if err := s.nothingLeft(); err != nil {
		return err
	}
	return s.lifeboat(ctx, nil, "verify")
}

// nothingLeft looks at the inventory: the VM that moved, the VM that was never
// touched, and nothing of ours.
func (s *vsphereStory) nothingLeft() error {
	if err := s.noSnapshots(); err != nil {
		return err
	}
	state := s.sim.State()
	if len(state.NAS) > 0 || len(state.Tasks) > 0 {
		return fmt.Errorf("on the vSphere there are still the datastores %q and the tasks %q", state.NAS, state.Tasks)
	}
	var names []string
	for _, vm := range state.VMs {
		names = append(names, vm.Name)
		for _, d := range vm.Disks {
			if vm.Name == s.recovered && !strings.HasPrefix(d, "["+target+"] ") {
				return fmt.Errorf("disk %s of %s was not moved", d, vm.Name)
			}
		}
	}
	if want := []string{dataVM, s.recovered}; !slices.Equal(names, want) {
		return fmt.Errorf("the VMs are %q, want %q", names, want)
	}
	data := make([]byte, dataSize)
	if err := s.sim.VM(dataVM).ReadDisk(0, data, 0); err != nil {
		return err
	}
	if !slices.Equal(data, s.data) {
		return fmt.Errorf("VM %s, which nobody recovered, has other data now", dataVM)
	}
	s.say.sayf("       VMs: %s; no snapshot, no datastore of ours, no task", strings.Join(names, ", "))
	return nil
}

var errNoServer = errors.New("no server runs")

// serverPID asks the server in the background which process it is.
func (s *vsphereStory) serverPID(ctx context.Context) (int, error) {
	if _, err := os.Stat(filepath.Join(s.work, "state", "control.sock")); err != nil {
		return 0, errNoServer
	}
	var status struct {
		PID int `json:"pid"`
	}
	if err := s.lifeboat(ctx, &status, "serve", "--status"); err != nil || status.PID <= 1 {
		return 0, errors.Join(errNoServer, err)
	}
	return status.PID, nil
}

func (s *vsphereStory) killServer(ctx context.Context) error {
	pid, err := s.serverPID(ctx)
	if err != nil {
		return err
	}
	if err := syscall.Kill(pid, syscall.SIGKILL); err != nil {
		return err
	}
	return ended(ctx, pid)
}

// stopServer ends the server in order and waits until its process is gone.
func (s *vsphereStory) stopServer(ctx context.Context) error {
	pid, err := s.serverPID(ctx)
	if err != nil {
		return err
	}
	if err := s.lifeboat(ctx, nil, "serve", "--stop"); err != nil {
		return err
	}
	return ended(ctx, pid)
}

// ended returns when a process, which is no child of ours, is gone.
func ended(ctx context.Context, pid int) error {
	for syscall.Kill(pid, 0) == nil {
		if err := pause(ctx, 10*time.Millisecond); err != nil {
			return fmt.Errorf("process %d does not end: %w", pid, err)
		}
	}
	return nil
}
