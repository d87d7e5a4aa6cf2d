//go:build linux && amd64

package main

import (
	"bytes"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"net"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"sync"
	"syscall"
	"testing"
	"time"

	"lifeboat/disk/disktest"
	"lifeboat/disk/nbd"
	"lifeboat/vddk/handover"
	"lifeboat/vddk/vddktest"
)

// programs builds the helper and the fake library when the first test wants
// them; TestMain removes them.
var programs = sync.OnceValues(func() (*vddktest.Programs, error) {
	if err := os.Mkdir(programsDir(), 0o700); err != nil {
		return nil, err
	}
	return vddktest.Build(programsDir())
})

func programsDir() string {
	return filepath.Join(os.TempDir(), fmt.Sprintf("lifeboat-vddk-helper-test-%d", os.Getpid()))
}

func TestMain(m *testing.M) {
	code := m.Run()
	os.RemoveAll(programsDir())
	os.Exit(code)
}

func build(t *testing.T) *vddktest.Programs {
	t.Helper()
	p, err := programs()
	if errors.Is(err, vddktest.ErrNoCompiler) {
		t.Skip(err)
	}
	if err != nil {
		t.Fatal(err)
	}
	return p
}

// served is a helper that was started by hand.
type served struct {
	cmd    *exec.Cmd
	socket string
	status handover.Status
	stderr bytes.Buffer
	fake   *vddktest.Fake
}

// start starts the helper for a disk with the content of img, as somebody would
// who tries it out, and waits for its answer.
func start(t *testing.T, img *disktest.Memory, change func(*handover.Request), settings ...string) *served {
	t.Helper()
	p := build(t)
	fake, err := p.Install(t.TempDir())
	if err != nil {
		t.Fatal(err)
	}
	raw := filepath.Join(t.TempDir(), "disk.raw")
	if err := errors.Join(os.WriteFile(raw, img.Bytes(), 0o600), fake.Disk("[ds] vm/disk.vmdk", raw)); err != nil {
		t.Fatal(err)
	}
	for i := 0; i < len(settings); i += 2 {
		if err := fake.Set(settings[i], settings[i+1]); err != nil {
			t.Fatal(err)
		}
	}
	req := handover.Request{
		Do: handover.Serve, Library: filepath.Join(fake.Library().Dir, "lib64", "libvixDiskLib.so.8"),
		Server: "vcenter.example", User: "u", Password: "p", VM: "moref=vm-1", Identity: "test",
		Path: "[ds] vm/disk.vmdk", Buffers: 3,
	}
	if change != nil {
		change(&req)
	}
	text, err := json.Marshal(req)
	if err != nil {
		t.Fatal(err)
	}
	s := &served{socket: filepath.Join(t.TempDir(), "s"), fake: fake}
	s.cmd = exec.Command(p.Helper, "--socket", s.socket)
	s.cmd.Stdin, s.cmd.Stderr = bytes.NewReader(text), &s.stderr
	out, err := s.cmd.StdoutPipe()
	if err != nil {
		t.Fatal(err)
	}
	if err := s.cmd.Start(); err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() {
		s.cmd.Process.Kill()
		s.cmd.Wait()
	})
	if err := json.NewDecoder(io.LimitReader(out, 1<<20)).Decode(&s.status); err != nil {
		t.Fatalf("the helper's answer: %v\n%s", err, s.stderr.String())
	}
	return s
}

// end waits for the helper and checks that it let go of everything.
func (s *served) end(t *testing.T, ok bool) {
	t.Helper()
	if err := s.cmd.Wait(); (err == nil) != ok {
		t.Errorf("the helper ended with %v\n%s", err, s.stderr.String())
	}
	v, err := s.fake.Violations()
	if err != nil || len(v) > 0 {
		t.Errorf("the library was misused: %v %v", v, err)
	}
}

func TestByHandWithQEMU(t *testing.T) {
	if _, err := exec.LookPath("qemu-img"); err != nil {
		t.Skip("qemu-img is not installed (tools/provision.sh test)")
	}
	img := disktest.Random(1, 3<<20, 0.5)
	s := start(t, img, nil)
	if s.status.Failure != nil || s.status.Size != img.Size() || s.status.Transport != "nbdssl" {
		t.Fatalf("status %+v", s.status)
	}
	raw := filepath.Join(t.TempDir(), "copy.raw")
	if err := os.WriteFile(raw, img.Bytes(), 0o600); err != nil {
		t.Fatal(err)
	}
	out, err := exec.Command("qemu-img", "compare", "-f", "raw", raw, "-F", "raw", "nbd+unix:///?socket="+s.socket).CombinedOutput()
	if err != nil {
		t.Errorf("qemu-img compare: %v\n%s", err, out)
	}
	s.end(t, true)
}

