package guestimage

import (
	"archive/tar"
	"bytes"
	"context"
	"errors"
	"fmt"
	"io"
	"os"
	"os/exec"
	"path/filepath"
	"regexp"
	"strings"
	"syscall"
	"time"
)

// command is an external program whose end is bound to ctx: SIGTERM, so that
// it can clean up after itself, and after ten seconds SIGKILL.
func command(ctx context.Context, dir, name string, args ...string) *exec.Cmd {
	cmd := exec.CommandContext(ctx, name, args...)
	cmd.Dir = dir
	cmd.SysProcAttr = &syscall.SysProcAttr{Setpgid: true}
	cmd.Cancel = func() error { return syscall.Kill(-cmd.Process.Pid, syscall.SIGTERM) }
	cmd.WaitDelay = 10 * time.Second
	cmd.Env = append(os.Environ(), "LC_ALL=C", "DEBIAN_FRONTEND=noninteractive")
	return cmd
}

// run runs it and puts the last lines that it printed into the error.
func run(cmd *exec.Cmd) error {
	out, err := cmd.CombinedOutput()
	if err == nil {
		return nil
	}
	if errors.Is(err, exec.ErrNotFound) {
		return fmt.Errorf("%s is not installed: %w (tools/provision.sh demo installs what is needed)", cmd.Args[0], err)
	}
	lines := strings.Split(strings.TrimSpace(string(out)), "\n")
	return fmt.Errorf("%s: %w: %s", filepath.Base(cmd.Args[0]), err, strings.Join(lines[max(0, len(lines)-12):], " | "))
}

// download fetches packages as .deb files into dir, without installing them.
// It uses the machine's own package lists, and where these are missing or out
// of date a private copy of them, so it needs no privileges.
func download(ctx context.Context, dir string, packages ...string) error {
	args := []string{"-q", "-o", "APT::Sandbox::User=", "download"}
	first := run(command(ctx, dir, "apt-get", append(args, packages...)...))
	if first == nil || ctx.Err() != nil {
		return first
	}
	state := filepath.Join(dir, "apt-state")
	if err := os.MkdirAll(filepath.Join(state, "lists", "partial"), 0o755); err != nil {
		return err
	}
	defer os.RemoveAll(state)
	private := []string{
		"-q", "-o", "APT::Sandbox::User=", "-o", "Dir::State::Lists=" + filepath.Join(state, "lists"),
		"-o", "Dir::Cache::pkgcache=", "-o", "Dir::Cache::srcpkgcache=",
	}
	if err := run(command(ctx, dir, "apt-get", append(private, "update")...)); err != nil {
		return fmt.Errorf("fetching Debian's package lists: %w (before that: %w)", err, first)
	}
	args = append(append(private, "download"), packages...)
	if err := run(command(ctx, dir, "apt-get", args...)); err != nil {
		return fmt.Errorf("downloading %s: %w", strings.Join(packages, ", "), err)
	}
	return nil
}

// debFile finds the one downloaded file of a package.
func debFile(dir, pkg string) (string, error) {
	found, err := filepath.Glob(filepath.Join(dir, pkg+"_*.deb"))
	if err != nil || len(found) != 1 {
		return "", fmt.Errorf("package %s: %d files were downloaded, want 1", pkg, len(found))
	}
	return found[0], nil
}

// kernelPackage is the kernel that the meta package depends on now.
func kernelPackage(ctx context.Context, dir string) (string, error) {
	const meta = "linux-image-cloud-amd64"
	if err := download(ctx, dir, meta); err != nil {
		return "", err
	}
	deb, err := debFile(dir, meta)
	if err != nil {
		return "", err
	}
	out, err := command(ctx, dir, "dpkg-deb", "-f", deb, "Depends").Output()
	if err != nil {
		return "", fmt.Errorf("reading %s: %w", filepath.Base(deb), err)
	}
	name := regexp.MustCompile(`linux-image-[0-9][a-z0-9.+-]*`).Find(out)
	if name == nil {
		return "", fmt.Errorf("%s depends on no kernel: %q", meta, out)
	}
	return string(name), nil
}

// eachFile calls fn for the regular files of a package; names have no leading
// "./". The package's signature was checked by apt.
func eachFile(ctx context.Context, deb string, fn func(name string, r io.Reader) error) error {
	cmd := command(ctx, "", "dpkg-deb", "--fsys-tarfile", deb)
	pipe, err := cmd.StdoutPipe()
	if err != nil {
		return err
	}
	var said bytes.Buffer
	cmd.Stderr = &said
	if err := cmd.Start(); err != nil {
		return fmt.Errorf("unpacking %s: %w", filepath.Base(deb), err)
	}
	err = eachTarFile(pipe, fn)
	if err != nil {
		_ = cmd.Cancel()
	} else {
		_, err = io.Copy(io.Discard, pipe)
	}
	if wait := cmd.Wait(); err == nil && wait != nil {
		err = fmt.Errorf("%w: %s", wait, said.String())
	}
	if err != nil {
		return fmt.Errorf("unpacking %s: %w", filepath.Base(deb), err)
	}
	return nil
}

func eachTarFile(r io.Reader, fn func(name string, r io.Reader) error) error {
	for t := tar.NewReader(r); ; {
		h, err := t.Next()
		if errors.Is(err, io.EOF) {
			return nil
		}
		if err != nil {
			return err
		}
		if h.Typeflag == tar.TypeReg {
			if err := fn(strings.TrimPrefix(h.Name, "./"), t); err != nil {
				return err
			}
		}
	}
}
