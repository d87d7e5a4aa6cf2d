package main

import (
	"bytes"
	"os"
	"os/exec"
	"strconv"
	"strings"
	"syscall"
	"testing"
	"time"
)

const midwayBlocks = 4 << 10 // 256 MiB

// midway starts a backup of a disk of midwayBlocks and stops it (SIGSTOP) while
// it reads.
func (w workspace) midway(file string) *exec.Cmd {
	w.t.Helper()
	cmd := w.command("backup", "disk", "--vm", "large", "--workers", "1", file)
	cmd.Stdout, cmd.Stderr = new(bytes.Buffer), new(bytes.Buffer)
	if err := cmd.Start(); err != nil {
		w.t.Fatal(err)
	}
	w.t.Cleanup(func() {
		if cmd.ProcessState == nil {
			_ = cmd.Process.Kill()
			_ = cmd.Wait()
		}
	})
	for w.readSoFar(cmd) < 16<<20 {
		time.Sleep(time.Millisecond) // between looks at how far it is
	}
	w.signal(cmd, syscall.SIGSTOP)
	if n := w.readSoFar(cmd); n > midwayBlocks<<16*3/4 {
		w.t.Fatalf("the backup had read %d bytes when it was stopped: that is not midway", n)
	}
	return cmd
}

// readSoFar is how much a process has read; it fails when the process is gone.
func (w workspace) readSoFar(cmd *exec.Cmd) int64 {
	w.t.Helper()
	data, err := os.ReadFile("/proc/" + strconv.Itoa(cmd.Process.Pid) + "/io")
	if err != nil {
		w.t.Fatal(err)
	}
	line, _, _ := strings.Cut(string(data), "\n")
	n, err := strconv.ParseInt(strings.TrimPrefix(line, "rchar: "), 10, 64)
	if err != nil {
		w.t.Fatalf("the backup has ended: %s", cmd.Stderr)
	}
	return n
}

func (w workspace) signal(cmd *exec.Cmd, sig syscall.Signal) {
	w.t.Helper()
	if err := cmd.Process.Signal(sig); err != nil {
		w.t.Fatal(err)
	}
}

// TestBadMidway disturbs backups while they read.
func TestBadMidway(t *testing.T) {
	w := newWorkspace(t)
	w.random("small", 1<<20)
	w.disk("large", midwayBlocks)
	w.run("backup", "disk", "--vm", "small", "small")
	before := w.objects()
	for _, tt := range []struct {
		name    string
		disturb func(*exec.Cmd) error
		code    int
		words   []string
	}{
		{"interrupted", func(cmd *exec.Cmd) error { return cmd.Process.Signal(os.Interrupt) }, exitInterrupted, []string{"interrupted"}},
		{"shrinks", func(*exec.Cmd) error { return os.Truncate(w.path("large"), 1<<20) }, exitFailed, []string{"large", "268435456", "changed while it was being read"}},
		{"disappears", func(*exec.Cmd) error { return os.Remove(w.path("large")) }, exitFailed, []string{"large", "was removed"}},
	} {
		t.Run(tt.name, func(t *testing.T) {
			w := workspace{t, w.dir}
			w.disk("large", midwayBlocks)
			cmd := w.midway("large")
			if err := tt.disturb(cmd); err != nil {
				t.Fatal(err)
			}
			w.signal(cmd, syscall.SIGCONT)
			w.expect(w.wait(cmd), tt.code, tt.words)
			w.untouched(before)
		})
	}
	t.Run("killed", func(t *testing.T) { killedMidway(workspace{t, w.dir}) })
}

// killedMidway: what a killed backup leaves is seen by verify and swept by the
// next backup.
func killedMidway(w workspace) {
	w.disk("large", midwayBlocks)
	cmd := w.midway("large")
	_ = cmd.Process.Kill()
	w.wait(cmd)
	if r := w.verified(); r.Points != 1 || len(r.Leftovers) == 0 {
		w.t.Errorf("after a kill: %+v, want leftovers", r)
	}
	w.reads("small@latest", "small")
	w.run("backup", "disk", "--vm", "large", "large")
	if r := w.verified(); r.Points != 2 || len(r.Leftovers)+len(r.Unexpected) > 0 {
		w.t.Errorf("after the next backup: %+v", r)
	}
	if left, err := os.ReadDir(w.path("repo/tmp")); err != nil || len(left) > 0 {
		w.t.Errorf("unfinished objects are left: %v %v", left, err)
	}
	w.reads("large@latest", "large")
}
