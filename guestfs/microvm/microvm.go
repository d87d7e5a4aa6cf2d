// Package microvm reads guests' file systems with the Linux kernel's own
// drivers, in a virtual machine that has nothing else: for what the readers in Go
// do not know, and as what they are compared with.
//
//	the appliance                              QEMU
//	disk.Image ── scratch (writes go to memory) ── NBD ── /dev/vda ─┐
//	                                                                kernel: assemble, replay, mount read-only
//	guestfs.FS ◄────────── virtio-serial ────────── agent ──────────┘
//
// The kernel is Debian's cloud kernel; the agent (package agent) is the only
// program. The machine has no network, and its disks are thrown away: the kernel
// replays journals as if the guest had been switched on again, which is what a
// backup of a running machine wants, and the backup stays as it is. A file system
// that makes the kernel fall over costs one machine.
//
// It takes seconds where a reader in Go takes milliseconds, and it needs QEMU:
// [Available] says whether it is there.
package microvm

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"iter"
	"log/slog"
	"net"
	"os"
	"os/exec"
	"path/filepath"
	"slices"
	"strings"
	"sync"
	"time"

	"golang.org/x/sys/unix"

	"lifeboat/disk"
	"lifeboat/disk/nbd"
	"lifeboat/guestfs"
	"lifeboat/guestfs/microvm/agent"
	"lifeboat/guestfs/worker"
	"lifeboat/internal/guestimage"
	"lifeboat/internal/qemu"
)

// Defaults of Options.
const (
	DefaultMemoryMiB = 192
	DefaultScratch   = 256 << 20
	defaultTimeout   = 2 * time.Minute
)

const (
	// agentName is the agent's program.
	agentName = "lifeboat-agent"
	// nbdBuffers is how many requests of QEMU are at work at once, each of up to
	// 1 MiB.
	nbdBuffers = 4
)

// ErrUnavailable says that there can be no micro-VM here; the text says why.
var ErrUnavailable = errors.New("the micro-VM is not available")

// Options say how. CacheDir is required.
type Options struct {
	// CacheDir keeps the kernel, which is downloaded once.
	CacheDir string
	// Agent is the agent's program; empty means that it lies beside this one, or
	// in /usr/lib/lifeboat.
	Agent string
	// MemoryMiB is the machine's memory; 0 means DefaultMemoryMiB.
	MemoryMiB int
	// Scratch bounds what the kernel may write, in bytes of this process's memory;
	// 0 means DefaultScratch.
	Scratch int64
	// Timeout bounds the time from start to mounted; 0 means two minutes: an
	// emulated processor on a busy machine.
	Timeout time.Duration
	// Progress hears what takes long, where a person waits; may be nil.
	Progress func(step string)
	Logger   *slog.Logger // nil: none
}

// Volume is what to mount.
type Volume struct {
	// Type is the file system's, as the kernel calls it: "btrfs"; empty: the kernel
	// finds out.
	Type string
	// Disks it is on: one, or all of a file system or array over several.
	Disks []disk.Image
	// Array says that the disks are members of a software RAID (md).
	Array bool
	// MountOptions are given to the kernel.
	MountOptions string
}

// Available reports why there can be no micro-VM, or nil.
func Available(o Options) error {
	if _, err := exec.LookPath("qemu-system-x86_64"); err != nil {
		return fmt.Errorf("%w: QEMU is missing; install the package qemu-system-x86", ErrUnavailable)
	}
	if _, err := o.agent(); err != nil {
		return err
	}
	return nil
}

// agent finds the agent's program.
func (o Options) agent() (string, error) {
	if o.Agent != "" {
		return o.Agent, nil
	}
	places := []string{"/usr/lib/lifeboat"}
	if self, err := os.Executable(); err == nil {
		places = append([]string{filepath.Dir(self)}, places...)
	}
	for _, dir := range places {
		path := filepath.Join(dir, agentName)
		if _, err := os.Stat(path); err == nil {
			return path, nil
		}
	}
	return "", fmt.Errorf("%w: the program %s is in none of %s; `make build` makes it", ErrUnavailable, agentName, strings.Join(places, ", "))
}

// Machine is a micro-VM with a mounted volume.
type Machine struct {
	vm      *qemu.Machine
	port    *os.File
	served  sync.WaitGroup
	scratch []served
	cancel  context.CancelFunc
	once    sync.Once
	reply   agent.Reply
}

// FS is the file system of a volume, as the machine's kernel shows it.
type FS struct {
	guestfs.FS
	machine *Machine
	session *worker.Session
	info    guestfs.Info
}

var (
	_ guestfs.XattrReader = (*FS)(nil)
	_ guestfs.PlusReader  = (*FS)(nil)
	_ guestfs.Lookuper    = (*FS)(nil)
	_ guestfs.Describer   = (*FS)(nil)
)

