package worker

import (
	"bytes"
	"encoding/json"
	"fmt"
	"log/slog"
	"os"
	"slices"
	"testing"
)

// TestIsolations: every way to start a worker that this kernel allows ends in one
// that can do nothing; the last, which a container may force, has no namespaces.
func TestIsolations(t *testing.T) {
	ways := isolations()
	if last := ways[len(ways)-1]; last.flags != 0 {
		t.Errorf("the last way still wants %v", last.names)
	}
	for _, how := range ways {
		c, err := how.spawn(64 << 20)
		if err != nil {
			if how.flags == 0 {
				t.Errorf("without namespaces: %v", err)
			}
			continue // an administrator forbids them
		}
		p := newProcess(c, nil, Options{Logger: slog.New(slog.DiscardHandler)}.withDefaults())
		b, err := json.Marshal(hello{})
		if err != nil {
			t.Fatal(err)
		}
		body, err := p.call(t.Context(), opHello, append(make([]byte, headerSize), b...), p.opts.Timeout)
		var g greeting
		if err == nil {
			err = json.Unmarshal(body, &g)
		}
		got := g.Confinement
		if err != nil || !got.Seccomp || !slices.Equal(got.Namespaces, how.names) {
			t.Errorf("with %v: %+v, %v", how.names, got, err)
		}
		if os.Getuid() == 0 && (got.User != "nobody" || (got.Root == "empty") != (how.flags != 0)) {
			t.Errorf("with %v: %v", how.names, got)
		}
		if os.Getuid() == 0 && how.flags != 0 {
			mounts, err := os.ReadFile(fmt.Sprintf("/proc/%d/mountinfo", c.cmd.Process.Pid))
			if n := bytes.Count(mounts, []byte("\n")); err != nil || n > 2 {
				t.Errorf("the worker keeps %d mounts of the host: %v\n%s", n, err, mounts)
			}
		}
		p.fail(os.ErrClosed)
		<-p.gone
	}
}
