package qemu

import (
	"context"
	"errors"
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"syscall"
	"time"
)

// probeTime is how long the probe's guest may take, with QEMU's own start. A
// processor that really virtualises needs about 0.2 s for all of it; one that
// merely emulates the interface needs many times as long as TCG.
const probeTime = 1500 * time.Millisecond

// probeExit is QEMU's exit code when the guest wrote probeValue to the debug
// exit device: (value << 1) | 1.
const (
	probeValue = 0x2a
	probeExit  = probeValue<<1 | 1
)

// ProbeKVM tells whether KVM really works here: nil, or the reason why not.
//
// That /dev/kvm opens proves little: under some hypervisors it is there and
// runs guests a hundred times slower than it should, or not at all. So a guest
// is run: a firmware of our own that counts to 150 million in a loop and then
// ends QEMU with an agreed code. It has to be done in [probeTime].
// binary is the QEMU program; empty means qemu-system-x86_64.
func ProbeKVM(ctx context.Context, binary string) error {
	f, err := os.OpenFile("/dev/kvm", os.O_RDWR, 0)
	if err != nil {
		return fmt.Errorf("KVM cannot be used: %w", err)
	}
	f.Close()
	dir, err := os.MkdirTemp("", "lifeboat-kvm-probe-")
	if err != nil {
		return fmt.Errorf("KVM was not probed: %w", err)
	}
	defer os.RemoveAll(dir)
	firmware := filepath.Join(dir, "probe.bin")
	if err := os.WriteFile(firmware, probeFirmware(), 0o600); err != nil {
		return fmt.Errorf("KVM was not probed: %w", err)
	}
	setDefault(&binary, "qemu-system-x86_64")
	if err := runProbe(ctx, binary, "kvm", "host", firmware, probeTime); err != nil {
		return fmt.Errorf("KVM does not really work here: %w", err)
	}
	return nil
}

// ChooseAccel is KVM where [ProbeKVM] finds that it works, else TCG and the
// reason.
func ChooseAccel(ctx context.Context, binary string) (Accel, error) {
	if err := ProbeKVM(ctx, binary); err != nil {
		return TCG, err
	}
	return KVM, nil
}

func runProbe(ctx context.Context, binary, accel, cpu, firmware string, limit time.Duration) error {
	ctx, cancel := context.WithTimeout(ctx, limit)
	defer cancel()
	// No thread is locked for the death signal here: should the thread end
	// early the probe fails, and TCG is the safe answer.
	cmd := exec.CommandContext(ctx, binary, "-nodefaults", "-no-user-config", "-display", "none", "-no-reboot",
		"-machine", "pc", "-accel", accel, "-cpu", cpu, "-m", "4", "-bios", firmware,
		"-device", "isa-debug-exit,iobase=0xf4,iosize=1")
	cmd.SysProcAttr = &syscall.SysProcAttr{Pdeathsig: syscall.SIGKILL, Setpgid: true}
	cmd.WaitDelay = time.Second
	var said tail
	cmd.Stderr = &said
	err := cmd.Run()
	var exit *exec.ExitError
	switch {
	case ctx.Err() != nil:
		return fmt.Errorf("a test guest was not done after %v", limit)
	case errors.As(err, &exit) && exit.ExitCode() == probeExit:
		return nil
	case err == nil:
		return errors.New("a test guest ended without the agreed code")
	}
	first, _, _ := strings.Cut(said.String(), "\n")
	return fmt.Errorf("a test guest did not run: %w: %s", err, first)
}

// probeFirmware is a 64 KiB BIOS image in real mode: at the reset vector
// (16 bytes before the end) a jump back to the loop.
func probeFirmware() []byte {
	const size, code = 64 << 10, 0xff00
	rom := make([]byte, size)
	copy(rom[code:], []byte{
		0xfa,                               // cli
		0x66, 0xb9, 0x80, 0xd1, 0xf0, 0x08, // mov ecx, 150_000_000
		0x66, 0x49, // count: dec ecx
		0x75, 0xfc, // jnz count
		0xb0, probeValue, // mov al, probeValue
		0xe6, 0xf4, // out 0xf4, al: QEMU ends
		0xf4, 0xeb, 0xfd, // halt: hlt; jmp halt
	})
	// jmp near, relative to the instruction after it (0xfff3).
	rel := code - 0xfff3
	copy(rom[0xfff0:], []byte{0xe9, byte(rel), byte(rel >> 8)})
	return rom
}