// Open boots a machine and mounts the volume, whose disks must stay open as long
// as the file system that is returned. ctx governs the starting only; Close ends
// the machine. The error matches ErrUnavailable where there can be no machine,
// and is a [*MountError] where the kernel does not take the volume.
func Open(ctx context.Context, v Volume, o Options) (*FS, error) {
	m, err := start(ctx, v, o)
	if err != nil {
		return nil, err
	}
	f := &FS{machine: m, info: m.reply.Info}
	f.info.State, f.info.Note = guestfs.Clean, "read by the Linux kernel in a micro-VM"
	if m.reply.Replayed {
		f.info.State = guestfs.Replayed
		f.info.Note += ", which replayed its journal"
	}
	f.session, f.FS = worker.Attach(m.port, m.reply.Root, f.info, worker.Options{Timeout: answerTimeout, Logger: o.Logger})
	return f, nil
}

// answerTimeout bounds the time that the machine takes for a request: it runs on
// an emulated processor, and reads from disks that may be far away.
const answerTimeout = time.Minute

// Info implements [guestfs.Describer].
func (f *FS) Info() guestfs.Info { return f.info }

// Lookup implements [guestfs.Lookuper].
func (f *FS) Lookup(ctx context.Context, dir guestfs.Inode, name string) (guestfs.Dirent, error) {
	return guestfs.Lookup(ctx, f.FS, dir, name)
}

// Xattrs implements [guestfs.XattrReader].
func (f *FS) Xattrs(ctx context.Context, inode guestfs.Inode) ([]guestfs.Xattr, error) {
	return f.FS.(guestfs.XattrReader).Xattrs(ctx, inode)
}

// ReadDirPlus implements [guestfs.PlusReader].
func (f *FS) ReadDirPlus(ctx context.Context, dir guestfs.Inode, after uint64, xattrs bool) iter.Seq2[guestfs.Entry, error] {
	return guestfs.ReadDirPlus(ctx, f.FS, dir, after, xattrs)
}

// Close ends the machine. Requests under way fail.
func (f *FS) Close() error { return errors.Join(f.session.Close(), f.machine.Close()) }

// start boots a machine and mounts the volume. ctx governs the starting only.
func start(ctx context.Context, v Volume, o Options) (_ *Machine, err error) {
	if err := Available(o); err != nil {
		return nil, err
	}
	program, err := o.agent()
	if err != nil {
		return nil, err
	}
	kernel, initrd, err := guestimage.FileSystemVM(ctx, o.CacheDir, program, o.Progress)
	if err != nil {
		return nil, fmt.Errorf("%w: %w", ErrUnavailable, err)
	}
	life, cancel := context.WithCancel(context.WithoutCancel(ctx))
	m := &Machine{cancel: cancel}
	defer func() {
		if err != nil {
			m.Close()
		}
	}()
	opts := qemu.Options{
		Name: "microvm", MemoryMiB: o.MemoryMiB, Kernel: kernel, Initrd: initrd, Logger: o.Logger,
		Append: "console=ttyS0 quiet loglevel=3 mitigations=off nowatchdog no_timer_check tsc=reliable cryptomgr.notests=1 random.trust_cpu=on panic=-1 i8042.noaux",
	}
	if opts.MemoryMiB == 0 {
		opts.MemoryMiB = DefaultMemoryMiB
	}
	peers, err := m.connect(v, o, &opts)
	defer closeAll(peers)
	if err != nil {
		return nil, err
	}
	if m.vm, err = qemu.Start(life, opts); err != nil {
		return nil, err
	}
	timeout := o.Timeout
	if timeout == 0 {
		timeout = defaultTimeout
	}
	return m, m.mount(ctx, v, timeout)
}

func closeAll(files []*os.File) {
	for _, f := range files {
		f.Close()
	}
}

// connect makes the sockets: one for each disk, which is served from here, and
// the agent's line. It returns QEMU's ends.
func (m *Machine) connect(v Volume, o Options, opts *qemu.Options) (peers []*os.File, err error) {
	limit := o.Scratch
	if limit == 0 {
		limit = DefaultScratch
	}
	for _, img := range v.Disks {
		ours, peer, err := pair("disk")
		if err != nil {
			return peers, err
		}
		peers = append(peers, peer)
		conn, err := net.FileConn(ours)
		ours.Close()
		if err != nil {
			return peers, err
		}
		s := served{disk.NewScratch(img, limit)}
		m.scratch = append(m.scratch, s)
		buffers := make([][]byte, nbdBuffers)
		for i := range buffers {
			buffers[i] = make([]byte, nbd.MaxRequest)
		}
		m.served.Go(func() {
			// How the connection ended shows at QEMU's side.
			_ = nbd.Serve(conn, s, nbd.ServerOptions{Size: s.Size(), Buffers: buffers})
		})
		opts.Disks = append(opts.Disks, qemu.Disk{NBD: peer})
	}
	ours, peer, err := pair("port")
	if err != nil {
		return peers, err
	}
	m.port = ours
	opts.Ports = []qemu.Port{{Name: agent.PortName, Conn: peer}}
	return append(peers, peer), nil
}

