package qemu

import (
	"bufio"
	"bytes"
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"log/slog"
	"os"
	"sync"
	"time"
)

// Monitor speaks QMP, QEMU's control protocol (docs/interop/qmp-spec.txt in
// QEMU's source): one JSON document a line, commands answered in order under
// the id that we give them, events in between.
//
// Memory is bounded: a line may have maxLine bytes, a subscriber that does not
// keep up loses the oldest events and is told how many.
type Monitor struct {
	conn *os.File
	log  *slog.Logger
	hi   chan struct{} // closed when the greeting has come

	mu      sync.Mutex
	nextID  uint64
	waiting map[uint64]chan<- reply
	subs    map[*Subscription]struct{}
	err     error         // why the connection ended
	gone    chan struct{} // closed then
}

// maxLine bounds one QMP message. The longest real ones (query-qmp-schema)
// are below 300 KiB.
const maxLine = 4 << 20

// eventBacklog is how many events a subscription holds.
const eventBacklog = 64

// ErrMonitorClosed is matched by errors of commands whose QEMU has gone.
var ErrMonitorClosed = errors.New("QEMU's monitor is closed")

// CommandError is QEMU's refusal of a command.
type CommandError struct {
	Command string
	Class   string // "GenericError", "CommandNotFound", "DeviceNotFound", …
	Desc    string // QEMU's words, for humans
}

func (e *CommandError) Error() string { return fmt.Sprintf("QEMU refused %s: %s", e.Command, e.Desc) }

// Event is something that QEMU reports of its own accord.
type Event struct {
	Name string // "BLOCK_JOB_READY", "SHUTDOWN", …
	Data json.RawMessage
	Time time.Time // by the host's clock
	// Lost is how many events of this subscription were dropped before this
	// one because nobody took them.
	Lost int
}

// Subscription delivers events; see [Monitor.Subscribe].
type Subscription struct {
	// C is closed when the monitor or the subscription is.
	C     <-chan Event
	c     chan Event
	names []string
	lost  int
	m     *Monitor
}

type reply struct {
	result json.RawMessage
	err    *wireError
}

type wireError struct {
	Class string `json:"class"`
	Desc  string `json:"desc"`
}

type message struct {
	QMP       json.RawMessage `json:"QMP"`
	ID        uint64          `json:"id"`
	Return    json.RawMessage `json:"return"`
	Error     *wireError      `json:"error"`
	Event     string          `json:"event"`
	Data      json.RawMessage `json:"data"`
	Timestamp struct {
		Seconds      int64 `json:"seconds"`
		Microseconds int64 `json:"microseconds"`
	} `json:"timestamp"`
}

func newMonitor(conn *os.File, log *slog.Logger) *Monitor {
	m := &Monitor{
		conn: conn, log: log,
		hi: make(chan struct{}), gone: make(chan struct{}),
		waiting: make(map[uint64]chan<- reply), subs: make(map[*Subscription]struct{}),
	}
	go m.read()
	return m
}

// handshake waits for the greeting and leaves negotiation mode.
func (m *Monitor) handshake(ctx context.Context) error {
	select {
	case <-m.hi:
		return m.Execute(ctx, "qmp_capabilities", nil, nil)
	case <-m.gone:
		return m.closedError("greeting")
	case <-ctx.Done():
		return fmt.Errorf("waiting for QEMU's monitor: %w", context.Cause(ctx))
	}
}

// Execute runs one command. args and result are encoded and decoded as JSON
// and may be nil. The error is a [*CommandError] when QEMU refused, and
// matches [ErrMonitorClosed] when QEMU went away. Cancelling ctx abandons the
// reply, not the command.
func (m *Monitor) Execute(ctx context.Context, command string, args, result any) error {
	ch := make(chan reply, 1)
	id, err := m.send(command, args, ch)
	if err != nil {
		return err
	}
	select {
	case r := <-ch:
		return r.decode(command, result)
	case <-m.gone:
		select {
		case r := <-ch: // answered, then gone
			return r.decode(command, result)
		default:
			return m.closedError(command)
		}
	case <-ctx.Done():
		m.mu.Lock()
		delete(m.waiting, id)
		m.mu.Unlock()
		return fmt.Errorf("QEMU command %s: %w", command, context.Cause(ctx))
	}
}

