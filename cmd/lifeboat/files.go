package main

import (
	"fmt"
	"io"
	"os"
	"slices"
	"strings"
	"time"

	"github.com/urfave/cli/v2"

	"lifeboat/appliance"
	"lifeboat/store"
)

const placeHelp = "A place is POINT:VOLUME/PATH. VOLUME is a name that `lifeboat files volumes POINT` prints, or a\n" +
	"drive such as C:, or nothing: then PATH is one in the guest's own tree, as in web1@latest:/etc/fstab.\n" +
	"Links are followed inside the guest only.\n\n" + pointHelp

func (p *program) filesCommand() *cli.Command {
	return &cli.Command{
		Name: "files", Usage: "look at and take out files of a guest",
		Subcommands: []*cli.Command{
			{
				Name: "volumes", Usage: "list the volumes in a restore point", ArgsUsage: "POINT", Description: pointHelp, Flags: keyFlags(),
				Action: p.withPoints(1, 1, p.filesVolumes),
			},
			{
				Name: "ls", Usage: "list a directory, or the versions of a file", ArgsUsage: "PLACE", Description: placeHelp,
				Flags: append([]cli.Flag{
					&cli.BoolFlag{Name: "versions", Usage: "tell which versions of the file there are in all restore points of its VM (VM:/PATH will do)"},
				}, keyFlags()...),
				Action: func(c *cli.Context) error {
					if c.Bool("versions") {
						return p.filesVersions(c)
					}
					return p.withPlace(p.filesList)(c)
				},
			},
			{
				Name: "stat", Usage: "tell everything about a file", ArgsUsage: "PLACE", Description: placeHelp, Flags: keyFlags(),
				Action: p.withPlace(p.filesStat),
			},
			{
				Name: "cat", Usage: "write a file to standard output", ArgsUsage: "PLACE",
				Description: "A named stream of Windows is PLACE:STREAM.\n\n" + placeHelp,
				Flags:       keyFlags(),
				Action:      p.withPlace(p.filesCat),
			},
			p.filesGetCommand(),
			p.filesDiffCommand(),
			p.filesFindCommand(),
			p.filesIndexCommand(),
			p.filesRestoreCommand(),
		},
	}
}

// withPlace is the frame of commands that work on a place in a guest.
func (p *program) withPlace(fn func(c *cli.Context, g *appliance.Guest, place string) error) cli.ActionFunc {
	return func(c *cli.Context) error {
		if err := arguments(c, 1, 1); err != nil {
			return err
		}
		return p.withFilesRepo(c.Context, func(repo *store.Repository) error {
			return p.withGuest(c, repo, func(g *appliance.Guest, place string) error { return fn(c, g, place) })
		})
	}
}

// keyFlags are how a guest's encrypted volumes are opened.
func keyFlags() []cli.Flag {
	return []cli.Flag{
		&cli.BoolFlag{Name: "unlock", Usage: "open encrypted volumes with a passphrase: it is asked for, or taken from LIFEBOAT_GUEST_PASSPHRASE"},
		&cli.StringSliceFlag{Name: "key-file", Usage: "open encrypted volumes with `FILE`: a key file of LUKS, a start-up key or recovery key of BitLocker"},
		&cli.StringFlag{Name: "backend", Usage: "read file systems with `WHAT`: native, microvm (a Linux kernel in QEMU), or kernel (this machine's own: only where you trust the guest) (default: native, and microvm for what it does not know)"},
	}
}

// maxKeyFile bounds a key file, in bytes: what cryptsetup takes.
const maxKeyFile = 8 << 20

func (p *program) guestOptions() appliance.GuestOptions {
	opts := appliance.GuestOptions{Logger: p.log}
	opts.MicroVM.CacheDir, opts.MicroVM.Logger = defaultCache(), p.log
	opts.MicroVM.Progress = func(step string) { fmt.Fprintf(p.stderr, "lifeboat: the micro-VM: %s\n", step) }
	return opts
}

