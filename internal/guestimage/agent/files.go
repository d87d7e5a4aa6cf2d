package main

import (
	"errors"
	"fmt"
	"io"
	"os"
	"path/filepath"
	"strings"
	"syscall"
	"time"
)

func mount(a []string) error {
	if err := os.MkdirAll(a[1], 0o755); err != nil {
		return err
	}
	return os.NewSyscallError("mount", syscall.Mount(a[0], a[1], "nfs", 0, a[2]))
}

func unmount(a []string) error { return os.NewSyscallError("umount", syscall.Unmount(a[0], 0)) }

// files: create, write, append, truncate both ways, exclusive creation,
// directories, renames onto things, removal.
func files(a []string) error {
	dir := filepath.Join(a[0], "files")
	p := func(name string) string { return filepath.Join(dir, name) }
	err := first(
		want("mkdir", syscall.Mkdir(dir, 0o755), 0),
		want("mkdir again", syscall.Mkdir(dir, 0o755), syscall.EEXIST),
		os.WriteFile(p("a"), []byte("hello"), 0o644),
		content(p("a"), "hello"),
		appendTo(p("a"), ", world"),
		content(p("a"), "hello, world"),
		os.Truncate(p("a"), 4),
		content(p("a"), "hell"),
		os.Truncate(p("a"), 8),
		content(p("a"), "hell\x00\x00\x00\x00"),
		os.WriteFile(p("a"), []byte("new"), 0o644), // O_TRUNC
		content(p("a"), "new"),
		exclusive(p("a"), syscall.EEXIST),
		exclusive(p("b"), 0),
		content(p("b"), ""),
		openKeeps(p("a"), "new"),
	)
	if err != nil {
		return err
	}
	err = first(
		want("opening nothing", openErr(p("none"), os.O_RDWR), syscall.ENOENT),
		want("opening below a file", openErr(p("a/b"), os.O_RDONLY), syscall.ENOTDIR),
		want("writing a directory", openErr(dir, os.O_WRONLY), syscall.EISDIR),
		want("mkdir", syscall.Mkdir(p("d"), 0o700), 0),
		os.WriteFile(p("d/x"), []byte("x"), 0o600),
		want("rmdir of a full directory", syscall.Rmdir(p("d")), syscall.ENOTEMPTY),
		want("unlink of a directory", syscall.Unlink(p("d")), syscall.EISDIR),
		want("rmdir of a file", syscall.Rmdir(p("a")), syscall.ENOTDIR),
		want("renaming", syscall.Rename(p("d/x"), p("y")), 0),
		content(p("y"), "x"),
		want("what was renamed", openErr(p("d/x"), os.O_RDONLY), syscall.ENOENT),
		want("renaming onto a file", syscall.Rename(p("a"), p("y")), 0),
		content(p("y"), "new"),
		want("renaming a file onto a directory", syscall.Rename(p("y"), p("d")), syscall.EISDIR),
		want("renaming a directory onto a file", syscall.Rename(p("d"), p("y")), syscall.ENOTDIR),
		want("mkdir", syscall.Mkdir(p("e"), 0o700), 0),
		want("renaming onto an empty directory", syscall.Rename(p("d"), p("e")), 0),
		want("renaming a directory into itself", syscall.Rename(p("e"), p("e/f")), syscall.EINVAL),
		want("renaming nothing", syscall.Rename(p("none"), p("other")), syscall.ENOENT),
		want("rmdir", syscall.Rmdir(p("e")), 0),
		want("unlink", syscall.Unlink(p("y")), 0),
		want("unlink again", syscall.Unlink(p("y")), syscall.ENOENT),
		want("unlink", syscall.Unlink(p("b")), 0),
	)
	if err != nil {
		return err
	}
	return want("rmdir", syscall.Rmdir(dir), 0)
}

func appendTo(path, text string) error {
	f, err := os.OpenFile(path, os.O_WRONLY|os.O_APPEND, 0)
	if err != nil {
		return err
	}
	_, err = f.WriteString(text)
	return errors.Join(err, f.Close())
}

func exclusive(path string, no syscall.Errno) error {
	f, err := os.OpenFile(path, os.O_CREATE|os.O_EXCL|os.O_RDWR, 0o640)
	if err == nil {
		err = f.Close()
	}
	return want("exclusive creation of "+filepath.Base(path), err, no)
}

// openKeeps: O_CREAT without O_TRUNC on a file that exists keeps its content
// (CREATE UNCHECKED must not truncate).
func openKeeps(path, text string) error {
	f, err := os.OpenFile(path, os.O_CREATE|os.O_RDWR, 0o644)
	if err != nil {
		return err
	}
	return errors.Join(content(path, text), f.Close())
}

