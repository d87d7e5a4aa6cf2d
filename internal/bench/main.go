// Command bench measures Lifeboat against named peers from Debian's packages:
// what docs/performance.md says, it says on your machine.
//
//	go run ./internal/bench [-only nfs,write,…] (-help lists the sections) [-rounds N] [-seconds S] [-json FILE]
//
// A machine's speed drifts while one looks: neighbours, turbo, the page cache.
// So nothing is compared with a number from another day. Ours and the peer are
// measured in turn, A B A B, in one run; what counts is the median of the
// ratios of neighbours, and the spread of those ratios is told beside it.
//
// Nothing is asserted here: a figure that misses its target is printed as
// missed. Everything runs in namespaces of its own (network and mounts), over
// loopback only, and ends with the program. nfs-ganesha and rpcbind need root.
package main

import (
	"context"
	"errors"
	"flag"
	"fmt"
	"io"
	"os"
	"os/exec"
	"os/signal"
	"path/filepath"
	"runtime"
	"slices"
	"strings"
	"syscall"
	"time"

	"lifeboat/appliance"
	"lifeboat/internal/guestimage"
	"lifeboat/internal/qemu/netns"
)

// options are the command line.
type options struct {
	only    []string
	rounds  int
	seconds float64
	json    string
	binary  string
	dir     string
	profile string
	args    []string // as given, to start again with
}

// section is one part of the run.
type section struct {
	name string
	what string
	run  func(*bench, context.Context) error
}

func sections() []section {
	return []section{
		{"nfs", "NFS reads and attributes against nfs-ganesha", (*bench).nfsReads},
		{"write", "NFS durable writes against nfs-ganesha", (*bench).nfsWrites},
		{"ingest", "backup against qemu-img convert -c", (*bench).ingest},
		{"backup", "first backup against restic and borg", (*bench).backup},
		{"incremental", "second backup after 1 % of the blocks changed against restic and borg", (*bench).incremental},
		{"changed", "second backup with known changes, of a huge and a small disk", (*bench).changed},
		{"random", "random reads of a restore point against restic mount and borg mount", (*bench).random},
		{"restore", "full restore against restic and borg", (*bench).restore},
		{"store", "reads of the repository against qemu-nbd and pread", (*bench).store},
		{"open", "publish of a huge and a small point", (*bench).open},
		{"boot", "boot from the backup against the raw file", (*bench).boot},
		{"s3boot", "boot from S3 with and without a trace against a local directory", (*bench).s3boot},
		{"memory", "memory of the server, idle and with 8 VMs", (*bench).memory},
		{"vsphere", "recoveries, calls and transports at a (simulated) vCenter", (*bench).vsphere},
		{"files", "files of guests against the kernel's own mount of the same image", (*bench).files},
	}
}

func main() {
	appliance.GuestWorker()
	// Children die with the thread that started them (see process.go).
	runtime.LockOSThread()
	ctx, _ := signal.NotifyContext(context.Background(), os.Interrupt, syscall.SIGTERM)
	if err := run(ctx, os.Args[1:], os.Stdout, os.Stderr); err != nil {
		fmt.Fprintln(os.Stderr, "bench:", err)
		var exit *exec.ExitError
		if errors.As(err, &exit) && exit.ExitCode() > 0 {
			os.Exit(exit.ExitCode())
		}
		os.Exit(1)
	}
}

func run(ctx context.Context, args []string, stdout, stderr io.Writer) error {
	if len(args) > 0 {
		if child, ok := children()[args[0]]; ok {
			return child(ctx, args[1:], stdout)
		}
	}
	opt, err := parse(args, stderr)
	if errors.Is(err, flag.ErrHelp) {
		return nil
	}
	if err != nil {
		return err
	}
	if netns.Inside() {
		return inside(ctx, opt, stdout, stderr)
	}
	return outside(ctx, opt, stdout, stderr)
}

