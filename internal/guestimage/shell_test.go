package guestimage

import (
	"context"
	"errors"
	"os"
	"os/exec"
	"strings"
	"syscall"
	"testing"
	"time"

	"lifeboat/internal/qemu"
)

// localShell is a Shell on a shell of this machine: the loop that runs in a
// guest, without the guest. noise is run first.
func localShell(t *testing.T, noise string) (*Shell, *exec.Cmd) {
	t.Helper()
	fds, err := syscall.Socketpair(syscall.AF_UNIX, syscall.SOCK_STREAM|syscall.SOCK_CLOEXEC, 0)
	if err != nil {
		t.Fatal(err)
	}
	if err := syscall.SetNonblock(fds[0], true); err != nil {
		t.Fatal(err)
	}
	ours, theirs := os.NewFile(uintptr(fds[0]), "ours"), os.NewFile(uintptr(fds[1]), "theirs")
	cmd := exec.Command("sh", "-c", noise+`; echo shell-"is-ready"; while IFS= read -r l; do eval "$l"; done`)
	cmd.Stdin, cmd.Stdout, cmd.Stderr = theirs, theirs, theirs
	cmd.SysProcAttr = &syscall.SysProcAttr{Setpgid: true}
	if err := cmd.Start(); err != nil {
		t.Fatal(err)
	}
	theirs.Close()
	console := qemu.NewConsole(ours)
	t.Cleanup(func() {
		console.Close()
		_ = syscall.Kill(-cmd.Process.Pid, syscall.SIGKILL)
		_ = cmd.Wait()
	})
	s, err := newShell(testContext(t, 30*time.Second), console)
	if err != nil {
		t.Fatal(err)
	}
	return s, cmd
}

func TestShellResults(t *testing.T) {
	s, _ := localShell(t, "echo noise; printf no-newline")
	for _, c := range []struct {
		command string
		want    Result
	}{
		{"true", Result{}},
		{"echo hello", Result{Output: "hello\n"}},
		{"printf 'no line feed'", Result{Output: "no line feed"}},
		{"echo out; echo err >&2", Result{Output: "out\nerr\n"}},
		{"exit 3", Result{Status: 3}},
		{"false # ) it's a comment", Result{Status: 1}},
		{`echo "a'b" '$x' \\`, Result{Output: "a'b $x \\\n"}},
		{"for i in 1 2\ndo\n\techo $i\ndone", Result{Output: "1\n2\n"}},
		{"echo 'zwölf ✓'", Result{Output: "zwölf ✓\n"}},
		{"cat", Result{}}, // there is nothing on its standard input
		{"printf 'a\\r\\nb'", Result{Output: "a\nb"}},
		{"cd /; x=1", Result{}},
		{"echo ${x-unset}", Result{Output: "unset\n"}}, // commands do not share state
		{"this-is-no-command 2>/dev/null", Result{Status: 127}},
		{"kill -9 $(sh -c 'echo $PPID')", Result{Status: 137}},
	} {
		got, err := s.Run(testContext(t, 20*time.Second), c.command)
		if c.want.Status == 137 {
			got.Output = "" // the shell says "Killed"
		}
		if err != nil || got != c.want {
			t.Errorf("%q: %+v, %v; want %+v", c.command, got, err, c.want)
		}
	}
}

func TestShellOutputIsAnErrorForAStatus(t *testing.T) {
	s, _ := localShell(t, ":")
	_, err := s.Output(testContext(t, 20*time.Second), "echo why; exit 5")
	var status *StatusError
	if !errors.As(err, &status) || status.Status != 5 || !strings.Contains(err.Error(), "why") {
		t.Fatal(err)
	}
	if _, err := s.Run(t.Context(), strings.Repeat("x", maxCommand+1)); err == nil || !strings.Contains(err.Error(), "serial line takes") {
		t.Fatal(err)
	}
	if _, err := s.Run(testContext(t, 20*time.Second), "true"); err != nil {
		t.Fatalf("after a command that was too long: %v", err)
	}
}

// An abandoned command may still be printing: the shell says so instead of
// mixing its output into the next one's.
func TestShellIsOverAfterAnAbandonedCommand(t *testing.T) {
	s, _ := localShell(t, ":")
	ctx, cancel := context.WithTimeout(t.Context(), 100*time.Millisecond)
	defer cancel()
	if _, err := s.Run(ctx, "exec sleep 60"); !errors.Is(err, context.DeadlineExceeded) {
		t.Fatal(err)
	}
	if _, err := s.Run(t.Context(), "true"); err == nil || !strings.Contains(err.Error(), "earlier command") {
		t.Fatal(err)
	}
}

func TestShellOfADeadGuest(t *testing.T) {
	s, cmd := localShell(t, ":")
	if err := cmd.Process.Kill(); err != nil {
		t.Fatal(err)
	}
	_, err := s.Run(testContext(t, 20*time.Second), "true")
	if err == nil || errors.Is(err, context.DeadlineExceeded) {
		t.Fatal(err)
	}
}
