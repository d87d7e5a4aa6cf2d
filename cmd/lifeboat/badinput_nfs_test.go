package main

import (
	"bytes"
	"encoding/json"
	"errors"
	"math/rand/v2"
	"net"
	"os"
	"path/filepath"
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

// nobody is a command of somebody without rights: another user for root, and
// for others themselves. The program must be where they may run it.
func (w workspace) nobody(args ...string) outcome {
	w.t.Helper()
	cmd := w.command(args...)
	cmd.Path = w.path("program")
	if os.Geteuid() == 0 {
		cmd.SysProcAttr = &syscall.SysProcAttr{Credential: &syscall.Credential{Uid: 65534, Gid: 65534}}
	}
	return w.finish(cmd)
}

// forNobody lets everybody come to w's directory, and puts the program there.
func (w workspace) forNobody() {
	w.t.Helper()
	program, err := os.ReadFile(os.Args[0])
	if err != nil {
		w.t.Fatal(err)
	}
	if err := errors.Join(os.Chmod(filepath.Dir(w.dir), 0o755), os.WriteFile(w.path("program"), program, 0o755)); err != nil {
		w.t.Fatal(err)
	}
}

func (w workspace) chmod(mode os.FileMode, names ...string) {
	w.t.Helper()
	for _, name := range names {
		if err := os.Chmod(w.path(name), mode); err != nil {
			w.t.Fatal(err)
		}
	}
}

func TestBadPermissions(t *testing.T) {
	w := withPoint(t)
	w.forNobody()
	before := w.objects()
	denied := func(words []string, args ...string) {
		t.Helper()
		w.expect(w.nobody(args...), exitFailed, append(words, "permission denied"))
	}
	w.chmod(0, "repo")
	denied([]string{w.path("repo")}, "points")
	denied([]string{w.path("repo")}, "init")

	// What may be read but not written.
	err := filepath.WalkDir(w.path("repo"), func(name string, e os.DirEntry, err error) error {
		if err == nil && e.IsDir() {
			return os.Chmod(name, 0o555)
		}
		return errors.Join(err, os.Chmod(name, 0o444))
	})
	if err != nil {
		t.Fatal(err)
	}
	w.chmod(0o755, ".")
	w.chmod(0o644, "disk")
	if got := w.nobody("verify"); got.code != 0 {
		t.Errorf("verify of a repository that may be read: %+v", got)
	}
	denied([]string{"can be read but not written"}, "backup", "disk", "--vm", "vm", "disk")
	denied(nil, "forget", "vm@latest")
	w.chmod(0, "disk")
	denied([]string{"disk"}, "backup", "disk", "--vm", "vm", "disk")
	denied([]string{w.path("state"), "LIFEBOAT_STATE"}, quiet("publish", "vm@latest")...)

	err = filepath.WalkDir(w.path("repo"), func(name string, e os.DirEntry, err error) error { return errors.Join(err, os.Chmod(name, 0o755)) })
	if err != nil {
		t.Fatal(err)
	}
	w.chmod(0o644, "disk")
	w.untouched(before)
}

// TestBadPortOfRoot: who may not have port 111 hears why.
func TestBadPortOfRoot(t *testing.T) {
	if os.Geteuid() != 0 {
		t.Skip("only root can become somebody who may not use port 111 in a network namespace")
	}
	if !inNamespace(t) {
		return
	}
	w := withPoint(t)
	w.forNobody()
	if err := filepath.WalkDir(w.path("repo"), func(name string, _ os.DirEntry, err error) error { return errors.Join(err, os.Chmod(name, 0o755)) }); err != nil {
		t.Fatal(err)
	}
	if err := errors.Join(os.Mkdir(w.path("state"), 0o700), os.Chown(w.path("state"), 65534, 65534)); err != nil {
		t.Fatal(err)
	}
	got := w.nobody("publish", "vm@latest", "--nfs-port", "0", "--mount-port", "0")
	w.expect(got, exitFailed, []string{"127.0.0.1:111", "permission denied", "root or CAP_NET_BIND_SERVICE"})
}

// secondNetwork makes 192.0.2.0/24 (RFC 5737: nobody's) this host's, inside a
// network namespace: clients that are not loopback.
func secondNetwork(t *testing.T) {
	t.Helper()
	fd, err := unix.Socket(unix.AF_INET, unix.SOCK_DGRAM|unix.SOCK_CLOEXEC, 0)
	if err != nil {
		t.Fatal(err)
	}
	defer unix.Close(fd)
	req, err := unix.NewIfreq("lo:1")
	if err != nil {
		t.Fatal(err)
	}
	if err := req.SetInet4Addr([]byte{192, 0, 2, 1}); err != nil { // a class C address: /24
		t.Fatal(err)
	}
	if err := unix.IoctlIfreq(fd, unix.SIOCSIFADDR, req); err != nil {
		t.Fatal(err)
	}
}

// dialFrom connects with an address of the client's own choice.
func dialFrom(t *testing.T, client, server string) *nfstest.Client {
	t.Helper()
	d := net.Dialer{LocalAddr: &net.TCPAddr{IP: net.ParseIP(client)}}
	nc, err := d.DialContext(t.Context(), "tcp", server)
	if err != nil {
		t.Fatal(err)
	}
	c := nfstest.NewClient(nc)
	t.Cleanup(func() { c.Close() })
	return c
}

// TestBadClient: whoever is not on the list may neither mount nor use a handle,
// wherever it comes from.
func TestBadClient(t *testing.T) {
	if !inNamespace(t) {
		return
	}
	secondNetwork(t)
	w := withPoint(t)
	p := w.publish("vm@latest", "--session", "s", "--listen", "192.0.2.1", "--allow", "192.0.2.7", "--nfs-port", "0", "--mount-port", "0", "--portmap", "off")
	folder := p.ready.Folders[0]
	dir, err := dialFrom(t, "192.0.2.7", p.ready.Mount).Mount(folder.Path)
	if err != nil {
		t.Fatalf("the client that is allowed: %v", err)
	}
	friend := dialFrom(t, "192.0.2.7", p.ready.NFS)
	h, _, err := friend.Lookup(dir, folder.Disks[0])
	if err != nil {
		t.Fatal(err)
	}
	for _, stranger := range []string{"192.0.2.8", "192.0.2.1"} {
		if _, err := dialFrom(t, stranger, p.ready.Mount).Mount(folder.Path); !errors.Is(err, nfstest.MountStatus(13)) {
			t.Errorf("MNT from %s: %v, want MNT3ERR_ACCES", stranger, err)
		}
		c := dialFrom(t, stranger, p.ready.NFS)
		_, errGetattr := c.Getattr(h)
		_, errRead := c.Read(h, 0, 4096)
		_, errWrite := c.Write(h, 0, make([]byte, 4096), nfstest.FileSync)
		_, _, errLookup := c.Lookup(dir, folder.VMX)
		_, errRemove := c.Remove(dir, folder.Disks[0])
		for op, err := range map[string]error{"GETATTR": errGetattr, "READ": errRead, "WRITE": errWrite, "LOOKUP": errLookup, "REMOVE": errRemove} {
			if !errors.Is(err, nfstest.Acces) {
				t.Errorf("%s from %s: %v, want NFS3ERR_ACCES", op, stranger, err)
			}
		}
	}
	backup, err := os.ReadFile(w.path("disk"))
	if err != nil {
		t.Fatal(err)
	}
	holds(t, friend, h, -1, backup)
	if code := p.interrupt(); code != 0 {
		t.Errorf("publish ended with exit code %d", code)
	}
	if said := p.stderr.String(); !strings.Contains(said, "not on the list of allowed addresses") || !strings.Contains(said, "client=192.0.2.8") {
		t.Errorf("the log does not name the client that was refused: %s", said)
	}
}
