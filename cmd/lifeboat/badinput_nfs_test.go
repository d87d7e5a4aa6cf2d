package main

import (
	"bytes"
	"encoding/json"
	"errors"
	"math/rand/v2"
	"net"
	"os"
	"strconv"
	"strings"
	"syscall"
	"testing"

	"golang.org/x/sys/unix"

	"lifeboat/nfsserver/nfstest"
)

// noise is reproducible and cannot be compressed.
func noise(size int, seed byte) []byte {
	b := make([]byte, size)
	_, _ = rand.NewChaCha8([32]byte{seed}).Read(b)
	return b
}

// quietPorts make publishes that get in nobody's way.
var quietPorts = []string{"--nfs-port", "0", "--mount-port", "0", "--portmap", "off"}

func quiet(args ...string) []string { return append(args, quietPorts...) }

// withPoint backs a disk of 16 MiB up as vm.
func withPoint(t *testing.T) workspace {
	w := newWorkspace(t)
	w.random("disk", 16<<20)
	w.run("backup", "disk", "--vm", "vm", "disk")
	return w
}

const pieceSize = 64 << 10

// fillOverlay writes pieces, each of its own content and durable, until one is refused,
// and returns how many were acknowledged.
func fillOverlay(t *testing.T, c *nfstest.Client, h nfstest.Handle, from int) (n int, err error) {
	t.Helper()
	for n = from; n < 16<<20/pieceSize; n++ {
		if _, err := c.Write(h, uint64(n)*pieceSize, noise(pieceSize, byte(n+1)), nfstest.FileSync); err != nil {
			return n, err
		}
	}
	return n, nil
}

// holds checks that the disk is n pieces of fillOverlay and then its backup.
func holds(t *testing.T, c *nfstest.Client, h nfstest.Handle, n int, backup []byte) {
	t.Helper()
	for i := range len(backup) / pieceSize {
		r, err := c.Read(h, uint64(i)*pieceSize, pieceSize)
		if err != nil {
			t.Fatalf("piece %d of %d written: %v", i, n, err)
		}
		want := backup[i*pieceSize:][:pieceSize]
		if i < n {
			want = noise(pieceSize, byte(i+1))
		}
		// The refused write may have happened or not, as a whole or in part.
		if !bytes.Equal(r.Data, want) && i != n {
			t.Fatalf("piece %d is not what was acknowledged (%d pieces were)", i, n)
		}
	}
}

// TestBadFullState: when the state directory is full, writes are refused before
// they are acknowledged, what was acknowledged stays, reads go on, and so does
// writing when there is room again.
func TestBadFullState(t *testing.T) {
	if !withMounts(t) {
		return
	}
	w := withPoint(t)
	backup, err := os.ReadFile(w.path("disk"))
	if err != nil {
		t.Fatal(err)
	}
	w.volume("state", "4m")
	p := w.publish(quiet("vm@latest", "--session", "full")...)
	c, h, err := p.dial()
	if err != nil {
		t.Fatal(err)
	}
	defer c.Close()
	n, err := fillOverlay(t, c, h, 0)
	if !errors.Is(err, nfstest.NoSpc) || n == 0 {
		t.Fatalf("after %d writes: %v, want NFS3ERR_NOSPC", n, err)
	}
	if _, err := fillOverlay(t, c, h, n); !errors.Is(err, nfstest.NoSpc) {
		t.Fatalf("the same again: %v, want NFS3ERR_NOSPC", err)
	}
	holds(t, c, h, n, backup)
	if err := c.Null(); err != nil {
		t.Fatal(err)
	}

	w.remount("state", "64m", 0)
	all, err := fillOverlay(t, c, h, n)
	if err != nil {
		t.Fatalf("with room again, after %d writes: %v\n%s", all, err, p.stderr.Bytes())
	}
	holds(t, c, h, all, backup)
	p.kill()
	p = w.publish(quiet("--session", "full")...)
	if c, h, err = p.dial(); err != nil {
		t.Fatal(err)
	}
	defer c.Close()
	holds(t, c, h, all, backup)
	if code := p.interrupt(); code != 0 {
		t.Errorf("publish ended with exit code %d: %s", code, p.stderr.Bytes())
	}
	w.reads("vm@latest", "disk")
}

