package qemu

import (
	"context"
	"errors"
	"net"
	"net/netip"
	"os"
	"path/filepath"
	"strings"
	"syscall"
	"testing"
	"time"
)

// bootSector is a guest of one sector: it prints OK, then halts with
// interrupts off for ever.
func bootSector(t *testing.T) string {
	t.Helper()
	disk := make([]byte, 1<<20)
	copy(disk, []byte{
		0xba, 0xf8, 0x03, // mov dx, 0x3f8: the first serial port
		0xb0, 'O', 0xee, 0xb0, 'K', 0xee, 0xb0, '\n', 0xee, // mov al, …; out dx, al
		0xfa, 0xf4, 0xeb, 0xfd, // cli; again: hlt; jmp again
	})
	disk[510], disk[511] = 0x55, 0xaa
	path := filepath.Join(t.TempDir(), "boot.img")
	if err := os.WriteFile(path, disk, 0o600); err != nil {
		t.Fatal(err)
	}
	return path
}

func testContext(t *testing.T) context.Context {
	t.Helper()
	ctx, cancel := context.WithTimeout(t.Context(), time.Minute)
	t.Cleanup(cancel)
	return ctx
}

func startTest(t *testing.T, o Options) *Machine {
	t.Helper()
	m, err := Start(testContext(t), o)
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() {
		if err := m.Close(); err != nil {
			t.Error(err)
		}
	})
	return m
}

func TestGuestPrintsAndIsKilled(t *testing.T) {
	m := startTest(t, Options{MemoryMiB: 16, Disks: []Disk{{Path: bootSector(t)}}})
	if err := m.Console().ExpectText(testContext(t), "OK\n"); err != nil {
		t.Fatal(err)
	}
	pid := m.PID()
	if err := m.Kill(); err != nil {
		t.Fatal(err)
	}
	var exit *ExitError
	if err := m.Err(); !errors.As(err, &exit) {
		t.Fatalf("Err() of a killed machine = %v, want an *ExitError", err)
	}
	if err := syscall.Kill(pid, 0); !errors.Is(err, syscall.ESRCH) {
		t.Fatalf("process %d is still there (or a zombie): %v", pid, err)
	}
	err := m.Monitor().Execute(testContext(t), "query-status", nil, nil)
	if !errors.Is(err, ErrMonitorClosed) {
		t.Fatalf("a command to a dead machine: %v, want ErrMonitorClosed", err)
	}
}

func TestQuitIsAnOrderlyEnd(t *testing.T) {
	m := startTest(t, Options{MemoryMiB: 16})
	shutdown := m.Monitor().Subscribe("SHUTDOWN")
	if err := m.Monitor().Execute(testContext(t), "quit", nil, nil); err != nil {
		t.Fatal(err)
	}
	if err := m.Wait(testContext(t)); err != nil {
		t.Fatal(err)
	}
	if e, ok := <-shutdown.C; !ok || e.Name != "SHUTDOWN" {
		t.Fatalf("event = %+v, %v", e, ok)
	}
	if _, ok := <-shutdown.C; ok {
		t.Fatal("the subscription outlived the monitor")
	}
}

func TestCancelKills(t *testing.T) {
	ctx, cancel := context.WithCancel(testContext(t))
	m, err := Start(ctx, Options{MemoryMiB: 16})
	if err != nil {
		t.Fatal(err)
	}
	defer m.Close()
	cancel()
	if err := m.Wait(testContext(t)); err == nil {
		t.Fatal("a machine whose context was cancelled ended in order")
	}
}

func TestStartErrorsCarryQEMUsWords(t *testing.T) {
	_, err := Start(testContext(t), Options{Disks: []Disk{{Path: filepath.Join(t.TempDir(), "absent.img")}}})
	if err == nil || !strings.Contains(err.Error(), "absent.img") || !strings.Contains(err.Error(), "No such file") {
		t.Fatalf("error = %v", err)
	}
}

func TestOptionsAreChecked(t *testing.T) {
	ctx := testContext(t)
	for _, o := range []Options{
		{Name: "a,b=c"},
		{Accel: "xen"},
		{Initrd: "x"},
		{Devices: []string{"x -monitor stdio"}},
		{Disks: []Disk{{Path: "a", ID: "A"}}},
		{Disks: []Disk{{Path: "a", ID: "a"}, {Path: "b", ID: "a"}}},
		{Disks: []Disk{{Path: "a", Format: "vvfat"}}},
		{Disks: []Disk{{Path: "a", Interface: "mtd"}}},
		{Disks: []Disk{{Path: "nfs://h:1/x"}}},
		{Disks: []Disk{{Path: "nfs://h/x?nfsport=1"}}},
		{Disks: []Disk{{}}},
		{Network: &Network{MAC: "x"}},
		{Network: &Network{Model: "e1000,netdev=x"}},
	} {
		if m, err := Start(ctx, o); err == nil {
			m.Close()
			t.Errorf("Start(%+v) succeeded", o)
		}
	}
}

