package main

import (
	"fmt"
	"io"
	"sync"
	"sync/atomic"
	"time"

	"github.com/vbauerster/mpb/v8"
	"github.com/vbauerster/mpb/v8/decor"
)

// meters shows how far long work has come: bars with rate and time left on a
// terminal, a line now and then elsewhere (a log, a pipe). Call wait when the
// work is over.
type meters struct {
	out  io.Writer
	bars *mpb.Progress // nil when out is not a terminal
	mu   sync.Mutex
	all  []*meter
}

// plainEvery is how often a meter says something where no bar can be drawn.
const plainEvery = 10 * time.Second

func newMeters(out io.Writer) *meters {
	m := &meters{out: out}
	if isTerminal(out) {
		m.bars = mpb.New(mpb.WithOutput(out), mpb.WithRefreshRate(120*time.Millisecond))
	}
	return m
}

// meter is one line of work, in bytes. It is for one goroutine at a time.
type meter struct {
	m       *meters
	name    string
	bar     *mpb.Bar
	started time.Time
	said    time.Time
	done    int64
	files   atomic.Int64
}

func (m *meters) add(name string) *meter {
	t := &meter{m: m, name: name, started: time.Now(), said: time.Now()}
	if m.bars != nil {
		t.bar = m.bars.New(0, mpb.BarStyle().Lbound("").Rbound("").Filler("━").Tip("━").Padding("─"),
			mpb.BarWidth(30),
			mpb.PrependDecorators(decor.Name(shorten(name, 24), decor.WC{W: 25, C: decor.DindentRight}), decor.Percentage(decor.WC{W: 5})),
			mpb.AppendDecorators(
				decor.CountersKibiByte(" % .1f / % .1f"),
				decor.AverageSpeed(decor.SizeB1024(0), "  % .1f"),
				decor.Any(func(decor.Statistics) string { return t.counted() }),
				decor.OnComplete(decor.AverageETA(decor.ET_STYLE_GO, decor.WC{W: 8}), "    done"),
			))
	}
	m.mu.Lock()
	defer m.mu.Unlock()
	m.all = append(m.all, t)
	return t
}

// count says how many files are behind us.
func (t *meter) count(files int64) { t.files.Store(files) }

func (t *meter) counted() string {
	if n := t.files.Load(); n > 0 {
		return fmt.Sprintf("  %d files", n)
	}
	return ""
}

// set says that done of total bytes are behind us.
func (t *meter) set(done, total int64) {
	t.done = done
	if t.bar != nil {
		t.bar.SetTotal(max(total, 1), false)
		t.bar.SetCurrent(done)
		return
	}
	now := time.Now()
	if now.Sub(t.said) < plainEvery || total <= 0 {
		return
	}
	t.said = now
	elapsed := now.Sub(t.started).Seconds()
	rate := float64(done) / elapsed
	left := "?"
	if rate > 0 {
		left = time.Duration(float64(total-done) / rate * float64(time.Second)).Round(time.Second).String()
	}
	fmt.Fprintf(t.m.out, "%s: %d%%, %s of %s, %s/s%s, %s left\n", t.name, done*100/total, size(done), size(total), size(int64(rate)), t.counted(), left)
}

// wait draws the last state and frees the terminal.
func (m *meters) wait() {
	if m.bars == nil {
		return
	}
	for _, t := range m.all {
		if !t.bar.Completed() {
			t.bar.SetTotal(max(t.done, 1), true)
			t.bar.SetCurrent(max(t.done, 1))
		}
	}
	m.bars.Wait()
}

// abandon leaves the bars as they are, after a failure.
func (m *meters) abandon() {
	if m.bars == nil {
		return
	}
	for _, t := range m.all {
		t.bar.Abort(false)
	}
	m.bars.Wait()
}

func shorten(s string, n int) string {
	r := []rune(s)
	if len(r) <= n {
		return s
	}
	return string(r[:n-1]) + "…"
}

// steps shows the progress of work in steps that count different things: one line
// that is written over on a terminal, a line now and then elsewhere. It is for one
// goroutine at a time.
type steps struct {
	out      io.Writer
	terminal bool
	step     string
	began    time.Time // the step
	said     time.Time
}

func newSteps(out io.Writer) *steps {
	return &steps{out: out, terminal: isTerminal(out), said: time.Now()}
}

// set says that done of total are behind us; total 0: nobody knows of how many.
func (s *steps) set(step string, done, total int64) {
	now := time.Now()
	if step != s.step {
		s.step, s.began = step, now
	}
	every := plainEvery
	if s.terminal {
		every = 120 * time.Millisecond
	}
	if now.Sub(s.said) < every {
		return
	}
	s.said = now
	line := fmt.Sprintf("%s: %d", step, done)
	rate := float64(done) / max(now.Sub(s.began).Seconds(), 1e-3)
	if total > 0 {
		line = fmt.Sprintf("%s: %d of %d", step, done, total)
	}
	if done > 0 {
		line += fmt.Sprintf(", %.0f/s", rate)
	}
	if done > 0 && total > done {
		line += fmt.Sprintf(", %v left", time.Duration(float64(total-done)/rate*float64(time.Second)).Round(time.Second))
	}
	if s.terminal {
		fmt.Fprintf(s.out, "\r\033[K%s", line)
		return
	}
	fmt.Fprintln(s.out, line)
}

// end takes the line away.
func (s *steps) end() {
	if s.terminal {
		fmt.Fprint(s.out, "\r\033[K")
	}
}