func parse(args []string, stderr io.Writer) (options, error) {
	opt := options{args: args}
	fs := flag.NewFlagSet("bench", flag.ContinueOnError)
	fs.SetOutput(stderr)
	var names []string
	for _, s := range sections() {
		names = append(names, s.name)
	}
	only := fs.String("only", strings.Join(names, ","), "the sections to run, with commas between them")
	fs.IntVar(&opt.rounds, "rounds", 7, "pairs of measurements for each figure")
	fs.Float64Var(&opt.seconds, "seconds", 2, "length of one measurement, where it is a matter of time")
	fs.StringVar(&opt.json, "json", "", "write everything that was measured to this `file`, too")
	fs.StringVar(&opt.binary, "lifeboat", "bin/lifeboat", "the program to measure (make build)")
	fs.StringVar(&opt.dir, "dir", "/var/tmp", "make the working `directory` in this one; it decides which disk is measured")
	fs.StringVar(&opt.profile, "profile", "", "keep CPU profiles of our servers in this `directory`; they run as copies of this program then")
	if err := fs.Parse(args); err != nil {
		return opt, err
	}
	opt.only = strings.Split(*only, ",")
	for _, name := range opt.only {
		if !slices.Contains(names, name) {
			return opt, fmt.Errorf("-only %s: there is %s", name, strings.Join(names, ", "))
		}
	}
	if opt.rounds < 1 || opt.seconds <= 0 || fs.NArg() > 0 {
		return opt, errors.New("at least one round and some time; no further arguments (see -help)")
	}
	return opt, nil
}

func (o options) wants(names ...string) bool {
	return slices.ContainsFunc(names, func(n string) bool { return slices.Contains(o.only, n) })
}

// programs are those that must be installed.
func (o options) programs() []string {
	list := []string{o.binary, "ganesha.nfsd", "rpcbind", "qemu-nbd", "qemu-img", "qemu-io", "qemu-system-x86_64", "gcc"}
	if o.wants("backup", "incremental", "random", "restore") {
		list = append(list, "restic", "borg", "fusermount")
	}
	if o.wants("files") {
		list = append(list, filesPrograms()...)
	}
	return list
}

// outside prepares what needs the real network and starts the program again in
// namespaces of its own.
func outside(ctx context.Context, opt options, stdout, stderr io.Writer) error {
	if os.Geteuid() != 0 {
		return errors.New("nfs-ganesha opens files by handle, which only root may do: run as root")
	}
	for _, need := range opt.programs() {
		if _, err := exec.LookPath(need); err != nil {
			return fmt.Errorf("%w: run make bench, which builds and installs what is missing", err)
		}
	}
	if opt.wants("boot", "s3boot", "memory", "ingest", "store", "backup", "incremental", "changed", "restore") {
		if _, err := guestDisk(ctx, stderr); err != nil {
			return err
		}
	}
	if opt.wants("files") {
		if err := fetchMicroVM(ctx, opt, stderr); err != nil {
			return err
		}
	}
	self, err := os.Executable()
	if err != nil {
		return err
	}
	cmd := netns.Command(ctx, self, opt.args...)
	// rpcbind and ganesha leave sockets in /run: in a /run of their own.
	cmd.SysProcAttr.Cloneflags |= syscall.CLONE_NEWNS
	cmd.WaitDelay = time.Minute
	cmd.Stdin, cmd.Stdout, cmd.Stderr = os.Stdin, stdout, stderr
	return cmd.Run()
}

func guestDisk(ctx context.Context, stderr io.Writer) (string, error) {
	cache, err := os.UserCacheDir()
	if err != nil {
		cache = os.TempDir()
	}
	return guestimage.DebianDisk(ctx, filepath.Join(cache, "lifeboat"), func(line string) { fmt.Fprintln(stderr, line) })
}

// inside does the work, and cleans up.
func inside(ctx context.Context, opt options, stdout, stderr io.Writer) (err error) {
	if err := netns.Up(); err != nil {
		return err
	}
	if err := syscall.Mount("", "/", "", syscall.MS_REC|syscall.MS_PRIVATE, ""); err != nil {
		return fmt.Errorf("making the mounts private: %w", err)
	}
	if err := syscall.Mount("tmpfs", "/run", "tmpfs", 0, "mode=755"); err != nil {
		return fmt.Errorf("mounting a /run of our own: %w", err)
	}
	b := &bench{opt: opt, out: stderr}
	defer func() { err = errors.Join(err, b.cleanUp()) }()
	if err := b.prepare(ctx); err != nil {
		return err
	}
	fmt.Fprintln(stdout, b.report.Machine)
	var failed []error
	for _, s := range sections() {
		if !opt.wants(s.name) || ctx.Err() != nil {
			continue
		}
		b.sayf("== %s: %s", s.name, s.what)
		b.section = s.name
		if err := s.run(b, ctx); err != nil {
			// The others are worth having.
			err = fmt.Errorf("%s: %w", s.name, err)
			b.sayf("FAILED %v", err)
			failed = append(failed, err)
		}
	}
	b.report.Markdown(stdout)
	if opt.json != "" {
		failed = append(failed, b.report.WriteJSON(opt.json))
	}
	return errors.Join(append(failed, ctx.Err())...)
}
