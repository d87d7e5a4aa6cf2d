package demo

import (
	"context"
	"encoding/json"
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
	"time"

	"lifeboat/internal/guestimage"
	"lifeboat/internal/qemu"
)

const (
	vmName      = "demo"
	sessionName = "demo"
	memoryMiB   = 512

	// bootWithin bounds a boot under software emulation on a busy machine.
	bootWithin = 5 * time.Minute
	// downFor is how long the server stays dead: longer than a restart would
	// take, shorter than an ESXi host waits before it gives up (140 s).
	downFor = 3 * time.Second
)

// story is the state of one telling.
type story struct {
	visitor
	report Report
	server *server
	points []string
}

func (s *story) tell(ctx context.Context) error {
	steps := []scene{
		{"A VM in production: a Debian disk of its own", s.makeProduction},
		{"Back it up", s.firstBackup},
		{"The VM runs from its own disk and changes", s.runProduction},
		{"Back it up again: only what changed", s.secondBackup},
		{"Disaster: the production disk is gone", s.loseProduction},
		{"Publish the restore point over NFS and boot the VM from it", s.bootFromBackup},
		{"Work in the recovered VM", s.workInGuest},
		{"Kill the server under the running VM, and start it again", s.killServer},
		{"Move the disk to other storage while the VM runs", s.moveAway},
		{"Stop the server: the VM does not need it any more", s.withoutServer},
		{"Keep what the VM wrote before the move as a restore point, verify every byte, clean up", s.settle},
	}
	err := s.play(ctx, steps)
	s.report.Proofs = s.proofs
	return err
}

// cleanUp ends what still runs, in an order that lets nothing wait for another.
func (s *story) cleanUp() {
	if s.machine != nil {
		s.machine.Close()
	}
	if s.server != nil {
		s.server.kill()
	}
}

func (s *story) productionDisk() string { return filepath.Join(s.work, "production.raw") }
func (s *story) movedDisk() string      { return filepath.Join(s.work, "moved.raw") }

func (s *story) makeProduction(ctx context.Context) error {
	disk, err := guestimage.DebianDisk(ctx, s.opt.CacheDir, s.say.say)
	if err != nil {
		return err
	}
	return copySparse(ctx, disk, s.productionDisk())
}

// copySparse copies a disk and leaves its holes holes.
func copySparse(ctx context.Context, from, to string) error {
	out, err := exec.CommandContext(ctx, "cp", "--sparse=always", "--reflink=auto", from, to).CombinedOutput()
	if err != nil {
		return fmt.Errorf("copying the disk: %w: %s", err, out)
	}
	return nil
}

// point is what the demo wants to know of a restore point.
type point struct {
	ID     string `json:"id"`
	Read   int64  `json:"read_bytes"`
	New    int64  `json:"new_bytes"`
	Stored int64  `json:"stored_bytes"`
}

func (s *story) backup(ctx context.Context) (point, float64, error) {
	var pt point
	started := time.Now()
	err := s.lifeboat(ctx, &pt, "backup", "disk", "--vm", vmName, s.productionDisk())
	took := time.Since(started).Seconds()
	if err == nil {
		s.points = append(s.points, pt.ID)
		s.say.sayf("       point %s: read %s, new %s, stored %s, %.1f s", pt.ID, mib(pt.Read), mib(pt.New), mib(pt.Stored), took)
	}
	return pt, took, err
}

func (s *story) firstBackup(ctx context.Context) error {
	if err := s.lifeboat(ctx, nil, "init"); err != nil {
		return err
	}
	pt, took, err := s.backup(ctx)
	s.report.FirstRead, s.report.FirstStored, s.report.FirstTook = pt.Read, pt.Stored, took
	return err
}

// runProduction boots the VM from its own disk: for the change, and for a time
// to compare with.
func (s *story) runProduction(ctx context.Context) error {
	started := time.Now()
	if err := s.boot(ctx, s.productionDisk()); err != nil {
		return err
	}
	s.report.RawToLogin = time.Since(started).Seconds()
	s.say.sayf("       login prompt after %.1f s", s.report.RawToLogin)
	if err := s.write(ctx, "before-the-disaster", "before the disaster"); err != nil {
		return err
	}
	return s.powerOff(ctx)
}

func (s *story) secondBackup(ctx context.Context) error {
	pt, took, err := s.backup(ctx)
	s.report.SecondRead, s.report.SecondNew, s.report.SecondStored, s.report.SecondTook = pt.Read, pt.New, pt.Stored, took
	return err
}

func (s *story) loseProduction(context.Context) error { return os.Remove(s.productionDisk()) }