func TestExpectEndsWithTheContextAndTheMachine(t *testing.T) {
	m := startTest(t, Options{MemoryMiB: 16, Disks: []Disk{{Path: bootSector(t)}}})
	if err := m.Console().ExpectText(testContext(t), "O"); err != nil {
		t.Fatal(err)
	}
	ctx, cancel := context.WithCancel(testContext(t))
	cancel()
	err := m.Console().ExpectText(ctx, "never")
	if !errors.Is(err, context.Canceled) {
		t.Fatalf("error = %v", err)
	}
	failed := make(chan error, 1)
	go func() { failed <- m.Console().ExpectText(context.Background(), "never") }()
	if err := m.Kill(); err != nil {
		t.Fatal(err)
	}
	if err := <-failed; !errors.Is(err, ErrConsoleClosed) {
		t.Fatalf("error = %v", err)
	}
}

func TestMove(t *testing.T) {
	m := startTest(t, Options{MemoryMiB: 16, Disks: []Disk{{Path: bootSector(t)}}})
	for i, format := range []string{"raw", "qcow2", "raw"} {
		target := filepath.Join(t.TempDir(), "target")
		var last MoveProgress
		res, err := m.Move(testContext(t), Move{Path: target, Format: format, Progress: func(p MoveProgress) { last = p }})
		if err != nil {
			t.Fatalf("move %d: %v", i, err)
		}
		if res.Bytes != 1<<20 || !last.Ready || last.Copied != 1<<20 {
			t.Fatalf("move %d: result %+v, last progress %+v", i, res, last)
		}
		if format != "raw" {
			continue
		}
		got, err := os.ReadFile(target)
		if err != nil || len(got) != 1<<20 || got[510] != 0x55 {
			t.Fatalf("move %d: the target is not the disk: %v", i, err)
		}
	}
}

func TestFailedMoveLeavesNothing(t *testing.T) {
	m := startTest(t, Options{MemoryMiB: 16, Disks: []Disk{{Path: bootSector(t)}}})
	target := filepath.Join(t.TempDir(), "target")
	ctx, cancel := context.WithCancel(testContext(t))
	defer cancel()
	_, err := m.Move(ctx, Move{Path: target, BytesPerSecond: 1, Progress: func(MoveProgress) { cancel() }})
	if !errors.Is(err, context.Canceled) {
		t.Fatalf("error = %v", err)
	}
	if _, err := os.Stat(target); !errors.Is(err, os.ErrNotExist) {
		t.Fatalf("the target was left behind: %v", err)
	}
	if _, err := m.Move(testContext(t), Move{Path: target}); err != nil {
		t.Fatalf("the next move: %v", err)
	}
	if _, err := m.Move(testContext(t), Move{Path: target}); !errors.Is(err, os.ErrExist) {
		t.Fatalf("moving onto an existing file: %v", err)
	}
	if _, err := m.Move(testContext(t), Move{Disk: "other", Path: target + "2"}); err == nil {
		t.Fatal("moved a disk that is not there")
	}
}

func TestScreenshot(t *testing.T) {
	m := startTest(t, Options{MemoryMiB: 16, Display: true, Disks: []Disk{{Path: bootSector(t)}}})
	dir := t.TempDir()
	for name, magic := range map[string]string{"a.png": "\x89PNG", "b.ppm": "P6\n"} {
		path := filepath.Join(dir, name)
		if err := m.Screenshot(testContext(t), path); err != nil {
			t.Fatal(err)
		}
		b, err := os.ReadFile(path)
		if err != nil || !strings.HasPrefix(string(b), magic) {
			t.Fatalf("%s: %d bytes, %v", name, len(b), err)
		}
	}
}

// A restricted guest reaches what GuestForward names; QEMU connects at start.
// Forward listens on the host's side.
func TestNetwork(t *testing.T) {
	service, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	defer service.Close()
	free, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	forward := free.Addr().(*net.TCPAddr).AddrPort()
	free.Close()
	startTest(t, Options{MemoryMiB: 16, Network: &Network{
		Restrict: true, MAC: "52:54:00:12:34:56",
		Forward:      []Forward{{Host: forward, GuestPort: 22}},
		GuestForward: []GuestForward{{Guest: netip.MustParseAddrPort("10.0.2.100:80"), Host: service.Addr().(*net.TCPAddr).AddrPort()}},
	}})
	if err := service.(*net.TCPListener).SetDeadline(time.Now().Add(20 * time.Second)); err != nil {
		t.Fatal(err)
	}
	conn, err := service.Accept()
	if err != nil {
		t.Fatal(err)
	}
	conn.Close()
	conn, err = net.Dial("tcp", forward.String())
	if err != nil {
		t.Fatal(err)
	}
	conn.Close()
}

// Every interface that a disk can hang on is one that QEMU takes.
func TestInterfaces(t *testing.T) {
	var disks []Disk
	for _, iface := range []string{"virtio", "scsi", "scsi", "sata", "sata", "ide", "ide", "ide"} {
		path := filepath.Join(t.TempDir(), "disk.img")
		if err := os.WriteFile(path, make([]byte, 1<<20), 0o600); err != nil {
			t.Fatal(err)
		}
		disks = append(disks, Disk{Path: path, Interface: iface, Serial: "serial-1", ReadOnly: iface == "virtio"})
	}
	startTest(t, Options{MemoryMiB: 16, Disks: disks, Devices: []string{"virtio-rng-pci"}})
}
