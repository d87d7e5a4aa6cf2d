package main

import (
	"bytes"
	"context"
	"encoding/binary"
	"encoding/json"
	"errors"
	"fmt"
	"math/rand/v2"
	"os"
	"os/exec"
	"strings"
	"sync"
	"sync/atomic"
	"testing"
	"time"
)

// Chaos: several processes back up, forget, prune and copy in one repository at
// the same time, and are killed at any moment. Afterwards every byte verifies,
// every point whose backup was acknowledged and that nobody forgot is there,
// and every point that is there, acknowledged or not, reads exactly as its
// source. A source says by itself what it has to be: see chaosDisk.

// chaosVMs are the machines, each backed up by a loop of its own. Their disks
// are made of one pool of blocks, so that points of one lean on blocks that
// came with another, and forgetting the other puts them at risk.
const (
	chaosVMs    = 3
	chaosBlock  = 64 << 10
	chaosBlocks = 40
	chaosPool   = 90
)

// chaosDisk is generation gen of a VM's disk: the blocks of generation 0, with
// a few exchanged in each generation since; the first block says who it is.
func chaosDisk(vm, gen uint64) []byte {
	rng := rand.New(rand.NewPCG(vm, 0xc4a05))
	choice := make([]uint64, chaosBlocks)
	for i := range choice {
		choice[i] = rng.Uint64N(chaosPool)
	}
	for range gen {
		for range 6 {
			choice[rng.IntN(chaosBlocks)] = rng.Uint64N(chaosPool)
		}
	}
	out := make([]byte, 0, (1+chaosBlocks)*chaosBlock)
	out = binary.BigEndian.AppendUint64(out, vm)
	out = binary.BigEndian.AppendUint64(out, gen)
	out = append(out, make([]byte, chaosBlock-len(out))...)
	block := make([]byte, chaosBlock)
	for _, c := range choice {
		content := rand.NewChaCha8([32]byte{1, byte(c)})
		_, _ = content.Read(block)
		out = append(out, block...)
	}
	return out
}

// chaos is a run.
type chaos struct {
	workspace
	ctx  context.Context
	seed uint64
	kill atomic.Int64 // processes still to be killed

	mu       sync.Mutex
	acked    map[string]bool // points whose backup reported success
	doomed   map[string]bool // points that somebody set out to forget
	problems []string
}

// over reports whether enough were killed, enough got through, or all is lost.
func (c *chaos) over() bool {
	c.mu.Lock()
	defer c.mu.Unlock()
	const atLeast = 6
	enough := c.kill.Load() <= 0 && len(c.acked) >= atLeast && len(c.doomed) > 0
	return enough || len(c.problems) > 0 || c.ctx.Err() != nil
}

func (c *chaos) problem(format string, args ...any) {
	c.mu.Lock()
	defer c.mu.Unlock()
	c.problems = append(c.problems, fmt.Sprintf(format, args...))
}

// step runs a command, and kills it now and then. It returns what it printed,
// or nil if it was killed.
func (c *chaos) step(rng *rand.Rand, args ...string) []byte {
	cmd := c.command(append([]string{"--json"}, args...)...)
	var stdout, stderr bytes.Buffer
	cmd.Stdout, cmd.Stderr = &stdout, &stderr
	if err := cmd.Start(); err != nil {
		c.problem("%v", err)
		return nil
	}
	killed := false
	if rng.IntN(2) == 0 {
		// Not synchronisation: the moment is meant to be any.
		timer := time.AfterFunc(time.Duration(rng.IntN(900))*time.Millisecond, func() { _ = cmd.Process.Kill() })
		defer timer.Stop()
	}
	err := cmd.Wait()
	var exit *exec.ExitError
	if errors.As(err, &exit) && !exit.Exited() {
		killed = true
		c.kill.Add(-1)
	}
	if killed {
		return nil
	}
	if err != nil && !harmless(stderr.String()) {
		c.problem("lifeboat %s: %v\n%s", strings.Join(args, " "), err, stderr.String())
		return nil
	}
	return stdout.Bytes()
}

// harmless are the refusals that belong to several processes at work: the same
// command is right a moment later.
func harmless(stderr string) bool {
	for _, text := range []string{"is at work", "a prune is running", "no restore point", "not found", "is the parent of", "in use"} {
		if strings.Contains(stderr, text) {
			return true
		}
	}
	return false
}