func (m *Monitor) send(command string, args any, ch chan<- reply) (uint64, error) {
	m.mu.Lock()
	defer m.mu.Unlock()
	if m.err != nil {
		return 0, fmt.Errorf("QEMU command %s: %w", command, m.err)
	}
	m.nextID++
	req := map[string]any{"execute": command, "id": m.nextID}
	if args != nil {
		req["arguments"] = args
	}
	line, err := json.Marshal(req)
	if err != nil {
		return 0, fmt.Errorf("QEMU command %s: encoding the arguments: %w", command, err)
	}
	m.waiting[m.nextID] = ch
	// The lock is held over the write so that lines do not mix. QEMU reads its
	// monitor as long as it lives; the deadline is for one that is wedged.
	_ = m.conn.SetWriteDeadline(time.Now().Add(10 * time.Second))
	if _, err := m.conn.Write(append(line, '\n')); err != nil {
		delete(m.waiting, m.nextID)
		return 0, fmt.Errorf("QEMU command %s: %w: %w", command, ErrMonitorClosed, err)
	}
	return m.nextID, nil
}

func (r reply) decode(command string, result any) error {
	if r.err != nil {
		return &CommandError{Command: command, Class: r.err.Class, Desc: r.err.Desc}
	}
	if result == nil {
		return nil
	}
	if err := json.Unmarshal(r.result, result); err != nil {
		return fmt.Errorf("QEMU command %s: reading the reply: %w", command, err)
	}
	return nil
}

func (m *Monitor) closedError(command string) error {
	m.mu.Lock()
	defer m.mu.Unlock()
	return fmt.Errorf("QEMU command %s: %w", command, m.err)
}

// Subscribe delivers the events of the given names (all when none is given)
// from now on. Close the subscription when it is no longer wanted.
func (m *Monitor) Subscribe(names ...string) *Subscription {
	c := make(chan Event, eventBacklog)
	s := &Subscription{C: c, c: c, names: names, m: m}
	m.mu.Lock()
	defer m.mu.Unlock()
	if m.err != nil {
		close(c)
		return s
	}
	m.subs[s] = struct{}{}
	return s
}

// Close ends the delivery.
func (s *Subscription) Close() {
	s.m.mu.Lock()
	defer s.m.mu.Unlock()
	if _, ok := s.m.subs[s]; ok {
		delete(s.m.subs, s)
		close(s.c)
	}
}

// read is the monitor's goroutine: it ends with the connection.
func (m *Monitor) read() {
	lines := bufio.NewScanner(m.conn)
	lines.Buffer(make([]byte, 0, 8<<10), maxLine)
	err := io.EOF
	for lines.Scan() {
		if len(bytes.TrimSpace(lines.Bytes())) == 0 {
			continue
		}
		var msg message
		if err = json.Unmarshal(lines.Bytes(), &msg); err != nil {
			break
		}
		err = io.EOF
		m.dispatch(msg)
	}
	if lines.Err() != nil {
		err = lines.Err()
	}
	m.mu.Lock()
	defer m.mu.Unlock()
	m.err = fmt.Errorf("%w: %w", ErrMonitorClosed, err)
	for s := range m.subs {
		delete(m.subs, s)
		close(s.c)
	}
	close(m.gone)
}

func (m *Monitor) dispatch(msg message) {
	m.mu.Lock()
	defer m.mu.Unlock()
	switch {
	case msg.Event != "":
		m.log.Debug("qemu event", "event", msg.Event, "data", string(msg.Data))
		t := time.Unix(msg.Timestamp.Seconds, msg.Timestamp.Microseconds*1000)
		for s := range m.subs {
			s.offer(Event{Name: msg.Event, Data: msg.Data, Time: t})
		}
	case msg.QMP != nil:
		select {
		case <-m.hi:
		default:
			close(m.hi)
		}
	default:
		if ch, ok := m.waiting[msg.ID]; ok { // else: given up on, or not ours
			delete(m.waiting, msg.ID)
			ch <- reply{result: msg.Return, err: msg.Error}
		}
	}
}

// offer is called with the monitor's lock held and never blocks.
func (s *Subscription) offer(e Event) {
	if !s.wants(e.Name) {
		return
	}
	e.Lost = s.lost
	select {
	case s.c <- e:
		s.lost = 0
		return
	default:
	}
	select { // full: the oldest makes room
	case <-s.c:
		s.lost++
	default:
	}
	e.Lost = s.lost
	s.c <- e // only this goroutine sends, so there is room
	s.lost = 0
}

func (s *Subscription) wants(name string) bool {
	for _, n := range s.names {
		if n == name {
			return true
		}
	}
	return len(s.names) == 0
}

func (m *Monitor) close() {
	_ = m.conn.Close()
	<-m.gone
}