// guestKeys are the options with the keys that the command line names.
func (p *program) guestKeys(c *cli.Context) (appliance.GuestOptions, error) {
	opts := p.guestOptions()
	switch opts.Backend = appliance.Backend(c.String("backend")); opts.Backend {
	case appliance.BackendAuto, appliance.BackendNative, appliance.BackendMicroVM, appliance.BackendKernel:
	default:
		return opts, fmt.Errorf("%w: --backend %q: use native, microvm or kernel", appliance.ErrUsage, opts.Backend)
	}
	for _, name := range c.StringSlice("key-file") {
		key, err := readKeyFile(name)
		if err != nil {
			return opts, err
		}
		opts.Keys = append(opts.Keys, key)
	}
	if c.Bool("unlock") {
		key, err := p.passwordFrom("LIFEBOAT_GUEST_PASSPHRASE", "Passphrase of the guest's volumes", false)
		if err != nil {
			return opts, err
		}
		opts.Keys = append(opts.Keys, key)
	}
	return opts, nil
}

func readKeyFile(name string) ([]byte, error) {
	f, err := os.Open(name)
	if err != nil {
		return nil, fmt.Errorf("key file: %w", err)
	}
	defer f.Close()
	key, err := io.ReadAll(io.LimitReader(f, maxKeyFile+1))
	if err == nil && len(key) > maxKeyFile {
		err = fmt.Errorf("longer than %d bytes", maxKeyFile)
	}
	if err != nil {
		return nil, fmt.Errorf("key file %s: %w", name, err)
	}
	return key, nil
}

// withGuest opens the guest of a place for the length of fn.
func (p *program) withGuest(c *cli.Context, repo *store.Repository, fn func(g *appliance.Guest, place string) error) error {
	opts, err := p.guestKeys(c)
	if err != nil {
		return err
	}
	return appliance.WithGuest(c.Context, repo, c.Args().First(), opts, fn)
}

func (p *program) filesVolumes(c *cli.Context, repo *store.Repository, pts []*store.Point) error {
	opts, err := p.guestKeys(c)
	if err != nil {
		return err
	}
	g, err := appliance.OpenGuest(c.Context, repo, pts[0], opts)
	if err != nil {
		return err
	}
	defer g.Close()
	r := g.Report()
	if p.json {
		return p.printJSON(r.Volumes)
	}
	for _, s := range r.Systems {
		name := s.Name
		if s.Host != "" {
			name += " (" + s.Host + ")"
		}
		fmt.Fprintln(p.stdout, printable(name))
	}
	err = p.table("VOLUME\tTYPE\tLABEL\tSIZE\tUSED\tSTATE\tMOUNTS\tREAD BY", func(line func(string, ...any)) {
		for _, v := range r.Volumes {
			used := ""
			if v.Used >= 0 {
				used = size(v.Used)
			}
			line("%s\t%s\t%s\t%s\t%s\t%s\t%s\t%s", v.Name, v.Type, v.Label, size(v.Size), used, string(v.State), strings.Join(v.Mounts, " "), v.Backend)
		}
	})
	p.notes(g)
	return err
}

// notes says what is not as it should be.
func (p *program) notes(g *appliance.Guest) {
	r := g.Report()
	for _, v := range r.Volumes {
		if v.Note != "" {
			fmt.Fprintf(p.stdout, "%s: %s\n", printable(v.Name), printable(v.Note))
		}
	}
	for _, s := range r.Systems {
		for _, n := range s.Notes {
			fmt.Fprintf(p.stdout, "%s: %s\n", printable(s.Name), printable(n))
		}
	}
	for _, n := range r.Notes {
		fmt.Fprintln(p.stdout, printable(n))
	}
}

