package worker

import (
	"errors"
	"fmt"
	"os"
	"slices"
	"strings"
	"syscall"
	"unsafe"

	"github.com/landlock-lsm/go-landlock/landlock"
	"golang.org/x/sys/unix"
)

// Confinement is what keeps a worker in. Every part is tried; what the kernel or
// the host's administrator does not allow is empty and has a note. The last two
// alone leave a worker nothing but its sockets.
type Confinement struct {
	User       string   `json:"user"`       // "nobody", or "own": as the appliance
	Namespaces []string `json:"namespaces"` // that it does not share with the host
	Root       string   `json:"root"`       // "empty", or "host"
	Landlock   bool     `json:"landlock"`   // no file, no port
	Seccomp    bool     `json:"seccomp"`    // no system call but for memory, threads, time, and the sockets
	Memory     int64    `json:"memory"`     // bytes that it may take; 0: no limit
	Notes      []string `json:"notes,omitempty"`
}

// String says it in one line.
func (c Confinement) String() string {
	parts := []string{"user " + c.User, "root directory " + c.Root}
	if len(c.Namespaces) > 0 {
		parts = append(parts, "own "+strings.Join(c.Namespaces, ", "))
	}
	if c.Landlock {
		parts = append(parts, "landlock")
	}
	if c.Seccomp {
		parts = append(parts, "seccomp")
	}
	if c.Memory > 0 {
		parts = append(parts, fmt.Sprintf("%d MiB of memory", c.Memory>>20))
	}
	for _, n := range c.Notes {
		parts = append(parts, "not "+n)
	}
	return strings.Join(parts, "; ")
}

// nobody is the user and group of a worker that root started: the kernel's
// overflow ID, which owns nothing.
const nobody = 65534

// confine takes from this process what it does not need. Order matters: each step
// needs what a later one takes.
func confine(h *hello) Confinement {
	c := Confinement{User: "own", Root: "host", Namespaces: namespaces()}
	try := func(what string, err error) bool {
		if err != nil {
			c.Notes = append(c.Notes, fmt.Sprintf("%s (%v)", what, err))
		}
		return err == nil
	}
	if try("limits", limit(h.Memory)) {
		c.Memory = h.Memory
	}
	// Landlock forbids to mount; putting it over all threads takes a look at /proc.
	moved := os.Geteuid() == 0 && try("an empty root directory", moveAway(c.Namespaces))
	ready := moved && try("the processes", mountProcesses())
	c.Landlock = ready && landlocked() && try("landlock", landlock.V5.BestEffort().Restrict())
	if moved && try("another root directory", changeRoot()) {
		c.Root = "empty"
	}
	switch {
	case slices.Contains(c.Namespaces, nsUser):
		if try("giving up capabilities", dropCapabilities()) {
			c.User = "own, without capabilities"
		}
	case os.Geteuid() == 0 && try("another user", dropUser()):
		c.User = "nobody"
	}
	c.Seccomp = try("seccomp", filterCalls())
	return c
}

// landlocked reports whether the kernel has landlock (landlock(7)).
func landlocked() bool {
	const version = 1 // LANDLOCK_CREATE_RULESET_VERSION
	abi, _, errno := syscall.Syscall(unix.SYS_LANDLOCK_CREATE_RULESET, 0, 0, version)
	return errno == 0 && abi >= 1
}

// limit bounds what the process takes of the machine. Memory is what is written
// to (RLIMIT_DATA): address space, of which Go reserves much, costs nothing.
func limit(memory int64) error {
	set := func(what int, n uint64) error {
		return unix.Setrlimit(what, &unix.Rlimit{Cur: n, Max: n})
	}
	err := errors.Join(set(unix.RLIMIT_CORE, 0), set(unix.RLIMIT_FSIZE, 0), set(unix.RLIMIT_NOFILE, 32))
	if memory > 0 {
		err = errors.Join(err, set(unix.RLIMIT_DATA, uint64(memory)))
	}
	return err
}

// namespaces are those that the parent gave this process for its own.
func namespaces() []string {
	if text := os.Getenv(marker); text != sharedAll {
		return strings.Split(text, ",")
	}
	return nil
}

// covered is the directory over which the new root is mounted. There is one
// everywhere. processes and empty are what is in the new root.
const (
	covered   = "/sys"
	processes = "/proc"
	empty     = "/empty"
)

// moveAway makes a file system in memory the root, which nobody else sees, so that
// nothing of it is left behind, and lets go of all the others: what is mounted on
// the host is not kept busy by being mounted here, too.
func moveAway(own []string) error {
	if !slices.Contains(own, nsMount) {
		return errors.New("no mount namespace")
	}
	if err := unix.Mount("", "/", "", unix.MS_REC|unix.MS_PRIVATE, ""); err != nil {
		return fmt.Errorf("make mounts private: %w", err)
	}
	const flags = unix.MS_NOSUID | unix.MS_NODEV | unix.MS_NOEXEC
	if err := unix.Mount("none", covered, "tmpfs", flags, "size=16k,mode=0555"); err != nil {
		return fmt.Errorf("mount nothing: %w", err)
	}
	for _, dir := range []string{processes, empty} {
		if err := unix.Mkdir(covered+dir, 0o555); err != nil {
			return err
		}
	}
	if err := unix.Mount("", covered, "", flags|unix.MS_REMOUNT|unix.MS_RDONLY, ""); err != nil {
		return fmt.Errorf("mount it read-only: %w", err)
	}
	// The new root goes over the old one, which is then taken away from below it
	// (pivot_root(2), NOTES). A root that is an initramfs can only be left.
	if err := unix.Chdir(covered); err != nil {
		return err
	}
	if err := unix.PivotRoot(".", "."); err != nil {
		return errors.Join(unix.Chroot("."), unix.Chdir("/"))
	}
	return errors.Join(unix.Unmount(".", unix.MNT_DETACH), unix.Chdir("/"))
}

// mountProcesses shows the processes of this one's own namespace, of which it is
// the only one.
func mountProcesses() error {
	return unix.Mount("proc", processes, "proc", unix.MS_NOSUID|unix.MS_NODEV|unix.MS_NOEXEC, "")
}

func changeRoot() error { return errors.Join(unix.Chroot(empty), unix.Chdir("/")) }

// dropUser becomes nobody, for good. The kernel drops all capabilities with it
// (capabilities(7)).
func dropUser() error {
	if err := syscall.Setgroups(nil); err != nil {
		return err
	}
	if err := syscall.Setresgid(nobody, nobody, nobody); err != nil {
		return err
	}
	return syscall.Setresuid(nobody, nobody, nobody)
}

// dropCapabilities is for a user namespace of its own, where there is no nobody.
// They would reach nothing outside of it anyway.
func dropCapabilities() error {
	header := unix.CapUserHeader{Version: unix.LINUX_CAPABILITY_VERSION_3}
	var none [2]unix.CapUserData
	_, _, errno := syscall.AllThreadsSyscall(unix.SYS_CAPSET, uintptr(unsafe.Pointer(&header)), uintptr(unsafe.Pointer(&none)), 0)
	if errno != 0 {
		return errno
	}
	return nil
}
