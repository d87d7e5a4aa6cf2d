package guestimage

import (
	"context"
	"io"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"testing"
	"time"

	"lifeboat/internal/qemu"
)

// cacheDir is where the tests keep images between runs: building one takes
// half a minute.
func cacheDir(t *testing.T) string {
	t.Helper()
	if dir := os.Getenv("LIFEBOAT_CACHE"); dir != "" {
		return dir
	}
	base, err := os.UserCacheDir()
	if err != nil {
		base = os.TempDir()
	}
	return filepath.Join(base, "lifeboat")
}

func testContext(t *testing.T, limit time.Duration) context.Context {
	t.Helper()
	ctx, cancel := context.WithTimeout(t.Context(), limit)
	t.Cleanup(cancel)
	return ctx
}

func testDisk(t *testing.T) string {
	t.Helper()
	path, err := DebianDisk(testContext(t, 10*time.Minute), cacheDir(t), func(s string) { t.Log(s) })
	if err != nil {
		t.Fatal(err)
	}
	private := filepath.Join(t.TempDir(), "disk.img")
	if out, err := exec.Command("cp", "--sparse=always", "--reflink=auto", path, private).CombinedOutput(); err != nil {
		t.Fatalf("%v: %s", err, out)
	}
	return private
}

func TestDebianDiskBootsAndDoesAsItIsTold(t *testing.T) {
	disk := testDisk(t)
	ctx := testContext(t, 3*time.Minute)
	accel, why := qemu.ChooseAccel(ctx, "")
	m, err := qemu.Start(ctx, qemu.Options{Accel: accel, MemoryMiB: 256, Disks: []qemu.Disk{{Path: disk}}})
	if err != nil {
		t.Fatal(err)
	}
	defer m.Close()
	if testing.Verbose() {
		m.Console().Tee(writerFunc(func(p []byte) (int, error) { return os.Stdout.Write(p) }))
	}
	shell, err := Login(ctx, m.Console())
	if err != nil {
		t.Fatal(err)
	}
	t.Logf("shell after %v (%v)", time.Since(m.Started()).Round(10*time.Millisecond), why)
	m.Console().Tee(nil)

	out, err := shell.Output(ctx, "printf 'a\\nb'; cat /etc/debian_version; uname -r")
	if err != nil || !strings.HasPrefix(out, "a\nb12.") {
		t.Fatalf("output %q, %v", out, err)
	}
	res, err := shell.Run(ctx, "echo out; echo err >&2 # don't\nexit 7")
	if err != nil || res != (Result{Output: "out\nerr\n", Status: 7}) {
		t.Fatalf("result %+v, %v", res, err)
	}
	if out, err := shell.Output(ctx, "lifeboat-guest heartbeat start /root/beats"); err != nil {
		t.Fatal(out, err)
	}
	sums, err := shell.Output(ctx, "lifeboat-guest files /root/files 3 100000")
	if err != nil || strings.Count(sums, "\n") != 3 {
		t.Fatalf("%q, %v", sums, err)
	}
	out, err = shell.Output(ctx, "echo '"+sums+"' > /root/sums; sed -i '/^$/d' /root/sums; sha256sum -c /root/sums")
	if err != nil || strings.Count(out, ": OK") != 3 {
		t.Fatalf("%q, %v", out, err)
	}
	out, err = shell.Output(ctx, "systemctl is-system-running --wait; systemctl --failed --no-legend; lifeboat-guest heartbeat stop; lifeboat-guest heartbeat check /root/beats")
	t.Log(out)
	if err != nil || !strings.Contains(out, `"failed":false`) || !strings.Contains(out, "whole beats") {
		t.Fatalf("%q, %v", out, err)
	}
	if err := m.Powerdown(testContext(t, 30*time.Second)); err != nil {
		t.Fatal(err, m.Console().Recent())
	}
}

type writerFunc func([]byte) (int, error)

func (f writerFunc) Write(p []byte) (int, error) { return f(p) }

var _ io.Writer = writerFunc(nil)
