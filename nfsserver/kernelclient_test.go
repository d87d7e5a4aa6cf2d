package nfsserver_test

import (
	"context"
	"crypto/sha256"
	"encoding/hex"
	"errors"
	"fmt"
	"io"
	"log/slog"
	"math/rand/v2"
	"net/netip"
	"os"
	"path/filepath"
	"strconv"
	"strings"
	"syscall"
	"testing"
	"time"

	"lifeboat/disk"
	"lifeboat/disk/disktest"
	"lifeboat/internal/guestimage"
	"lifeboat/internal/qemu"
	"lifeboat/nfsserver"
	"lifeboat/nfsserver/datastore"
)

// TestKernelClient lets a real Linux kernel mount the server and use it: a
// small virtual machine boots, mounts the session twice (two clients that know
// nothing of each other), and a test agent in it does what programs do. The
// scenarios check their results themselves, in the guest; what the host can
// see of them is checked here as well.
func TestKernelClient(t *testing.T) {
	if testing.Short() {
		t.Skip("boots a virtual machine: not with -short")
	}
	ctx, cancel := context.WithTimeout(t.Context(), 8*time.Minute)
	defer cancel()
	k := newKernelWorld(t, ctx)

	t.Run("Mount", k.mountTest)
	for _, scenario := range []string{
		"files /a", "names /a", "attributes /a", "permissions /a", "links /a",
		"open-unlink /a", "open-rename /a", "append /a 100", "list-remove /a 400",
		"race /a /b 150", "sparse /a", "holes /a/holes", "mapped /a/mapped",
		"list /a/big f 20000", "list /b/big f 20000",
		"random /a/random 11 6000000 300", "verify /b/random 11 6000000 300",
	} {
		t.Run(strings.Fields(scenario)[0], func(t *testing.T) { k.agent(t, scenario) })
	}
	t.Run("TwoClients", k.twoClients)
	t.Run("VirtualDisk", k.virtualDisk)
	t.Run("HugeDisk", k.hugeDisk)
	t.Run("Restart", k.restart)
	t.Run("Remount", k.remount)
}

const (
	kernelDiskSize = 8 << 20
	hugeDiskSize   = 62 << 40 // the largest that vSphere knows
	kernelEntries  = 20_000
)

// kernelWorld is a server, its tree on the host, and the machine that uses it.
type kernelWorld struct {
	ctx   context.Context
	root  string
	disk  *disktest.Memory
	huge  *disktest.Memory
	port  uint16
	shell *guestimage.Shell
	stop  func() // the server that runs now
}

func newKernelWorld(t *testing.T, ctx context.Context) *kernelWorld {
	k := &kernelWorld{
		ctx: ctx, root: t.TempDir(),
		disk: disktest.NewMemory(kernelDiskSize), huge: disktest.NewMemory(hugeDiskSize),
	}
	for _, dir := range []string{"s1/vm", "s1/big", "other"} {
		noError(t, os.MkdirAll(filepath.Join(k.root, dir), 0o755))
	}
	for _, name := range []string{"vm", "huge"} {
		noError(t, os.WriteFile(filepath.Join(k.root, "s1/vm", name+"-flat.vmdk"), nil, 0o600))
	}
	for i := range kernelEntries {
		f, err := os.Create(filepath.Join(k.root, "s1/big", "f"+strconv.Itoa(i)))
		noError(t, err)
		f.Close()
	}
	k.start(t)
	t.Cleanup(func() { k.stop() })

	cache := os.Getenv("LIFEBOAT_CACHE")
	if cache == "" {
		base, err := os.UserCacheDir()
		if err != nil {
			base = os.TempDir()
		}
		cache = filepath.Join(base, "lifeboat")
	}
	accel, why := qemu.ChooseAccel(ctx, "")
	if why != nil {
		t.Log(why)
	}
	m, shell, err := guestimage.StartNFSClient(ctx, cache, accel, func(s string) { t.Log(s) })
	noError(t, err)
	t.Cleanup(func() { noError(t, m.Close()) })
	k.shell = shell
	k.mount(t, nfsserver.ExportPath+"/s1", "/a")
	k.mount(t, nfsserver.ExportPath+"/s1", "/b")
	return k
}

// start starts a server on the tree: the first on any port, later ones on the
// same.
func (k *kernelWorld) start(t *testing.T) {
	t.Helper()
	tree, err := datastore.Open(datastore.Options{Root: k.root, FSID: 0x11febaa7, Key: [32]byte{1, 2, 3}})
	noError(t, err)
	for name, dev := range map[string]disk.Device{"vm": k.disk, "huge": k.huge} {
		noError(t, tree.Bind("s1/vm/"+name+"-flat.vmdk", dev))
	}
	noError(t, tree.Attach("s1"))
	srv := k.listen(t, tree)
	ctx, cancel := context.WithCancel(k.ctx)
	ended := make(chan error, 1)
	go func() { ended <- srv.Run(ctx) }()
	k.stop = func() {
		cancel()
		if err := <-ended; err != nil {
			t.Errorf("the server: %v", err)
		}
		tree.Close()
		k.stop = func() {}
	}
}

