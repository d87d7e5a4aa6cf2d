package guestimage

import (
	"context"
	"crypto/rand"
	"encoding/base64"
	"encoding/hex"
	"fmt"
	"regexp"
	"strconv"
	"strings"

	"lifeboat/internal/qemu"
)

// Shell runs commands in a guest over its serial line and gets their output
// and exit status back. Commands run one after another; a second caller waits.
//
// A serial line is a stream into which the kernel, too, may write, and which
// echoes what is typed. So every command's output stands between two marks
// that carry a random word chosen for that one command, and that the command
// line itself, were it echoed, does not contain.
type Shell struct {
	console *qemu.Console
	turn    chan struct{} // holds one token: the right to type
	broken  error         // set when a command was abandoned; guarded by turn
}

// Result is what a command did.
type Result struct {
	Output string // stdout and stderr, line feeds only
	Status int    // exit status
}

// StatusError is returned by [Shell.Output] for a status other than 0.
type StatusError struct {
	Command string
	Result
}

func (e *StatusError) Error() string {
	return fmt.Sprintf("in the guest: %s: exit status %d: %s", e.Command, e.Status, strings.TrimSpace(e.Output))
}

// maxCommand is what fits into a terminal's line buffer (4096 bytes) with our
// marks around it.
const maxCommand = 3800

// Login waits for the root prompt of a guest made by [DebianDisk] and returns
// a shell there.
func Login(ctx context.Context, c *qemu.Console) (*Shell, error) {
	// The prompt: bash's "root@host:~# ".
	if _, _, err := c.Expect(ctx, regexp.MustCompile(`root@[a-z-]+:[^\n]*# `)); err != nil {
		return nil, fmt.Errorf("waiting for the guest's prompt: %w", err)
	}
	// A loop that reads lines takes bash's place: no editing, no echo, no
	// prompt, nothing that a terminal would want to colour.
	const loop = `exec sh -c 'stty -echo -onlcr; echo shell-"is-ready"; while IFS= read -r l; do eval "$l"; done'`
	if err := c.SendLine(loop); err != nil {
		return nil, err
	}
	return newShell(ctx, c)
}

// newShell waits until a read-and-evaluate loop says that it is ready.
func newShell(ctx context.Context, c *qemu.Console) (*Shell, error) {
	if err := c.ExpectText(ctx, "shell-is-ready"); err != nil {
		return nil, fmt.Errorf("waiting for the guest's shell: %w", err)
	}
	s := &Shell{console: c, turn: make(chan struct{}, 1)}
	s.turn <- struct{}{}
	return s, nil
}

// Run runs a command (sh's language, in a subshell, any number of lines) and
// returns its result. An error means that the result is not known: ctx ended,
// or the guest did. The shell cannot be used after that, because the command
// may still be running.
func (s *Shell) Run(ctx context.Context, command string) (Result, error) {
	line, begin, end, err := markCommand(command)
	if err != nil {
		return Result{}, err
	}
	select {
	case <-s.turn:
	case <-ctx.Done():
		return Result{}, fmt.Errorf("running %q in the guest: %w", command, context.Cause(ctx))
	}
	defer func() { s.turn <- struct{}{} }()
	if s.broken != nil {
		return Result{}, fmt.Errorf("running %q in the guest: an earlier command did not end: %w", command, s.broken)
	}
	res, err := s.run(ctx, line, begin, end)
	if err != nil {
		s.broken = err
		return Result{}, fmt.Errorf("running %q in the guest: %w", command, err)
	}
	return res, nil
}

func (s *Shell) run(ctx context.Context, line string, begin, end *regexp.Regexp) (Result, error) {
	if err := s.console.SendLine(line); err != nil {
		return Result{}, err
	}
	if _, _, err := s.console.Expect(ctx, begin); err != nil {
		return Result{}, err
	}
	out, match, err := s.console.Expect(ctx, end)
	if err != nil {
		return Result{}, err
	}
	status, err := strconv.Atoi(match[1])
	if err != nil {
		return Result{}, fmt.Errorf("reading the exit status: %w", err)
	}
	return Result{Output: strings.ReplaceAll(out, "\r\n", "\n"), Status: status}, nil
}

// Output runs a command that is expected to succeed. A status other than 0 is
// a [*StatusError].
func (s *Shell) Output(ctx context.Context, command string) (string, error) {
	res, err := s.Run(ctx, command)
	if err == nil && res.Status != 0 {
		err = &StatusError{Command: command, Result: res}
	}
	return res.Output, err
}

// Console is the line underneath, for what is no command (a reboot).
func (s *Shell) Console() *qemu.Console { return s.console }

// markCommand is the line to type and what to wait for. The word is split by
// quotes in what is typed, so that an echo of it does not match.
func markCommand(command string) (line string, begin, end *regexp.Regexp, err error) {
	var random [8]byte
	if _, err := rand.Read(random[:]); err != nil {
		return "", nil, nil, err
	}
	word := hex.EncodeToString(random[:])
	if strings.ContainsFunc(command, func(r rune) bool { return r < ' ' || r > '~' }) {
		command = `eval "$(echo ` + base64.StdEncoding.EncodeToString([]byte(command)) + ` | base64 -d)"`
	} else {
		command = "eval " + quote(command)
	}
	if len(command) > maxCommand {
		return "", nil, nil, fmt.Errorf("command of %d bytes: the serial line takes %d", len(command), maxCommand)
	}
	typed := word[:8] + "''" + word[8:]
	line = fmt.Sprintf(`echo; echo %sB; (%s) 2>&1 </dev/null; echo %sE$?`, typed, command, typed)
	begin = regexp.MustCompile(word + `B\r?\n`)
	end = regexp.MustCompile(word + `E(\d+)\r?\n`)
	return line, begin, end, nil
}
