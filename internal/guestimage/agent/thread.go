package main

import (
	"runtime"
	"syscall"
)

func lockThread() { runtime.LockOSThread() }

// rawSyscall makes a call for this thread only; Go's own wrappers of these
// change every thread. setfsuid(2) and setfsgid(2) return the old value.
func rawSyscall(call uintptr, arg int) error {
	_, _, no := syscall.RawSyscall(call, uintptr(arg), 0, 0)
	if no != 0 {
		return no
	}
	return nil
}
