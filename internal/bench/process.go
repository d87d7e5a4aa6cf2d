package main

import (
	"bufio"
	"bytes"
	"context"
	"errors"
	"fmt"
	"io"
	"os"
	"os/exec"
	"runtime"
	"strconv"
	"strings"
	"syscall"
	"time"
)

// process is a server that runs while we measure.
type process struct {
	name   string
	cmd    *exec.Cmd
	stdout *bufio.Reader
	log    bytes.Buffer // read after exited
	exited chan struct{}
	err    error
}

// start starts a server. It dies with us: Linux sends the death signal when the
// thread ends that forked, so the one that does stays until the server is gone.
func start(name string, env []string, program string, args ...string) (*process, error) {
	p := &process{name: name, cmd: exec.Command(program, args...), exited: make(chan struct{})}
	p.cmd.Env = append(os.Environ(), env...)
	p.cmd.SysProcAttr = &syscall.SysProcAttr{Pdeathsig: syscall.SIGKILL}
	p.cmd.Stderr = &p.log
	out, in, err := os.Pipe()
	if err != nil {
		return nil, err
	}
	p.cmd.Stdout, p.stdout = in, bufio.NewReader(out)
	started := make(chan error, 1)
	go func() {
		runtime.LockOSThread()
		err := p.cmd.Start()
		in.Close()
		started <- err
		if err != nil {
			out.Close()
			return
		}
		p.err = p.cmd.Wait()
		close(p.exited)
	}()
	if err := <-started; err != nil {
		return nil, fmt.Errorf("starting %s: %w", name, err)
	}
	return p, nil
}

func (p *process) pid() int { return p.cmd.Process.Pid }

// line reads a line of what the server prints.
func (p *process) line(ctx context.Context) ([]byte, error) {
	stop := context.AfterFunc(ctx, func() { _ = p.cmd.Process.Kill() })
	defer stop()
	line, err := p.stdout.ReadBytes('\n')
	if err != nil {
		return nil, errors.Join(fmt.Errorf("%s did not get ready: %w", p.name, err), p.stop())
	}
	go func() { _, _ = io.Copy(io.Discard, p.stdout) }()
	return line, nil
}

// stopWithin bounds how long a server may take to end in good order.
const stopWithin = 20 * time.Second

// stop ends the server in good order, or else the hard way. How it ended is an
// error only if that was of its own accord, before.
func (p *process) stop() error {
	select {
	case <-p.exited:
		return fmt.Errorf("%s ended early: %w: %s", p.name, errors.Join(p.err, io.EOF), strings.TrimSpace(p.log.String()))
	default:
	}
	_ = p.cmd.Process.Signal(syscall.SIGTERM)
	select {
	case <-p.exited:
	case <-time.After(stopWithin):
		_ = p.cmd.Process.Kill()
		<-p.exited
	}
	return nil
}

// output runs a command to its end.
func output(ctx context.Context, env []string, program string, args ...string) ([]byte, error) {
	out, _, err := timed(ctx, env, program, args...)
	return out, err
}

// usage is what a finished command took.
type usage struct {
	cpu, wall time.Duration
	peakRSS   int64 // bytes
}

func timed(ctx context.Context, env []string, program string, args ...string) ([]byte, usage, error) {
	cmd := exec.CommandContext(ctx, program, args...)
	cmd.Env = append(os.Environ(), env...)
	cmd.SysProcAttr = &syscall.SysProcAttr{Pdeathsig: syscall.SIGKILL}
	var stdout, stderr bytes.Buffer
	cmd.Stdout, cmd.Stderr = &stdout, &stderr
	begin := time.Now()
	if err := cmd.Run(); err != nil {
		return nil, usage{}, fmt.Errorf("%s: %w: %s", strings.Join(cmd.Args, " "), err, strings.TrimSpace(stderr.String()))
	}
	u := usage{cpu: cmd.ProcessState.UserTime() + cmd.ProcessState.SystemTime(), wall: time.Since(begin)}
	if ru, ok := cmd.ProcessState.SysUsage().(*syscall.Rusage); ok {
		u.peakRSS = ru.Maxrss << 10
	}
	return stdout.Bytes(), u, nil
}

// clockTick is the unit of times in /proc/PID/stat; 100 Hz for every program on
// Linux (proc(5), USER_HZ).
const clockTick = 10 * time.Millisecond

// cpuTime is the processor time of a process and of its children that ended.
func cpuTime(pid int) (time.Duration, error) {
	data, err := os.ReadFile(fmt.Sprintf("/proc/%d/stat", pid))
	if err != nil {
		return 0, err
	}
	// The second field, the program's name, may contain anything; it ends with
	// the last parenthesis. Fields 14 to 17 are utime, stime, cutime, cstime.
	fields := strings.Fields(string(data[bytes.LastIndexByte(data, ')')+1:]))
	const first = 14 - 3
	if len(fields) < first+4 {
		return 0, fmt.Errorf("/proc/%d/stat has %d fields", pid, len(fields))
	}
	var sum time.Duration
	for _, f := range fields[first : first+4] {
		n, err := strconv.ParseInt(f, 10, 64)
		if err != nil {
			return 0, fmt.Errorf("/proc/%d/stat: %w", pid, err)
		}
		sum += time.Duration(n) * clockTick
	}
	return sum, nil
}

// ownCPU is the processor time of this process.
func ownCPU() time.Duration {
	var u syscall.Rusage
	if err := syscall.Getrusage(syscall.RUSAGE_SELF, &u); err != nil {
		return 0
	}
	return time.Duration(u.Utime.Nano() + u.Stime.Nano())
}

// kilobytes reads "Name: n kB" lines of a /proc file, as bytes.
func kilobytes(name string) (map[string]int64, error) {
	data, err := os.ReadFile(name)
	if err != nil {
		return nil, err
	}
	out := map[string]int64{}
	for line := range strings.Lines(string(data)) {
		f := strings.Fields(line)
		if len(f) == 3 && f[2] == "kB" {
			if n, err := strconv.ParseInt(f[1], 10, 64); err == nil {
				out[strings.TrimSuffix(f[0], ":")] = n << 10
			}
		}
	}
	return out, nil
}

// settle waits until a server does nothing any more: what it has put off must
// not be paid by whoever is measured next.
func settle(ctx context.Context, pid int) error {
	const quiet, limit = 200 * time.Millisecond, 15 * time.Second
	last, err := cpuTime(pid)
	if err != nil {
		return err
	}
	for begin := time.Now(); time.Since(begin) < limit; {
		if err := pause(ctx, quiet); err != nil {
			return err
		}
		now, err := cpuTime(pid)
		if err != nil || now-last <= clockTick {
			return err
		}
		last = now
	}
	return nil
}
