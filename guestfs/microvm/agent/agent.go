// Package agent is what runs in the micro-VM, as its first and only process: it
// loads the drivers that are asked for, assembles and mounts, and answers
// questions about files. See package microvm for the other side.
package agent

import (
	"bufio"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"os"
	"path/filepath"
	"strings"
	"time"

	"golang.org/x/sys/unix"

	"lifeboat/guestfs"
	"lifeboat/guestfs/kernelfs"
)

// PortName is the name of the virtio-serial line to the host.
const PortName = "lifeboat.files"

// Request is the first line on the port, in JSON: what to mount.
type Request struct {
	// Type is the file system's, as the kernel calls it; empty: those that are
	// common are tried.
	Type string `json:"type"`
	// Devices is how many disks there are, /dev/vda onwards. A file system over
	// several of them finds the rest itself.
	Devices int `json:"devices"`
	// Assemble says what has to be made of them before: "" or "md".
	Assemble string `json:"assemble,omitempty"`
	// Options of mount(2) for the file system.
	Options string `json:"options,omitempty"`
}

// Reply answers it, as one line of JSON.
type Reply struct {
	Error string       `json:"error,omitempty"`
	Info  guestfs.Info `json:"info"`
	// Root is the inode of the root directory.
	Root guestfs.Inode `json:"root"`
	// Replayed says that the kernel replayed a journal.
	Replayed bool `json:"replayed,omitempty"`
	// Messages are the kernel's last words, where something failed.
	Messages string `json:"messages,omitempty"`
}

const mountPoint = "/guest"

// Main is the program. When it returns the machine ends: the kernel panics for
// want of its first process, and is told to reboot then, which QEMU takes for
// the end.
func Main() {
	if os.Getpid() != 1 {
		fmt.Fprintln(os.Stderr, "lifeboat-agent runs as the first process of a micro-VM, and nowhere else")
		os.Exit(2)
	}
	if err := run(); err != nil {
		fmt.Println("agent:", err)
	}
	_ = unix.Reboot(unix.LINUX_REBOOT_CMD_POWER_OFF)
}

func run() error {
	for _, m := range []struct{ kind, at string }{{"proc", "/proc"}, {"sysfs", "/sys"}, {"devtmpfs", "/dev"}} {
		if err := os.MkdirAll(m.at, 0o755); err != nil {
			return err
		}
		if err := unix.Mount(m.kind, m.at, m.kind, 0, ""); err != nil && !errors.Is(err, unix.EBUSY) {
			return fmt.Errorf("mount %s: %w", m.at, err)
		}
	}
	l := loader{}
	for _, module := range []string{"virtio_pci", "virtio_blk", "virtio_console"} {
		if err := l.load(module); err != nil {
			return err
		}
	}
	port, err := openPort()
	if err != nil {
		return err
	}
	defer port.Close()
	in := bufio.NewReaderSize(port, 4096)
	line, err := in.ReadBytes('\n')
	if err != nil {
		return fmt.Errorf("read the request: %w", err)
	}
	var req Request
	if err := json.Unmarshal(line, &req); err != nil {
		return fmt.Errorf("the request: %w", err)
	}
	fsys, reply := mount(&l, req)
	b, err := json.Marshal(reply)
	if err != nil {
		return err
	}
	if _, err := port.Write(append(b, '\n')); err != nil {
		return err
	}
	if fsys == nil {
		_, err := io.Copy(io.Discard, in) // the host has yet to read the reply, and ends the machine
		return err
	}
	defer fsys.Close()
	return serve(port, fsys)
}

// patience is how long a device may take to appear after its driver was loaded.
const patience = 20 * time.Second

// openPort waits for the line to the host. There is no udev that would name it.
func openPort() (*os.File, error) {
	for deadline := time.Now().Add(patience); time.Now().Before(deadline); time.Sleep(time.Millisecond) {
		names, err := filepath.Glob("/sys/class/virtio-ports/*/name")
		if err != nil {
			return nil, err
		}
		for _, name := range names {
			b, err := os.ReadFile(name)
			if err != nil || strings.TrimSpace(string(b)) != PortName {
				continue
			}
			fd, err := unix.Open("/dev/"+filepath.Base(filepath.Dir(name)), unix.O_RDWR|unix.O_CLOEXEC, 0)
			if err == nil {
				return os.NewFile(uintptr(fd), PortName), nil
			}
		}
	}
	return nil, fmt.Errorf("there is no port %s", PortName)
}

