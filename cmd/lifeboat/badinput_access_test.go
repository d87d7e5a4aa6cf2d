package main

import (
	"errors"
	"net"
	"os"
	"path/filepath"
	"strings"
	"syscall"
	"testing"

	"golang.org/x/sys/unix"

	"lifeboat/nfsserver/nfstest"
)

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
	if err := os.MkdirAll(w.path("state"), 0o700); err != nil {
		t.Fatal(err)
	}
	w.chmod(0, "state")
	denied([]string{w.path("state"), "LIFEBOAT_STATE"}, quiet("publish", "vm@latest")...)
	w.chmod(0o700, "state")

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
