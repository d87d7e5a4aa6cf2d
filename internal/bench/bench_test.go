package main

import (
	"bytes"
	"context"
	"encoding/binary"
	"io"
	"math/rand/v2"
	"net"
	"os"
	"path/filepath"
	"strings"
	"testing"
	"time"
)

func samples(values ...float64) []pair {
	var pairs []pair
	for i := 0; i < len(values); i += 2 {
		pairs = append(pairs, pair{
			ours: sample{value: values[i], notes: notes{"p50": values[i] / 10}},
			peer: sample{value: values[i+1]},
		})
	}
	return pairs
}

// The ratio is the median of the neighbours' ratios, not the ratio of the
// medians: a machine that slows down in mid-run must not matter.
func TestRatioIsOfNeighbours(t *testing.T) {
	f := Figure{What: "x", PeerName: "peer", Target: 3}.from(samples(300, 100, 30, 10, 33, 10))
	if f.Ratio != (Spread{3, 3, 3.3}) {
		t.Errorf("ratio %+v, want 3 (3–3.3)", f.Ratio)
	}
	if f.Ours != 33 || f.Peer != 10 || f.Rounds != 3 {
		t.Errorf("medians %v and %v of %d rounds, want 33 and 10 of 3", f.Ours, f.Peer, f.Rounds)
	}
	if f.OursNotes["p50"] != 3.3 {
		t.Errorf("notes %v", f.OursNotes)
	}
	if !f.Reached() || f.verdict() != "yes" {
		t.Error("3 of 3 is reached")
	}
}

func TestVerdict(t *testing.T) {
	for _, c := range []struct {
		f    Figure
		want string
	}{
		{Figure{PeerName: "p", Ratio: Spread{Median: 2.9}, Target: 3}, "**no**"},
		{Figure{PeerName: "p", Ratio: Spread{Median: 1.2}, Target: 1.15, AtMost: true}, "**no**"},
		{Figure{PeerName: "p", Ratio: Spread{Median: 1.1}, Target: 1.15, AtMost: true}, "yes"},
		{Figure{PeerName: "p", Ratio: Spread{Median: 1.1}}, ""},
		{Figure{Ours: 70, Target: 64, AtMost: true}, "**no**"},
		{Figure{Ours: 16, Target: 64, AtMost: true}, "yes"},
	} {
		if got := c.f.verdict(); got != c.want {
			t.Errorf("%+v: %q, want %q", c.f, got, c.want)
		}
	}
}

func TestMarkdownIsATable(t *testing.T) {
	r := Report{Figures: []Figure{
		Figure{What: "a", Unit: "IOPS", PeerName: "peer", Target: 6}.from(samples(120000, 10000)),
		{What: "b", Unit: "MB", Ours: 16, Target: 64, AtMost: true},
	}}
	var out bytes.Buffer
	r.Markdown(&out)
	for _, want := range []string{
		"| a | IOPS | 120.0k | 10.0k (peer) | 12.00× (12.00–12.00) | ≥ 6× | yes |",
		"| b | MB | 16.0 | – | – | ≤ 64.0 MB | yes |",
		"- a: ours: p50 12.0k",
	} {
		if !strings.Contains(out.String(), want+"\n") {
			t.Errorf("no line %q in\n%s", want, out.String())
		}
	}
}

func TestParseRefuses(t *testing.T) {
	for _, args := range [][]string{{"-only", "nfs,nonsense"}, {"-rounds", "0"}, {"-seconds", "0"}, {"more"}, {"-what"}} {
		if _, err := parse(args, io.Discard); err == nil {
			t.Errorf("%v was taken", args)
		}
	}
	opt, err := parse([]string{"-only", "boot,open"}, io.Discard)
	if err != nil || !opt.wants("nfs", "open") || opt.wants("nfs") {
		t.Errorf("%+v, %v", opt, err)
	}
}

func TestOwnProcessorTime(t *testing.T) {
	before, err := cpuTime(os.Getpid())
	if err != nil {
		t.Fatal(err)
	}
	for limit := time.Now().Add(10 * time.Second); ; {
		now, err := cpuTime(os.Getpid())
		if err != nil {
			t.Fatal(err)
		}
		if now > before {
			return
		}
		if time.Now().After(limit) {
			t.Fatalf("no processor time used in 10 s of computing: still %v", now)
		}
	}
}

// ram is a disk whose every eight bytes are their own offset.
type ram int64

func (r ram) Size() int64  { return int64(r) }
func (r ram) Close() error { return nil }
func (r ram) ReadAt(p []byte, off int64) (int, error) {
	if off < 0 || off+int64(len(p)) > int64(r) {
		return 0, io.EOF
	}
	for i := 0; i < len(p); i += 8 {
		binary.BigEndian.PutUint64(p[i:], uint64(off)+uint64(i))
	}
	return len(p), nil
}

func serveRAM(t *testing.T, size int64) *nbdConn {
	t.Helper()
	socket := filepath.Join(t.TempDir(), "s")
	ln, err := net.Listen("unix", socket)
	if err != nil {
		t.Fatal(err)
	}
	served := make(chan error, 1)
	go func() {
		conn, err := ln.Accept()
		if err == nil {
			err = serveNBD(conn, ram(size))
		}
		served <- err
	}()
	t.Cleanup(func() {
		ln.Close()
		if err := <-served; err != nil && err != io.EOF {
			t.Error(err)
		}
	})
	c, err := dialNBD(t.Context(), socket)
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { c.close() })
	return c
}

func TestNBDReads(t *testing.T) {
	c := serveRAM(t, 1<<20)
	if c.size != 1<<20 {
		t.Fatalf("size %d", c.size)
	}
	rng := rand.New(rand.NewPCG(1, 1))
	asked := int64(0)
	n, err := c.reads(t.Context(), 4096, 8, 50*time.Millisecond, func() int64 { asked++; return rng.Int64N(256) * 4096 })
	if err != nil || n < 8 || n != asked {
		t.Errorf("%d answers to %d reads, %v", n, asked, err)
	}
}

// A load client that took errors for data would measure nonsense.
func TestNBDReadErrorEndsTheRun(t *testing.T) {
	c := serveRAM(t, 1<<20)
	_, err := c.reads(t.Context(), 4096, 1, time.Second, func() int64 { return 1 << 20 })
	if err == nil || !strings.Contains(err.Error(), "NBD error 5") {
		t.Errorf("a read beyond the end: %v", err)
	}
}

func TestReadForStopsAtAnError(t *testing.T) {
	_, err := readFor(t.Context(), 2, 8, time.Minute, func(int) func() int64 { return func() int64 { return 99 } },
		func(p []byte, off int64) error { _, err := ram(64).ReadAt(p, off); return err })
	if err == nil {
		t.Error("errors of reads are lost")
	}
	ctx, cancel := context.WithCancel(t.Context())
	cancel()
	if _, err := readFor(ctx, 1, 8, time.Minute, func(int) func() int64 { return func() int64 { return 0 } },
		func([]byte, int64) error { return nil }); err == nil {
		t.Error("a cancelled run is a result")
	}
}
