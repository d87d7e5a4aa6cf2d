// Package qemu runs virtual machines in QEMU: one runner for the demo, the
// tests, the verification labs and the simulated ESXi host.
//
// A [Machine] is one QEMU process. Its lifetime is bound in both directions:
// cancelling the context given to [Start] kills it, and the kernel kills it
// when this process dies however it dies (PR_SET_PDEATHSIG). It is always
// reaped, by the one goroutine that started it; that goroutine keeps its
// operating system thread for as long as QEMU runs, because the death signal
// is tied to the thread that forked, not to the process.
//
// Nothing of QEMU's is reachable from outside: the monitor (QMP) and the
// serial line are socket pairs that the process inherits, so there are no
// socket files to guess, to leak or to wait for.
//
// Lock order: Machine.mu before Monitor.mu; Console.mu is never held together
// with another lock.
package qemu
