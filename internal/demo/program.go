package demo

import (
	"bufio"
	"bytes"
	"context"
	"encoding/json"
	"fmt"
	"io"
	"os"
	"os/exec"
	"path/filepath"
	"runtime"
	"strings"
	"syscall"
	"time"
)

const demoPassword = "lifeboat-demo"

// environment is what the story's commands run with.
func (s *stage) environment() []string {
	return append(append(os.Environ(), s.env...),
		"LIFEBOAT_REPO="+filepath.Join(s.work, "repository"),
		"LIFEBOAT_STATE="+filepath.Join(s.work, "state"),
		"LIFEBOAT_CONFIG=", "LIFEBOAT_PASSWORD_FILE=",
		"LIFEBOAT_PASSWORD="+demoPassword)
}

// lifeboat runs one command to its end and decodes its JSON document.
func (s *stage) lifeboat(ctx context.Context, result any, args ...string) error {
	cmd := exec.CommandContext(ctx, s.opt.Binary, append([]string{"--json"}, args...)...)
	cmd.Env = s.environment()
	var stdout, stderr bytes.Buffer
	cmd.Stdout, cmd.Stderr = &stdout, &stderr
	if err := cmd.Run(); err != nil {
		return fmt.Errorf("lifeboat %s: %w: %s", strings.Join(args, " "), err, strings.TrimSpace(stderr.String()))
	}
	if result == nil {
		return nil
	}
	if err := json.Unmarshal(stdout.Bytes(), result); err != nil {
		return fmt.Errorf("lifeboat %s printed %q: %w", strings.Join(args, " "), stdout.String(), err)
	}
	return nil
}

// ready is what publish prints when clients may come.
type ready struct {
	Export  string `json:"export"`
	Folders []struct {
		Path  string   `json:"path"`
		Disks []string `json:"disks"`
	} `json:"folders"`
}

// server is a running `lifeboat publish`.
type server struct {
	process *os.Process
	ready   ready
	stderr  *lastBytes
	exited  chan error
}

// publish starts the export and waits until it is ready.
func (s *story) publish(ctx context.Context, args ...string) (*server, error) {
	cmd := exec.Command(s.opt.Binary, append([]string{"--json", "publish", "--session", sessionName}, args...)...)
	cmd.Env = s.environment()
	srv := &server{stderr: new(lastBytes), exited: make(chan error, 1)}
	cmd.Stderr = srv.stderr
	cmd.SysProcAttr = &syscall.SysProcAttr{Pdeathsig: syscall.SIGTERM}
	out, err := cmd.StdoutPipe()
	if err != nil {
		return nil, err
	}
	started := make(chan error, 1)
	lines := make(chan []byte, 1)
	go func() {
		// The kernel sends the death signal when the thread ends that forked.
		runtime.LockOSThread()
		err := cmd.Start()
		started <- err
		if err != nil {
			return
		}
		line, _ := bufio.NewReader(out).ReadBytes('\n')
		lines <- line
		_, _ = io.Copy(io.Discard, out)
		srv.exited <- cmd.Wait()
	}()
	if err := <-started; err != nil {
		return nil, err
	}
	srv.process = cmd.Process
	select {
	case line := <-lines:
		if err := json.Unmarshal(line, &srv.ready); err != nil || len(srv.ready.Folders) == 0 {
			srv.kill()
			return nil, fmt.Errorf("lifeboat publish did not get ready: %s", strings.TrimSpace(srv.stderr.String()))
		}
		return srv, nil
	case <-ctx.Done():
		srv.kill()
		return nil, context.Cause(ctx)
	}
}

// kill ends the server the hard way and waits until it is gone.
func (v *server) kill() {
	_ = v.process.Kill()
	<-v.exited //nolint:errcheck // it was killed: how it ended says nothing
}

// stopWithin bounds how long a server may take to end in good order.
const stopWithin = 30 * time.Second

// stop ends the server the way Ctrl-C does; it must then exit with 0.
func (v *server) stop() error {
	if err := v.process.Signal(os.Interrupt); err != nil {
		return err
	}
	select {
	case err := <-v.exited:
		if err != nil {
			return fmt.Errorf("lifeboat publish: %w: %s", err, strings.TrimSpace(v.stderr.String()))
		}
		return nil
	case <-time.After(stopWithin):
		v.kill()
		return fmt.Errorf("lifeboat publish did not end within %s of an interrupt", stopWithin)
	}
}

// lastBytes keeps the end of what a process prints, for error messages.
type lastBytes struct{ buf []byte }

func (l *lastBytes) Write(p []byte) (int, error) {
	const most = 4096
	l.buf = append(l.buf, p...)
	if len(l.buf) > most {
		l.buf = append(l.buf[:0], l.buf[len(l.buf)-most:]...)
	}
	return len(p), nil
}

func (l *lastBytes) String() string { return string(l.buf) }
