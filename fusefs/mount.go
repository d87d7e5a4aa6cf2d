package fusefs

import (
	"bufio"
	"context"
	"errors"
	"fmt"
	"io"
	"log"
	"log/slog"
	"os"
	"path/filepath"
	"strings"
	"time"

	"github.com/hanwen/go-fuse/v2/fuse"
	"golang.org/x/sys/unix"

	"lifeboat/guestfs/browse"
)

// fsType is the type of our mounts, as /proc/self/mountinfo shows it.
const fsType = "lifeboat"

// maxRequest is the largest read, in bytes. go-fuse complains about each one of
// 1 MiB.
const maxRequest = 512 << 10

// Options of a mount. The zero value is good.
type Options struct {
	// AllowOther lets other users than the one who mounts in. The kernel then
	// judges by the guest's owners and modes.
	AllowOther bool
	Logger     *slog.Logger // nil: slog.Default
}

// Mount is a mounted tree.
type Mount struct {
	dir    string
	server *fuse.Server
	served chan struct{}
	log    *slog.Logger
}

// ErrNotReady says that a directory cannot be mounted on; the text says why.
var ErrNotReady = errors.New("cannot be mounted on")

// New mounts a tree on a directory, which must be there; a mount that an earlier
// process left behind is cleared away first. Run ends it.
func New(dir string, tree *browse.Namespace, o Options) (*Mount, error) {
	if o.Logger == nil {
		o.Logger = slog.Default()
	}
	dir, err := resolve(dir)
	if err != nil {
		return nil, err
	}
	if err := clearDead(dir); err != nil {
		return nil, err
	}
	if err := mountable(dir); err != nil {
		return nil, err
	}
	var options []string
	if os.Geteuid() != 0 { // root mounts by itself, and gives these as flags
		options = []string{"ro", "nosuid", "nodev"}
	}
	if o.AllowOther {
		options = append(options, "default_permissions")
	}
	server, err := fuse.NewServer(newRawFS(tree, o.Logger), dir, &fuse.MountOptions{
		AllowOther: o.AllowOther, Options: options, FsName: fsType, Name: fsType, MaxWrite: maxRequest, MaxReadAhead: maxRequest,
		DirectMount: os.Geteuid() == 0, DirectMountFlags: unix.MS_RDONLY | unix.MS_NOSUID | unix.MS_NODEV, Logger: log.New(io.Discard, "", 0),
		MaxBackground: 64,
	})
	if err != nil {
		return nil, fmt.Errorf("mount on %s: %w", dir, err)
	}
	m := &Mount{dir: dir, server: server, served: make(chan struct{}), log: o.Logger}
	go func() {
		defer close(m.served)
		server.Serve()
	}()
	if err := server.WaitMount(); err != nil {
		return nil, errors.Join(fmt.Errorf("mount on %s: %w", dir, err), m.unmount())
	}
	return m, nil
}

// resolve is where a directory is without symbolic links on the way, as
// mountinfo has it; a dead mount there is where it is, too.
func resolve(dir string) (string, error) {
	dir, err := filepath.Abs(dir)
	if err != nil {
		return "", err
	}
	resolved, err := filepath.EvalSymlinks(dir)
	var at *os.PathError
	switch {
	case err == nil:
		return resolved, nil
	case isDead(err) && errors.As(err, &at):
		return at.Path, nil
	}
	return dir, nil // mountable says what is wrong with it
}

// mountable says what speaks against a directory.
func mountable(dir string) error {
	fi, err := os.Stat(dir)
	switch {
	case errors.Is(err, os.ErrNotExist):
		return fmt.Errorf("%s %w: there is no such directory; make it first", dir, ErrNotReady)
	case err != nil:
		return fmt.Errorf("%s %w: %w", dir, ErrNotReady, err)
	case !fi.IsDir():
		return fmt.Errorf("%s %w: it is not a directory", dir, ErrNotReady)
	}
	entries, err := os.ReadDir(dir)
	if err != nil {
		return fmt.Errorf("%s %w: %w", dir, ErrNotReady, err)
	}
	if len(entries) > 0 {
		return fmt.Errorf("%s %w: it is not empty, and what is in it would be hidden", dir, ErrNotReady)
	}
	return nil
}

// Dir is where the tree is mounted.
func (m *Mount) Dir() string { return m.dir }

// Run waits until ctx is done, or somebody has unmounted the tree, and leaves no
// mount behind.
func (m *Mount) Run(ctx context.Context) error {
	select {
	case <-m.served:
		return nil // somebody else unmounted it
	case <-ctx.Done():
	}
	return m.unmount()
}

// Unmounting waits this long for programs to let go of the tree; then it is
// taken away from them. As long again it waits for the kernel to say goodbye,
// which it does not while another mount namespace holds a copy of the mount:
// that ends with this process.
const (
	unmountPatience = 2 * time.Second
	unmountRetry    = 50 * time.Millisecond
)

func (m *Mount) unmount() error {
	deadline := time.Now().Add(unmountPatience)
	for {
		err := release(m.dir, 0)
		if err == nil || errors.Is(err, unix.EINVAL) { // nothing is mounted there any more
			break
		}
		if time.Now().After(deadline) {
			m.log.Warn("somebody still uses the mount; it is taken away", "directory", m.dir)
			if err := release(m.dir, unix.MNT_DETACH); err != nil {
				return fmt.Errorf("unmount %s: %w", m.dir, err)
			}
			break
		}
		time.Sleep(unmountRetry)
	}
	select {
	case <-m.served:
	case <-time.After(unmountPatience):
	}
	return nil
}

// release unmounts; with MNT_DETACH whoever uses the mount.
func release(dir string, flags int) error {
	if os.Geteuid() == 0 {
		return unix.Unmount(dir, flags)
	}
	return fusermount(dir, flags == unix.MNT_DETACH)
}

// clearDead unmounts what a process of ours that died has left on dir: its
// server is gone, and everything in it answers ENOTCONN. Not stat: the kernel
// answers that from memory for a while.
func clearDead(dir string) error {
	var st unix.Statfs_t
	if err := unix.Statfs(dir, &st); !isDead(err) {
		return nil // whatever else is wrong is not a dead mount
	}
	ours, err := isOurs(dir)
	if err != nil {
		return err
	}
	if !ours {
		return fmt.Errorf("%s %w: another program's FUSE mount there has died; unmount it: umount -l %s", dir, ErrNotReady, dir)
	}
	if err := release(dir, unix.MNT_DETACH); err != nil {
		return fmt.Errorf("clear away the dead mount on %s: %w", dir, err)
	}
	return nil
}

func isDead(err error) bool {
	return errors.Is(err, unix.ENOTCONN) || errors.Is(err, unix.ECONNABORTED)
}

// isOurs looks the mount up.
func isOurs(dir string) (bool, error) {
	f, err := os.Open("/proc/self/mountinfo")
	if err != nil {
		return false, err
	}
	defer f.Close()
	ours := false
	in := bufio.NewScanner(f)
	for in.Scan() {
		fields := strings.Fields(in.Text())
		_, rest, found := strings.Cut(in.Text(), " - ")
		if len(fields) > 4 && found && unescape(fields[4]) == dir {
			ours = strings.HasPrefix(rest, "fuse."+fsType+" ")
		}
	}
	return ours, in.Err()
}

// unescape undoes what /proc does to blanks in names.
func unescape(s string) string {
	return strings.NewReplacer(`\040`, " ", `\011`, "\t", `\012`, "\n", `\134`, `\`).Replace(s)
}
