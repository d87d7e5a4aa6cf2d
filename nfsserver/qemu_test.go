package nfsserver

import (
	"context"
	"errors"
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"testing"
	"time"

	"lifeboat/disk/disktest"
)

// These tests let QEMU's nfs: driver (libnfs) and libnfs's own tools work on
// the server. libnfs finds the ports through the portmapper on port 111, so the
// test runs itself again in a network namespace of its own, where that port is
// free and nobody else can see the server.

const insideEnv = "LIFEBOAT_NFS_NAMESPACE"

// inNamespace reports whether the test runs inside; outside it runs itself
// there and passes on the outcome.
func inNamespace(t *testing.T, tools ...string) bool {
	t.Helper()
	for _, tool := range append(tools, "unshare", "ip") {
		if _, err := exec.LookPath(tool); err != nil {
			t.Fatalf("%s is missing: install qemu-utils, qemu-block-extra, libnfs-utils, util-linux and iproute2 (%v)", tool, err)
		}
	}
	if os.Getenv(insideEnv) != "" {
		return true
	}
	self, err := os.Executable()
	must(t, err)
	ctx, cancel := context.WithTimeout(t.Context(), time.Minute)
	defer cancel()
	args := []string{"--net"}
	if os.Geteuid() != 0 {
		args = append(args, "--user", "--map-root-user")
	}
	args = append(args, "sh", "-c", `ip link set lo up && exec "$0" "$@"`, self, "-test.run=^"+t.Name()+"$", "-test.v")
	cmd := exec.CommandContext(ctx, "unshare", args...)
	cmd.Env = append(os.Environ(), insideEnv+"=1")
	out, err := cmd.CombinedOutput()
	if err != nil {
		t.Fatalf("in a network namespace: %v\n%s", err, out)
	}
	if !strings.Contains(string(out), "--- PASS: "+t.Name()) {
		t.Fatalf("the test did not run inside:\n%s", out)
	}
	return false
}

// tool runs a command to its end.
func tool(t *testing.T, name string, args ...string) string {
	t.Helper()
	ctx, cancel := context.WithTimeout(t.Context(), 40*time.Second)
	defer cancel()
	out, err := exec.CommandContext(ctx, name, args...).CombinedOutput()
	if err != nil {
		var exit *exec.ExitError
		if errors.As(err, &exit) && ctx.Err() != nil {
			err = ctx.Err()
		}
		t.Fatalf("%s %s: %v\n%s", name, strings.Join(args, " "), err, out)
	}
	return string(out)
}

func withPortmap(o *Options) { o.PortmapAddr = "127.0.0.1:111" }

func TestQEMU(t *testing.T) {
	if !inNamespace(t, "qemu-img", "qemu-io") {
		return
	}
	const size = 64 << 20
	mem := disktest.Random(2, size, 0.3)
	w := newWorld(t, mem, withPortmap)
	url := "nfs://127.0.0.1" + ExportPath + "/" + diskPath

	if out := tool(t, "qemu-img", "info", "--output=json", "-f", "raw", url); !strings.Contains(out, fmt.Sprintf(`"virtual-size": %d`, size)) {
		t.Fatalf("qemu-img info: %s", out)
	}
	local := filepath.Join(t.TempDir(), "local.raw")
	must(t, os.WriteFile(local, mem.Bytes(), 0o600))
	tool(t, "qemu-img", "compare", "-f", "raw", "-F", "raw", url, local)

	tool(t, "qemu-io", "-f", "raw", "-t", "none",
		"-c", "write -P 0x5a 1M 3M", "-c", "write -P 0x33 65024 1024", "-c", "flush",
		"-c", "read -P 0x5a 1M 3M", "-c", "read -P 0x33 65024 1024",
		"-c", "aio_write -P 0x11 8M 1M", "-c", "aio_write -P 0x12 9M 1M", "-c", "aio_flush",
		"-c", "read -P 0x11 8M 1M", "-c", "read -P 0x12 9M 1M", "-c", "flush", url)
	durable := mem.Durable().Bytes()
	for off, b := range map[int]byte{1 << 20: 0x5a, 4<<20 - 1: 0x5a, 65024: 0x33, 66047: 0x33, 8 << 20: 0x11, 10<<20 - 1: 0x12} {
		want(t, fmt.Sprintf("durable byte at %d", off), durable[off], b)
	}

	// An image that QEMU creates on the datastore: an ordinary file.
	tool(t, "qemu-img", "convert", "-f", "raw", "-O", "raw", url, "nfs://127.0.0.1"+ExportPath+"/s1/vm/copy.raw")
	made, err := os.ReadFile(filepath.Join(w.root, "s1/vm/copy.raw"))
	must(t, err)
	if string(made) != string(mem.Bytes()) {
		t.Fatal("qemu-img convert onto the datastore: the copy differs")
	}
}

func TestLibnfs(t *testing.T) {
	if !inNamespace(t, "nfs-ls", "nfs-cat", "nfs-cp") {
		return
	}
	w := newWorld(t, disktest.Random(3, 8<<20, 0.5), withPortmap)
	must(t, os.WriteFile(filepath.Join(w.root, "s1/hello.txt"), []byte("hello from the host\n"), 0o644))
	base := "nfs://127.0.0.1" + ExportPath + "/s1"
	if out := tool(t, "nfs-ls", base); !strings.Contains(out, "hello.txt") || !strings.Contains(out, " vm") {
		t.Fatalf("nfs-ls: %s", out)
	}
	want(t, "nfs-cat", tool(t, "nfs-cat", base+"/hello.txt"), "hello from the host\n")
	local := filepath.Join(t.TempDir(), "f")
	content := strings.Repeat("0123456789abcdef", 200_000)
	must(t, os.WriteFile(local, []byte(content), 0o600))
	tool(t, "nfs-cp", local, base+"/vm/copied")
	got, err := os.ReadFile(filepath.Join(w.root, "s1/vm/copied"))
	must(t, err)
	want(t, "nfs-cp", string(got) == content, true)
	if out := tool(t, "nfs-ls", "nfs://127.0.0.1"+ExportPath); !strings.Contains(out, "s1") {
		t.Fatalf("nfs-ls of the export: %s", out)
	}
}
