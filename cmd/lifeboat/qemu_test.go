package main

import (
	"bufio"
	"bytes"
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"math/rand/v2"
	"os"
	"os/exec"
	"regexp"
	"strconv"
	"strings"
	"syscall"
	"testing"
	"time"

	"lifeboat/internal/qemu/netns"
)

// inNamespace runs the calling test again in a network namespace of its own,
// where port 111 is free, and reports whether the caller is the one inside.
func inNamespace(t *testing.T) bool {
	t.Helper()
	if netns.Inside() {
		if err := netns.Up(); err != nil {
			t.Fatal(err)
		}
		return true
	}
	cmd := netns.Command(t.Context(), os.Args[0], "-test.run=^"+t.Name()+"$", "-test.v", "-test.timeout=60m")
	out, err := cmd.CombinedOutput()
	if err != nil || !bytes.Contains(out, []byte("--- PASS: "+t.Name())) {
		t.Fatalf("in a network namespace: %v\n%s", err, out)
	}
	t.Logf("%s", out)
	return false
}

// qemuIO is a qemu-io process with a disk open over QEMU's NFS client.
type qemuIO struct {
	cmd     *exec.Cmd
	stdin   io.WriteCloser
	wrote   chan int64    // offsets of writes that completed
	prompts chan struct{} // one for each command taken
	done    chan error
	said    bytes.Buffer // complaints
}

var wroteLine = regexp.MustCompile(`wrote \d+/\d+ bytes at offset (\d+)`)

func startQemuIO(t *testing.T, url string) *qemuIO {
	t.Helper()
	q := &qemuIO{cmd: exec.Command("stdbuf", "-oL", "qemu-io", "-f", "raw", "-t", "none", url), wrote: make(chan int64, 64), prompts: make(chan struct{}, 64), done: make(chan error, 1)}
	q.cmd.SysProcAttr = &syscall.SysProcAttr{Setpgid: true}
	stdin, err := q.cmd.StdinPipe()
	if err != nil {
		t.Fatal(err)
	}
	stdout, err := q.cmd.StdoutPipe()
	if err != nil {
		t.Fatal(err)
	}
	q.cmd.Stderr, q.stdin = q.cmd.Stdout, stdin
	if err := q.cmd.Start(); err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { _ = q.cmd.Process.Kill() })
	go q.listen(stdout)
	q.awaitPrompt(t) // the first comes without a command
	return q
}

func (q *qemuIO) listen(out io.Reader) {
	const prompt = "qemu-io> "
	words := bufio.NewScanner(out)
	words.Split(func(data []byte, eof bool) (int, []byte, error) {
		if bytes.HasPrefix(data, []byte(prompt)) {
			return len(prompt), data[:len(prompt)], nil
		}
		return bufio.ScanLines(data, eof)
	})
	for words.Scan() {
		line := words.Text()
		if line == prompt {
			q.prompts <- struct{}{}
		} else if m := wroteLine.FindStringSubmatch(line); m != nil {
			off, _ := strconv.ParseInt(m[1], 10, 64)
			q.wrote <- off
		} else if strings.Contains(line, "ail") || strings.Contains(line, "rror") {
			q.said.WriteString(line + "\n")
		}
	}
	close(q.wrote)
	q.done <- q.cmd.Wait()
}

// TestCrashQEMU keeps QEMU's NFS client writing while the server is killed and
// comes back again and again: the client must notice nothing but pauses, and at
// the end the disk must be, byte for byte, what it wrote.
func TestCrashQEMU(t *testing.T) {
	if !inNamespace(t) {
		return
	}
	const size = 64 << 20
	seed := crashSeed(t)
	rng := rand.New(rand.NewPCG(seed, 2))
	w := newWorkspace(t)
	want := make([]byte, size)
	_, _ = rand.NewChaCha8([32]byte{1}).Read(want[:size/2])
	if err := os.WriteFile(w.path("disk.raw"), want, 0o600); err != nil {
		t.Fatal(err)
	}
	w.run("backup", "disk", "--vm", "vm", "disk.raw")
	p := w.publish("vm@latest", "--session", "q")
	q := startQemuIO(t, "nfs://127.0.0.1"+p.ready.Folders[0].Path+"/"+p.ready.Folders[0].Disks[0])
	for range crashRuns(t, 3) {
		p = writeAcrossKill(t, w, p, q, rng, want)
	}
	finish(t, q)
	c, h, err := p.dial()
	if err != nil {
		t.Fatal(err)
	}
	defer c.Close()
	for off := 0; off < size; off += 1 << 20 {
		r, err := c.Read(h, uint64(off), 1<<20)
		if err != nil {
			t.Fatal(err)
		}
		if !bytes.Equal(r.Data, want[off:off+1<<20]) {
			i := off
			for r.Data[i-off] == want[i] {
				i++
			}
			t.Fatalf("the disk differs from what was written at %d: %x, want %x", i, r.Data[i-off:][:8], want[i:][:8])
		}
	}
	if code := p.interrupt(); code != 0 {
		t.Errorf("publish ended with exit code %d\n%s", code, p.stderr.Bytes())
	}
}

