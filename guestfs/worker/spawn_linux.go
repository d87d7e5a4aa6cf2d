package worker

import (
	"errors"
	"fmt"
	"os"
	"os/exec"
	"strings"
	"syscall"

	"golang.org/x/sys/unix"
)

// Names of namespaces, as the marker in the environment has them.
const (
	nsUser    = "users"
	nsMount   = "mounts"
	sharedAll = "none"
)

// isolation is one way to start a worker.
type isolation struct {
	flags uintptr
	names []string
	user  bool // with a user namespace, for who is not root
}

// isolations are the ways, best first. Containers and administrators forbid some.
func isolations() []isolation {
	const flags = unix.CLONE_NEWNS | unix.CLONE_NEWNET | unix.CLONE_NEWPID | unix.CLONE_NEWIPC | unix.CLONE_NEWUTS
	names := []string{nsMount, "network", "processes", "IPC", "host name"}
	none := isolation{}
	if os.Geteuid() == 0 {
		return []isolation{{flags: flags, names: names}, none}
	}
	return []isolation{{flags: flags | unix.CLONE_NEWUSER, names: append([]string{nsUser}, names...), user: true}, none}
}

// child is a worker that was started.
type child struct {
	cmd             *exec.Cmd
	control, blocks *conn
	stderr          *tail
}

// spawn starts a worker, as far from everything as it can.
func spawn(goMemory int64) (*child, error) {
	if os.Getenv(marker) != "" {
		return nil, errors.New("a worker starts no workers: this program does not call worker.Main first")
	}
	var problems []error
	for _, how := range isolations() {
		c, err := how.spawn(goMemory)
		if err == nil {
			return c, nil
		}
		problems = append(problems, err)
	}
	return nil, fmt.Errorf("start the reader of guests' file systems: %w", errors.Join(problems...))
}

func (how isolation) spawn(goMemory int64) (*child, error) {
	c := &child{stderr: &tail{}}
	var theirs []*os.File
	for _, mine := range []**conn{&c.control, &c.blocks} {
		ours, other, err := socketpair()
		if err != nil {
			c.hangUp()
			closeAll(theirs)
			return nil, err
		}
		*mine = &conn{file: ours}
		theirs = append(theirs, other)
	}
	defer closeAll(theirs)
	names := sharedAll
	if len(how.names) > 0 {
		names = strings.Join(how.names, ",")
	}
	// The program that runs, even when its file has been replaced meanwhile.
	c.cmd = &exec.Cmd{
		Path: "/proc/self/exe", Args: []string{os.Args[0], argument}, Dir: "/",
		Env:    []string{marker + "=" + names, "GOTRACEBACK=single", "GOGC=50", fmt.Sprintf("GOMEMLIMIT=%d", goMemory)},
		Stderr: c.stderr, ExtraFiles: theirs,
		// A group of its own: Ctrl-C is for the appliance, which ends this.
		SysProcAttr: &syscall.SysProcAttr{Setpgid: true, Cloneflags: how.flags},
	}
	if how.user {
		c.cmd.SysProcAttr.UidMappings = []syscall.SysProcIDMap{{ContainerID: 0, HostID: os.Geteuid(), Size: 1}}
		c.cmd.SysProcAttr.GidMappings = []syscall.SysProcIDMap{{ContainerID: 0, HostID: os.Getegid(), Size: 1}}
	}
	if err := c.cmd.Start(); err != nil {
		c.hangUp()
		return nil, err
	}
	return c, nil
}

// hangUp closes our ends.
func (c *child) hangUp() {
	for _, end := range []*conn{c.control, c.blocks} {
		if end != nil {
			end.file.Close()
		}
	}
}

// socketpair makes a connection: our end is for Go's poller, the other blocks,
// because the worker has no poller to spare.
func socketpair() (ours, theirs *os.File, err error) {
	fds, err := unix.Socketpair(unix.AF_UNIX, unix.SOCK_STREAM|unix.SOCK_CLOEXEC, 0)
	if err != nil {
		return nil, nil, fmt.Errorf("socketpair: %w", err)
	}
	if err := unix.SetNonblock(fds[0], true); err != nil {
		return nil, nil, errors.Join(err, unix.Close(fds[0]), unix.Close(fds[1]))
	}
	return os.NewFile(uintptr(fds[0]), "worker"), os.NewFile(uintptr(fds[1]), "worker"), nil
}

func closeAll(list []*os.File) {
	for _, f := range list {
		f.Close()
	}
}
