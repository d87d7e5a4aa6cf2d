// Package demo tells Lifeboat's story on a real machine: a Debian VM is backed
// up, boots from its backup over NFS, goes on while the server is killed under
// it, and is moved to other storage while it runs. `lifeboat demo` shows it to
// people; the end-to-end test runs the same story and fails when it fails.
//
// The story runs the real binary as separate processes, because one of them has
// to be killed, and QEMU with its own NFS client, because that client is not
// ours. Everything happens in a network namespace of its own.
package demo

import (
	"context"
	"errors"
	"fmt"
	"io"
	"os"
	"os/exec"
	"path/filepath"

	"lifeboat/internal/guestimage"
	"lifeboat/internal/qemu"
	"lifeboat/internal/qemu/netns"
)

// Options say where the story takes place.
type Options struct {
	// Binary is the lifeboat program to show; it must also understand "demo".
	Binary string
	// Arguments, after Binary, start the story again inside its namespace.
	Arguments []string
	// CacheDir keeps the Debian disk between runs.
	CacheDir string
	// WorkDir holds repository, state and disks. Empty means a new directory
	// below the system's temporary one, removed at the end.
	WorkDir string
	// Keep leaves WorkDir as it is, to look around in.
	Keep bool
	// Console gets what the guests print, if not nil.
	Console io.Writer
	// Out gets the narration, one line a step.
	Out io.Writer
}

// Run makes the disk if need be and tells the story. The first call starts the
// program again in a namespace of its own and returns what that did; there the
// same call tells the story and finish gets the report.
func Run(ctx context.Context, opt Options, finish func(*Report) error) error {
	return enter(ctx, opt, func(st *stage) error {
		s := &story{visitor: visitor{stage: st}}
		s.report.Accelerator = st.accelerator()
		defer s.cleanUp()
		if err := s.tell(ctx); err != nil {
			return err
		}
		if opt.Keep {
			s.report.WorkDir = st.work
		}
		return finish(&s.report)
	})
}

// enter starts the program again in a namespace of its own; there it sets the
// stage and has the story told on it.
func enter(ctx context.Context, opt Options, tell func(*stage) error) error {
	if netns.Inside() {
		if err := netns.Up(); err != nil {
			return fmt.Errorf("the demo's network: %w", err)
		}
		return inside(ctx, opt, tell)
	}
	if err := checkHost(ctx); err != nil {
		return err
	}
	n := narrator{out: opt.Out}
	if _, err := guestimage.DebianDisk(ctx, opt.CacheDir, n.say); err != nil {
		return fmt.Errorf("making the demo's Debian disk: %w", err)
	}
	cmd := netns.Command(ctx, opt.Binary, opt.Arguments...)
	cmd.Stdin, cmd.Stdout, cmd.Stderr = os.Stdin, os.Stdout, os.Stderr
	err := cmd.Run()
	if ctx.Err() != nil {
		return context.Cause(ctx)
	}
	var exit *exec.ExitError
	if errors.As(err, &exit) {
		return &FailedError{Code: exit.ExitCode()}
	}
	return err
}

// FailedError says that the story failed inside its namespace and has told why
// there.
type FailedError struct{ Code int }

func (e *FailedError) Error() string { return fmt.Sprintf("the demo failed (exit code %d)", e.Code) }

// checkHost finds out early what would fail late.
func checkHost(ctx context.Context) error {
	if _, err := exec.LookPath("qemu-system-x86_64"); err != nil {
		return errors.New("qemu-system-x86_64 is missing: run tools/provision.sh demo, or install qemu-system-x86 and qemu-block-extra")
	}
	if err := netns.Check(ctx); err != nil {
		return fmt.Errorf("the demo needs a network namespace: %w", err)
	}
	return nil
}

// stage is where a story takes place.
type stage struct {
	opt   Options
	work  string
	accel qemu.Accel
	say   narrator
	env   []string // more of the environment of our commands
}

// inside tells the story in a directory that it cleans up.
func inside(ctx context.Context, opt Options, tell func(*stage) error) (err error) {
	work := opt.WorkDir
	if work == "" {
		if work, err = os.MkdirTemp("", "lifeboat-demo-"); err != nil {
			return err
		}
		if !opt.Keep {
			defer os.RemoveAll(work)
		}
	} else if err := os.MkdirAll(work, 0o700); err != nil {
		return err
	}
	if work, err = filepath.Abs(work); err != nil {
		return err
	}
	accel, why := qemu.ChooseAccel(ctx, "")
	st := &stage{opt: opt, work: work, accel: accel, say: narrator{out: opt.Out}}
	if why != nil {
		st.say.sayf("software emulation, since %v", why)
	}
	return tell(st)
}

// accelerator is what the report calls it.
func (s *stage) accelerator() string {
	if s.accel == qemu.KVM {
		return "kvm"
	}
	return "tcg"
}

// scene is one step of a story.
type scene struct {
	name string
	run  func(context.Context) error
}

// play runs the steps in order. The first that fails ends it, and the error
// says which and why.
func (s *stage) play(ctx context.Context, scenes []scene) error {
	for i, scene := range scenes {
		s.say.sayf("[%d/%d] %s", i+1, len(scenes), scene.name)
		if err := scene.run(ctx); err != nil {
			return fmt.Errorf("step %d (%s): %w", i+1, scene.name, err)
		}
	}
	return nil
}

// narrator says what happens, one line a step.
type narrator struct{ out io.Writer }

func (n narrator) say(line string) {
	if n.out != nil {
		fmt.Fprintln(n.out, line)
	}
}

func (n narrator) sayf(format string, args ...any) { n.say(fmt.Sprintf(format, args...)) }
