package main

import (
	"bufio"
	"encoding/json"
	"errors"
	"io"
	"net/http"
	"os"
	"path/filepath"
	"testing"
	"time"

	"golang.org/x/sys/unix"

	"lifeboat/guestfs/guestfstest"
)

// TestMount looks at all restore points through FUSE and WebDAV, as they come
// and after the program was killed.
func TestMount(t *testing.T) {
	guestfstest.NeedMount(t, "ext4", "mke2fs")
	w := newWorkspace(t)
	image := guestfstest.NewImage(t, 32<<20)
	tree := t.TempDir()
	write := func(name, content string) {
		t.Helper()
		if err := os.MkdirAll(filepath.Dir(filepath.Join(tree, name)), 0o755); err != nil {
			t.Fatal(err)
		}
		if err := os.WriteFile(filepath.Join(tree, name), []byte(content), 0o644); err != nil {
			t.Fatal(err)
		}
	}
	write("etc/os-release", "NAME=Test\nPRETTY_NAME=Test\n")
	write("etc/fstab", "UUID=11111111-2222-3333-4444-555555555555 / ext4 defaults 0 1\n")
	backup := func(content string) string {
		t.Helper()
		write("file", content)
		guestfstest.Run(t, "mke2fs", "-q", "-F", "-t", "ext4", "-U", "11111111-2222-3333-4444-555555555555", "-d", tree, image)
		var pt struct{ ID, Time string }
		if err := json.Unmarshal(w.run("backup", "disk", "--vm", "web/1", "--format", "raw", image), &pt); err != nil {
			t.Fatal(err)
		}
		at, err := time.Parse(time.RFC3339Nano, pt.Time)
		if err != nil {
			t.Fatal(err)
		}
		return at.UTC().Format("2006-01-02T15-04-05Z")
	}
	first := backup("one")

	dir := t.TempDir()
	start := func() (*publisher, string) {
		t.Helper()
		p := &publisher{cmd: w.command("--json", "mount", dir, "--webdav", "127.0.0.1:0")}
		p.cmd.Stderr = &p.stderr
		out, err := p.cmd.StdoutPipe()
		if err != nil {
			t.Fatal(err)
		}
		if err := p.cmd.Start(); err != nil {
			t.Fatal(err)
		}
		t.Cleanup(func() {
			p.kill()
			_ = unix.Unmount(dir, unix.MNT_DETACH)
		})
		line, _ := bufio.NewReader(out).ReadBytes('\n')
		var ready struct{ Mount, WebDAV string }
		if err := json.Unmarshal(line, &ready); err != nil || ready.Mount != dir {
			p.kill()
			t.Fatalf("it printed %q: %v\n%s", line, err, p.stderr.Bytes())
		}
		return p, ready.WebDAV
	}
	read := func(point, path, want string) {
		t.Helper()
		if b, err := os.ReadFile(filepath.Join(dir, "web_1", point, path)); err != nil || string(b) != want {
			t.Errorf("%s of %s: %q, %v", path, point, b, err)
		}
	}
	p, url := start()
	read(first, "files/disk0/file", "one")
	read(first, "files/guest/file", "one")
	guestfstest.Run(t, "cmp", filepath.Join(dir, "web_1", first, "disks/disk0.raw"), image)
	resp, err := http.Get(url + "web_1/" + first + "/files/guest/file")
	if err != nil {
		t.Fatal(err)
	}
	b, err := io.ReadAll(resp.Body)
	resp.Body.Close()
	if err != nil || string(b) != "one" {
		t.Errorf("over WebDAV: %q, %v", b, err)
	}
	second := backup("two")
	deadline := time.Now().Add(30 * time.Second)
	for { // the list of points is kept for a moment
		if _, err := os.Stat(filepath.Join(dir, "web_1", second)); err == nil || time.Now().After(deadline) {
			break
		}
		time.Sleep(50 * time.Millisecond)
	}
	if second != first {
		read(second, "files/guest/file", "two")
		read(first, "files/guest/file", "one")
	}

	p.kill()
	if _, err := os.Stat(dir); !errors.Is(err, unix.ENOTCONN) && !errors.Is(err, unix.ECONNABORTED) {
		t.Fatalf("after the kill: %v", err)
	}
	p, _ = start()
	read(first, "files/disk0/file", "one")
	if code := p.interrupt(); code != 0 && code != exitInterrupted {
		t.Errorf("interrupted it ends with %d: %s", code, p.stderr.Bytes())
	}
	if entries, err := os.ReadDir(dir); err != nil || len(entries) != 0 {
		t.Errorf("something is left of the mount: %v, %v", entries, err)
	}
}

// TestMountRefused: usage that cannot be meant.
func TestMountRefused(t *testing.T) {
	w := newWorkspace(t)
	for _, args := range [][]string{{}, {"--webdav", "nonsense"}, {"--webdav", "192.0.2.1:80"}, {"/x", "--tls-cert", "a"}, {"a", "b"}} {
		cmd := w.command(append([]string{"mount"}, args...)...)
		_ = cmd.Run()
		if code := cmd.ProcessState.ExitCode(); code != exitUsage {
			t.Errorf("mount %q: exit code %d", args, code)
		}
	}
	cmd := w.command("mount", w.path("none"))
	out, _ := cmd.CombinedOutput()
	if cmd.ProcessState.ExitCode() != exitFailed {
		t.Errorf("a directory that is not there: %s", out)
	}
}
