package appliance

import (
	"bytes"
	"context"
	"crypto/sha256"
	"encoding/hex"
	"errors"
	"fmt"
	"hash"
	"io"
	"regexp"
	"strings"
	"sync"
	"time"

	"lifeboat/disk"
	"lifeboat/vsphere"
)

// sending reads a file for an upload, and sums it up. An upload that was refused
// may go on reading for a moment: nothing is read after end.
type sending struct {
	ctx    context.Context
	img    disk.Image
	mu     sync.Mutex // guards the rest
	off    int64
	sum    hash.Hash
	sent   func(int64)
	failed error // of the image
	ended  bool
}

func (s *sending) Read(p []byte) (int, error) {
	s.mu.Lock()
	defer s.mu.Unlock()
	switch {
	case s.ended:
		return 0, io.ErrClosedPipe
	case s.ctx.Err() != nil:
		return 0, context.Cause(s.ctx)
	case s.failed != nil:
		return 0, s.failed
	case s.off >= s.img.Size():
		return 0, io.EOF
	}
	n := int(min(int64(len(p)), s.img.Size()-s.off))
	if m, err := s.img.ReadAt(p[:n], s.off); m < n {
		s.failed = fmt.Errorf("at %d: %w", s.off+int64(m), unexpected(err))
		return 0, s.failed
	}
	s.sum.Write(p[:n])
	s.off += int64(n)
	s.sent(int64(n))
	return n, nil
}

// end returns what was wrong with the restore point, if anything.
func (s *sending) end() error {
	s.mu.Lock()
	defer s.mu.Unlock()
	s.ended = true
	if s.ctx.Err() != nil {
		return nil
	}
	return s.failed
}

// shellAnswer is the exit code that tells a shell from something that takes a
// command line for granted.
const shellAnswer = 42

const (
	guestShell   = "/bin/sh"
	shellTimeout = time.Minute
	// A script gets scriptTimeout, and a second more for each scriptRate bytes.
	scriptTimeout = 10 * time.Minute
	scriptRate    = 10 << 20
)

// findShell looks whether there is a shell that may be run.
func (t *vmTaker) findShell(ctx context.Context) error {
	exit, err := t.guest.RunProgram(ctx, vsphere.GuestProgram{Path: guestShell, Args: fmt.Sprintf("-c 'exit %d'", shellAnswer), Timeout: shellTimeout})
	switch {
	case err == nil && exit == shellAnswer:
		t.shell = guestShell
	case ctx.Err() != nil, errors.Is(err, vsphere.ErrGuestTools), errors.Is(err, vsphere.ErrUnreachable):
		return err
	default:
		t.log.Info("no shell can be run in the guest: no links are made, and checksums are not asked", "exit", exit, "error", err)
	}
	return nil
}

// checkAll has links made and everything checked; what fails gets a reason.
func (t *vmTaker) checkAll(ctx context.Context) error {
	if t.shell != "" {
		if err := t.script(ctx); err != nil {
			return err
		}
	}
	if err := t.sizes(ctx); err != nil {
		return err
	}
	if !t.req.ReadBack {
		return nil
	}
	for _, p := range t.batch {
		if p.kind != putFile || p.reason != "" || p.check != "size" {
			continue
		}
		if err := t.readBack(ctx, p); err != nil {
			return err
		}
	}
	return nil
}

// The script prints a line for each step: a checksum, or "ok". Its functions take
// names as arguments and never in their own text.
const scriptHead = `umask 077
exec >"$1" 2>/dev/null
sum() { s=$(sha256sum <"$1" 2>/dev/null) && echo "${s%% *}" || echo -; }
soft() { if e=$(ln -s -- "$1" "$2" 2>&1); then chown -h "$3" "$2" 2>/dev/null; echo ok; else echo "$e" | tr '\n' ' '; echo; fi; }
hard() { if e=$(ln -- "$1" "$2" 2>&1); then echo ok; else echo "$e" | tr '\n' ' '; echo; fi; }
`

// steps are what the guest's shell has to do for the batch.
func (t *vmTaker) steps() (script string, of []*putting) {
	var b strings.Builder
	b.WriteString(scriptHead)
	for _, p := range t.batch {
		temp := shellQuote(p.path(t.style))
		switch p.kind {
		case putFile:
			fmt.Fprintf(&b, "sum %s\n", temp)
		case putLink:
			owner := "''"
			if t.chown {
				owner = fmt.Sprintf("%d:%d", p.it.attr.UID, p.it.attr.GID)
			}
			fmt.Fprintf(&b, "soft %s %s %s\n", shellQuote(p.it.target), temp, owner)
		case putName:
			fmt.Fprintf(&b, "hard %s %s\n", shellQuote(p.from), temp)
		default:
			continue
		}
		of = append(of, p)
	}
	return b.String(), of
}

