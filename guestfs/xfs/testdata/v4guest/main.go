// Command v4guest is the only program of a virtual machine whose kernel still
// mounts version 4 of XFS. It changes the file system on the first disk until
// the machine is killed or, told so on the kernel's command line, mounts it,
// which replays its log, and writes what it sees to the second disk.
package main

import (
	"bufio"
	"crypto/sha256"
	"encoding/hex"
	"encoding/json"
	"fmt"
	"io"
	"io/fs"
	"math/rand/v2"
	"os"
	"path/filepath"
	"strings"
	"time"

	"golang.org/x/sys/unix"
)

// Entry is what is seen of one file.
type Entry struct {
	Path, Sum, Target          string
	Mode, UID, GID             uint32
	Size, Links, Blocks, Inode uint64
	Mtime, Ctime               int64
	Xattrs                     map[string]string
}

func main() {
	if err := run(); err != nil {
		fmt.Println("failed:", err)
	}
	time.Sleep(100 * time.Millisecond)
	_ = unix.Reboot(unix.LINUX_REBOOT_CMD_POWER_OFF)
}

func run() error {
	for _, m := range [][2]string{{"devtmpfs", "/dev"}, {"proc", "/proc"}} {
		if err := unix.Mount(m[0], m[1], m[0], 0, ""); err != nil {
			return fmt.Errorf("mount %s: %w", m[1], err)
		}
	}
	if console, err := os.OpenFile("/dev/console", os.O_WRONLY, 0); err == nil { // the kernel found none yet
		os.Stdout = console
	}
	for _, name := range []string{"virtio_pci", "virtio_blk", "xfs"} {
		if err := load(name); err != nil {
			return err
		}
	}
	time.Sleep(200 * time.Millisecond)
	command, err := os.ReadFile("/proc/cmdline")
	if err != nil {
		return err
	}
	options := uintptr(unix.MS_NOATIME)
	dump := strings.Contains(string(command), "lifeboat.dump")
	if dump {
		options |= unix.MS_RDONLY
	}
	if err := unix.Mount("/dev/vda", "/newroot", "xfs", options, ""); err != nil {
		return fmt.Errorf("mount the disk: %w", err)
	}
	if !dump {
		return change("/newroot")
	}
	out, err := os.OpenFile("/dev/vdb", os.O_WRONLY, 0)
	if err != nil {
		return err
	}
	w := bufio.NewWriter(out)
	if err := list(w, "/newroot"); err != nil {
		return err
	}
	if err := w.Flush(); err != nil {
		return err
	}
	return out.Sync()
}

func load(name string) error {
	order, err := os.ReadFile("/lib/modules/" + name + ".order")
	if err != nil {
		return nil // built in
	}
	for m := range strings.FieldsSeq(string(order)) {
		f, err := os.Open("/lib/modules/" + m)
		if err != nil {
			return err
		}
		err = unix.FinitModule(int(f.Fd()), "", 0)
		f.Close()
		if err != nil && err != unix.EEXIST {
			return fmt.Errorf("%s: %w", m, err)
		}
	}
	return nil
}

// change does so until the machine ends. Every now and then it says so.
func change(dir string) error {
	rng := rand.New(rand.NewPCG(uint64(time.Now().UnixNano()), 4))
	some := func() string {
		return filepath.Join(dir, fmt.Sprint("d", rng.IntN(5)), fmt.Sprint(rng.IntN(200), strings.Repeat("x", rng.IntN(60))))
	}
	for i := 1; ; i++ {
		name := some()
		_ = os.MkdirAll(filepath.Dir(name), 0o755)
		data := []byte(strings.Repeat(fmt.Sprintf("write %d ", i), rng.IntN(1+1<<rng.IntN(14))))
		switch rng.IntN(12) {
		case 0, 1, 2, 3:
			_ = os.WriteFile(name, data, 0o644)
		case 4:
			_ = os.Remove(name)
		case 5:
			_ = os.Rename(name, some())
		case 6:
			_ = os.Link(name, some())
		case 7:
			_ = os.Symlink(strings.Repeat("t", 1+rng.IntN(1000)), name)
		case 8:
			_ = unix.Lsetxattr(name, fmt.Sprint("trusted.a", rng.IntN(9)), data[:min(len(data), rng.IntN(1+1<<rng.IntN(12)))], 0)
		case 9:
			_ = unix.Lremovexattr(name, fmt.Sprint("trusted.a", rng.IntN(9)))
		case 10:
			pieces(rng, name, data)
		case 11:
			if rng.IntN(10) == 0 {
				_ = os.RemoveAll(filepath.Dir(name))
			}
		}
		if i%200 == 0 {
			if f, err := os.Create(filepath.Join(dir, "synced")); err == nil {
				_ = f.Sync()
				f.Close()
			}
			fmt.Println("changed", i)
		}
	}
}

// pieces writes here and there in a file, so that it has many extents.
func pieces(rng *rand.Rand, name string, data []byte) {
	f, err := os.OpenFile(name, os.O_RDWR|os.O_CREATE, 0o600)
	if err != nil {
		return
	}
	defer f.Close()
	for range rng.IntN(60) {
		_, _ = f.WriteAt(data[:min(len(data), 3000)], rng.Int64N(1<<20))
	}
	_ = f.Truncate(rng.Int64N(1 << 20))
}

func list(w io.Writer, dir string) error {
	enc := json.NewEncoder(w)
	err := filepath.WalkDir(dir, func(path string, _ fs.DirEntry, err error) error {
		if err != nil {
			return err
		}
		e, err := look(path)
		if err != nil {
			return err
		}
		e.Path = strings.TrimPrefix(path, dir)
		return enc.Encode(e)
	})
	if err == nil {
		_, err = fmt.Fprintln(w, "null")
	}
	return err
}

func look(path string) (Entry, error) {
	var st unix.Stat_t
	if err := unix.Lstat(path, &st); err != nil {
		return Entry{}, err
	}
	e := Entry{
		Mode: st.Mode, UID: st.Uid, GID: st.Gid, Size: uint64(st.Size), Links: st.Nlink, Blocks: uint64(st.Blocks), Inode: st.Ino,
		Mtime: st.Mtim.Nano(), Ctime: st.Ctim.Nano(), Xattrs: map[string]string{},
	}
	names, value := make([]byte, 1<<16), make([]byte, 1<<16)
	n, err := unix.Llistxattr(path, names)
	if err != nil {
		return e, err
	}
	for name := range strings.FieldsFuncSeq(string(names[:n]), func(r rune) bool { return r == 0 }) {
		m, err := unix.Lgetxattr(path, name, value)
		if err != nil {
			return e, err
		}
		e.Xattrs[name] = hex.EncodeToString(value[:m])
	}
	switch st.Mode & unix.S_IFMT {
	case unix.S_IFLNK:
		e.Target, err = os.Readlink(path)
	case unix.S_IFREG:
		var f *os.File
		if f, err = os.Open(path); err != nil {
			return e, err
		}
		defer f.Close()
		h := sha256.New()
		_, err = io.Copy(h, f)
		e.Sum = hex.EncodeToString(h.Sum(nil))
	}
	return e, err
}