// backups backs one VM up again and again.
func (c *chaos) backups(vm uint64) {
	rng := rand.New(rand.NewPCG(c.seed, vm))
	file := c.path(fmt.Sprintf("vm%d.raw", vm))
	for gen := uint64(0); !c.over(); gen++ {
		if err := os.WriteFile(file, chaosDisk(vm, gen), 0o600); err != nil {
			c.problem("%v", err)
			return
		}
		out := c.step(rng, "backup", "disk", "--vm", fmt.Sprintf("vm%d", vm), file)
		var point struct {
			ID string `json:"id"`
		}
		if json.Unmarshal(out, &point) == nil && point.ID != "" {
			c.mu.Lock()
			c.acked[point.ID] = true
			c.mu.Unlock()
		}
	}
}

// points lists what there is.
func (c *chaos) points(cmd *exec.Cmd) (ids []string, err error) {
	out, err := cmd.Output()
	if err != nil {
		return nil, err
	}
	var list []struct {
		ID string `json:"id"`
	}
	if err := json.Unmarshal(out, &list); err != nil {
		return nil, err
	}
	for _, p := range list {
		ids = append(ids, p.ID)
	}
	return ids, nil
}

// forgets forgets points at random, but leaves a few.
func (c *chaos) forgets() {
	rng := rand.New(rand.NewPCG(c.seed, 100))
	for !c.over() {
		ids, err := c.points(c.command("--json", "points"))
		if err != nil {
			c.problem("points: %v", err)
			return
		}
		if len(ids) < 4 {
			continue
		}
		id := ids[rng.IntN(len(ids))]
		c.mu.Lock()
		c.doomed[id] = true
		c.mu.Unlock()
		c.step(rng, "forget", id)
	}
}

// repeat runs one command again and again.
func (c *chaos) repeat(stream uint64, args ...string) {
	rng := rand.New(rand.NewPCG(c.seed, stream))
	for !c.over() {
		c.step(rng, args...)
	}
}

func TestChaos(t *testing.T) {
	ctx, cancel := context.WithTimeout(t.Context(), 10*time.Minute)
	defer cancel()
	c := &chaos{workspace: newWorkspace(t), ctx: ctx, seed: crashSeed(t), acked: map[string]bool{}, doomed: map[string]bool{}}
	second := c.path("second")
	c.run("--repo", second, "init")
	c.kill.Store(int64(crashRuns(t, 12)))
	var actors sync.WaitGroup
	for vm := range uint64(chaosVMs) {
		actors.Go(func() { c.backups(vm) })
	}
	actors.Go(c.forgets)
	actors.Go(func() { c.repeat(200, "prune", "--grace", "0s") })
	actors.Go(func() { c.repeat(300, "copy", "--all", "--to", second) })
	actors.Wait()
	for _, p := range c.problems {
		t.Error(p)
	}
	if ctx.Err() != nil {
		t.Fatal("the processes made no progress for minutes")
	}
	there := c.check(c.path("repo"))
	for id := range c.acked {
		if !there[id] && !c.doomed[id] {
			t.Errorf("point %s was acknowledged, forgotten by nobody, and is gone", id)
		}
	}
	c.run("copy", "--all", "--to", second)
	copies := c.check(second)
	t.Logf("%d points are there and %d copies, %d were acknowledged, %d forgotten", len(there), len(copies), len(c.acked), len(c.doomed))
	if len(copies) < len(there) {
		t.Error("copies are missing")
	}
}

// check looks at a repository when all is quiet, and returns what is in it.
func (c *chaos) check(repo string) map[string]bool {
	c.t.Helper()
	command := func(args ...string) *exec.Cmd {
		return c.command(append([]string{"--json", "--repo", repo}, args...)...)
	}
	if out, err := command("verify").Output(); err != nil {
		c.t.Errorf("verify %s: %v\n%s", repo, err, out)
	}
	ids, err := c.points(command("points"))
	if err != nil {
		c.t.Fatal(err)
	}
	there := map[string]bool{}
	for _, id := range ids {
		there[id] = true
		c.checkPoint(id, command("export", id, "--format", "raw", "--output", c.path("check.raw")))
	}
	return there
}

// checkPoint exports a point and compares it with what it says that it is.
func (c *chaos) checkPoint(id string, export *exec.Cmd) {
	c.t.Helper()
	_ = os.Remove(c.path("check.raw"))
	if out, err := export.CombinedOutput(); err != nil {
		c.t.Errorf("export %s: %v\n%s", id, err, out)
		return
	}
	got, err := os.ReadFile(c.path("check.raw"))
	if err != nil {
		c.t.Fatal(err)
	}
	vm, gen := binary.BigEndian.Uint64(got), binary.BigEndian.Uint64(got[8:])
	if vm >= chaosVMs || gen > 1<<20 || !bytes.Equal(got, chaosDisk(vm, gen)) {
		c.t.Errorf("point %s does not read as generation %d of VM %d, which it says that it is", id, gen, vm)
	}
}
