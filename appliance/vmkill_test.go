package appliance

import (
	"context"
	"encoding/json"
	"log/slog"
	"math/rand/v2"
	"os"
	"os/exec"
	"strconv"
	"strings"
	"testing"
	"time"

	"lifeboat/internal/esxsim"
	"lifeboat/store"
	"lifeboat/vsphere"
)

// killed is what the process that will be killed has to know.
type killed struct {
	Options   vsphere.Options
	Repo, Dir string
}

// TestBackupVMKilled kills the process that makes a backup, at certain calls and
// at random moments, and wants nothing left on the vSphere after the next start,
// and every point that there is to be what the guest has.
func TestBackupVMKilled(t *testing.T) {
	const variable = "LIFEBOAT_TEST_BACKUP"
	if what := os.Getenv(variable); what != "" {
		backupUntilKilled(t, what)
		return
	}
	t.Parallel()
	l := newVMLab(t, esxsim.Options{VMs: []esxsim.VMSpec{tracked("web", 8*mib, mib), tracked("db", 4*mib)}})
	what, err := json.Marshal(killed{Options: l.options(), Repo: l.url, Dir: l.state.dir})
	if err != nil {
		t.Fatal(err)
	}
	at := []string{"CreateSnapshot_Task", "QueryChangedDiskAreas", "RemoveSnapshot_Task"}
	runs := len(at) + 1
	if n, err := strconv.Atoi(os.Getenv("LIFEBOAT_CRASH_RUNS")); err == nil {
		runs = max(n, 1)
	}
	seed := rand.Uint64()
	rng := rand.New(rand.NewPCG(seed, 1))
	t.Logf("seed %d, %d runs", seed, runs)
	points := map[string]bool{}
	began := 0
	for run := range runs {
		l.write("web", 0, rng.Int64N(7*mib), 50_000)
		l.write("db", 0, rng.Int64N(3*mib), 50_000)
		method := ""
		if run < len(at) {
			method = at[run]
		}
		before := l.sim.Calls()["CreateSnapshot_Task"]
		killOne(t, l, variable+"="+string(what), method, time.Duration(rng.IntN(400))*time.Millisecond)
		if l.sim.Calls()["CreateSnapshot_Task"] > before {
			began++
		}
		next := *l // the next start
		next.state, err = OpenState(l.state.dir)
		if err != nil {
			t.Fatal(err)
		}
		next.repo = l.openRepo()
		done, err := next.state.Reconcile(t.Context(), l.client, slog.New(slog.DiscardHandler))
		for _, r := range done {
			if r.Problem != "" {
				t.Errorf("run %d: %+v", run, r)
			}
		}
		if err != nil {
			t.Fatal(err)
		}
		next.settled()
		pts, err := next.repo.Points(t.Context())
		if err != nil {
			t.Fatal(err)
		}
		for _, pt := range pts {
			if !points[pt.ID] {
				next.same(pt.ID, pt.VM)
			}
			points[pt.ID] = true
		}
	}
	if began == 0 {
		t.Error("no backup came to its snapshot before it was killed: this proves nothing")
	}
	l.repo = l.openRepo()
	report, err := l.backAll(nil, "web", "db")
	if err != nil {
		t.Fatalf("%v, %+v", err, report)
	}
	for _, r := range report.VMs {
		l.same(r.Point, r.VM)
	}
	l.clean()
	t.Logf("%d of %d were killed after they had begun; %d points", began, runs, len(points))
}

// settled wants nothing on the vSphere; a snapshot whose request was on its way
// when its process died may need another look.
func (l *vmLab) settled() {
	l.t.Helper()
	for range 100 {
		left := 0
		for _, vm := range []string{"web", "db"} {
			for _, name := range l.sim.VM(vm).Snapshots() {
				if strings.HasPrefix(name, snapshotPrefix) {
					left++
				}
			}
		}
		if left == 0 {
			break
		}
		if _, err := l.state.Reconcile(l.t.Context(), l.client, slog.New(slog.DiscardHandler)); err != nil {
			l.t.Fatal(err)
		}
	}
	l.clean()
}

// killOne starts a process that makes backups and kills it: when a method was
// called once more, or so long after it has begun.
func killOne(t *testing.T, l *vmLab, env, method string, after time.Duration) {
	t.Helper()
	cmd := exec.Command(os.Args[0], "-test.run=^TestBackupVMKilled$")
	cmd.Env = append(os.Environ(), env)
	cmd.Stderr = os.Stderr
	out, err := cmd.StdoutPipe()
	if err != nil {
		t.Fatal(err)
	}
	calls := l.sim.Calls()[method]
	if err := cmd.Start(); err != nil {
		t.Fatal(err)
	}
	if _, err := out.Read(make([]byte, 1)); err != nil { // it has begun
		t.Fatal(err)
	}
	deadline := time.Now().Add(10 * time.Second)
	for method != "" && l.sim.Calls()[method] == calls && time.Now().Before(deadline) {
		time.Sleep(time.Millisecond) // the simulation tells nobody of calls
	}
	if method == "" {
		time.Sleep(after) // a moment at random is what is wanted
	}
	if err := cmd.Process.Kill(); err != nil {
		t.Fatal(err)
	}
	_ = cmd.Wait()
}

// backupUntilKilled is the process that is killed.
func backupUntilKilled(t *testing.T, what string) {
	var k killed
	if err := json.Unmarshal([]byte(what), &k); err != nil {
		t.Fatal(err)
	}
	ctx := context.Background()
	state, err := OpenState(k.Dir)
	if err != nil {
		t.Fatal(err)
	}
	repo, err := OpenRepository(ctx, k.Repo, []byte("pw"), store.Options{CacheBytes: 8 << 20, Logger: slog.New(slog.DiscardHandler)})
	if err != nil {
		t.Fatal(err)
	}
	c, err := vsphere.Dial(ctx, k.Options)
	if err != nil {
		t.Fatal(err)
	}
	if _, err := os.Stdout.WriteString("begun\n"); err != nil {
		t.Fatal(err)
	}
	for {
		_, err := state.BackupVMs(ctx, repo, c, BackupVMsRequest{Patterns: []string{"web", "db"}, Logger: slog.New(slog.DiscardHandler)})
		if err != nil {
			t.Fatal(err)
		}
	}
}
