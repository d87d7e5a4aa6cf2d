package guestimage

import (
	"context"
	"errors"
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
)

// Where Debian comes from.
const (
	suite    = "bookworm"
	mirror   = "deb http://deb.debian.org/debian bookworm main"
	security = "deb http://deb.debian.org/debian-security bookworm-security main"
)

// debootstrapArgs are mmdebstrap's, for an overlay archive and a hook that
// turns the tree $1 into a file system.
func debootstrapArgs(overlay, makeFS string) []string {
	args := []string{
		"--quiet", "--variant=essential", "--format=null", "--include=" + strings.Join(packages(), ","),
		"--aptopt=APT::Install-Recommends \"false\"",
	}
	for _, p := range []string{"doc", "man", "info", "locale", "lintian", "bug"} {
		args = append(args, "--dpkgopt=path-exclude=/usr/share/"+p+"/*")
	}
	return append(args,
		"--customize-hook=tar-in "+overlay+" /",
		`--customize-hook=chroot "$1" depmod "$(ls "$1/usr/lib/modules")"`,
		`--customize-hook=rm -rf "$1"/var/cache/apt "$1"/var/lib/apt/lists "$1"/var/cache/debconf "$1"/usr/share/zoneinfo "$1"/usr/lib/udev "$1"/etc/resolv.conf "$1"/etc/motd "$1"/etc/update-motd.d`,
		`--customize-hook=echo 5bbe5a0c1f0e4a5a8f6c4c1fbe0c0d17 > "$1/etc/machine-id"`,
		"--customize-hook="+makeFS,
		suite, "-", mirror, security)
}

// fileSystemArgs are mke2fs's, except for -d and the file. Nothing is left for
// the guest to initialise later: it would write to its disk for minutes.
func fileSystemArgs() []string {
	return []string{
		"-q", "-t", "ext4", "-L", "root", "-m", "0", "-J", "size=8",
		"-E", fmt.Sprintf("offset=%d,lazy_itable_init=0,lazy_journal_init=0,nodiscard", partStart),
	}
}

// debootstrap installs Debian and puts its file system into the disk at path,
// which exists.
//
// As root mke2fs writes to the disk itself. Otherwise mmdebstrap works in a
// user namespace whose root may not write to our directory: there mke2fs writes
// beside the tree, and the result is carried out through mmdebstrap.
func debootstrap(ctx context.Context, scratch, overlay, path string) error {
	if os.Geteuid() == 0 {
		cmd := command(ctx, scratch, "mmdebstrap", debootstrapArgs(quote(overlay), makeFileSystem(quote(path)))...)
		cmd.Env = append(cmd.Env, "TMPDIR="+scratch)
		return run(cmd)
	}
	if _, err := exec.LookPath("newuidmap"); err != nil {
		return errors.New("making the disk needs root, or the Debian package uidmap and subordinate user IDs (see subuid(5))")
	}
	carried := filepath.Join(scratch, "carried.img")
	args := debootstrapArgs(quote(overlay), makeFileSystem(`"$1.img"`)+"\nmv \"$1.img\" \"$1/lifeboat.img\"")
	n := len(args) - 4
	args = append(args[:n:n], append([]string{"--customize-hook=download /lifeboat.img " + quote(carried)}, args[n:]...)...)
	if err := run(command(ctx, scratch, "mmdebstrap", append([]string{"--mode=unshare"}, args...)...)); err != nil {
		return err
	}
	return copySparse(carried, path, partStart)
}

// makeFileSystem is the hook's shell command that makes image from the tree $1.
// mmdebstrap has /proc and more mounted in the tree; a bind mount of it alone,
// in a mount namespace that ends with the command, shows it without them. Where
// mounting is not allowed nothing can be mounted in the tree either.
func makeFileSystem(image string) string {
	mkfs := "mke2fs " + strings.Join(fileSystemArgs(), " ")
	size := fmt.Sprintf("%dk", (diskSize-partStart)>>10)
	return `set -e
if unshare --mount --propagation unchanged true 2>/dev/null; then
	mkdir "$1.tree"
	unshare --mount --propagation unchanged sh -ec '
		mount --make-rprivate / 2>/dev/null || :
		mount --bind "$1" "$1.tree"
		trap "umount \"$1.tree\"" EXIT
		` + mkfs + ` -d "$1.tree" "$2" ` + size + `
	' sh "$1" ` + image + `
	rmdir "$1.tree"
else
	` + mkfs + ` -d "$1" ` + image + ` ` + size + `
fi`
}

func quote(s string) string { return "'" + strings.ReplaceAll(s, "'", `'\''`) + "'" }

// copySparse copies what is not zero from offset on.
func copySparse(from, to string, offset int64) error {
	src, err := os.Open(from)
	if err != nil {
		return err
	}
	defer src.Close()
	dst, err := os.OpenFile(to, os.O_WRONLY, 0)
	if err != nil {
		return err
	}
	defer dst.Close()
	buf := make([]byte, 64<<10)
	zeros := make([]byte, len(buf))
	for off := offset; off < diskSize; off += int64(len(buf)) {
		if _, err := src.ReadAt(buf, off); err != nil {
			return err
		}
		if string(buf) == string(zeros) {
			continue
		}
		if _, err := dst.WriteAt(buf, off); err != nil {
			return err
		}
	}
	return dst.Close()
}