func (p *program) filesList(c *cli.Context, g *appliance.Guest, place string) error {
	files := []appliance.File{}
	for f, err := range g.List(c.Context, place) {
		if err != nil {
			return err
		}
		files = append(files, f)
	}
	slices.SortStableFunc(files, func(a, b appliance.File) int { return strings.Compare(a.Name, b.Name) })
	if p.json {
		return p.printJSON(files)
	}
	return p.table("MODE\tLINKS\tUID\tGID\tSIZE\tMODIFIED\tNAME", func(line func(string, ...any)) {
		for _, f := range files {
			name := f.Name
			if f.Target != "" {
				name += " -> " + f.Target
			}
			if f.Error != "" {
				name += "  (" + f.Error + ")"
			}
			line("%s\t%d\t%d\t%d\t%s\t%s\t%s", modeText(f), f.Links, f.UID, f.GID, fileSize(f), fileTime(f.Modify), name)
		}
	})
}

// modeText is a file's mode as ls(1) writes it.
func modeText(f appliance.File) string {
	if f.Attr == nil {
		return "?"
	}
	kind := map[string]byte{"file": '-', "dir": 'd', "symlink": 'l', "char": 'c', "block": 'b', "fifo": 'p', "socket": 's'}[f.Type]
	if kind == 0 {
		kind = '?'
	}
	b := []byte(string(kind) + "rwxrwxrwx")
	for i := range 9 {
		if f.Attr.Mode>>(8-i)&1 == 0 {
			b[1+i] = '-'
		}
	}
	for i, special := range []struct {
		bit  uint32
		at   int
		char byte
	}{{0o4000, 3, 's'}, {0o2000, 6, 's'}, {0o1000, 9, 't'}} {
		_ = i
		if f.Attr.Mode&special.bit == 0 {
			continue
		}
		if b[special.at] == '-' {
			special.char -= 'a' - 'A'
		}
		b[special.at] = special.char
	}
	return string(b)
}

func fileSize(f appliance.File) string {
	if f.Device != "" {
		return f.Device
	}
	return fmt.Sprint(f.Size)
}

func fileTime(t *time.Time) string {
	if t == nil {
		return ""
	}
	return localTime(*t)
}

func (p *program) filesStat(c *cli.Context, g *appliance.Guest, place string) error {
	f, err := g.Stat(c.Context, place)
	if err != nil {
		return err
	}
	if p.json {
		return p.printJSON(f)
	}
	row := func(name, format string, args ...any) {
		fmt.Fprintf(p.stdout, "%-10s %s\n", name, printable(fmt.Sprintf(format, args...)))
	}
	row("Path", "%s", f.Path)
	row("Type", "%s", f.Type)
	if f.Target != "" {
		row("Target", "%s", f.Target)
	}
	if f.Device != "" {
		row("Device", "%s", f.Device)
	}
	row("Size", "%d (%s on the volume)", f.Size, size(f.Used))
	row("Mode", "%s (%s)", f.Mode, modeText(f))
	row("Owner", "%d:%d", f.UID, f.GID)
	row("Inode", "%d, %d links", f.Inode, f.Links)
	for _, t := range []struct {
		name string
		at   *time.Time
	}{{"Modified", f.Modify}, {"Changed", f.Change}, {"Accessed", f.Access}, {"Created", f.Birth}} {
		if t.at != nil {
			row(t.name, "%s", t.at.Local().Format("2006-01-02 15:04:05.000000000 -0700"))
		}
	}
	if len(f.Flags) > 0 {
		row("Flags", "%s", strings.Join(f.Flags, ", "))
	}
	for _, x := range f.Xattrs {
		row("Attribute", "%s = %q", x.Name, x.Value)
	}
	for _, s := range f.Streams {
		row("Stream", "%s, %d bytes", s.Name, s.Size)
	}
	if len(f.Descriptor) > 0 {
		row("Security", "descriptor of %d bytes", len(f.Descriptor))
	}
	if f.Error != "" {
		row("Error", "%s", f.Error)
	}
	return nil
}

func (p *program) filesCat(c *cli.Context, g *appliance.Guest, place string) error {
	var progress func(done, total int64)
	if !isTerminal(p.stdout) {
		show := newMeters(p.stderr)
		m := show.add(place)
		progress = m.set
		defer show.wait()
	}
	return g.Cat(c.Context, p.stdout, place, progress)
}
