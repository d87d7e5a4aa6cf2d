package vddk

import (
	"bytes"
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"log/slog"
	"net"
	"os"
	"os/exec"
	"strings"
	"sync"
	"syscall"
	"time"

	"golang.org/x/sys/unix"

	"lifeboat/vddk/handover"
)

// helper is a process of lifeboat-vddk.
type helper struct {
	cmd    *exec.Cmd
	log    *helperLog
	status handover.Status
	done   chan struct{} // closed when the process has ended
	err    error         // how, valid after done
}

// startHelper starts the program, hands it the request and waits for its
// answer. conn is the socket of a disk that it serves. On failure the process
// is gone.
func startHelper(ctx context.Context, lib located, req handover.Request, log *slog.Logger) (h *helper, conn net.Conn, err error) {
	near, far, err := socketPair()
	if err != nil {
		return nil, nil, err
	}
	defer far.Close()
	answer, tell, err := os.Pipe()
	if err != nil {
		near.Close()
		return nil, nil, fmt.Errorf("pipe to the helper: %w", err)
	}
	defer answer.Close()
	defer tell.Close()
	h = &helper{log: &helperLog{log: log}, done: make(chan struct{})}
	if err := h.start(lib, req, far, tell); err != nil {
		near.Close()
		return nil, nil, err
	}
	// Only the process may hold these: their end is how each side notices
	// that the other has gone.
	far.Close()
	tell.Close()
	if err := h.listen(ctx, answer); err != nil {
		near.Close()
		h.kill()
		return nil, nil, err
	}
	return h, near, nil
}

func socketPair() (net.Conn, *os.File, error) {
	fds, err := unix.Socketpair(unix.AF_UNIX, unix.SOCK_STREAM|unix.SOCK_CLOEXEC, 0)
	if err != nil {
		return nil, nil, fmt.Errorf("socket to the helper: %w", err)
	}
	for _, fd := range fds { // as large as this system lets us, for whole requests to fit
		_ = unix.SetsockoptInt(fd, unix.SOL_SOCKET, unix.SO_SNDBUF, 4*requestBytes)
	}
	file := os.NewFile(uintptr(fds[0]), "helper")
	far := os.NewFile(uintptr(fds[1]), "helper")
	near, err := net.FileConn(file)
	file.Close()
	if err != nil {
		far.Close()
		return nil, nil, fmt.Errorf("socket to the helper: %w", err)
	}
	return near, far, nil
}

// start starts the process, in a process group of its own so that Ctrl-C does
// not reach it, and with nothing of our environment but what it needs: there
// are passwords in it.
func (h *helper) start(lib located, req handover.Request, socket, tell *os.File) error {
	text, err := json.Marshal(req)
	if err != nil {
		return err
	}
	h.cmd = exec.Command(lib.helper)
	h.cmd.Stdin = bytes.NewReader(text)
	h.cmd.Stdout, h.cmd.Stderr = h.log, h.log
	h.cmd.ExtraFiles = []*os.File{socket, tell} // 3 and 4
	h.cmd.SysProcAttr = &syscall.SysProcAttr{Setpgid: true}
	h.cmd.WaitDelay = 5 * time.Second
	h.cmd.Env = []string{"LD_LIBRARY_PATH=" + lib.folder}
	for _, name := range []string{"PATH", "HOME", "LANG", "TMPDIR", "TZ"} {
		if value, ok := os.LookupEnv(name); ok {
			h.cmd.Env = append(h.cmd.Env, name+"="+value)
		}
	}
	if err := h.cmd.Start(); err != nil {
		return fmt.Errorf("start the helper: %w", err)
	}
	go func() {
		defer close(h.done)
		h.err = h.cmd.Wait()
	}()
	return nil
}

const maxAnswer = 64 << 10 // bytes

