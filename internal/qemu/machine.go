package qemu

import (
	"context"
	"errors"
	"fmt"
	"io"
	"log/slog"
	"os"
	"os/exec"
	"runtime"
	"strings"
	"sync"
	"syscall"
	"time"
)

// Machine is one running virtual machine. All methods are safe for concurrent
// use.
type Machine struct {
	opts    Options
	log     *slog.Logger
	monitor *Monitor
	console *Console
	started time.Time
	process *os.Process
	stderr  *tail

	done chan struct{} // closed when QEMU has been reaped
	exit error         // outcome of the process; read after done

	mu    sync.Mutex
	disks map[string]*diskState
}

// diskState is where a disk is now.
type diskState struct {
	generation int
	moving     bool
}

// ExitError tells that QEMU ended other than by an orderly shutdown.
type ExitError struct {
	Name   string // the machine
	Err    error  // what wait(2) said
	Stderr string // the last of what QEMU printed
}

func (e *ExitError) Error() string {
	if e.Stderr == "" {
		return fmt.Sprintf("QEMU of %s ended: %v", e.Name, e.Err)
	}
	return fmt.Sprintf("QEMU of %s ended: %v: %s", e.Name, e.Err, e.Stderr)
}

func (e *ExitError) Unwrap() error { return e.Err }

// Start starts a machine. ctx governs its life: when it is cancelled QEMU is
// killed. Start returns once the monitor answers, so a wrong option or a disk
// that cannot be opened is an error here, with QEMU's own words.
func Start(ctx context.Context, o Options) (*Machine, error) {
	o, err := o.withDefaults()
	if err != nil {
		return nil, fmt.Errorf("starting QEMU: %w", err)
	}
	if err := ctx.Err(); err != nil {
		return nil, fmt.Errorf("starting QEMU of %s: %w", o.Name, err)
	}
	m := &Machine{
		opts: o, log: o.Logger, started: time.Now(), stderr: &tail{},
		done: make(chan struct{}), disks: make(map[string]*diskState, len(o.Disks)),
	}
	if m.log == nil {
		m.log = slog.New(slog.DiscardHandler)
	}
	for _, d := range o.Disks {
		m.disks[d.ID] = &diskState{}
	}
	if err := m.launch(); err != nil {
		return nil, fmt.Errorf("starting QEMU of %s: %w", o.Name, err)
	}
	stop := context.AfterFunc(ctx, func() { _ = m.process.Kill() })
	go func() { <-m.done; stop() }()
	if err := m.monitor.handshake(ctx); err != nil {
		m.Close()
		var exit *ExitError
		if errors.As(m.Err(), &exit) && ctx.Err() == nil && exit.Stderr != "" {
			return nil, fmt.Errorf("starting QEMU of %s: %s", o.Name, exit.Stderr)
		}
		return nil, fmt.Errorf("starting QEMU of %s: %w", o.Name, err)
	}
	m.log.Debug("qemu started", "machine", o.Name, "pid", m.process.Pid)
	return m, nil
}

// launch starts the process and the goroutines that serve it.
func (m *Machine) launch() error {
	monitor, monitorPeer, err := socketPair("monitor")
	if err != nil {
		return err
	}
	serial, serialPeer, err := socketPair("serial")
	if err != nil {
		return errors.Join(err, monitor.Close(), monitorPeer.Close())
	}
	cmd := exec.Command(m.opts.Binary, m.opts.arguments()...)
	cmd.ExtraFiles = append([]*os.File{monitorPeer, serialPeer}, m.opts.extraFiles()...) // monitorFD, serialFD, extraFD…
	cmd.Stderr = m.stderr
	cmd.WaitDelay = 5 * time.Second
	// A group of its own, so that Ctrl-C in a terminal reaches us, who end the
	// machine in order, and not QEMU first.
	cmd.SysProcAttr = &syscall.SysProcAttr{Pdeathsig: syscall.SIGKILL, Setpgid: true}

	started := make(chan error)
	go m.own(cmd, started)
	err = <-started
	monitorPeer.Close()
	serialPeer.Close()
	if err != nil {
		monitor.Close()
		serial.Close()
		return err
	}
	m.monitor = newMonitor(monitor, m.log)
	m.console = NewConsole(serial)
	return nil
}

