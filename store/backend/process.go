package backend

import (
	"bytes"
	"encoding/hex"
	"errors"
	"fmt"
	"io/fs"
	"os"
	"strconv"
	"strings"

	"github.com/zeebo/blake3"
)

// Processes tells writers apart and the dead from the living, so that what a
// dead one left behind can be swept.
type Processes interface {
	// Self names this process: at most 64 characters of [a-z0-9-], never the
	// same for two processes.
	Self() string
	// Dead reports whether the process that called itself by this name has
	// certainly ended. Of a process of another host, container or boot it
	// cannot be known: the answer is false.
	Dead(name string) bool
}

// HostProcesses is the host's process table.
//
// A process's name is host-pid-start: host stands for this boot and this PID
// namespace (the same number is another process in another container), start
// is the process's start time, which tells a reused number.
func HostProcesses() Processes { return hostProcesses{} }

type hostProcesses struct{}

func (hostProcesses) Self() string {
	pid := os.Getpid()
	start, err := startTime(pid)
	if err != nil {
		start = 0 // no /proc: Dead answers by the number alone
	}
	return fmt.Sprintf("%s-%d-%d", hostToken(), pid, start)
}

func (hostProcesses) Dead(name string) bool {
	host, rest, _ := strings.Cut(name, "-")
	pidText, startText, _ := strings.Cut(rest, "-")
	pid, err := strconv.Atoi(pidText)
	if err != nil || pid <= 0 || host != hostToken() {
		return false
	}
	start, err := strconv.ParseUint(startText, 10, 64)
	if err != nil {
		return false
	}
	now, err := startTime(pid)
	if errors.Is(err, fs.ErrNotExist) {
		return procWorks()
	}
	return err == nil && start != 0 && now != start
}

// procWorks guards against a missing or hidden /proc, where every process
// looks dead.
func procWorks() bool {
	_, err := startTime(os.Getpid())
	return err == nil
}

// hostToken identifies this boot and PID namespace, in 16 hex digits.
func hostToken() string {
	boot, _ := os.ReadFile("/proc/sys/kernel/random/boot_id")
	space, _ := os.Readlink("/proc/self/ns/pid")
	if len(boot) == 0 { // fall back to what at least differs between machines
		name, _ := os.Hostname()
		boot = []byte(name)
	}
	sum := blake3.Sum256(append(append(boot, 0), space...))
	return hex.EncodeToString(sum[:8])
}

// startTime is field 22 of proc(5)'s stat, in clock ticks since boot. The
// second field is the command in parentheses and may hold anything.
func startTime(pid int) (uint64, error) {
	stat, err := os.ReadFile(fmt.Sprintf("/proc/%d/stat", pid))
	if err != nil {
		return 0, err
	}
	fields := bytes.Fields(stat[bytes.LastIndexByte(stat, ')')+1:])
	const index = 22 - 3 // fields[0] is the third
	if len(fields) <= index {
		return 0, fmt.Errorf("/proc/%d/stat has %d fields", pid, len(fields)+2)
	}
	return strconv.ParseUint(string(fields[index]), 10, 64)
}
