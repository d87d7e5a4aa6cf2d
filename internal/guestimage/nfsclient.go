package guestimage

import (
	"bytes"
	"context"
	"embed"
	"fmt"
	"io/fs"
	"os"
	"path/filepath"
	"time"

	"lifeboat/internal/qemu"
)

//go:embed agent/*.go
var agentSource embed.FS

// nfsInit ends in the loop that Shell talks to. The guest's address is the one
// that QEMU's user network gives it; 10.0.2.2 is the host's loopback.
const nfsInit = `$b --install -s /bin
export PATH=/bin HOME=/
mount -t proc proc /proc; mount -t sysfs sys /sys; mount -t tmpfs tmp /tmp
load virtio_pci; load virtio_net; load nfsv3; load nfs
ifconfig lo 127.0.0.1 up; ifconfig eth0 10.0.2.15 netmask 255.255.255.0 up
exec setsid sh -c 'exec </dev/ttyS0 >/dev/ttyS0 2>&1; stty -echo -onlcr; echo shell-"is-ready"; while IFS= read -r l; do eval "$l"; done'
`

// NFSClientVM returns a kernel and an initial RAM file system that boot in a
// few seconds under software emulation and have the Linux kernel's NFSv3
// client, busybox, and our test agent (see its sources). [StartNFSClient]
// boots them. It needs Debian's archive and Go, once; no privileges.
func NFSClientVM(ctx context.Context, cacheDir string, progress Progress) (kernelPath, initrd string, err error) {
	k, err := ensureKernel(ctx, cacheDir, progress)
	if err != nil {
		return "", "", err
	}
	source, err := agentBytes()
	if err != nil {
		return "", "", err
	}
	a := artifact{
		name: "nfsclient", ext: ".cpio",
		files: fmt.Appendf(nil, "%s\n%s%s\n%s", filepath.Base(k.dir), initHeader, nfsInit, source),
		build: func(ctx context.Context, scratch, path string) error {
			progress.say("building the test agent and the NFS client's RAM disk")
			return buildNFSClient(ctx, k, scratch, path)
		},
	}
	initrd, err = a.ensure(ctx, cacheDir, progress)
	return k.image(), initrd, err
}

func agentBytes() ([]byte, error) {
	var all bytes.Buffer
	err := fs.WalkDir(agentSource, ".", func(name string, d fs.DirEntry, err error) error {
		if err != nil || d.IsDir() {
			return err
		}
		b, err := agentSource.ReadFile(name)
		fmt.Fprintf(&all, "%s %d\n%s", name, len(b), b)
		return err
	})
	return all.Bytes(), err
}

func buildNFSClient(ctx context.Context, k kernel, scratch, path string) error {
	agent, err := buildAgent(ctx, scratch)
	if err != nil {
		return fmt.Errorf("building the test agent: %w", err)
	}
	archive, err := initramfs{
		modules: []string{"virtio_pci", "virtio_net", "nfsv3", "nfs"},
		init:    nfsInit,
		files:   map[string]string{"bin/agent": agent},
		plain:   true, // QEMU copies it in one piece; unpacking would cost more
	}.build(k)
	if err != nil {
		return err
	}
	return os.WriteFile(path, archive, 0o644)
}

// buildAgent compiles the embedded sources in a module of their own, so that
// it does not matter where we run.
func buildAgent(ctx context.Context, scratch string) (string, error) {
	dir := filepath.Join(scratch, "agent")
	if err := os.CopyFS(scratch, agentSource); err != nil {
		return "", err
	}
	if err := os.WriteFile(filepath.Join(dir, "go.mod"), []byte("module agent\n\ngo 1.26\n"), 0o644); err != nil {
		return "", err
	}
	cmd := command(ctx, dir, "go", "build", "-trimpath", "-ldflags=-s -w", "-o", "agent.bin", ".")
	cmd.Env = append(cmd.Env, "CGO_ENABLED=0", "GOOS=linux", "GOARCH=amd64", "GOWORK=off", "GOFLAGS=-mod=mod", "GOPROXY=off")
	return filepath.Join(dir, "agent.bin"), run(cmd)
}

// StartNFSClient boots the machine of [NFSClientVM] and returns it with a
// shell. The guest reaches services on the host's loopback at 10.0.2.2.
func StartNFSClient(ctx context.Context, cacheDir string, accel qemu.Accel, progress Progress) (*qemu.Machine, *Shell, error) {
	kernelPath, initrd, err := NFSClientVM(ctx, cacheDir, progress)
	if err != nil {
		return nil, nil, err
	}
	m, err := qemu.Start(ctx, qemu.Options{
		Name: "nfs-client", Accel: accel, MemoryMiB: 384, Kernel: kernelPath, Initrd: initrd,
		Append:  "console=ttyS0 quiet loglevel=3 mitigations=off nowatchdog no_timer_check tsc=reliable cryptomgr.notests=1 random.trust_cpu=on panic=-1",
		Network: &qemu.Network{},
	})
	if err != nil {
		return nil, nil, err
	}
	boot, cancel := context.WithTimeout(ctx, 2*time.Minute)
	defer cancel()
	shell, err := newShell(boot, m.Console())
	if err != nil {
		m.Close()
		return nil, nil, fmt.Errorf("booting the NFS client: %w", err)
	}
	progress.say(fmt.Sprintf("the NFS client was up after %v", time.Since(m.Started()).Round(10*time.Millisecond)))
	return m, shell, nil
}

// MountOptions are the kernel's options for an NFSv3 export reached through
// the given ports, without locking (there is no NLM) and with a connection of
// its own, so that two mounts are two clients.
func MountOptions(nfsPort, mountPort int) string {
	return fmt.Sprintf("vers=3,proto=tcp,mountproto=tcp,port=%d,mountport=%d,nolock,nosharecache,hard,timeo=50,addr=10.0.2.2,mountaddr=10.0.2.2", nfsPort, mountPort)
}
