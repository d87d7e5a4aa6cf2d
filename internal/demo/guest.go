package demo

import (
	"context"
	"encoding/json"
	"fmt"
	"regexp"
	"strings"
	"time"

	"lifeboat/internal/guestimage"
	"lifeboat/internal/qemu"
)

// commandWithin bounds one command in the guest.
const commandWithin = 3 * time.Minute

// visitor works in a guest over its serial line, and remembers what it wrote.
type visitor struct {
	*stage
	machine *qemu.Machine
	shell   *guestimage.Shell
	proofs  []Proof
}

// boot starts the VM on a disk and waits for its login prompt.
func (s *story) boot(ctx context.Context, disk string) error {
	if err := s.start(ctx, disk); err != nil {
		return err
	}
	return s.login(ctx)
}

func (s *story) start(ctx context.Context, disk string) error {
	m, err := qemu.Start(ctx, qemu.Options{
		Name: vmName, Accel: s.accel, MemoryMiB: memoryMiB, Disks: []qemu.Disk{{Path: disk}},
	})
	if err != nil {
		return err
	}
	s.machine = m
	m.Console().Tee(s.opt.Console)
	return nil
}

var loginPrompt = regexp.MustCompile(`login: `)

func (v *visitor) login(ctx context.Context) error {
	ctx, cancel := context.WithTimeout(ctx, bootWithin)
	defer cancel()
	if _, _, err := v.machine.Console().Expect(ctx, loginPrompt); err != nil {
		return fmt.Errorf("the VM did not boot: %w", err)
	}
	shell, err := guestimage.Login(ctx, v.machine.Console())
	if err != nil {
		return err
	}
	v.shell = shell
	return nil
}

// awaitFirstRead returns when the VM's firmware has read from the disk.
func (s *story) awaitFirstRead(ctx context.Context) error {
	for {
		var stats []struct {
			Stats struct {
				Reads int64 `json:"rd_operations"`
			} `json:"stats"`
		}
		if err := s.machine.Monitor().Execute(ctx, "query-blockstats", nil, &stats); err != nil {
			return err
		}
		for _, d := range stats {
			if d.Stats.Reads > 0 {
				return nil
			}
		}
		if err := pause(ctx, 2*time.Millisecond); err != nil {
			return err
		}
	}
}

// guest runs a command in the guest; it must succeed.
func (v *visitor) guest(ctx context.Context, command string) (string, error) {
	ctx, cancel := context.WithTimeout(ctx, commandWithin)
	defer cancel()
	out, err := v.shell.Output(ctx, command)
	return strings.TrimSpace(out), err
}

const guestFiles = "/srv/story"

var sha256Line = regexp.MustCompile(`^[0-9a-f]{64}$`)

// write makes a synced file of random bytes in the guest and remembers its hash.
func (v *visitor) write(ctx context.Context, name, when string) error {
	dir := guestFiles + "/" + name
	out, err := v.guest(ctx, "mkdir -p "+guestFiles+" && lifeboat-guest files "+dir+" 1 2000000")
	if err != nil {
		return err
	}
	fields := strings.Fields(out)
	if len(fields) != 2 || !sha256Line.MatchString(fields[0]) {
		return fmt.Errorf("the guest printed %q in place of a file's hash", out)
	}
	v.proofs = append(v.proofs, Proof{File: fields[1], SHA256: fields[0], Written: when})
	v.say.sayf("       written: %s, SHA-256 %s…", fields[1], fields[0][:16])
	return nil
}

// check reads all files written so far back from the disk, past the guest's
// cache, and compares their hashes with those from when they were written.
func (v *visitor) check(ctx context.Context, where string) error {
	if _, err := v.guest(ctx, "sync; echo 3 > /proc/sys/vm/drop_caches"); err != nil {
		return err
	}
	for i := range v.proofs {
		p := &v.proofs[i]
		out, err := v.guest(ctx, "sha256sum "+p.File)
		if err != nil {
			return err
		}
		if got, _, _ := strings.Cut(out, " "); got != p.SHA256 {
			return fmt.Errorf("%s, written %s, has SHA-256 %s %s; it was %s", p.File, p.Written, got, where, p.SHA256)
		}
		p.Checked = append(p.Checked, where)
	}
	v.say.sayf("       read back and unchanged: %d files, %s", len(v.proofs), where)
	return nil
}

// powerOff shuts the guest down in good order and waits for QEMU to end.
func (s *story) powerOff(ctx context.Context) error {
	ctx, cancel := context.WithTimeout(ctx, bootWithin)
	defer cancel()
	if err := s.machine.Powerdown(ctx); err != nil {
		return err
	}
	err := s.machine.Wait(ctx)
	s.machine.Close()
	s.machine, s.shell = nil, nil
	return err
}

// heartbeat is a writer in the guest that syncs a line ten times a second.
type heartbeat struct{ v *visitor }

const heartbeatFile = "/srv/heartbeat"

func (v *visitor) startHeartbeat(ctx context.Context) (*heartbeat, error) {
	_, err := v.guest(ctx, "lifeboat-guest heartbeat start "+heartbeatFile)
	return &heartbeat{v}, err
}

// stop ends the writer, checks that it lost nothing, and returns the longest
// time between two beats.
func (h *heartbeat) stop(ctx context.Context) (time.Duration, error) {
	out, err := h.v.guest(ctx, "lifeboat-guest heartbeat stop")
	if err != nil {
		return 0, err
	}
	var report struct {
		Beats   int     `json:"beats"`
		Longest float64 `json:"longest_pause"`
		Failed  bool    `json:"failed"`
	}
	if err := json.Unmarshal([]byte(out), &report); err != nil {
		return 0, fmt.Errorf("the guest printed %q in place of a report: %w", out, err)
	}
	if report.Failed || report.Beats < 2 {
		return 0, fmt.Errorf("the guest's writer failed after %d beats", report.Beats)
	}
	if _, err := h.v.guest(ctx, "lifeboat-guest heartbeat check "+heartbeatFile); err != nil {
		return 0, fmt.Errorf("synced lines were lost: %w", err)
	}
	return time.Duration(report.Longest * float64(time.Second)), nil
}
