package qemu

import (
	"bufio"
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"log/slog"
	"os"
	"strings"
	"testing"
)

// fakeQEMU is a monitor whose other end the test plays.
func fakeQEMU(t *testing.T) (*Monitor, *os.File, *bufio.Scanner) {
	t.Helper()
	ours, theirs, err := socketPair("test")
	if err != nil {
		t.Fatal(err)
	}
	m := newMonitor(ours, slog.New(slog.DiscardHandler))
	t.Cleanup(func() {
		theirs.Close()
		m.close()
	})
	return m, theirs, bufio.NewScanner(theirs)
}

type request struct {
	Execute   string          `json:"execute"`
	ID        uint64          `json:"id"`
	Arguments json.RawMessage `json:"arguments"`
}

func nextRequest(t *testing.T, in *bufio.Scanner) request {
	t.Helper()
	var r request
	if !in.Scan() {
		t.Fatal("no request came")
	}
	if err := json.Unmarshal(in.Bytes(), &r); err != nil {
		t.Fatal(err)
	}
	return r
}

func TestMonitorMatchesRepliesByID(t *testing.T) {
	m, qemu, in := fakeQEMU(t)
	results := make(chan string, 2)
	ask := func(name string) request {
		go func() {
			var got string
			if err := m.Execute(context.Background(), name, map[string]int{"n": 1}, &got); err != nil {
				got = err.Error()
			}
			results <- name + "=" + got
		}()
		return nextRequest(t, in)
	}
	a, b := ask("a"), ask("b")
	if string(a.Arguments) != `{"n":1}` {
		t.Fatalf("arguments %s", a.Arguments)
	}
	fmt.Fprintf(qemu, "{\"return\":\"stray\",\"id\":999}\n\n{\"return\":\"for b\",\"id\":%d}\n", b.ID)
	if got := <-results; got != "b=for b" {
		t.Fatal(got)
	}
	fmt.Fprintf(qemu, `{"error":{"class":"GenericError","desc":"no"},"id":%d}`+"\n", a.ID)
	if got := <-results; got != "a=QEMU refused a: no" {
		t.Fatal(got)
	}
}

func TestMonitorAbandonsACommand(t *testing.T) {
	m, qemu, in := fakeQEMU(t)
	ctx, cancel := context.WithCancel(context.Background())
	ended := make(chan error, 1)
	go func() { ended <- m.Execute(ctx, "slow", nil, nil) }()
	r := nextRequest(t, in)
	cancel()
	if err := <-ended; !errors.Is(err, context.Canceled) {
		t.Fatal(err)
	}
	fmt.Fprintf(qemu, `{"return":{},"id":%d}`+"\n", r.ID) // late: nobody wants it
	go func() { ended <- m.Execute(context.Background(), "next", nil, nil) }()
	r = nextRequest(t, in)
	fmt.Fprintf(qemu, `{"return":{},"id":%d}`+"\n", r.ID)
	if err := <-ended; err != nil {
		t.Fatal(err)
	}
}

func TestMonitorLosesTheOldestEventsAndCountsThem(t *testing.T) {
	m, qemu, _ := fakeQEMU(t)
	slow, end := m.Subscribe("TICK"), m.Subscribe("END")
	const more = 10
	for i := range eventBacklog + more {
		fmt.Fprintf(qemu, `{"event":"TICK","data":%d,"timestamp":{"seconds":1,"microseconds":2}}`+"\n", i)
	}
	io.WriteString(qemu, `{"event":"END"}`+"\n")
	<-end.C // everything before it was delivered
	first := <-slow.C
	if string(first.Data) != fmt.Sprint(more) || first.Time.Nanosecond() != 2000 {
		t.Fatalf("first event kept: %s at %v", first.Data, first.Time)
	}
	lost := first.Lost
	for range eventBacklog - 1 {
		lost += (<-slow.C).Lost
	}
	if lost != more {
		t.Fatalf("%d events reported lost, want %d", lost, more)
	}
	slow.Close()
	slow.Close()
	if _, ok := <-slow.C; ok {
		t.Fatal("an event after Close")
	}
}

func TestMonitorEndsOnNonsense(t *testing.T) {
	for name, nonsense := range map[string]string{
		"no JSON":        "hello\n",
		"wrong type":     `{"id":"x"}` + "\n",
		"a line too big": strings.Repeat("x", maxLine+2),
	} {
		t.Run(name, func(t *testing.T) {
			m, qemu, in := fakeQEMU(t)
			ended := make(chan error, 1)
			go func() { ended <- m.Execute(context.Background(), "x", nil, nil) }()
			nextRequest(t, in)
			go io.WriteString(qemu, nonsense)
			if err := <-ended; !errors.Is(err, ErrMonitorClosed) {
				t.Fatal(err)
			}
			sub := m.Subscribe()
			if _, ok := <-sub.C; ok {
				t.Fatal("an event from a closed monitor")
			}
			sub.Close()
			m.conn.Close() // unblocks the writer
		})
	}
}
