package main

import (
	"bufio"
	"bytes"
	"encoding/json"
	"os"
	"os/exec"
	"path/filepath"
	"syscall"
	"testing"

	"github.com/rogpeppe/go-internal/testscript"

	"lifeboat/appliance"
)

// actAsProgram in the environment makes the test binary be lifeboat itself, so
// that tests can start it, interrupt it and kill it as a process.
const actAsProgram = "LIFEBOAT_TEST_ACT_AS_PROGRAM"

func TestMain(m *testing.M) {
	appliance.GuestWorker()
	if os.Getenv(actAsProgram) != "" {
		main()
	}
	testscript.Main(m, map[string]func(){"lifeboat": main})
}

// workspace is a repository and a state directory of a test's own.
type workspace struct {
	t   *testing.T
	dir string
}

func newWorkspace(t *testing.T) workspace {
	w := workspace{t, t.TempDir()}
	w.run("init")
	return w
}

func (w workspace) path(name string) string { return filepath.Join(w.dir, name) }

func (w workspace) command(args ...string) *exec.Cmd {
	cmd := exec.Command(os.Args[0], args...)
	cmd.Dir = w.dir
	cmd.Env = append(os.Environ(), actAsProgram+"=1", "LIFEBOAT_CONFIG=", "LIFEBOAT_PASSWORD_FILE=", "LIFEBOAT_PASSWORD=test", "LIFEBOAT_TO_PASSWORD=test",
		"LIFEBOAT_REPO="+w.path("repo"), "LIFEBOAT_STATE="+w.path("state"))
	return cmd
}

// run runs a command that must succeed and returns its JSON document.
func (w workspace) run(args ...string) []byte {
	w.t.Helper()
	cmd := w.command(append([]string{"--json"}, args...)...)
	var stderr bytes.Buffer
	cmd.Stderr = &stderr
	out, err := cmd.Output()
	if err != nil {
		w.t.Fatalf("lifeboat %v: %v\n%s", args, err, stderr.Bytes())
	}
	return out
}

// publisher is a running `lifeboat publish`.
type publisher struct {
	cmd    *exec.Cmd
	stderr bytes.Buffer
	ready  struct {
		NFS     string `json:"nfs_addr"`
		Mount   string `json:"mount_addr"`
		Folders []struct {
			Path  string   `json:"path"`
			VMX   string   `json:"vmx"`
			Disks []string `json:"disks"`
		} `json:"folders"`
	}
}

// publish starts a publish and waits until it is ready. It is killed at the end
// of the test, should it still run.
func (w workspace) publish(args ...string) *publisher {
	w.t.Helper()
	p := &publisher{cmd: w.command(append([]string{"--json", "publish"}, args...)...)}
	p.cmd.Stderr = &p.stderr
	p.cmd.SysProcAttr = &syscall.SysProcAttr{Setpgid: true}
	out, err := p.cmd.StdoutPipe()
	if err != nil {
		w.t.Fatal(err)
	}
	if err := p.cmd.Start(); err != nil {
		w.t.Fatal(err)
	}
	w.t.Cleanup(p.kill)
	line, _ := bufio.NewReader(out).ReadBytes('\n')
	if err := json.Unmarshal(line, &p.ready); err != nil {
		p.kill()
		w.t.Fatalf("lifeboat publish %v printed %q: %v\n%s", args, line, err, p.stderr.Bytes())
	}
	return p
}

// kill ends it with SIGKILL.
func (p *publisher) kill() {
	if p.cmd.ProcessState == nil {
		_ = p.cmd.Process.Kill()
		_ = p.cmd.Wait()
	}
}

// interrupt ends it as Ctrl-C does and returns its exit code.
func (p *publisher) interrupt() int {
	_ = p.cmd.Process.Signal(os.Interrupt)
	_ = p.cmd.Wait()
	return p.cmd.ProcessState.ExitCode()
}