func openErr(path string, flag int) error {
	f, err := os.OpenFile(path, flag, 0)
	if err == nil {
		f.Close()
	}
	return err
}

// names: what is allowed in a name and what is not.
func names(a []string) error {
	dir := filepath.Join(a[0], "names")
	if err := os.Mkdir(dir, 0o755); err != nil {
		return err
	}
	good := []string{
		strings.Repeat("n", 255), "with space", "-dash", "ünïcödé-文字", "back\\slash", "new\nline",
		"\xff\xfe not UTF-8", ".hidden", "...", "*?[a]", strings.Repeat("é", 127),
	}
	for _, n := range good {
		if err := os.WriteFile(filepath.Join(dir, n), []byte(n), 0o644); err != nil {
			return fmt.Errorf("%q: %w", n, err)
		}
	}
	entries, err := os.ReadDir(dir)
	if err != nil {
		return err
	}
	found := map[string]bool{}
	for _, e := range entries {
		found[e.Name()] = true
	}
	for _, n := range good {
		if !found[n] {
			return fmt.Errorf("%q is not listed", n)
		}
		if err := content(filepath.Join(dir, n), n); err != nil {
			return err
		}
		if err := os.Remove(filepath.Join(dir, n)); err != nil {
			return err
		}
	}
	return first(
		equal("number of names", len(entries), len(good)),
		want("a name of 256 bytes", openErr(filepath.Join(dir, strings.Repeat("n", 256)), os.O_CREATE|os.O_RDWR), syscall.ENAMETOOLONG),
		os.Remove(dir))
}

// attributes: modes, owners, times, and how the server's clock moves them.
func attributes(a []string) error {
	path := filepath.Join(a[0], "attributes")
	if err := os.WriteFile(path, []byte("12345"), 0o644); err != nil {
		return err
	}
	at, mt := time.Unix(1_000_000_000, 123_000_000), time.Unix(1_700_000_000, 987_654_000)
	err := first(
		want("chmod", syscall.Chmod(path, 0o4751), 0),
		want("chown", syscall.Chown(path, 1234, 5678), 0),
		want("chmod", syscall.Chmod(path, 0o640), 0),
		os.Chtimes(path, at, mt))
	if err != nil {
		return err
	}
	st, err := stat(path)
	if err != nil {
		return err
	}
	err = first(
		equal("mode", st.Mode, syscall.S_IFREG|0o640), equal("uid", st.Uid, 1234), equal("gid", st.Gid, 5678),
		equal("size", st.Size, 5), equal("links", st.Nlink, 1),
		equal("atime", time.Unix(st.Atim.Unix()).UnixMicro(), at.UnixMicro()),
		equal("mtime", time.Unix(st.Mtim.Unix()).UnixMicro(), mt.UnixMicro()))
	if err != nil {
		return err
	}
	if err := appendTo(path, "6"); err != nil {
		return err
	}
	after, err := stat(path)
	if err != nil {
		return err
	}
	if after.Mtim.Nano() <= st.Mtim.Nano() || after.Ctim.Nano() < st.Ctim.Nano() {
		return errors.New("a write moved neither mtime nor ctime")
	}
	var fs syscall.Statfs_t
	if err := syscall.Statfs(a[0], &fs); err != nil {
		return err
	}
	if fs.Blocks == 0 || fs.Bfree > fs.Blocks || fs.Bavail > fs.Bfree || fs.Files == 0 {
		return fmt.Errorf("statfs makes no sense: %+v", fs)
	}
	return os.Remove(path)
}

// permissions: what another user may do, by mode.
func permissions(a []string) error {
	dir := filepath.Join(a[0], "permissions")
	p := func(name string) string { return filepath.Join(dir, name) }
	err := first(
		os.Mkdir(dir, 0o755),
		os.WriteFile(p("secret"), []byte("s"), 0o600),
		os.WriteFile(p("public"), []byte("p"), 0o644),
		os.Mkdir(p("shared"), 0o777), os.Chmod(p("shared"), 0o777))
	if err != nil {
		return err
	}
	err = asUser(1000, func() error {
		err := first(
			want("reading a secret", openErr(p("secret"), os.O_RDONLY), syscall.EACCES),
			want("writing a public file", openErr(p("public"), os.O_WRONLY), syscall.EACCES),
			content(p("public"), "p"),
			want("chmod of another's file", syscall.Chmod(p("public"), 0o777), syscall.EPERM),
			want("creating in another's directory", openErr(p("new"), os.O_CREATE|os.O_WRONLY), syscall.EACCES),
			want("removing from another's directory", syscall.Unlink(p("public")), syscall.EACCES),
			os.WriteFile(p("shared/mine"), []byte("m"), 0o600))
		if err != nil {
			return err
		}
		st, err := stat(p("shared/mine"))
		if err != nil {
			return err
		}
		return equal("owner of what a user made", st.Uid, 1000)
	})
	if err != nil {
		return err
	}
	return os.RemoveAll(dir)
}