// listen waits for the helper's answer.
func (h *helper) listen(ctx context.Context, answer *os.File) error {
	stop := context.AfterFunc(ctx, func() { _ = answer.SetReadDeadline(time.Now()) })
	defer stop()
	err := json.NewDecoder(io.LimitReader(answer, maxAnswer)).Decode(&h.status)
	switch {
	case ctx.Err() != nil:
		return context.Cause(ctx)
	case err != nil:
		return h.crashed()
	case h.status.Failure != nil:
		return openError(h.status.Failure)
	}
	return nil
}

// openError is what a failure at the opening means.
func openError(f *handover.Failure) error {
	if f.Code == 0 {
		return errors.New(f.Text)
	}
	switch {
	case f.Code == handover.CodePermissions:
		return fmt.Errorf("%w: %w", ErrCredentials, f)
	case f.Code == handover.CodeNoMemory, f.Code == handover.CodeFail && f.Stage == "Open":
		// At this point vCenter has been talked to, so it is not the thumbprint.
		return fmt.Errorf("%w: %w", ErrBusy, f)
	}
	return f
}

// crashed waits a little for the process to end and says how it did.
func (h *helper) crashed() error {
	select {
	case <-h.done:
	case <-time.After(5 * time.Second):
		return fmt.Errorf("%w: the helper closed its socket", ErrLost)
	}
	err := fmt.Errorf("%w: %s", ErrCrashed, h.cmd.ProcessState)
	if last := h.log.tail(); last != "" {
		err = fmt.Errorf("%w: %s", err, last)
	}
	return err
}

// finish waits until the process has ended of its own, and helps it if need be.
// The socket has been closed.
func (h *helper) finish(within time.Duration) error {
	select {
	case <-h.done:
	case <-time.After(within):
		h.kill()
		return fmt.Errorf("%w: the library did not close the disk within %v, and its process was killed", ErrHung, within)
	}
	if h.err != nil {
		return fmt.Errorf("the helper ended with %w: %s", h.err, h.log.tail())
	}
	return nil
}

func (h *helper) kill() {
	_ = h.cmd.Process.Kill()
	<-h.done
}

// helperLog takes what the helper prints: lines of slog's JSON, and, if it
// crashes, whatever a dying process says.
type helperLog struct {
	log *slog.Logger

	mu   sync.Mutex
	part []byte   // a line that is not whole yet
	last []string // what a crash may be explained with
}

const (
	maxLine   = 16 << 10 // bytes; what is longer is cut
	tailLines = 4
)

func (l *helperLog) Write(p []byte) (int, error) {
	l.mu.Lock()
	defer l.mu.Unlock()
	for rest := p; len(rest) > 0; {
		line, after, whole := bytes.Cut(rest, []byte{'\n'})
		if room := maxLine - len(l.part); room > 0 {
			l.part = append(l.part, line[:min(len(line), room)]...)
		}
		if rest = after; whole {
			l.line(l.part)
			l.part = l.part[:0]
		}
	}
	return len(p), nil
}

// line logs one line. A crash begins with lines that are no JSON, of which the
// first few say most.
func (l *helperLog) line(b []byte) {
	var entry struct {
		Level slog.Level
		Msg   string
		Error string
		From  string
	}
	if json.Unmarshal(b, &entry) != nil {
		if text := strings.TrimSpace(string(b)); text != "" && len(l.last) < tailLines {
			l.last = append(l.last, strings.ToValidUTF8(text, "?"))
		}
		return
	}
	attributes := []any{"by", helperName}
	if entry.From != "" {
		attributes = []any{"by", entry.From}
	}
	if entry.Error != "" {
		attributes = append(attributes, "error", entry.Error)
	}
	if entry.Level >= slog.LevelError && entry.From == "" {
		l.last = append(l.last[:min(len(l.last), tailLines)], entry.Error)
	}
	l.log.Log(context.Background(), entry.Level, entry.Msg, attributes...)
}

func (l *helperLog) tail() string {
	l.mu.Lock()
	defer l.mu.Unlock()
	return strings.Join(l.last, "; ")
}