func pair(name string) (ours, peer *os.File, err error) {
	fds, err := unix.Socketpair(unix.AF_UNIX, unix.SOCK_STREAM|unix.SOCK_CLOEXEC, 0)
	if err != nil {
		return nil, nil, fmt.Errorf("make a socket: %w", err)
	}
	if err := unix.SetNonblock(fds[0], true); err != nil {
		return nil, nil, errors.Join(err, unix.Close(fds[0]), unix.Close(fds[1]))
	}
	return os.NewFile(uintptr(fds[0]), name), os.NewFile(uintptr(fds[1]), name), nil
}

// mount sends the request and takes the reply.
func (m *Machine) mount(ctx context.Context, v Volume, timeout time.Duration) error {
	ctx, cancel := context.WithTimeout(ctx, timeout)
	defer cancel()
	stop := context.AfterFunc(ctx, func() { _ = m.port.SetDeadline(time.Unix(1, 0)) })
	defer stop()
	ended := make(chan struct{})
	defer close(ended)
	go func() {
		select {
		case <-m.vm.Done():
			_ = m.port.SetDeadline(time.Unix(1, 0))
		case <-ended:
		}
	}()
	req := agent.Request{Type: v.Type, Devices: len(v.Disks), Options: v.MountOptions}
	if v.Array {
		req.Assemble = "md"
	}
	b, err := json.Marshal(req)
	if err != nil {
		return err
	}
	if _, err = m.port.Write(append(b, '\n')); err == nil {
		err = m.receive()
	}
	if err != nil {
		return m.why(ctx, err)
	}
	return m.port.SetDeadline(time.Time{})
}

// maxReply bounds the reply's line, in bytes.
const maxReply = 64 << 10

func (m *Machine) receive() error {
	// Byte by byte up to the end of the line: what follows is not a line.
	line := make([]byte, 0, 1024)
	var c [1]byte
	for len(line) < maxReply {
		if _, err := m.port.Read(c[:]); err != nil {
			return err
		}
		if c[0] != '\n' {
			line = append(line, c[0])
			continue
		}
		if err := json.Unmarshal(line, &m.reply); err != nil {
			return fmt.Errorf("the agent's reply: %w", err)
		}
		if m.reply.Error != "" {
			return &MountError{Reason: m.reply.Error, Messages: m.reply.Messages, Full: m.wroteTooMuch()}
		}
		return nil
	}
	return errors.New("the agent's reply has no end")
}

func (m *Machine) wroteTooMuch() bool {
	return slices.ContainsFunc(m.scratch, func(s served) bool { return s.Full() })
}

// why makes the reason of a failed start readable.
func (m *Machine) why(ctx context.Context, err error) error {
	var refused *MountError
	switch {
	case errors.As(err, &refused):
		return err
	case ctx.Err() != nil:
		return fmt.Errorf("the micro-VM was not ready in time: %w: it printed %q", context.Cause(ctx), m.vm.Console().Recent())
	}
	select {
	case <-m.vm.Done():
		return fmt.Errorf("the micro-VM ended before it was ready: %w: it printed %q", errors.Join(m.vm.Err(), err), m.vm.Console().Recent())
	default:
		return fmt.Errorf("the micro-VM: %w", err)
	}
}

// MountError says that the kernel did not mount the volume. It matches
// guestfs.ErrCorrupt: what the kernel knows by name and does not take is damaged.
type MountError struct {
	Reason   string
	Messages string // of the kernel, the last
	Full     bool   // it wanted to write more than it may
}

func (e *MountError) Error() string {
	lines := strings.Split(strings.TrimSpace(e.Messages), "\n")
	last := lines[max(0, len(lines)-3):]
	text := fmt.Sprintf("%s; its last messages: %s", e.Reason, strings.Join(last, " | "))
	if e.Full {
		text += "; replaying its journal takes more room than there is for it"
	}
	return text
}

// Is reports whether target is guestfs.ErrCorrupt.
func (e *MountError) Is(target error) bool { return target == guestfs.ErrCorrupt && !e.Full }

// Close ends the machine. What was written to its disks is gone.
func (m *Machine) Close() error {
	var err error
	m.once.Do(func() {
		if m.vm != nil {
			err = m.vm.Close()
		}
		m.cancel()
		if m.port != nil {
			m.port.Close()
		}
		m.served.Wait()
	})
	return err
}