// connect is a client that has been killed as soon as it closes: it does not say
// goodbye.
func (s *served) connect(t *testing.T) (*nbd.Client, net.Conn) {
	t.Helper()
	conn, err := net.Dial("unix", s.socket)
	if err != nil {
		t.Fatal(err)
	}
	c, err := nbd.Connect(t.Context(), conn, nbd.ClientOptions{Timeout: time.Minute})
	if err != nil {
		t.Fatal(err)
	}
	return c, conn
}

// TestClientIsKilled: whoever reads dies with requests under way; the disk is
// closed all the same, and vMotion allowed again.
func TestClientIsKilled(t *testing.T) {
	s := start(t, disktest.Random(2, 3<<20, 1), nil, "delay_us", "20000")
	c, conn := s.connect(t)
	failed := make(chan error)
	for range 5 {
		go func() { failed <- c.Read(t.Context(), make([]byte, 1<<20), 0) }()
	}
	if err := <-failed; err != nil {
		t.Error(err)
	}
	conn.Close()
	for range 4 {
		<-failed
	}
	s.end(t, true)
}

func TestTerminated(t *testing.T) {
	s := start(t, disktest.Random(2, 3<<20, 1), nil)
	c, _ := s.connect(t)
	if err := c.Read(t.Context(), make([]byte, 512), 0); err != nil {
		t.Fatal(err)
	}
	// Ctrl-C is not for the helper, and a terminal that goes away neither.
	for _, ignored := range []os.Signal{syscall.SIGINT, syscall.SIGHUP} {
		if err := s.cmd.Process.Signal(ignored); err != nil {
			t.Fatal(err)
		}
	}
	if err := c.Read(t.Context(), make([]byte, 512), 0); err != nil {
		t.Errorf("after Ctrl-C: %v", err)
	}
	if err := s.cmd.Process.Signal(syscall.SIGTERM); err != nil {
		t.Fatal(err)
	}
	if err := c.Read(t.Context(), make([]byte, 512), 0); err == nil {
		// It may have been answered before the signal arrived.
		for err == nil {
			err = c.Read(t.Context(), make([]byte, 512), 0)
		}
	}
	s.end(t, true)
}

func TestReadOnlyDiskTakesNoWrites(t *testing.T) {
	s := start(t, disktest.Random(3, 3<<20, 1), nil)
	c, _ := s.connect(t)
	if !c.ReadOnly() {
		t.Error("the client is not told")
	}
	var e *nbd.Error
	if err := c.Write(t.Context(), make([]byte, 512), 0); !errors.As(err, &e) || e.Code != nbd.EPERM {
		t.Errorf("a write: %v", err)
	}
	c.Close()
	s.end(t, true)
}

func TestNothingStaysOpenAfterARefusal(t *testing.T) {
	for _, setting := range []string{"init_error", "connect_error", "open_error"} {
		s := start(t, disktest.NewMemory(1<<20), nil, setting, "13")
		if s.status.Failure == nil || s.status.Failure.Code != 13 {
			t.Errorf("%s: status %+v", setting, s.status)
		}
		s.end(t, false)
	}
}

func TestBadRequests(t *testing.T) {
	p := build(t)
	for _, text := range []string{"", "{", "null", `{"Do":"dance"}`, `{"Library":"/nowhere.so"}`, strings.Repeat("[", 10000)} {
		var log bytes.Buffer
		cmd := exec.Command(p.Helper, "--socket", filepath.Join(t.TempDir(), "s"))
		cmd.Stdin, cmd.Stderr = strings.NewReader(text), &log
		if err := cmd.Run(); err == nil {
			t.Errorf("request %.20q: no error", text)
		}
		if strings.Contains(log.String(), "panic") || log.Len() == 0 {
			t.Errorf("request %.20q:\n%s", text, log.String())
		}
	}
}
