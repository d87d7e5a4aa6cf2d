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
	mounted := os.Geteuid() == 0 && try("an empty root directory", mountNothing(c.Namespaces))
	c.Landlock = mounted && landlocked() && try("landlock", landlock.V5.BestEffort().Restrict())
	if mounted && try("another root directory", changeRoot()) {
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

// covered is the directory over which nothing is mounted. There is one everywhere.
const covered = "/sys"

// mountNothing mounts an empty, read-only file system in memory, which nobody else
// sees, so that nothing of it is left behind; and, over that of the host, the /proc
// of this process's own namespace.
func mountNothing(own []string) error {
	if !slices.Contains(own, nsMount) {
		return errors.New("no mount namespace")
	}
	if err := unix.Mount("", "/", "", unix.MS_REC|unix.MS_PRIVATE, ""); err != nil {
		return fmt.Errorf("make mounts private: %w", err)
	}
	if err := letGo(); err != nil {
		return fmt.Errorf("let go of mounts: %w", err)
	}
	if err := unix.Mount("proc", "/proc", "proc", unix.MS_NOSUID|unix.MS_NODEV|unix.MS_NOEXEC, ""); err != nil {
		return fmt.Errorf("mount the processes: %w", err)
	}
	if err := unix.Mount("none", covered, "tmpfs", unix.MS_RDONLY|unix.MS_NOSUID|unix.MS_NODEV|unix.MS_NOEXEC, "size=4k,mode=0555"); err != nil {
		return fmt.Errorf("mount nothing: %w", err)
	}
	return nil
}

// letGo unmounts everything but the root and what is needed of it. The namespace
// began as a copy of the appliance's; a file system that is unmounted there would
// otherwise live on here, and a FUSE server of ours would wait for its end.
func letGo() error {
	b, err := os.ReadFile("/proc/self/mountinfo")
	if err != nil {
		return err
	}
	lines := strings.Split(strings.TrimSpace(string(b)), "\n")
	for i := len(lines) - 1; i >= 0; i-- { // what is mounted on another mount comes later
		fields := strings.Fields(lines[i])
		if len(fields) < 5 || fields[4] == "/" || fields[4] == covered || strings.HasPrefix(covered, fields[4]+"/") {
			continue
		}
		// One that cannot be unmounted is no worse than before.
		_ = unix.Unmount(unescape(fields[4]), unix.MNT_DETACH)
	}
	return nil
}

// unescape undoes what /proc does to blanks in names.
func unescape(s string) string {
	return strings.NewReplacer(`\040`, " ", `\011`, "\t", `\012`, "\n", `\134`, `\`).Replace(s)
}

func changeRoot() error { return errors.Join(unix.Chroot(covered), unix.Chdir("/")) }

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