// links: hard and symbolic ones.
func links(a []string) error {
	dir := filepath.Join(a[0], "links")
	p := func(name string) string { return filepath.Join(dir, name) }
	err := first(
		os.Mkdir(dir, 0o755),
		os.WriteFile(p("one"), []byte("1"), 0o644),
		os.Link(p("one"), p("two")),
		want("linking onto a file", syscall.Link(p("one"), p("two")), syscall.EEXIST),
		appendTo(p("two"), "2"), content(p("one"), "12"))
	if err != nil {
		return err
	}
	one, err1 := stat(p("one"))
	two, err2 := stat(p("two"))
	if err := errors.Join(err1, err2); err != nil {
		return err
	}
	long := strings.Repeat("target/", 140)
	err = first(
		equal("inode of the second name", two.Ino, one.Ino), equal("links", one.Nlink, 2),
		os.Remove(p("one")), content(p("two"), "12"),
		os.Symlink("two", p("soft")), content(p("soft"), "12"),
		os.Symlink(long, p("long")),
		os.Symlink("/etc/passwd", p("absolute")), os.Symlink("../../../../../../etc/passwd", p("up")),
		want("a symbolic link onto a name", syscall.Symlink("x", p("soft")), syscall.EEXIST),
		os.Symlink("loop", p("loop")),
		want("following a loop", openErr(p("loop"), os.O_RDONLY), syscall.ELOOP))
	if err != nil {
		return err
	}
	for name, target := range map[string]string{"soft": "two", "long": long, "absolute": "/etc/passwd", "up": "../../../../../../etc/passwd"} {
		got, err := os.Readlink(p(name))
		if err := first(err, equal("target of "+name, got, target)); err != nil {
			return err
		}
	}
	st, err := stat(p("two"))
	if err := first(err, equal("links after removal of one", st.Nlink, 1)); err != nil {
		return err
	}
	return os.RemoveAll(dir)
}

// openUnlink: a file that is removed while open goes on existing for who has
// it open (the client renames it to .nfs… until it is closed).
func openUnlink(a []string) error {
	path := filepath.Join(a[0], "open-unlink")
	f, err := os.OpenFile(path, os.O_CREATE|os.O_RDWR, 0o600)
	if err != nil {
		return err
	}
	if _, err := f.WriteString("before"); err != nil {
		return err
	}
	err = first(f.Sync(), os.Remove(path), want("opening it again", openErr(path, os.O_RDONLY), syscall.ENOENT))
	if err != nil {
		return err
	}
	if _, err := f.WriteString(" and after"); err != nil {
		return fmt.Errorf("writing to a removed file: %w", err)
	}
	got, err := io.ReadAll(io.NewSectionReader(f, 0, 100))
	err = first(f.Sync(), err, sameBytes("a removed file", got, []byte("before and after")), f.Close())
	if err != nil {
		return err
	}
	left, err := filepath.Glob(filepath.Join(a[0], ".nfs*"))
	return first(err, equal("number of .nfs files left", len(left), 0))
}

// openRename: an open file follows its rename, and one that is renamed over
// goes on existing for who has it open.
func openRename(a []string) error {
	from, to := filepath.Join(a[0], "rename-from"), filepath.Join(a[0], "rename-to")
	if err := first(os.WriteFile(from, []byte("from"), 0o600), os.WriteFile(to, []byte("to"), 0o600)); err != nil {
		return err
	}
	f, err1 := os.OpenFile(from, os.O_RDWR|os.O_APPEND, 0)
	g, err2 := os.OpenFile(to, os.O_RDWR, 0)
	if err := errors.Join(err1, err2, os.Rename(from, to)); err != nil {
		return err
	}
	if _, err := f.WriteString("+"); err != nil {
		return err
	}
	got, err := io.ReadAll(g)
	err = first(f.Sync(), content(to, "from+"), err, sameBytes("a file renamed over", got, []byte("to")), f.Close(), g.Close())
	if err != nil {
		return err
	}
	return os.Remove(to)
}
