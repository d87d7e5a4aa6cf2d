// Package netns runs a program in a network namespace of its own, where there
// is nothing but a loopback interface.
//
// QEMU's NFS client asks the port mapper, and the port mapper lives on port
// 111: its URLs have no place for another port (QEMU 7.2 refuses libnfs's
// nfsport and mountport parameters). In a namespace of its own a server may
// have that port without being the machine's port mapper and without being
// reachable by anybody else.
//
// Root needs nothing for it. Everybody else gets a user namespace as well, in
// which they are root over the new network and nothing more; some systems
// forbid that (see [Check]).
//
// A program that wants to be inside starts itself again:
//
//	if netns.Inside() {
//		err := netns.Up() // once, early in main
//		…
//	}
//	cmd := netns.Command(ctx, self, args...)
//	cmd.Stdin, cmd.Stdout, cmd.Stderr = os.Stdin, os.Stdout, os.Stderr
//	err := cmd.Run()
//
// What needs the real network has to be done before.
package netns

import (
	"context"
	"errors"
	"fmt"
	"os"
	"os/exec"
	"syscall"
	"time"

	"golang.org/x/sys/unix"
)

// marker is set in the environment of programs started by Command. Its value
// is the inode of the network namespace they were started from, so that a
// marker inherited by accident is not believed.
const marker = "LIFEBOAT_NETNS_PARENT"

// Command is exec.CommandContext for a program that runs in a new network
// namespace. When ctx ends the program gets SIGTERM and ten seconds; when this
// process dies it gets SIGTERM too, if the calling goroutine is locked to its
// thread (see prctl(2), PR_SET_PDEATHSIG).
func Command(ctx context.Context, name string, args ...string) *exec.Cmd {
	cmd := exec.CommandContext(ctx, name, args...)
	attr := &syscall.SysProcAttr{Cloneflags: syscall.CLONE_NEWNET, Pdeathsig: syscall.SIGTERM}
	if os.Geteuid() != 0 {
		attr.Cloneflags |= syscall.CLONE_NEWUSER
		attr.UidMappings = []syscall.SysProcIDMap{{ContainerID: 0, HostID: os.Geteuid(), Size: 1}}
		attr.GidMappings = []syscall.SysProcIDMap{{ContainerID: 0, HostID: os.Getegid(), Size: 1}}
	}
	cmd.SysProcAttr = attr
	cmd.Cancel = func() error { return cmd.Process.Signal(syscall.SIGTERM) }
	cmd.WaitDelay = 10 * time.Second
	cmd.Env = append(os.Environ(), marker+"="+current())
	return cmd
}

// Inside reports whether this program was started by Command.
func Inside() bool {
	parent, ok := os.LookupEnv(marker)
	return ok && parent != current()
}

// current names the network namespace of the calling process.
func current() string {
	ns, err := os.Readlink("/proc/self/ns/net")
	if err != nil {
		return "unknown"
	}
	return ns
}

// Up brings up the loopback interface. It is to be called inside only: the
// new namespace has the interface, but down.
func Up() error {
	if !Inside() {
		return errors.New("bringing up the loopback interface: not in a network namespace of our own")
	}
	fd, err := unix.Socket(unix.AF_INET, unix.SOCK_DGRAM|unix.SOCK_CLOEXEC, 0)
	if err != nil {
		return fmt.Errorf("bringing up the loopback interface: %w", err)
	}
	defer unix.Close(fd)
	req, err := unix.NewIfreq("lo")
	if err != nil {
		return fmt.Errorf("bringing up the loopback interface: %w", err)
	}
	req.SetUint16(unix.IFF_UP | unix.IFF_RUNNING)
	if err := unix.IoctlIfreq(fd, unix.SIOCSIFFLAGS, req); err != nil {
		return fmt.Errorf("bringing up the loopback interface: %w", err)
	}
	return nil
}

// Check reports why Command would not work here, or nil.
func Check(ctx context.Context) error {
	err := Command(ctx, "/bin/true").Run()
	switch {
	case err == nil:
		return nil
	case errors.Is(err, syscall.EPERM) || errors.Is(err, syscall.ENOSPC):
		return fmt.Errorf("a network namespace cannot be made (%w): run as root, or allow unprivileged user namespaces (sysctl kernel.unprivileged_userns_clone=1)", err)
	default:
		return fmt.Errorf("a network namespace cannot be made: %w", err)
	}
}
