package appliance

import (
	"bytes"
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"log/slog"
	"math/rand/v2"
	"os"
	"os/exec"
	"strconv"
	"strings"
	"syscall"
	"testing"
	"time"

	"lifeboat/store"
	"lifeboat/vsphere"
)

// crashEnv makes the test binary the process that is to die; it holds a crashJob.
const crashEnv = "LIFEBOAT_TEST_CRASH_JOB"

// crashJob says what a child process does, and at which place it is killed.
type crashJob struct {
	Op      string // "recover", "migrate", "stop", "attach"
	Dir     string // of the world
	Point   string
	Session string
	VM      string
	Address string
	VSphere vsphere.Options
	DieAt   int // places are counted from 1; 0: it lives
}

// TestRecoverChild is not a test: it is the process that the others kill.
func TestRecoverChild(t *testing.T) {
	text := os.Getenv(crashEnv)
	if text == "" {
		t.Skip("this is the child of other tests")
	}
	var job crashJob
	if err := json.Unmarshal([]byte(text), &job); err != nil {
		t.Fatal(err)
	}
	if err := job.run(t.Context()); err != nil {
		t.Fatal(err)
	}
}

func (j crashJob) run(ctx context.Context) error {
	places := 0
	hook := func(place string) {
		if places++; places == j.DieAt {
			fmt.Fprintf(os.Stderr, "killed: %s\n", place)
			_ = syscall.Kill(os.Getpid(), syscall.SIGKILL)
			select {}
		}
	}
	st, err := OpenState(j.Dir + "/state")
	if err != nil {
		return err
	}
	vc, err := vsphere.Dial(ctx, j.VSphere)
	if err != nil {
		return err
	}
	switch j.Op {
	case "migrate":
		return Migrate(ctx, st, vc, MigrateRequest{Session: j.Session, Datastore: "datastore2", hook: hook})
	case "stop":
		return Stop(ctx, st, vc, StopRequest{Session: j.Session, hook: hook})
	}
	repo, err := OpenRepository(ctx, j.Dir+"/repo", tracePassword, store.Options{CacheBytes: 16 << 20, Logger: slog.New(slog.DiscardHandler)})
	if err != nil {
		return err
	}
	var pt *store.Point
	if j.Point != "" {
		if pt, err = repo.Point(ctx, j.Point); err != nil {
			return err
		}
	}
	switch j.Op {
	case "backup":
		_, err = st.BackupVMs(ctx, repo, vc, BackupVMsRequest{Patterns: []string{j.VM}, NoQuiesce: true, Logger: slog.New(slog.DiscardHandler)})
		return err
	case "recover":
		_, err = Recover(ctx, st, repo, vc, RecoverRequest{
			Points: []*store.Point{pt}, RepoURL: j.Dir + "/repo", Session: j.Session, PowerOn: true, Address: j.Address, hook: hook,
		})
	case "attach":
		_, err = Attach(ctx, st, repo, vc, AttachRequest{
			Point: pt, RepoURL: j.Dir + "/repo", Session: j.Session, VM: j.VM, Address: j.Address, hook: hook,
		})
	case "copy":
		err = MigrateByCopy(ctx, st, repo, vc, CopyVMRequest{Session: j.Session, Datastore: "datastore2", hook: hook})
	case "restore":
		_, err = Restore(ctx, st, repo, vc, RestoreRequest{Point: pt, Datastore: "datastore2", hook: hook})
	}
	return err
}

// crash runs a job in a process that is killed at place n. It returns the place's
// name, or "" when the job has no such place and came to its end.
func (w *recoverWorld) crash(job crashJob, n int) string {
	w.t.Helper()
	job.Dir, job.Address, job.VSphere, job.DieAt = w.dir, w.addr.String(), w.vsphereOptions(), n
	text, err := json.Marshal(job)
	if err != nil {
		w.t.Fatal(err)
	}
	cmd := exec.Command(os.Args[0], "-test.run=^TestRecoverChild$")
	cmd.Env = append(os.Environ(), crashEnv+"="+string(text))
	var stderr bytes.Buffer
	cmd.Stderr, cmd.Stdout = &stderr, &stderr
	err = cmd.Run()
	if err == nil {
		return ""
	}
	var ended *exec.ExitError
	if !errors.As(err, &ended) || ended.Sys().(syscall.WaitStatus).Signal() != syscall.SIGKILL {
		w.t.Fatalf("%s, place %d: %v\n%s", job.Op, n, err, stderr.String())
	}
	_, place, _ := strings.Cut(strings.TrimSpace(stderr.String()), "killed: ")
	return place
}