// listen makes a server on the port that the clients know; the first time it
// looks for one. A port that the system chooses will not do: while the server is
// away, any program's outgoing connection could be given it (also the client's
// own, which then connects to itself), and the server could not come back.
func (k *kernelWorld) listen(t *testing.T, tree *datastore.Tree) *nfsserver.Server {
	t.Helper()
	for first := k.port == 0; ; {
		if first {
			k.port = uint16(20000 + rand.IntN(10000)) // below net.ipv4.ip_local_port_range
		}
		srv, err := nfsserver.New(nfsserver.Options{
			Tree: tree, NFSAddr: netip.AddrPortFrom(netip.AddrFrom4([4]byte{127, 0, 0, 1}), k.port).String(),
			Logger: slog.New(slog.NewTextHandler(testWriter{t}, nil)),
		})
		noError(t, err)
		err = srv.Listen(k.ctx)
		if first && errors.Is(err, syscall.EADDRINUSE) {
			continue
		}
		noError(t, err)
		return srv
	}
}

// testWriter passes the server's log on; what comes after the end of the test
// has nowhere to go.
type testWriter struct{ t *testing.T }

func (w testWriter) Write(p []byte) (int, error) {
	if w.t.Context().Err() == nil {
		w.t.Log(strings.TrimSpace(string(p)))
	}
	return len(p), nil
}

func noError(t *testing.T, err error) {
	t.Helper()
	if err != nil {
		t.Fatal(err)
	}
}

func (k *kernelWorld) run(t *testing.T, command string) string {
	t.Helper()
	out, err := k.shell.Output(k.ctx, command)
	noError(t, err)
	return out
}

// agent runs one of the agent's scenarios.
func (k *kernelWorld) agent(t *testing.T, args string) {
	t.Helper()
	start := time.Now()
	out := k.run(t, "agent "+args)
	t.Logf("%v %s", time.Since(start).Round(time.Millisecond), strings.TrimSpace(out))
}

func (k *kernelWorld) mountCommand(export, dir string) string {
	return fmt.Sprintf("agent mount 10.0.2.2:%s %s %s", export, dir, guestimage.MountOptions(int(k.port), int(k.port)))
}

func (k *kernelWorld) mount(t *testing.T, export, dir string) {
	t.Helper()
	k.run(t, k.mountCommand(export, dir))
}

// refused runs a command that must fail with the text.
func (k *kernelWorld) refused(t *testing.T, command, text string) {
	t.Helper()
	res, err := k.shell.Run(k.ctx, command)
	noError(t, err)
	if res.Status == 0 || !strings.Contains(res.Output, text) {
		t.Errorf("%s: status %d, %q; want it to fail with %q", command, res.Status, res.Output, text)
	}
}

func (k *kernelWorld) mountTest(t *testing.T) {
	k.mount(t, nfsserver.ExportPath, "/root")
	if got := k.run(t, "ls -1A /root"); got != "s1\n" {
		t.Errorf("the root lists %q, want only the attached session", got)
	}
	k.refused(t, "touch /root/x", "Read-only file system")
	k.refused(t, "mkdir /root/x", "Read-only file system")
	k.refused(t, "rm -r /root/s1/none", "No such file")
	k.refused(t, k.mountCommand(nfsserver.ExportPath+"/other", "/x"), "no such file")
	k.refused(t, k.mountCommand(nfsserver.ExportPath+"/none", "/x"), "no such file")
	k.refused(t, k.mountCommand("/etc", "/x"), "") // whatever the error: not mounted
	k.mount(t, nfsserver.ExportPath+"/s1/vm", "/vm")
	if got := k.run(t, "ls -1A /vm"); got != "huge-flat.vmdk\nvm-flat.vmdk\n" {
		t.Errorf("the folder lists %q", got)
	}
	k.run(t, "agent umount /vm; agent umount /root")
}

