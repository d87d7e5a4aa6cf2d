package qemu

import (
	"bufio"
	"context"
	"errors"
	"fmt"
	"os"
	"os/exec"
	"strconv"
	"strings"
	"syscall"
	"testing"
	"time"

	"go.uber.org/goleak"
	"golang.org/x/sys/unix"
)

// TestMain is also the parent that TestParentDies kills.
func TestMain(m *testing.M) {
	if os.Getenv("QEMU_TEST_PARENT") != "" {
		guest, err := Start(context.Background(), Options{MemoryMiB: 16})
		if err != nil {
			fmt.Println(err)
			os.Exit(1)
		}
		fmt.Println(guest.PID())
		select {}
	}
	goleak.VerifyTestMain(m)
}

// TestParentDies: whatever ends the process that started QEMU ends QEMU.
func TestParentDies(t *testing.T) {
	self, err := os.Executable()
	if err != nil {
		t.Fatal(err)
	}
	parent := exec.Command(self)
	parent.Env = append(os.Environ(), "QEMU_TEST_PARENT=1")
	out, err := parent.StdoutPipe()
	if err != nil {
		t.Fatal(err)
	}
	if err := parent.Start(); err != nil {
		t.Fatal(err)
	}
	line, err := bufio.NewReader(out).ReadString('\n')
	pid, convErr := strconv.Atoi(strings.TrimSpace(line))
	if err != nil || convErr != nil {
		t.Fatalf("%q: %v", line, err)
	}
	// A descriptor of the process: it tells of its end, and cannot be mistaken
	// for another that got the same number.
	fd, err := unix.PidfdOpen(pid, 0)
	if err != nil {
		t.Fatal(err)
	}
	defer unix.Close(fd)
	if err := parent.Process.Signal(syscall.SIGKILL); err != nil {
		t.Fatal(err)
	}
	_ = parent.Wait()
	for end := time.Now().Add(20 * time.Second); ; {
		n, err := unix.Poll([]unix.PollFd{{Fd: int32(fd), Events: unix.POLLIN}}, int(time.Until(end).Milliseconds()))
		if errors.Is(err, unix.EINTR) {
			continue
		}
		if err != nil || n != 1 {
			_ = unix.Kill(pid, unix.SIGKILL)
			t.Fatalf("QEMU outlived its parent (%v)", err)
		}
		return
	}
}

func TestFrozenPauseResume(t *testing.T) {
	ctx := testContext(t)
	m := startTest(t, Options{MemoryMiB: 16, Frozen: true, Disks: []Disk{{Path: bootSector(t)}}})
	status := func() string {
		var s struct {
			Status string `json:"status"`
		}
		if err := m.Monitor().Execute(ctx, "query-status", nil, &s); err != nil {
			t.Fatal(err)
		}
		return s.Status
	}
	if got := status(); got != "prelaunch" {
		t.Fatalf("a frozen machine is %q", got)
	}
	if err := m.Resume(ctx); err != nil {
		t.Fatal(err)
	}
	if err := m.Console().ExpectText(ctx, "OK"); err != nil {
		t.Fatal(err)
	}
	if err := m.Pause(ctx); err != nil {
		t.Fatal(err)
	}
	if got := status(); got != "paused" {
		t.Fatalf("a paused machine is %q", got)
	}
}

// A guest that does not listen to its power button runs on.
func TestPowerdownEndsWithTheContext(t *testing.T) {
	m := startTest(t, Options{MemoryMiB: 16, Disks: []Disk{{Path: bootSector(t)}}})
	ctx, cancel := context.WithTimeout(testContext(t), 50*time.Millisecond)
	defer cancel()
	if err := m.Powerdown(ctx); !errors.Is(err, context.DeadlineExceeded) {
		t.Fatalf("error = %v", err)
	}
	if err := m.Err(); err != nil {
		t.Fatalf("the machine ended: %v", err)
	}
}

func TestCommandErrorIsTyped(t *testing.T) {
	m := startTest(t, Options{MemoryMiB: 16})
	err := m.Monitor().Execute(testContext(t), "no-such-command", nil, nil)
	var refused *CommandError
	if !errors.As(err, &refused) || refused.Class != "CommandNotFound" || refused.Command != "no-such-command" {
		t.Fatalf("error = %#v", err)
	}
}
