// Command lifeboat is the instant-recovery appliance: it backs disks up, boots
// them from the backup over NFS, and gives back what is in them.
//
// One file per command family; each is a thin layer over package appliance.
package main

import (
	"context"
	"fmt"
	"io"
	"log/slog"
	"os"
	"os/signal"
	"path/filepath"
	"runtime/debug"
	"strings"
	"syscall"

	"github.com/urfave/cli/v2"
	"golang.org/x/term"

	"lifeboat/appliance"
)

// version is what `lifeboat --version` says and what points record.
const version = "0.1.0"

func main() {
	appliance.GuestWorker()
	os.Exit(run(os.Args, os.Stdin, os.Stdout, os.Stderr))
}

// run is the whole program: arguments and streams in, exit code out.
func run(args []string, stdin *os.File, stdout, stderr io.Writer) int {
	tuneMemory()
	ctx, stop := signal.NotifyContext(context.Background(), stopSignals()...)
	defer stop()
	// A second signal kills: whoever presses Ctrl-C twice means it.
	context.AfterFunc(ctx, stop)

	p := &program{stdin: stdin, stdout: stdout, stderr: stderr}
	app := p.app()
	err := app.RunContext(ctx, permute(app, args))
	code, prefix := exitCode(err), "lifeboat: "
	switch {
	case err == nil:
	case code == exitInterrupted && ctx.Err() != nil:
		fmt.Fprintln(stderr, "lifeboat: interrupted; nothing is left half done")
	default:
		for line := range strings.Lines(err.Error()) { // names of VMs stand in errors, too
			fmt.Fprintf(stderr, "%s%s\n", prefix, printable(strings.TrimSuffix(line, "\n")))
			prefix = ""
		}
	}
	return code
}

// stopSignals end work in order: Ctrl-C, kill, and a terminal that went away,
// unless nohup says that this is no reason.
func stopSignals() []os.Signal {
	signals := []os.Signal{os.Interrupt, syscall.SIGTERM}
	if !signal.Ignored(syscall.SIGHUP) {
		signals = append(signals, syscall.SIGHUP)
	}
	return signals
}

// tuneMemory keeps the garbage collector ahead of short-lived buffers: the
// large caches live outside its heap, so that half as much slack costs little
// time and keeps an idle appliance small.
func tuneMemory() {
	if os.Getenv("GOGC") == "" {
		debug.SetGCPercent(50)
	}
}

// program holds what all commands share.
type program struct {
	stdin          *os.File
	stdout, stderr io.Writer
	config         appliance.Config
	json           bool
	log            *slog.Logger
	pw             []byte // what a person has typed; a command may need it twice
}

func (p *program) app() *cli.App {
	app := &cli.App{
		Name:                   "lifeboat",
		Usage:                  "boot virtual machines from their backups, in seconds",
		Version:                version,
		HideHelpCommand:        true,
		EnableBashCompletion:   true,
		Writer:                 p.stdout,
		ErrWriter:              p.stderr,
		UseShortOptionHandling: false,
		Flags: []cli.Flag{
			&cli.StringFlag{Name: "repo", Usage: "the repository: a `PATH`, or s3://BUCKET/PREFIX?endpoint=https://HOST:PORT&region=REGION with keys from AWS_ACCESS_KEY_ID and AWS_SECRET_ACCESS_KEY", EnvVars: []string{"LIFEBOAT_REPO"}},
			&cli.StringFlag{Name: "state", Usage: "where sessions are kept, a `DIR`", EnvVars: []string{"LIFEBOAT_STATE"}},
			&cli.StringFlag{Name: "config", Usage: "configuration `FILE` (YAML)", EnvVars: []string{"LIFEBOAT_CONFIG"}},
			&cli.StringFlag{Name: "cache-dir", Usage: "keep what is read of the repository in `DIR` (default for S3: cache in the state directory)", EnvVars: []string{"LIFEBOAT_CACHE_DIR"}},
			&cli.StringFlag{Name: "cache-size", Usage: "keep that many `BYTES` there, such as 20G, or off (default: a tenth of what is free, at most 20G)", EnvVars: []string{"LIFEBOAT_CACHE_SIZE"}},
			&cli.BoolFlag{Name: "json", Usage: "print one JSON document when done"},
			&cli.BoolFlag{Name: "verbose", Usage: "log what happens to stderr"},
		},
		Before: p.before,
		Action: func(c *cli.Context) error {
			if c.Args().Present() {
				return fmt.Errorf("%w: there is no command %q; `lifeboat --help` lists them", appliance.ErrUsage, c.Args().First())
			}
			return cli.ShowAppHelp(c)
		},
		// Errors are told once, by run.
		ExitErrHandler: func(*cli.Context, error) {},
		Commands: []*cli.Command{
			p.initCommand(), p.keyCommand(),
			p.backupCommand(),
			p.pointsCommand(), p.showCommand(), p.exportCommand(), p.diffCommand(), p.verifyCommand(), p.forgetCommand(), p.unforgetCommand(), p.policyCommand(), p.pinCommand(), p.unpinCommand(), p.immutableCommand(), p.pruneCommand(), p.repairCommand(), p.statsCommand(), p.copyCommand(), p.rebuildCommand(),
			p.publishCommand(), p.sessionCommand(), p.serveCommand(),
			p.recoverCommand(), p.migrateCommand(), p.stopCommand(), p.detachCommand(), p.restoreCommand(), p.leftoversCommand(),
			p.filesCommand(), p.mountCommand(),
			p.demoCommand(),
		},
		Description: "Exit codes: 0 done, 1 failed, 2 wrong usage, 3 done with warnings, 4 not found,\n" +
			"5 damaged data found, 130 interrupted.\n\n" +
			"The password of the repository comes from LIFEBOAT_PASSWORD or the file named by\n" +
			"LIFEBOAT_PASSWORD_FILE; on a terminal it is asked for.",
	}
	app.OnUsageError = usageError
	for _, c := range app.Commands {
		prepare(c)
	}
	return app
}