// twoClients: what one client and the host did the other client sees.
func (k *kernelWorld) twoClients(t *testing.T) {
	k.run(t, "mkdir /a/two; echo one > /a/two/x; ln -s x /a/two/l; sync")
	host := filepath.Join(k.root, "s1/two/x")
	b, err := os.ReadFile(host)
	if err != nil || string(b) != "one\n" {
		t.Errorf("the host reads %q, %v", b, err)
	}
	var st syscall.Stat_t
	noError(t, syscall.Stat(host, &st))
	if got, want := strings.TrimSpace(k.run(t, "stat -c %i /b/two/x")), strconv.FormatUint(st.Ino, 10); got != want {
		t.Errorf("fileid %s, want %s", got, want)
	}
	if got := k.run(t, "cat /b/two/l; rm /b/two/x; mv /b/two /b/three; readlink /b/three/l"); got != "one\nx\n" {
		t.Errorf("the other client sees %q", got)
	}
	// The first client's attribute cache may hold what was for a minute; a
	// lookup of a name that it does not know may not.
	k.run(t, "ls /a/three/ && rm /a/three/l && rmdir /a/three")
	if _, err := os.Stat(filepath.Join(k.root, "s1/three")); !os.IsNotExist(err) {
		t.Errorf("the host still has the directory: %v", err)
	}
}

// virtualDisk: random writes to a disk bound to a device, read back by the
// other client and by the device itself.
func (k *kernelWorld) virtualDisk(t *testing.T) {
	args := fmt.Sprintf("vm/vm-flat.vmdk 5 %d 200", kernelDiskSize)
	k.agent(t, "disk /a/"+args)
	k.agent(t, "verify /b/"+args)
	sum := sha256.New()
	_, err := io.Copy(sum, io.NewSectionReader(k.disk, 0, kernelDiskSize))
	noError(t, err)
	want := hex.EncodeToString(sum.Sum(nil))
	if got := k.run(t, "sha256sum < /b/vm/vm-flat.vmdk"); !strings.HasPrefix(got, want) {
		t.Errorf("the client's SHA-256 is %s, the device's %s", got, want)
	}
	st, err := os.Stat(filepath.Join(k.root, "s1/vm/vm-flat.vmdk"))
	noError(t, err)
	if st.Size() != 0 {
		t.Errorf("the placeholder has %d bytes: something was written past the device", st.Size())
	}
	// A disk follows its renames, and O_TRUNC does not empty it.
	k.run(t, "mv /a/vm/vm-flat.vmdk /a/vm/renamed.vmdk && mv /a/vm/renamed.vmdk /a/vm/vm-flat.vmdk")
	k.refused(t, ": > /a/vm/vm-flat.vmdk", "")
	k.agent(t, "verify /a/"+args)
}

// hugeDisk: 62 TiB, written at both ends.
func (k *kernelWorld) hugeDisk(t *testing.T) {
	if got, want := strings.TrimSpace(k.run(t, "stat -c %s /a/vm/huge-flat.vmdk")), strconv.FormatInt(hugeDiskSize, 10); got != want {
		t.Fatalf("size %s, want %s", got, want)
	}
	const last = hugeDiskSize/4096 - 1
	k.run(t, fmt.Sprintf("echo the end | dd of=/a/vm/huge-flat.vmdk bs=4096 seek=%d conv=notrunc,fsync", int64(last)))
	got := make([]byte, 8)
	if _, err := k.huge.ReadAt(got, last*4096); err != nil || string(got) != "the end\n" {
		t.Errorf("the device has %q, %v", got, err)
	}
	if out := k.run(t, fmt.Sprintf("dd if=/b/vm/huge-flat.vmdk bs=4096 skip=%d 2>/dev/null | head -n1", int64(last))); out != "the end\n" {
		t.Errorf("the other client reads %q", out)
	}
}

// restart: the server goes and comes back while a program has a file open and
// writes to it. The program notices nothing but a pause.
func (k *kernelWorld) restart(t *testing.T) {
	before := k.run(t, "stat -c '%i %s' /a/random /a/vm/vm-flat.vmdk /a/big")
	k.run(t, "agent hold /a 8 > /tmp/hold 2>&1 & until grep -q holding /tmp/hold; do usleep 10000; done")
	k.stop()
	k.start(t)
	out := k.run(t, "until grep -q -e writes -e hold: /tmp/hold; do usleep 50000; done; cat /tmp/hold")
	if !strings.Contains(out, "writes ") {
		t.Fatalf("the program saw more than a pause: %s", out)
	}
	t.Log(strings.TrimSpace(out))
	if after := k.run(t, "stat -c '%i %s' /a/random /a/vm/vm-flat.vmdk /a/big"); after != before {
		t.Errorf("after the restart: %q, before: %q", after, before)
	}
	k.agent(t, "verify /b/random 11 6000000 300")
	k.agent(t, "list /a/big f 20000")
}

// remount: nothing of it was in the clients' memory.
func (k *kernelWorld) remount(t *testing.T) {
	k.run(t, "agent umount /a; agent umount /b; echo 3 > /proc/sys/vm/drop_caches")
	k.mount(t, nfsserver.ExportPath+"/s1", "/a")
	k.agent(t, "verify /a/random 11 6000000 300")
	k.agent(t, fmt.Sprintf("verify /a/vm/vm-flat.vmdk 5 %d 200", kernelDiskSize))
	k.run(t, "agent umount /a")
}