// reconcile is what the next command does first.
func (w *recoverWorld) reconcile(place string) {
	w.t.Helper()
	for try := 0; ; try++ {
		done, err := w.state.Reconcile(w.t.Context(), w.vc, slog.New(slog.NewTextHandler(io.Discard, nil)))
		if err != nil {
			w.t.Fatalf("killed %s: %v", place, err)
		}
		moving := false
		for _, r := range done {
			switch {
			case strings.Contains(r.Problem, "still being moved") && try < 1000:
				moving = true
			case r.Problem != "" && r.Intent.Kind != IntentSnapshot:
				w.t.Errorf("killed %s: %s: %s", place, r.Intent.Kind, r.Problem)
			}
		}
		if !moving {
			return
		}
		time.Sleep(10 * time.Millisecond) // the task is the vCenter's: there is nobody to wait for
	}
}

// TestKilledAtEveryStep kills the process at each place of each operation, has
// the next command reconcile, and finds either nothing or something that works.
func TestKilledAtEveryStep(t *testing.T) {
	if testing.Short() {
		t.Skip("many processes")
	}
	for _, c := range []struct {
		op    string
		every int // places; all with LIFEBOAT_CRASH_RUNS set
		setup func(w *recoverWorld) crashJob
		after func(w *recoverWorld, job crashJob)
	}{
		{"recover", 1, func(w *recoverWorld) crashJob { return crashJob{} }, (*recoverWorld).afterRecover},
		{"migrate", 1, (*recoverWorld).recovered, (*recoverWorld).afterMigrate},
		{"copy", 5, (*recoverWorld).recovered, (*recoverWorld).afterMigrate},
		{"stop", 1, (*recoverWorld).recovered, (*recoverWorld).afterStop},
		{"attach", 1, func(w *recoverWorld) crashJob { return crashJob{VM: "web"} }, (*recoverWorld).afterAttach},
		{"restore", 1, func(w *recoverWorld) crashJob { return crashJob{} }, (*recoverWorld).afterRestore},
	} {
		t.Run(c.op, func(t *testing.T) {
			t.Parallel()
			w := newRecoverWorld(t, nil, testVM(t, "web", 1))
			every := c.every
			if os.Getenv("LIFEBOAT_CRASH_RUNS") != "" {
				every = 1
			}
			for n := 1; ; n += every {
				job := c.setup(w)
				job.Op, job.Point = c.op, w.points["web"].ID
				if job.Session == "" {
					job.Session = fmt.Sprintf("%s-%d", c.op, n)
				}
				place := w.crash(job, n)
				w.reconcile(fmt.Sprintf("in %s %s", c.op, place))
				c.after(w, job)
				if t.Failed() {
					t.Fatalf("after a kill in %s, place %d: %s", c.op, n, place)
				}
				if place == "" {
					t.Logf("%s has less than %d places", c.op, n)
					return
				}
			}
		})
	}
}

// TestKilledAtRandom kills backups, recoveries, migrations and stops at any moment,
// one after another in one world, some of them again while the next command is
// cleaning up: in the end nothing is left but the VMs. LIFEBOAT_CRASH_RUNS says how
// many.
func TestKilledAtRandom(t *testing.T) {
	t.Parallel()
	runs := 6
	if n, err := strconv.Atoi(os.Getenv("LIFEBOAT_CRASH_RUNS")); err == nil {
		runs = n
	}
	seed := rand.Uint64()
	t.Logf("seed %d", seed)
	rng := rand.New(rand.NewPCG(seed, 1))
	w := newRecoverWorld(t, nil, testVM(t, "web", 1))
	ops := []string{"backup", "recover", "migrate", "stop"}
	for n := range runs {
		job := crashJob{Op: ops[rng.IntN(len(ops))], Session: fmt.Sprintf("s%d", n), Point: w.points["web"].ID, VM: "web"}
		if job.Op == "migrate" || job.Op == "stop" {
			job.Session = w.recovered().Session
		}
		after := time.Duration(rng.Int64N(int64(600 * time.Millisecond)))
		w.kill(job, after)
		w.reconcile(fmt.Sprintf("in %s after %s", job.Op, after))
		w.tidy()
		w.onlyVMsLeft()
		if t.Failed() {
			t.Fatalf("run %d: %s of %s, killed after %s (seed %d)", n, job.Op, job.Session, after, seed)
		}
	}
}

// kill runs a job in a process and kills it after a while.
func (w *recoverWorld) kill(job crashJob, after time.Duration) {
	w.t.Helper()
	job.Dir, job.Address, job.VSphere = w.dir, w.addr.String(), w.vsphereOptions()
	text, err := json.Marshal(job)
	if err != nil {
		w.t.Fatal(err)
	}
	ctx, cancel := context.WithTimeout(w.t.Context(), after)
	defer cancel()
	cmd := exec.CommandContext(ctx, os.Args[0], "-test.run=^TestRecoverChild$") // killed when ctx ends
	cmd.Env = append(os.Environ(), crashEnv+"="+string(text))
	if out, err := cmd.CombinedOutput(); err != nil && ctx.Err() == nil {
		w.t.Fatalf("%s: %v\n%s", job.Op, err, out)
	}
}

