package worker

import (
	"errors"
	"fmt"
	"runtime"
	"syscall"
	"unsafe"

	"golang.org/x/net/bpf"
	"golang.org/x/sys/unix"
)

// allowedCalls is what Go's runtime needs once it runs (memory, threads, signals
// among its own threads, time, its poller) and reading and writing what is open.
// Nothing that opens, connects, starts or signals anybody else.
func allowedCalls() []uint32 {
	return append([]uint32{
		unix.SYS_READ, unix.SYS_WRITE, unix.SYS_CLOSE,
		unix.SYS_FUTEX, unix.SYS_NANOSLEEP, unix.SYS_CLOCK_NANOSLEEP, unix.SYS_CLOCK_GETTIME, unix.SYS_GETTIMEOFDAY, unix.SYS_RESTART_SYSCALL,
		unix.SYS_MUNMAP, unix.SYS_MADVISE, unix.SYS_MREMAP, unix.SYS_BRK,
		unix.SYS_RT_SIGACTION, unix.SYS_RT_SIGPROCMASK, unix.SYS_RT_SIGRETURN, unix.SYS_SIGALTSTACK, unix.SYS_TGKILL,
		unix.SYS_GETTID, unix.SYS_GETPID, unix.SYS_SCHED_YIELD, unix.SYS_SCHED_GETAFFINITY, unix.SYS_SET_ROBUST_LIST, unix.SYS_RSEQ,
		unix.SYS_EXIT, unix.SYS_EXIT_GROUP, unix.SYS_GETRANDOM,
		unix.SYS_EPOLL_CREATE1, unix.SYS_EPOLL_CTL, unix.SYS_EPOLL_PWAIT, unix.SYS_EVENTFD2,
	}, archCalls()...)
}

// Offsets in struct seccomp_data (seccomp(2)); of the arguments, the low halves
// on a little-endian machine.
const (
	seccompNr   = 0
	seccompArch = 4
	seccompArg0 = 16
	seccompArg2 = 32
)

const (
	retAllow = unix.SECCOMP_RET_ALLOW
	retKill  = unix.SECCOMP_RET_KILL_PROCESS
)

func retErrno(errno syscall.Errno) uint32 { return unix.SECCOMP_RET_ERRNO | uint32(errno) }

// program is the filter: what is not allowed fails with EPERM, because a runtime
// that asks for something optional should go on; another architecture's calls,
// whose numbers mean something else, kill.
func program(arch uint32) []bpf.Instruction {
	prog := []bpf.Instruction{
		bpf.LoadAbsolute{Off: seccompArch, Size: 4},
		bpf.JumpIf{Cond: bpf.JumpEqual, Val: arch, SkipTrue: 1},
		bpf.RetConstant{Val: retKill},
		bpf.LoadAbsolute{Off: seccompNr, Size: 4},
	}
	// Threads, but no processes.
	prog = append(prog, onlyIf(unix.SYS_CLONE, seccompArg0, bpf.JumpBitsSet, unix.CLONE_THREAD)...)
	// Memory, but none that can be run.
	for _, nr := range []uint32{unix.SYS_MMAP, unix.SYS_MPROTECT} {
		prog = append(prog, onlyIf(nr, seccompArg2, bpf.JumpBitsNotSet, unix.PROT_EXEC)...)
	}
	// A libc falls back to clone when clone3 is not there, and only then.
	prog = append(prog, bpf.JumpIf{Cond: bpf.JumpNotEqual, Val: unix.SYS_CLONE3, SkipTrue: 1}, bpf.RetConstant{Val: retErrno(unix.ENOSYS)})
	for _, nr := range allowedCalls() {
		prog = append(prog, bpf.JumpIf{Cond: bpf.JumpNotEqual, Val: nr, SkipTrue: 1}, bpf.RetConstant{Val: retAllow})
	}
	return append(prog, bpf.RetConstant{Val: retErrno(unix.EPERM)})
}

// onlyIf allows a call whose argument fulfils a condition.
func onlyIf(nr uint32, arg uint32, cond bpf.JumpTest, val uint32) []bpf.Instruction {
	return []bpf.Instruction{
		bpf.JumpIf{Cond: bpf.JumpNotEqual, Val: nr, SkipTrue: 4},
		bpf.LoadAbsolute{Off: arg, Size: 4},
		bpf.JumpIf{Cond: cond, Val: val, SkipFalse: 1},
		bpf.RetConstant{Val: retAllow},
		bpf.RetConstant{Val: retErrno(unix.EPERM)},
	}
}

// filterCalls puts the filter over all threads, and over those to come.
func filterCalls() error {
	if auditArch == 0 {
		return fmt.Errorf("not known for %s", runtime.GOARCH)
	}
	raw, err := bpf.Assemble(program(auditArch))
	if err != nil {
		return err
	}
	filter := make([]unix.SockFilter, len(raw))
	for i, r := range raw {
		filter[i] = unix.SockFilter{Code: r.Op, Jt: r.Jt, Jf: r.Jf, K: r.K}
	}
	runtime.LockOSThread()
	defer runtime.UnlockOSThread()
	// The other threads get this with the filter.
	if err := unix.Prctl(unix.PR_SET_NO_NEW_PRIVS, 1, 0, 0, 0); err != nil {
		return err
	}
	fprog := unix.SockFprog{Len: uint16(len(filter)), Filter: &filter[0]}
	other, _, errno := syscall.Syscall(unix.SYS_SECCOMP, unix.SECCOMP_SET_MODE_FILTER, unix.SECCOMP_FILTER_FLAG_TSYNC, uintptr(unsafe.Pointer(&fprog)))
	runtime.KeepAlive(filter)
	switch {
	case errno != 0:
		return errno
	case other != 0:
		return errors.New("a thread could not be reached")
	}
	return nil
}
