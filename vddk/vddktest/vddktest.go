// Package vddktest builds, for tests, a libvixDiskLib.so of our own and the
// helper program that loads it. What the library pretends to be is set with
// [Fake.Set]; what it was made to do that VMware's forbids it notes, and
// [Fake.Violations] tells.
package vddktest

import (
	_ "embed"
	"errors"
	"fmt"
	"io/fs"
	"os"
	"os/exec"
	"path/filepath"
	"slices"
	"strings"
	"sync"

	"lifeboat/vddk"
)

//go:embed testdata/fake.c
var source []byte

// Programs are the two things that have to be built: once for many tests.
type Programs struct {
	Helper  string // lifeboat-vddk
	library string // libvixDiskLib.so
}

// ErrNoCompiler: the C compiler, which only tests need, is not installed.
var ErrNoCompiler = errors.New("gcc is not installed (tools/provision.sh test)")

// Build builds both in dir.
func Build(dir string) (*Programs, error) {
	p := &Programs{Helper: filepath.Join(dir, "lifeboat-vddk"), library: filepath.Join(dir, "libvixDiskLib.so")}
	if _, err := exec.LookPath("gcc"); err != nil {
		return nil, ErrNoCompiler
	}
	c := filepath.Join(dir, "fake.c")
	if err := os.WriteFile(c, source, 0o600); err != nil {
		return nil, err
	}
	defer os.Remove(c)
	gcc := exec.Command("gcc", "-Wall", "-O1", "-shared", "-fPIC", "-Wl,-Bsymbolic", "-o", p.library, c, "-pthread")
	if out, err := gcc.CombinedOutput(); err != nil {
		return nil, fmt.Errorf("gcc: %w\n%s", err, out)
	}
	build := exec.Command("go", "build", "-o", p.Helper, "lifeboat/cmd/lifeboat-vddk")
	build.Env = append(os.Environ(), "CGO_ENABLED=0")
	if out, err := build.CombinedOutput(); err != nil {
		return nil, fmt.Errorf("go build lifeboat-vddk: %w\n%s", err, out)
	}
	return p, nil
}

// Fake is an installation of the library with settings of its own.
type Fake struct {
	dir     string
	library vddk.Library

	mu       sync.Mutex
	settings map[string]string
}

// Install makes an installation in dir, which has to be empty.
func (p *Programs) Install(dir string) (*Fake, error) {
	lib := filepath.Join(dir, "lib64")
	if err := os.Mkdir(lib, 0o700); err != nil {
		return nil, err
	}
	code, err := os.ReadFile(p.library)
	if err != nil {
		return nil, err
	}
	if err := os.WriteFile(filepath.Join(lib, "libvixDiskLib.so.8.0.9"), code, 0o700); err != nil {
		return nil, err
	}
	if err := os.Symlink("libvixDiskLib.so.8.0.9", filepath.Join(lib, "libvixDiskLib.so.8")); err != nil {
		return nil, err
	}
	f := &Fake{dir: lib, settings: map[string]string{}}
	f.library = vddk.Library{Dir: dir, Helper: p.Helper}
	return f, f.write()
}

// Library is where the installation is, for a request.
func (f *Fake) Library() vddk.Library { return f.library }

// Disk lets the library find the raw file under a datastore path.
func (f *Fake) Disk(path, file string) error { return f.Set("disk "+path, file) }

// Set sets or, with "", unsets. Settings are read when the call that they are
// about is made, those about transfers when a disk is opened. Numbers that are
// not set are 0.
//
//	server user password thumbprint   what is accepted; not set: anything
//	vm snapshot                       the same ("moref=vm-42", "snapshot-43")
//	usable                            modes that work, "nbdssl:nbd" if not set
//	init_error connect_error open_error prepare_error cleanup_error
//	                                  the error number of that call
//	hang_init hang_connect hang_close 1: it never returns
//	crash_connect                     1: it dies of SIGSEGV
//	nfc_limit                         disks that may be open at once, by all processes
//	threads delay_us                  workers (4), longest delay of a transfer
//	lose_after hang_after crash_after transfers until the connection is lost,
//	                                  answers stop, the process dies
//	bad_sector                        transfers of it fail
//	no_blocks                         1: allocated blocks cannot be asked for
//	cleaned remaining                 what Cleanup reports
func (f *Fake) Set(key, value string) error {
	f.mu.Lock()
	defer f.mu.Unlock()
	f.settings[key] = value
	if value == "" {
		delete(f.settings, key)
	}
	return f.write()
}

func (f *Fake) write() error {
	var b strings.Builder
	for key, value := range f.settings {
		fmt.Fprintf(&b, "%s=%s\n", key, value)
	}
	tmp := filepath.Join(f.dir, "fake.conf.new")
	if err := os.WriteFile(tmp, []byte(b.String()), 0o600); err != nil {
		return err
	}
	return os.Rename(tmp, filepath.Join(f.dir, "fake.conf"))
}

// Violations are what was done that the real library forbids.
func (f *Fake) Violations() ([]string, error) { return f.notes("violations") }

// Cleanups are the VMs for which Cleanup was called, in order.
func (f *Fake) Cleanups() ([]string, error) { return f.notes("cleanups") }

func (f *Fake) notes(name string) ([]string, error) {
	text, err := os.ReadFile(filepath.Join(f.dir, name))
	if errors.Is(err, fs.ErrNotExist) {
		return nil, nil
	}
	return slices.Collect(strings.Lines(string(text))), err
}
