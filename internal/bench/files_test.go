package main

import (
	"context"
	"os"
	"os/exec"
	"path/filepath"
	"slices"
	"strings"
	"testing"
)

func TestAbsoluteTarget(t *testing.T) {
	pairs := []pair{{sample{value: 3}, sample{value: 1}}, {sample{value: 3}, sample{value: 1}}}
	f := Figure{What: "x", Unit: "s", PeerName: "peer", Target: 2, AtMost: true, Absolute: true}.from(pairs)
	if f.Reached() || f.target() != "≤ 2 s" {
		t.Errorf("3 s against at most 2 s: reached %v, target %q", f.Reached(), f.target())
	}
	f.Absolute = false
	if f.Target = 3; !f.Reached() || f.target() != "≤ 3×" {
		t.Errorf("three times the peer's against at most three: reached %v, target %q", f.Reached(), f.target())
	}
}

func TestAloneTellsItsSpread(t *testing.T) {
	b := &bench{out: &strings.Builder{}}
	values := []float64{4, 1, 7}
	n := 0
	err := b.alone(t.Context(), Figure{What: "x", Unit: "ms", Target: 5, AtMost: true}, len(values), func(context.Context) (sample, error) {
		n++
		return sample{value: values[n-1]}, nil
	})
	if err != nil {
		t.Fatal(err)
	}
	f := b.report.Figures[0]
	if f.Ours != 4 || f.OursNotes["least"] != 1 || f.OursNotes["most"] != 7 || !f.Reached() {
		t.Errorf("%+v", f)
	}
	if err := b.report.WriteJSON(filepath.Join(t.TempDir(), "report.json")); err != nil {
		t.Error(err) // JSON has no NaN
	}
}

func TestDiffering(t *testing.T) {
	write := func(name string, change ...int) string {
		p := make([]byte, 3*readChunk)
		for _, at := range change {
			p[at] = 1
		}
		file := filepath.Join(t.TempDir(), name)
		if err := os.WriteFile(file, p, 0o600); err != nil {
			t.Fatal(err)
		}
		return file
	}
	n, err := differing(write("a"), write("b", 0, 1, diffBlock, 2*readChunk+5, 3*readChunk-1))
	if n != 4 || err != nil {
		t.Errorf("%d blocks differ, %v; want 4", n, err)
	}
}

func TestFootprintCountsChildren(t *testing.T) {
	cmd := exec.Command("cat")
	in, err := cmd.StdinPipe()
	if err != nil {
		t.Fatal(err)
	}
	if err := cmd.Start(); err != nil {
		t.Fatal(err)
	}
	defer func() { in.Close(); _ = cmd.Wait() }()
	if !slices.Contains(childrenOf(os.Getpid()), cmd.Process.Pid) {
		t.Errorf("%d is not among the children", cmd.Process.Pid)
	}
	var f footprint
	f.look(os.Getpid())
	if f.all < 1 || f.each["worker MB"] <= 0 || f.each["appliance MB"] >= f.all {
		t.Errorf("%+v", f)
	}
}
