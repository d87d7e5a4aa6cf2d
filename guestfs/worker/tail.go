package worker

import (
	"bytes"
	"strings"
	"sync"
)

// tail keeps the beginning of what a worker says before it dies: Go tells the
// reason first, and where it was after that.
type tail struct {
	mu sync.Mutex
	b  []byte
}

const maxTail = 4 << 10

// Write implements [io.Writer].
func (t *tail) Write(p []byte) (int, error) {
	t.mu.Lock()
	defer t.mu.Unlock()
	t.b = append(t.b, p[:min(len(p), maxTail-len(t.b))]...)
	return len(p), nil
}

// reason is the line that matters.
func (t *tail) reason() string {
	t.mu.Lock()
	defer t.mu.Unlock()
	for line := range bytes.Lines(t.b) {
		s := strings.TrimSpace(strings.ToValidUTF8(string(line), "?"))
		if s != "" {
			return s[:min(len(s), 300)]
		}
	}
	return ""
}

// all is everything that was kept.
func (t *tail) all() string {
	t.mu.Lock()
	defer t.mu.Unlock()
	return strings.ToValidUTF8(string(t.b), "?")
}