// own starts the process and waits for it on one thread (see the package
// comment), then lets everybody know.
func (m *Machine) own(cmd *exec.Cmd, started chan<- error) {
	runtime.LockOSThread()
	if err := cmd.Start(); err != nil {
		started <- err
		return
	}
	m.process = cmd.Process
	started <- nil
	if err := cmd.Wait(); err != nil {
		m.exit = &ExitError{Name: m.opts.Name, Err: err, Stderr: m.stderr.String()}
	}
	close(m.done)
}

// socketPair returns our end and the one that QEMU inherits.
func socketPair(name string) (ours, peer *os.File, err error) {
	fds, err := syscall.Socketpair(syscall.AF_UNIX, syscall.SOCK_STREAM|syscall.SOCK_CLOEXEC, 0)
	if err != nil {
		return nil, nil, fmt.Errorf("making the %s socket: %w", name, err)
	}
	if err := syscall.SetNonblock(fds[0], true); err != nil {
		return nil, nil, errors.Join(err, syscall.Close(fds[0]), syscall.Close(fds[1]))
	}
	return os.NewFile(uintptr(fds[0]), name), os.NewFile(uintptr(fds[1]), name+"-peer"), nil
}

// PID is QEMU's process number.
func (m *Machine) PID() int { return m.process.Pid }

// Started is the time just before QEMU was started.
func (m *Machine) Started() time.Time { return m.started }

// Console is the guest's first serial line.
func (m *Machine) Console() *Console { return m.console }

// Monitor is the QMP connection.
func (m *Machine) Monitor() *Monitor { return m.monitor }

// Done is closed when QEMU has ended and been reaped.
func (m *Machine) Done() <-chan struct{} { return m.done }

// Err is nil while the machine runs and after an orderly end, else an
// [*ExitError].
func (m *Machine) Err() error {
	select {
	case <-m.done:
		return m.exit
	default:
		return nil
	}
}

// Wait waits until QEMU has ended and returns Err.
func (m *Machine) Wait(ctx context.Context) error {
	select {
	case <-m.done:
		return m.exit
	case <-ctx.Done():
		return fmt.Errorf("waiting for %s to end: %w", m.opts.Name, context.Cause(ctx))
	}
}

// Resume starts the CPUs of a machine that is frozen or paused.
func (m *Machine) Resume(ctx context.Context) error {
	return m.monitor.Execute(ctx, "cont", nil, nil)
}

// Pause stops the CPUs.
func (m *Machine) Pause(ctx context.Context) error {
	return m.monitor.Execute(ctx, "stop", nil, nil)
}

// Powerdown presses the power button and waits for the guest to switch itself
// off. A guest that does not listen to ACPI runs on: the error then matches
// ctx's, and the caller decides (see [Machine.Kill]).
func (m *Machine) Powerdown(ctx context.Context) error {
	if err := m.monitor.Execute(ctx, "system_powerdown", nil, nil); err != nil {
		return err
	}
	return m.Wait(ctx)
}

// Kill ends QEMU at once, as a power failure would, and waits until it has
// been reaped. It is no error if QEMU had ended already.
func (m *Machine) Kill() error {
	if err := m.process.Kill(); err != nil && !errors.Is(err, os.ErrProcessDone) {
		return fmt.Errorf("killing QEMU of %s (process %d): %w", m.opts.Name, m.process.Pid, err)
	}
	<-m.done
	return nil
}

// Close kills the machine if it still runs and gives everything back. It may
// be called more than once.
func (m *Machine) Close() error {
	err := m.Kill()
	m.monitor.close()
	_ = m.console.Close()
	return err
}

// tail keeps the last of what is written to it.
type tail struct {
	mu  sync.Mutex
	buf []byte
}

const tailBytes = 4 << 10

var _ io.Writer = (*tail)(nil)

func (t *tail) Write(p []byte) (int, error) {
	t.mu.Lock()
	defer t.mu.Unlock()
	t.buf = append(t.buf, p[max(0, len(p)-tailBytes):]...)
	if over := len(t.buf) - tailBytes; over > 0 {
		t.buf = append(t.buf[:0], t.buf[over:]...)
	}
	return len(p), nil
}

func (t *tail) String() string {
	t.mu.Lock()
	defer t.mu.Unlock()
	return strings.TrimSpace(string(t.buf))
}
