package main

import (
	"encoding/json"
	"errors"
	"fmt"
	"os"
	"slices"
	"time"

	"github.com/urfave/cli/v2"

	"lifeboat/appliance"
	"lifeboat/store"
	"lifeboat/vsphere"
)

func (p *program) filesRestoreCommand() *cli.Command {
	return &cli.Command{
		Name: "restore", Usage: "put files back into a running guest, through VMware Tools", ArgsUsage: "PLACE… --to-vm VM [--to DIR]",
		Description: "Places are of one restore point; after the first, POINT: may be left out. Everything goes back\n" +
			"to where it was, or to a directory of the guest. No network leads there and nothing is installed:\n" +
			"the host hands the files to VMware Tools. The user of the guest is --guest-user, the password comes\n" +
			"from GUEST_PASSWORD, or the file named by GUEST_PASSWORD_FILE, or is asked for.\n\n" +
			"A file that exists is left alone, and said, unless --overwrite is given. Each file is written under\n" +
			"another name, checked, and renamed; after an interruption no half file is left. Owner, permissions\n" +
			"and times are set as far as the user may; what VMware Tools cannot set (extended attributes, ACLs,\n" +
			"security descriptors, named streams) is listed. `lifeboat files get` has all of it.\n\n" + placeHelp,
		Flags: slices.Concat([]cli.Flag{
			&cli.StringFlag{Name: "to-vm", Usage: "the running `VM`: its name, or its path"},
			&cli.StringFlag{Name: "to", Usage: "a directory of the guest, `DIR`, instead of where the files were"},
			&cli.BoolFlag{Name: "overwrite", Usage: "replace files that exist"},
			&cli.BoolFlag{Name: "read-back", Usage: "read back what was written where the guest cannot tell a checksum"},
			&cli.StringFlag{Name: "report", Usage: "write a line of JSON for each file that was put in its place to `FILE`"},
			&cli.StringFlag{Name: "guest-user", Usage: "`USER` of the guest", EnvVars: []string{"GUEST_USERNAME"}},
		}, vcenterFlags(), keyFlags()),
		Action: p.filesRestore,
	}
}

func (p *program) filesRestore(c *cli.Context) error {
	if err := arguments(c, 1, -1); err != nil {
		return err
	}
	req := appliance.ToVMRequest{
		VM: c.String("to-vm"), To: c.String("to"), Overwrite: c.Bool("overwrite"), ReadBack: c.Bool("read-back"), Logger: p.log,
	}
	if req.VM == "" {
		return fmt.Errorf("%w: say which VM they go to: --to-vm VM", appliance.ErrUsage)
	}
	if c.IsSet("to") && req.To == "" {
		return fmt.Errorf("%w: --to names no directory", appliance.ErrUsage)
	}
	if req.Auth.Username = c.String("guest-user"); req.Auth.Username == "" {
		return fmt.Errorf("%w: no user of the guest named: use --guest-user or GUEST_USERNAME", appliance.ErrUsage)
	}
	password, err := p.passwordFrom("GUEST_PASSWORD", "Password of "+req.Auth.Username+" in the guest", false)
	if err != nil {
		return err
	}
	req.Auth.Password = string(password)
	return p.withFilesRepo(c.Context, func(repo *store.Repository) error {
		return p.withGuest(c, repo, func(g *appliance.Guest, place string) error {
			req.Places = []string{place}
			for _, ref := range c.Args().Tail() {
				next, err := appliance.PlaceIn(c.Context, repo, g, ref)
				if err != nil {
					return err
				}
				req.Places = append(req.Places, next)
			}
			return p.withVCenter(c, func(vc *vsphere.Client, _ *appliance.State) error { return p.restoreToVM(c, vc, g, req) })
		})
	})
}

// restoreToVM puts places into a guest and says what came of it, also when it was
// ended.
func (p *program) restoreToVM(c *cli.Context, vc *vsphere.Client, g *appliance.Guest, req appliance.ToVMRequest) (err error) {
	if name := c.String("report"); name != "" {
		report, rerr := os.OpenFile(name, os.O_WRONLY|os.O_CREATE|os.O_EXCL, 0o600)
		if rerr != nil {
			return fmt.Errorf("%w: report: %w", appliance.ErrUsage, rerr)
		}
		lines := json.NewEncoder(report)
		var failed error
		req.Put = func(f appliance.PutFile) {
			if failed == nil {
				failed = lines.Encode(f)
			}
		}
		defer func() { err = errors.Join(err, failed, report.Close()) }()
	}
	started := time.Now()
	show := newMeters(p.stderr)
	m := show.add(req.VM)
	req.Progress = func(files, done, total int64, _ bool) {
		m.count(files)
		m.set(done, total)
	}
	result, err := g.RestoreToVM(c.Context, vc, req)
	if err != nil {
		show.abandon()
	} else {
		show.wait()
	}
	if result == nil {
		return err
	}
	if perr := p.toldToVM(g, req, result, time.Since(started)); perr != nil {
		return errors.Join(err, perr)
	}
	if err != nil {
		return err
	}
	return result.Err()
}

func (p *program) toldToVM(g *appliance.Guest, req appliance.ToVMRequest, r *appliance.ToVMResult, took time.Duration) error {
	if p.json {
		return p.printJSON(struct {
			Point  string   `json:"point"`
			Places []string `json:"places"`
			To     string   `json:"to,omitempty"`
			*appliance.ToVMResult
			Seconds float64 `json:"seconds"`
		}{g.Point.ID, req.Places, req.To, r, took.Seconds()})
	}
	for _, l := range r.LeftOut {
		fmt.Fprintf(p.stdout, "left out: %s of %d files, such as %s: %s\n", l.What, l.Count, printable(l.Paths[0]), printable(l.Why))
	}
	replaced := ""
	if r.Replaced > 0 {
		replaced = fmt.Sprintf(", %d of them replaced", r.Replaced)
	}
	_, err := fmt.Fprintf(p.stdout, "%d files%s and %d new directories, %s, are in %s after %s.\n",
		r.Files, replaced, r.Dirs, size(r.Bytes), printable(r.VM), took.Round(10*time.Millisecond))
	return err
}