// tidy stops what runs, as a person would, and removes VMs that moved.
func (w *recoverWorld) tidy() {
	w.t.Helper()
	sessions, err := w.state.sessions()
	if err != nil {
		w.t.Fatal(err)
	}
	for _, s := range sessions {
		if s.Recovery.State != RecoveryRunning {
			w.t.Errorf("session %s is %s", s.Name, s.Recovery.State)
		}
		w.sameDisk(s.Recovery.VM, 0, w.disks["web"][0])
		if err := Stop(w.t.Context(), w.state, w.vc, StopRequest{Session: s.Name}); err != nil {
			w.t.Error(err)
		}
	}
	for _, name := range w.newVMs() {
		w.sameDisk(name, 0, w.disks["web"][0])
		ref := w.vmNamed(name).Ref
		if err := errors.Join(w.vc.PowerOff(w.t.Context(), ref), w.vc.DeleteVM(w.t.Context(), ref)); err != nil {
			w.t.Error(err)
		}
	}
}

// recovered makes a VM run from its backup.
func (w *recoverWorld) recovered() crashJob {
	return crashJob{Session: w.recover(w.request("web"))[0].Session}
}

// afterRecover: the recovery is there and works, or there is nothing of it.
func (w *recoverWorld) afterRecover(job crashJob) {
	w.t.Helper()
	if rec, err := w.state.session(job.Session); err == nil {
		if rec.Recovery.State != RecoveryRunning {
			w.t.Errorf("the session is %s", rec.Recovery.State)
		}
		w.sameDisk(rec.Recovery.VM, 0, w.disks["web"][0])
		if vm := w.vmNamed(rec.Recovery.VM); vm.Power != vsphere.PoweredOn {
			w.t.Errorf("the VM is %s", vm.Power)
		}
		if err := Stop(w.t.Context(), w.state, w.vc, StopRequest{Session: job.Session}); err != nil {
			w.t.Error(err)
		}
	}
	w.nothingLeft()
}

// afterStop: there is nothing, or, if it died before it changed anything, all.
func (w *recoverWorld) afterStop(job crashJob) {
	w.t.Helper()
	if rec, err := w.state.session(job.Session); err == nil {
		w.sameDisk(rec.Recovery.VM, 0, w.disks["web"][0])
		if err := Stop(w.t.Context(), w.state, w.vc, StopRequest{Session: job.Session}); err != nil {
			w.t.Error(err)
		}
	}
	w.nothingLeft()
}

// afterMigrate: the VM is on, with its data, here or there; from here it moves at
// the next try.
func (w *recoverWorld) afterMigrate(job crashJob) {
	w.t.Helper()
	const name = "web (recovered)"
	w.sameDisk(name, 0, w.disks["web"][0])
	if vm := w.vmNamed(name); vm.Power != vsphere.PoweredOn {
		w.t.Errorf("the VM is %s", vm.Power)
	}
	if rec, err := w.state.session(job.Session); err == nil {
		if rec.Recovery.State != RecoveryRunning {
			w.t.Errorf("the session is %s", rec.Recovery.State)
		}
		if err := Migrate(w.t.Context(), w.state, w.vc, MigrateRequest{Session: job.Session, Datastore: "datastore2"}); err != nil {
			w.t.Error(err)
		}
	}
	w.onlyVMsLeft()
	vm := w.vmNamed(name)
	if err := w.vc.PowerOff(w.t.Context(), vm.Ref); err != nil {
		w.t.Error(err)
	}
	if err := w.vc.DeleteVM(w.t.Context(), vm.Ref); err != nil {
		w.t.Error(err)
	}
}

// afterAttach: the VM has the disk, or nothing of it.
func (w *recoverWorld) afterAttach(job crashJob) {
	w.t.Helper()
	if rec, err := w.state.session(job.Session); err == nil {
		if rec.Recovery.State != RecoveryAttached || len(w.vmNamed("web").Disks) != 2 {
			w.t.Errorf("the session is %s, the VM has %d disks", rec.Recovery.State, len(w.vmNamed("web").Disks))
		}
		if err := Stop(w.t.Context(), w.state, w.vc, StopRequest{Session: job.Session}); err != nil {
			w.t.Error(err)
		}
	}
	if n := len(w.vmNamed("web").Disks); n != 1 {
		w.t.Errorf("the VM has %d disks", n)
	}
	w.nothingLeft()
}

// afterRestore: no half VM is there.
func (w *recoverWorld) afterRestore(crashJob) {
	w.t.Helper()
	for _, vm := range w.inventory().VMs {
		if vm.Name == "web" {
			continue
		}
		if strings.Contains(vm.Annotation, "under way") {
			w.t.Errorf("VM %q is half made", vm.Name)
		}
		w.sameDisk(vm.Name, 0, w.disks["web"][0])
		if err := w.vc.DeleteVM(w.t.Context(), vm.Ref); err != nil {
			w.t.Error(err)
		}
	}
	w.nothingLeft()
}