func (s *story) bootFromBackup(ctx context.Context) error {
	command := time.Now()
	srv, err := s.publish(ctx, vmName+"@latest")
	if err != nil {
		return err
	}
	s.server = srv
	s.report.ToExport = time.Since(command).Seconds()
	folder := srv.ready.Folders[0]
	s.say.sayf("       exported after %.2f s: %s/%s", s.report.ToExport, folder.Path, folder.Disks[0])
	if err := s.start(ctx, "nfs://127.0.0.1"+folder.Path+"/"+folder.Disks[0]); err != nil {
		return err
	}
	if err := s.awaitFirstRead(ctx); err != nil {
		return err
	}
	s.report.ToFirstRead = time.Since(command).Seconds()
	if err := s.login(ctx); err != nil {
		return err
	}
	s.report.ToLogin = time.Since(command).Seconds()
	s.say.sayf("       first read after %.2f s, login prompt after %.1f s", s.report.ToFirstRead, s.report.ToLogin)
	return nil
}

func (s *story) workInGuest(ctx context.Context) error {
	if err := s.check(ctx, "in the recovery"); err != nil {
		return err
	}
	return s.write(ctx, "in-recovery", "while running from the backup")
}

// killServer kills the server with SIGKILL while the guest writes and syncs ten
// times a second, and starts it again on the same session.
func (s *story) killServer(ctx context.Context) error {
	beat, err := s.startHeartbeat(ctx)
	if err != nil {
		return err
	}
	s.server.kill()
	s.server = nil
	died := time.Now()
	if err := pause(ctx, downFor); err != nil {
		return err
	}
	srv, err := s.publish(ctx)
	if err != nil {
		return err
	}
	s.server = srv
	s.report.ServerDown = time.Since(died).Seconds()
	longest, err := beat.stop(ctx)
	if err != nil {
		return fmt.Errorf("the guest did not survive the restart of the server: %w", err)
	}
	s.report.GuestPause = longest.Seconds()
	s.say.sayf("       server down for %.1f s; longest pause between two synced writes in the guest: %.1f s", s.report.ServerDown, s.report.GuestPause)
	if err := s.check(ctx, "after the kill"); err != nil {
		return err
	}
	return s.write(ctx, "after-the-kill", "after the server was killed")
}

func (s *story) moveAway(ctx context.Context) error {
	var said time.Time
	res, err := s.machine.Move(ctx, qemu.Move{
		Path: s.movedDisk(),
		Progress: func(p qemu.MoveProgress) {
			if time.Since(said) > 2*time.Second && p.Total > 0 {
				said = time.Now()
				s.say.sayf("       %d%%", 100*p.Copied/p.Total)
			}
		},
	})
	if err != nil {
		return err
	}
	s.report.MoveTook, s.report.MoveBytes, s.report.MovePivot = res.Took.Seconds(), res.Bytes, res.Pivot.Seconds()
	s.say.sayf("       %s in %.1f s, the switch itself %.2f s", mib(res.Bytes), s.report.MoveTook, s.report.MovePivot)
	return nil
}

func (s *story) withoutServer(ctx context.Context) error {
	srv := s.server
	s.server = nil
	if err := srv.stop(); err != nil {
		return err
	}
	if err := s.write(ctx, "after-the-move", "after the move, without a server"); err != nil {
		return err
	}
	if err := s.check(ctx, "after the move, without the server"); err != nil {
		return err
	}
	return s.powerOff(ctx)
}

// settle keeps the session's changes, checks every byte of the repository and
// leaves no session behind.
func (s *story) settle(ctx context.Context) error {
	var kept struct {
		Points []point `json:"points"`
	}
	if err := s.lifeboat(ctx, &kept, "session", "keep", sessionName); err != nil {
		return err
	}
	if len(kept.Points) != 1 {
		return fmt.Errorf("session keep made %d points, want 1", len(kept.Points))
	}
	s.report.Kept, s.report.KeptNew = kept.Points[0].ID, kept.Points[0].New
	if err := s.lifeboat(ctx, nil, "session", "discard", sessionName); err != nil {
		return err
	}
	if err := s.lifeboat(ctx, nil, "verify"); err != nil {
		return err
	}
	var left []json.RawMessage
	if err := s.lifeboat(ctx, &left, "session", "ls"); err != nil {
		return err
	}
	if len(left) != 0 {
		return fmt.Errorf("%d sessions are left over", len(left))
	}
	return nil
}

// pause waits, unless the story is cancelled.
func pause(ctx context.Context, d time.Duration) error {
	t := time.NewTimer(d)
	defer t.Stop()
	select {
	case <-t.C:
		return nil
	case <-ctx.Done():
		return context.Cause(ctx)
	}
}
