package main

import (
	"context"
	"fmt"
	"net/url"
	"os"
	"strconv"

	"github.com/urfave/cli/v2"

	"lifeboat/appliance"
	"lifeboat/vsphere"
)

// vcenterFlags say which vCenter or ESXi host is meant, as govc's variables do.
// The password is in no argument: others on the machine can read those.
func vcenterFlags() []cli.Flag {
	return []cli.Flag{
		&cli.StringFlag{Name: "vcenter", Usage: "vCenter Server or ESXi `HOST`, or its URL", EnvVars: []string{"GOVC_URL"}},
		&cli.StringFlag{Name: "username", Usage: "`USER` at the vCenter; the password comes from GOVC_PASSWORD or the file named by GOVC_PASSWORD_FILE", EnvVars: []string{"GOVC_USERNAME"}},
		&cli.BoolFlag{Name: "insecure", Usage: "do not check the server's certificate (GOVC_INSECURE)"},
		&cli.StringFlag{Name: "tls-known-hosts", Usage: "`FILE` of servers and the thumbprints of their certificates, as govc keeps them", EnvVars: []string{"GOVC_TLS_KNOWN_HOSTS"}},
		&cli.StringFlag{Name: "thumbprint", Usage: "the SHA-256 or SHA-1 `THUMBPRINT` of the server's certificate"},
		&cli.StringFlag{Name: "ca", Usage: "`FILE` with the certificates of the authorities to trust (PEM)", EnvVars: []string{"GOVC_TLS_CA_CERTS"}},
	}
}

// vcenter connects to the server that flags and environment name.
func (p *program) vcenter(c *cli.Context) (*vsphere.Client, error) {
	opts, err := p.vcenterOptions(c)
	if err != nil {
		return nil, err
	}
	return vsphere.Dial(c.Context, opts)
}

func (p *program) vcenterOptions(c *cli.Context) (vsphere.Options, error) {
	opts := vsphere.Options{
		URL: c.String("vcenter"), Username: c.String("username"), Insecure: c.Bool("insecure"), KnownHosts: c.String("tls-known-hosts"),
		Thumbprint: c.String("thumbprint"), CAFile: c.String("ca"), Logger: p.log, UserAgent: "lifeboat/" + version,
	}
	if opts.URL == "" {
		return opts, fmt.Errorf("%w: no vCenter named: use --vcenter or GOVC_URL", appliance.ErrUsage)
	}
	if !c.IsSet("insecure") {
		insecure, err := envBool("GOVC_INSECURE")
		if err != nil {
			return opts, err
		}
		opts.Insecure = insecure
	}
	inURL := ""
	if u, err := url.Parse(opts.URL); err == nil && u.User != nil { // https://user:password@host, as govc takes it
		if opts.Username == "" {
			opts.Username = u.User.Username()
		}
		inURL, _ = u.User.Password()
	}
	if opts.Username == "" {
		return opts, fmt.Errorf("%w: no user of the vCenter named: use --username or GOVC_USERNAME", appliance.ErrUsage)
	}
	if opts.Password = inURL; os.Getenv("GOVC_PASSWORD") != "" || os.Getenv("GOVC_PASSWORD_FILE") != "" || inURL == "" {
		pw, err := p.passwordFrom("GOVC_PASSWORD", "Password of "+opts.Username, false)
		if err != nil {
			return opts, err
		}
		opts.Password = string(pw)
	}
	return opts, nil
}

// envBool reads a variable as govc reads it.
func envBool(name string) (bool, error) {
	v := os.Getenv(name)
	if v == "" {
		return false, nil
	}
	b, err := strconv.ParseBool(v)
	if err != nil {
		return false, fmt.Errorf("%w: %s=%s: use true or false", appliance.ErrUsage, name, v)
	}
	return b, nil
}

// withVCenter runs fn with the server connected, and with what earlier runs left
// there brought to an end first.
func (p *program) withVCenter(c *cli.Context, fn func(*vsphere.Client, *appliance.State) error) (err error) {
	state, err := appliance.OpenState(p.config.State)
	if err != nil {
		return err
	}
	client, err := p.vcenter(c)
	if err != nil {
		return err
	}
	defer func() {
		// Whatever ends the work, the session at the server is given up.
		if cerr := client.Close(context.WithoutCancel(c.Context)); cerr != nil && err == nil {
			p.log.Warn("the session at the vCenter could not be ended", "error", cerr)
		}
	}()
	if err := p.serveAgain(c, state); err != nil {
		return err
	}
	done, err := state.Reconcile(c.Context, client, p.log)
	p.tellReconciled(done)
	if err != nil {
		return err
	}
	return fn(client, state)
}

// tellReconciled says what was found of earlier runs.
func (p *program) tellReconciled(done []appliance.Reconciled) {
	for _, r := range done {
		switch {
		case r.Problem != "":
			fmt.Fprintf(p.stderr, "lifeboat: an earlier run left something that is still there: %s\n", printable(r.Problem))
		case r.Action != "":
			fmt.Fprintf(p.stderr, "lifeboat: an earlier run was interrupted: %s\n", printable(r.Action))
		}
	}
}