// prepare gives every command the manners that urfave/cli leaves to each.
func prepare(c *cli.Command) {
	c.OnUsageError = usageError
	c.HideHelpCommand = true
	if len(c.Subcommands) > 0 && c.Action == nil {
		c.Action = func(ctx *cli.Context) error {
			if ctx.Args().Present() {
				return fmt.Errorf("%w: there is no command \"%s %s\"", appliance.ErrUsage, c.Name, ctx.Args().First())
			}
			return cli.ShowSubcommandHelp(ctx)
		}
	}
	for _, sub := range c.Subcommands {
		prepare(sub)
	}
}

func usageError(c *cli.Context, err error, _ bool) error {
	name := "lifeboat"
	if c.Command != nil && c.Command.HelpName != "" {
		name = c.Command.HelpName
	}
	return fmt.Errorf("%w: %w; see `%s --help`", appliance.ErrUsage, err, name)
}

// before reads the configuration; flags and environment win over the file.
func (p *program) before(c *cli.Context) error {
	p.json = c.Bool("json")
	level := slog.LevelWarn
	if c.Bool("verbose") {
		level = slog.LevelInfo
	}
	p.log = slog.New(slog.NewTextHandler(p.stderr, &slog.HandlerOptions{Level: level}))
	if file := c.String("config"); file != "" {
		cfg, err := appliance.ReadConfig(file)
		if err != nil {
			return err
		}
		p.config = *cfg
	}
	if v := c.String("repo"); v != "" {
		p.config.Repo = v
	}
	if v := c.String("state"); v != "" {
		p.config.State = v
	}
	if v := c.String("cache-dir"); v != "" {
		p.config.CacheDir = v
	}
	if v := c.String("cache-size"); v != "" {
		p.config.CacheSize = v
	}
	if p.config.State == "" {
		p.config.State = defaultState()
	}
	return nil
}

// defaultState is /var/lib/lifeboat for root and the user's own state directory
// (XDG base directory specification) otherwise.
func defaultState() string {
	if os.Geteuid() == 0 {
		return "/var/lib/lifeboat"
	}
	if dir := os.Getenv("XDG_STATE_HOME"); dir != "" {
		return filepath.Join(dir, "lifeboat")
	}
	home, err := os.UserHomeDir()
	if err != nil {
		return "lifeboat-state"
	}
	return filepath.Join(home, ".local", "state", "lifeboat")
}

// isTerminal reports whether w is a person's terminal.
func isTerminal(w io.Writer) bool {
	f, ok := w.(*os.File)
	return ok && term.IsTerminal(int(f.Fd()))
}

// password returns the repository's password; twice asks a person to repeat it.
func (p *program) password(twice bool) ([]byte, error) {
	if p.pw != nil && !twice {
		return p.pw, nil
	}
	pw, err := p.passwordFrom("LIFEBOAT_PASSWORD", "Password of the repository", twice)
	p.pw = pw
	return pw, err
}
