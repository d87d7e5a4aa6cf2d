package worker

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"log/slog"
	"os"
	"sync"
	"time"

	"lifeboat/disk"
	"lifeboat/guestfs"
	"lifeboat/guestfs/crypt"
	"lifeboat/guestfs/inspect"
)

// Options of a session. The zero value is good.
type Options struct {
	// Timeout is how long the worker may take for a request, not counting the time
	// that the disks take. 0 is 10 s, and four times that for the first.
	Timeout time.Duration
	// Memory bounds what the worker takes, in bytes. 0 is 512 MiB: the collector is
	// told to stay below a quarter of it, and gets there but for attackers. Below 0
	// there is no limit.
	Memory int64
	// Restarts is how often a failed worker is followed by another. 0 is 3, below 0
	// never.
	Restarts int
	// Secrets are tried on the guest's encrypted volumes. With any of them, the worker
	// may take as much time and memory more as making a key of a passphrase takes.
	Secrets []crypt.Secret
	Logger  *slog.Logger // nil: slog.Default
}

func (o Options) withDefaults() Options {
	if o.Timeout == 0 {
		o.Timeout = 10 * time.Second
	}
	if o.Memory == 0 {
		o.Memory = 512 << 20
	}
	if o.Restarts == 0 {
		o.Restarts = 3
	}
	if o.Logger == nil {
		o.Logger = slog.Default()
	}
	return o
}

// Session is a guest's disks, read by a worker. Safe for concurrent use.
type Session struct {
	opts  Options
	disks []disk.Image

	mu          sync.Mutex
	current     *process // nil: none yet, or the last one has failed
	starts      int
	last        error // why the last one failed
	closed      bool
	report      *inspect.Report
	roots       []uint64
	confinement Confinement
}

// Start starts a worker on a guest's disks, which must stay open as long as the
// session, and has it find what is on them.
func Start(ctx context.Context, disks []disk.Image, opts Options) (*Session, error) {
	s := &Session{opts: opts.withDefaults(), disks: disks}
	if _, err := s.process(ctx); err != nil {
		return nil, errors.Join(err, s.Close())
	}
	return s, nil
}

// Report is what was found on the disks. It is not to be changed.
func (s *Session) Report() *inspect.Report { return s.report }

// Confinement tells what keeps the worker in.
func (s *Session) Confinement() Confinement { return s.confinement }

// FS is the file system of a volume, by its index in the report.
func (s *Session) FS(_ context.Context, volume int) (guestfs.FS, error) {
	if volume < 0 || volume >= len(s.report.Volumes) {
		return nil, fmt.Errorf("there is no volume %d", volume)
	}
	v := &s.report.Volumes[volume]
	if !v.Usable() {
		return nil, inspect.Unusable(v)
	}
	return &remoteFS{s: s, volume: uint32(volume), info: v.Info}, nil
}

// Close ends the worker. Requests under way fail.
func (s *Session) Close() error {
	s.mu.Lock()
	defer s.mu.Unlock()
	s.closed = true
	if s.current != nil {
		s.current.fail(os.ErrClosed)
		<-s.current.gone
	}
	return nil
}

// process is the worker that runs, or a new one.
func (s *Session) process(ctx context.Context) (*process, error) {
	s.mu.Lock()
	defer s.mu.Unlock()
	if s.closed {
		return nil, os.ErrClosed
	}
	if p := s.current; p != nil {
		if !p.failed() {
			return p, nil
		}
		s.current, s.last = nil, p.why()
	}
	if s.starts > max(0, s.opts.Restarts) {
		reason := "it failed before"
		var f *FailureError
		if errors.As(s.last, &f) {
			reason = f.Reason
		}
		return nil, &FailureError{Reason: reason, Final: true}
	}
	s.starts++
	p, err := s.start(ctx)
	if err != nil {
		s.last = err
		return nil, err
	}
	s.current = p
	return p, nil
}

// What deriving keys may take beyond the ordinary: Argon2 up to 1 GiB, and PBKDF2
// as long as other machines than the guest's take for it.
const (
	keyMemory = 1280 << 20
	keyTime   = 2 * time.Minute
)

// start starts a worker and waits for its greeting.
func (s *Session) start(ctx context.Context) (*process, error) {
	began := time.Now()
	memory, limit := max(s.opts.Memory, 0), 4*s.opts.Timeout
	if len(s.opts.Secrets) > 0 {
		limit += keyTime
		if memory > 0 {
			memory += keyMemory
		}
	}
	c, err := spawn(memory / 4)
	if err != nil {
		return nil, err
	}
	p := newProcess(c, s.disks, s.opts)
	h := hello{Memory: memory, Secrets: s.opts.Secrets}
	for _, img := range s.disks {
		h.Disks = append(h.Disks, img.Size())
	}
	b, err := json.Marshal(h)
	if err != nil {
		return nil, err
	}
	body, err := p.call(ctx, opHello, append(make([]byte, headerSize), b...), limit)
	if err == nil {
		err = s.greeted(body)
	}
	if err != nil {
		p.fail(err)
		<-p.gone
		return nil, err
	}
	s.opts.Logger.Info("guests' file systems are read by a confined process", "pid", c.cmd.Process.Pid, "confinement", s.confinement.String(), "after", time.Since(began))
	return p, nil
}

// greeted takes in what the first worker found. A later one, which found the
// same, must not change what callers go by.
func (s *Session) greeted(body []byte) error {
	g := greeting{Report: &inspect.Report{}}
	if err := json.Unmarshal(body, &g); err != nil || g.Report == nil || len(g.Roots) != len(g.Report.Volumes) {
		return &FailureError{Reason: errProtocol.Error()}
	}
	if err := g.Report.Validate(); err != nil {
		return &FailureError{Reason: err.Error()}
	}
	if s.report == nil {
		s.report, s.roots, s.confinement = g.Report, g.Roots, g.Confinement
	}
	if len(s.report.Volumes) != len(g.Report.Volumes) {
		return &FailureError{Reason: "it found other volumes than before"}
	}
	return nil
}

// call asks the worker something. body begins with room for a header.
func (s *Session) call(ctx context.Context, op byte, body []byte) (*decoder, error) {
	p, err := s.process(ctx)
	if err != nil {
		return nil, err
	}
	b, err := p.call(ctx, op, body, s.opts.Timeout)
	if err != nil {
		return nil, err
	}
	return &decoder{b: b, recycle: func() { p.child.control.recycle(b) }}, nil
}

// check ends the worker that answered with nonsense.
func (s *Session) check(d *decoder) error {
	err := d.end()
	if err == nil {
		return nil
	}
	failure := &FailureError{Reason: err.Error()}
	s.mu.Lock()
	p := s.current
	s.mu.Unlock()
	if p != nil {
		p.fail(failure)
	}
	return failure
}