func shellQuote(s string) string { return "'" + strings.ReplaceAll(s, "'", `'\''`) + "'" }

// script runs the steps of the batch.
func (t *vmTaker) script(ctx context.Context) error {
	text, of := t.steps()
	if len(of) == 0 {
		return nil
	}
	lines, err := t.runScript(ctx, text, len(of))
	if err != nil && fatalInGuest(ctx, err) && !errors.Is(err, vsphere.ErrTimeout) {
		return err
	}
	if err != nil {
		t.log.Warn("the guest's shell did not do its part", "error", err)
	}
	for i, p := range of {
		line := "the guest's shell did not say that it was made"
		if i < len(lines) {
			line = strings.TrimSpace(lines[i])
		}
		p.told(line)
	}
	return nil
}

var aSum = regexp.MustCompile(`^[0-9a-f]{64}$`)

// told takes what the shell says of a step.
func (p *putting) told(line string) {
	switch {
	case p.kind != putFile && line != "ok":
		p.reason = line
	case p.kind != putFile || !aSum.MatchString(line): // a guest without sha256sum
	case line == p.sum:
		p.check = "sha256"
	default:
		p.reason = "the guest has other content than was sent"
	}
}

// maxScriptLine bounds what is read of a script's answer, in bytes a step.
const maxScriptLine = 4096

func (t *vmTaker) runScript(ctx context.Context, text string, steps int) ([]string, error) {
	t.names++
	file, answer := fmt.Sprintf("%s/script-%d", t.temp, t.names), fmt.Sprintf("%s/answer-%d", t.temp, t.names)
	if err := t.guest.Upload(ctx, file, strings.NewReader(text), int64(len(text)), vsphere.GuestFileAttrs{Mode: 0o600}, false); err != nil {
		return nil, err
	}
	_, err := t.guest.RunProgram(ctx, vsphere.GuestProgram{
		Path: t.shell, Args: shellQuote(file) + " " + shellQuote(answer), Dir: "/", Timeout: scriptTimeout + time.Duration(t.weight/scriptRate)*time.Second,
	})
	if err != nil {
		return nil, err
	}
	r, _, err := t.guest.Download(ctx, answer)
	if err != nil {
		return nil, err
	}
	defer r.Close()
	said, err := io.ReadAll(io.LimitReader(r, int64(steps)*maxScriptLine))
	if err != nil {
		return nil, err
	}
	return strings.Split(string(bytes.TrimRight(said, "\n")), "\n"), nil
}

// sizes asks how large the files of the batch are.
func (t *vmTaker) sizes(ctx context.Context) error {
	byDir := map[string][]*putting{}
	for _, p := range t.batch {
		if p.kind == putFile {
			byDir[p.dir] = append(byDir[p.dir], p)
		}
	}
	for dir, list := range byDir {
		if err := t.sizesIn(ctx, dir, list); err != nil {
			return err
		}
	}
	return nil
}

func (t *vmTaker) sizesIn(ctx context.Context, dir string, list []*putting) error {
	found, err := t.guest.ListMatching(ctx, dir, "^"+regexp.QuoteMeta(t.prefix()))
	if err != nil && fatalInGuest(ctx, err) {
		return fmt.Errorf("%s: %w", dir, err)
	}
	at := map[string]int64{}
	for _, f := range found {
		at[f.Path] = f.Size
	}
	for _, p := range list {
		size, there := at[p.temp]
		switch {
		case p.reason != "":
		case err != nil:
			p.reason = err.Error()
		case !there:
			p.reason = "it is not in the guest any more"
		case size != p.size:
			p.reason = fmt.Sprintf("%d bytes of %d are in the guest", size, p.size)
		case p.check == "":
			p.check = "size"
		}
	}
	return nil
}

// readBack compares what the guest has with what was sent.
func (t *vmTaker) readBack(ctx context.Context, p *putting) error {
	sum := sha256.New()
	r, _, err := t.guest.Download(ctx, p.path(t.style))
	if err == nil {
		_, err = io.Copy(sum, r)
		r.Close()
	}
	switch {
	case err != nil && fatalInGuest(ctx, err):
		return fmt.Errorf("%s: %w", p.it.from, err)
	case err != nil:
		p.reason = "it cannot be read back: " + err.Error()
	case hex.EncodeToString(sum.Sum(nil)) != p.sum:
		p.reason = "the guest has other content than was sent"
	default:
		p.check = "read back"
	}
	return nil
}
