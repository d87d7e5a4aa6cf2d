package qemu

import (
	"context"
	"errors"
	"fmt"
	"io"
	"os"
	"regexp"
	"strings"
	"sync"
	"time"
)

// Console is a guest's serial line. What the guest prints is kept until it has
// been expected, up to consoleBytes; beyond that the oldest is dropped, so a
// guest that babbles costs no memory.
type Console struct {
	conn *os.File

	mu     sync.Mutex
	unread []byte
	recent tail // for error messages, also what was expected already
	tee    io.Writer
	change chan struct{} // closed and replaced when unread grew or the line ended
	err    error         // why the line ended
	ended  chan struct{}
}

const consoleBytes = 1 << 20

// ErrConsoleClosed is matched when the machine ended before it printed what
// was expected.
var ErrConsoleClosed = errors.New("the serial line is closed")

// ExpectError tells what was waited for and the last that the guest printed.
type ExpectError struct {
	Pattern string
	Recent  string
	Err     error // context's error, or one that matches ErrConsoleClosed
}

func (e *ExpectError) Error() string {
	return fmt.Sprintf("waiting for %q on the serial line: %v; the guest printed last: %q", e.Pattern, e.Err, e.Recent)
}

func (e *ExpectError) Unwrap() error { return e.Err }

// NewConsole watches a serial line that conn is our end of: a socket or a
// pipe in both directions. [Start] does it for a machine's; others close it
// with [Console.Close].
func NewConsole(conn *os.File) *Console {
	c := &Console{conn: conn, change: make(chan struct{}), ended: make(chan struct{})}
	go c.read()
	return c
}

// Tee copies everything that the guest prints from now on to w (nil: to
// nobody). w is written to by one goroutine at a time; its errors are ignored,
// its slowness slows the guest.
func (c *Console) Tee(w io.Writer) {
	c.mu.Lock()
	defer c.mu.Unlock()
	c.tee = w
}

// Expect waits until the guest has printed something that matches re and that
// no earlier Expect took. It returns the text before the match, and the match
// with its groups; both are taken, with all that was before them. The error is
// an [*ExpectError].
func (c *Console) Expect(ctx context.Context, re *regexp.Regexp) (before string, match []string, err error) {
	for {
		before, match, change, err := c.take(re)
		if match != nil {
			return before, match, nil
		}
		if err != nil {
			return "", nil, c.expectError(re, err)
		}
		select {
		case <-change:
		case <-ctx.Done():
			return "", nil, c.expectError(re, context.Cause(ctx))
		}
	}
}

// ExpectText is Expect for a literal text.
func (c *Console) ExpectText(ctx context.Context, text string) error {
	_, _, err := c.Expect(ctx, regexp.MustCompile(regexp.QuoteMeta(text)))
	return err
}

func (c *Console) take(re *regexp.Regexp) (string, []string, <-chan struct{}, error) {
	c.mu.Lock()
	defer c.mu.Unlock()
	loc := re.FindSubmatchIndex(c.unread)
	if loc == nil {
		return "", nil, c.change, c.err
	}
	match := make([]string, len(loc)/2)
	for i := range match {
		if loc[2*i] >= 0 {
			match[i] = string(c.unread[loc[2*i]:loc[2*i+1]])
		}
	}
	before := string(c.unread[:loc[0]])
	c.unread = c.unread[loc[1]:]
	return before, match, c.change, nil
}

func (c *Console) expectError(re *regexp.Regexp, err error) error {
	return &ExpectError{Pattern: re.String(), Recent: c.Recent(), Err: err}
}

// Recent is the last that the guest printed (at most 4 KiB), expected or not.
func (c *Console) Recent() string { return c.recent.String() }

// Discard forgets what was printed and not yet expected.
func (c *Console) Discard() {
	c.mu.Lock()
	defer c.mu.Unlock()
	c.unread = nil
}

// Send types text to the guest, exactly as it is.
func (c *Console) Send(text string) error {
	_ = c.conn.SetWriteDeadline(time.Now().Add(30 * time.Second))
	if _, err := io.WriteString(c.conn, text); err != nil {
		return fmt.Errorf("writing to the serial line: %w", err)
	}
	return nil
}

// SendLine types text and a line feed. The text must be one line.
func (c *Console) SendLine(text string) error {
	if strings.ContainsAny(text, "\r\n") {
		return fmt.Errorf("sending %q to the serial line: more than one line", text)
	}
	return c.Send(text + "\n")
}

// read is the console's goroutine: it ends with the line.
func (c *Console) read() {
	buf := make([]byte, 16<<10)
	for {
		n, err := c.conn.Read(buf)
		c.add(buf[:n], err)
		if err != nil {
			close(c.ended)
			return
		}
	}
}

func (c *Console) add(p []byte, err error) {
	c.mu.Lock()
	tee := c.tee
	_, _ = c.recent.Write(p)
	c.unread = append(c.unread, p...)
	if over := len(c.unread) - consoleBytes; over > 0 {
		c.unread = append(c.unread[:0], c.unread[over:]...)
	}
	if err != nil {
		c.err = fmt.Errorf("%w: %w", ErrConsoleClosed, err)
	}
	close(c.change)
	c.change = make(chan struct{})
	c.mu.Unlock()
	if tee != nil && len(p) > 0 {
		_, _ = tee.Write(p)
	}
}

// Close ends the watching. A machine's console is closed with the machine.
func (c *Console) Close() error {
	err := c.conn.Close()
	<-c.ended
	return err
}