// mount does what the request says. It fails with a reply, never otherwise.
func mount(l *loader, req Request) (*kernelfs.FS, Reply) {
	fsys, reply, err := tryMount(l, req)
	if err != nil {
		reply.Error, reply.Messages = err.Error(), kernelMessages()
	}
	return fsys, reply
}

func tryMount(l *loader, req Request) (*kernelfs.FS, Reply, error) {
	var reply Reply
	types := []string{req.Type}
	if req.Type == "" {
		types = []string{"ext4", "xfs", "btrfs", "vfat", "squashfs", "iso9660"}
	}
	for _, module := range append([]string{"nls_cp437", "nls_iso8859_1", "nls_utf8", "nls_ascii"}, types...) {
		if err := l.load(moduleOf(module)); err != nil {
			return nil, reply, err
		}
	}
	devices, err := devices(req.Devices)
	if err != nil {
		return nil, reply, err
	}
	source := devices[0]
	switch req.Assemble {
	case "":
	case "md":
		if source, err = assembleMD(l, devices); err != nil {
			return nil, reply, err
		}
	default:
		return nil, reply, fmt.Errorf("nothing here assembles %q", req.Assemble)
	}
	if req.Type == "btrfs" && len(devices) > 1 {
		if err := scanBtrfs(devices); err != nil {
			return nil, reply, err
		}
	}
	if err := os.Mkdir(mountPoint, 0o755); err != nil {
		return nil, reply, err
	}
	fsType, err := mountAny(source, types, req.Options)
	if err != nil {
		return nil, reply, err
	}
	reply.Replayed = replayed(kernelMessages())
	fsys, err := kernelfs.Open(mountPoint, guestfs.Info{Type: fsType})
	if err != nil {
		return nil, reply, err
	}
	reply.Info, reply.Root = fsys.Info(), fsys.Root()
	return fsys, reply, nil
}

// mountAny mounts with the first type that fits. Read-only for us; the disk below
// can be written, and what is written is thrown away: so the kernel replays what
// has to be replayed.
func mountAny(source string, types []string, options string) (string, error) {
	var failed error
	for _, t := range types {
		err := unix.Mount(source, mountPoint, t, unix.MS_RDONLY|unix.MS_NODEV|unix.MS_NOSUID|unix.MS_NOEXEC, options)
		if err == nil {
			return t, nil
		}
		failed = errors.Join(failed, fmt.Errorf("the kernel does not mount it as %s: %w", t, err))
	}
	return "", failed
}

// moduleOf is the module of a file system, where it is called otherwise.
func moduleOf(fsType string) string {
	if fsType == "iso9660" {
		return "isofs"
	}
	return fsType
}

// devices waits for the disks: drivers find them a moment after they are loaded.
func devices(n int) ([]string, error) {
	if n < 1 || n > 26 {
		return nil, fmt.Errorf("%d disks", n)
	}
	var out []string
	deadline := time.Now().Add(patience)
	for i := range n {
		name := "/dev/vd" + string(rune('a'+i))
		for {
			if _, err := os.Stat(name); err == nil {
				break
			}
			if time.Now().After(deadline) {
				return nil, fmt.Errorf("the disk %s did not appear", name)
			}
			time.Sleep(time.Millisecond)
		}
		out = append(out, name)
	}
	return out, nil
}

// replayed looks for what drivers say when they replay.
func replayed(messages string) bool {
	for _, sign := range []string{"recovery complete", "Ending recovery", "Starting recovery", "start tree-log replay"} {
		if strings.Contains(messages, sign) {
			return true
		}
	}
	return false
}

// kernelMessages is the last of the kernel's log.
func kernelMessages() string {
	b := make([]byte, 16<<10)
	n, err := unix.Klogctl(unix.SYSLOG_ACTION_READ_ALL, b)
	if err != nil {
		return ""
	}
	return string(b[:n])
}

// loader loads kernel modules, each once.
type loader map[string]bool

// load loads a module and what it needs. One that there is no file for is built
// in, or not there at all, which shows when it is used.
func (l loader) load(name string) error {
	order, err := os.ReadFile("/lib/modules/" + name + ".order")
	if errors.Is(err, os.ErrNotExist) {
		return nil
	}
	if err != nil {
		return err
	}
	for m := range strings.FieldsSeq(string(order)) {
		if l[m] {
			continue
		}
		l[m] = true
		f, err := os.Open("/lib/modules/" + m)
		if err != nil {
			return err
		}
		err = unix.FinitModule(int(f.Fd()), "", 0)
		f.Close()
		if err != nil && !errors.Is(err, unix.EEXIST) {
			return fmt.Errorf("load the kernel module %s: %w", m, err)
		}
	}
	return nil
}