// writeAcrossKill does some writes, kills the server with writes under way, goes
// on writing while it is away, starts it again and waits until all of them have
// completed.
func writeAcrossKill(t *testing.T, w workspace, p *publisher, q *qemuIO, rng *rand.Rand, want []byte) *publisher {
	t.Helper()
	const most = 16
	under := map[int64]bool{}
	last := 1 + rng.IntN(60)
	for i := range last + most/2 {
		if i == last {
			await(t, q, under) // so the client is connected
			p.kill()
		}
		for i < last && len(under) >= most/2 {
			await(t, q, under)
		}
		n := 512 * (1 + rng.IntN(256))
		off := 512 * rng.IntN((len(want)-n)/512)
		if overlaps(under, off, n) {
			continue
		}
		pattern := byte(1 + rng.IntN(255))
		under[int64(off)] = true
		for j := range n {
			want[off+j] = pattern
		}
		q.command(t, fmt.Sprintf("aio_write -P %d %d %d", pattern, off, n))
	}
	p = w.publish("--session", "q")
	for len(under) > 0 {
		await(t, q, under)
	}
	return p
}

// command gives qemu-io one command and waits until it has taken it. (Of two
// lines that it reads at once it would leave the second in its buffer until more
// input comes.)
func (q *qemuIO) command(t *testing.T, line string) {
	t.Helper()
	if _, err := io.WriteString(q.stdin, line+"\n"); err != nil {
		t.Fatalf("qemu-io: %v\n%s", err, q.said.String())
	}
	q.awaitPrompt(t)
}

func (q *qemuIO) awaitPrompt(t *testing.T) {
	t.Helper()
	select {
	case <-q.prompts:
	case <-time.After(time.Minute):
		t.Fatalf("qemu-io does not take commands\n%s", q.said.String())
	}
}

// overlaps reports whether a write would come within 128 KiB of one under way.
func overlaps(under map[int64]bool, off, n int) bool {
	for o := range under {
		if int64(off) < o+128<<10 && o < int64(off+n) {
			return true
		}
	}
	return false
}

func await(t *testing.T, q *qemuIO, under map[int64]bool) {
	t.Helper()
	select {
	case off, ok := <-q.wrote:
		if !ok {
			t.Fatalf("qemu-io ended: %v\n%s", <-q.done, q.said.String())
		}
		delete(under, off)
	case <-time.After(time.Minute):
		t.Fatalf("a write did not complete; %d under way\n%s", len(under), q.said.String())
	}
}

func finish(t *testing.T, q *qemuIO) {
	t.Helper()
	q.command(t, "aio_flush")
	q.command(t, "flush")
	if _, err := io.WriteString(q.stdin, "quit\n"); err != nil {
		t.Fatal(err)
	}
	for range q.wrote {
	}
	if err := <-q.done; err != nil || q.said.Len() > 0 {
		t.Fatalf("qemu-io: %v\n%s", err, q.said.String())
	}
}

// TestEndToEnd is the demo: a Debian VM boots from its backup, survives the
// death of the server, and is moved to other storage while it runs.
func TestEndToEnd(t *testing.T) {
	ctx, cancel := context.WithTimeout(t.Context(), 20*time.Minute)
	defer cancel()
	dir := t.TempDir()
	cmd := exec.CommandContext(ctx, os.Args[0], "--json", "demo", "--work", dir+"/work")
	cmd.Env = append(os.Environ(), actAsProgram+"=1")
	cmd.Cancel = func() error { return cmd.Process.Signal(os.Interrupt) }
	var story bytes.Buffer
	cmd.Stderr = &story
	out, err := cmd.Output()
	if err != nil {
		t.Fatalf("the demo failed: %v\n%s", err, story.String())
	}
	var report struct {
		Proofs []struct {
			SHA256  string   `json:"sha256"`
			Checked []string `json:"checked"`
		} `json:"proofs"`
		ServerDown float64 `json:"server_down_seconds"`
		GuestPause float64 `json:"guest_pause_seconds"`
		MoveBytes  int64   `json:"move_bytes"`
		SecondNew  int64   `json:"second_new_bytes"`
		FirstRead  int64   `json:"first_read_bytes"`
	}
	if err := json.Unmarshal(out, &report); err != nil {
		t.Fatalf("the demo printed %q: %v", out, err)
	}
	if len(report.Proofs) != 4 {
		t.Fatalf("%d files were written in the story, want 4", len(report.Proofs))
	}
	for i, p := range report.Proofs {
		if want := []int{3, 2, 1, 1}[i]; len(p.SHA256) != 64 || len(p.Checked) != want {
			t.Errorf("file %d was read back at %q", i, p.Checked)
		}
	}
	// The pause must be real (the guest's writes stopped with the server) and
	// must end (it went on).
	if report.GuestPause < 1 || report.ServerDown < 1 {
		t.Errorf("the server was down for %.1f s and the guest paused for %.1f s: it was not killed under the guest", report.ServerDown, report.GuestPause)
	}
	if report.SecondNew <= 0 || report.SecondNew > report.FirstRead/4 {
		t.Errorf("the second backup stored %d new bytes of %d: it is not an incremental", report.SecondNew, report.FirstRead)
	}
	if report.MoveBytes == 0 {
		t.Error("no bytes were moved")
	}
	assertNoProcesses(t, dir)
	t.Logf("%s", out)
}

// assertNoProcesses fails when a process is left whose command line names dir.
func assertNoProcesses(t *testing.T, dir string) {
	t.Helper()
	entries, err := os.ReadDir("/proc")
	if err != nil {
		t.Fatal(err)
	}
	for _, e := range entries {
		line, err := os.ReadFile("/proc/" + e.Name() + "/cmdline")
		if err == nil && bytes.Contains(line, []byte(dir)) && !errors.Is(err, os.ErrNotExist) {
			t.Errorf("process %s is left over: %q", e.Name(), line)
		}
	}
}