// TestBadFullStart: a session for which there is no room is refused, and can be
// started when there is some.
func TestBadFullStart(t *testing.T) {
	if !withMounts(t) {
		return
	}
	w := withPoint(t)
	w.volume("state", "4m")
	w.run("session", "ls")
	if err := os.WriteFile(w.path("state/filler"), make([]byte, 4<<20), 0o600); !errors.Is(err, syscall.ENOSPC) {
		t.Fatalf("filling the volume: %v", err)
	}
	w.fails(exitFailed, []string{"no space left on device", w.path("state")}, quiet("publish", "vm@latest", "--session", "s")...)
	if err := os.Remove(w.path("state/filler")); err != nil {
		t.Fatal(err)
	}
	w.publish(quiet("vm@latest", "--session", "s")...).interrupt()
}

func TestBadReadOnlyState(t *testing.T) {
	if !withMounts(t) {
		return
	}
	w := withPoint(t)
	w.volume("state", "16m")
	w.publish(quiet("vm@latest", "--session", "s")...).interrupt()
	w.remount("state", "16m", unix.MS_RDONLY)
	for _, args := range [][]string{
		quiet("publish", "--session", "s"), quiet("publish", "vm@latest"), {"session", "keep", "s"}, {"session", "discard", "s"},
	} {
		w.fails(exitFailed, []string{"read-only file system", w.path("state"), "LIFEBOAT_STATE"}, args...)
	}
	w.remount("state", "16m", 0)
	w.publish(quiet("--session", "s")...).interrupt()
	if got := w.sessions(); len(got) != 1 || got[0] != "s" {
		t.Errorf("sessions %q, want s", got)
	}
}

func (w workspace) sessions() (names []string) {
	w.t.Helper()
	var list []struct {
		Name string `json:"session"`
	}
	if err := json.Unmarshal(w.run("session", "ls"), &list); err != nil {
		w.t.Fatal(err)
	}
	for _, s := range list {
		names = append(names, s.Name)
	}
	return names
}

// TestBadPorts takes the ports away, one after the other. A session that was
// named can be published afterwards; one that was not is gone.
func TestBadPorts(t *testing.T) {
	w := withPoint(t)
	l, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	defer l.Close()
	taken := l.Addr().String()
	_, port, _ := net.SplitHostPort(taken)
	for _, flag := range [][]string{{"--nfs-port", port}, {"--mount-port", port}, {"--portmap", taken}} {
		words := []string{taken, "address already in use", "another server has this port"}
		w.fails(exitFailed, words, append(quiet("publish", "vm@latest"), flag...)...)
		w.fails(exitFailed, words, append(quiet("publish", "vm@latest", "--session", "named"), flag...)...)
	}
	if got := w.sessions(); len(got) != 1 || got[0] != "named" {
		t.Errorf("sessions %q, want the named one", got)
	}
	w.writeOnce("vm@latest", "--session", "named")
	// A name that was made up is no reason to drop what was written.
	written := w.writeOnce("vm@latest")
	w.fails(exitFailed, []string{"address already in use"}, append(quiet("publish", "--session", written), "--nfs-port", port)...)
	if got := w.sessions(); len(got) != 2 {
		t.Errorf("sessions %q, want %q and the named one", got, written)
	}
}

// writeOnce publishes, writes, and ends; it returns the session's name.
func (w workspace) writeOnce(args ...string) string {
	w.t.Helper()
	p := w.publish(quiet(args...)...)
	c, h, err := p.dial()
	if err != nil {
		w.t.Fatal(err)
	}
	defer c.Close()
	if _, err := c.Write(h, 0, []byte("written"), nfstest.FileSync); err != nil {
		w.t.Error(err)
	}
	if code := p.interrupt(); code != 0 {
		w.t.Errorf("publish ended with exit code %d: %s", code, p.stderr.Bytes())
	}
	return strings.Split(p.ready.Folders[0].Path, "/")[2]
}

// TestBadTwoPublishes: one process has a session, and the others say which.
func TestBadTwoPublishes(t *testing.T) {
	w := withPoint(t)
	p := w.publish(quiet("vm@latest", "--session", "one")...)
	holder := "process " + strconv.Itoa(p.cmd.Process.Pid)
	for _, args := range [][]string{
		quiet("publish", "--session", "one"), quiet("publish", "vm@latest", "--session", "one"), {"session", "keep", "one"}, {"session", "discard", "one"},
	} {
		w.fails(exitFailed, []string{"one", "in use", holder}, args...)
	}
	c, h, err := p.dial()
	if err != nil {
		t.Fatal(err)
	}
	defer c.Close()
	if _, err := c.Write(h, 0, []byte("still here"), nfstest.FileSync); err != nil {
		t.Error(err)
	}
	p.kill() // no process, no lock
	w.publish(quiet("--session", "one")...).interrupt()
}
