package main

import (
	"context"
	"crypto/tls"
	"errors"
	"fmt"
	"net"
	"net/http"
	"net/netip"
	"os"
	"strings"
	"time"

	"github.com/urfave/cli/v2"

	"lifeboat/appliance"
	"lifeboat/store"
)

func (p *program) mountCommand() *cli.Command {
	return &cli.Command{
		Name: "mount", Usage: "show all restore points as one tree of files", ArgsUsage: "[DIR]",
		Description: "In DIR, until interrupted, and with --webdav also or only over the network:\n" +
			"  <vm>/<time>/files/<volume>/…    what is on a volume; of Windows each drive, too (C)\n" +
			"  <vm>/<time>/files/guest/…       the guest's own tree, everything in its place\n" +
			"  <vm>/<time>/disks/disk0.raw     the whole disks, for qemu-img, losetup -r, virt-*\n" +
			"Nothing can be changed. Symbolic links of a guest stay inside its volume.\n\n" +
			"Over WebDAV, Windows and macOS mount it as a drive: net use L: http://ADDR/. The password is\n" +
			"taken from LIFEBOAT_WEBDAV_PASSWORD; without one only this machine itself may connect.",
		Flags: []cli.Flag{
			&cli.BoolFlag{Name: "allow-other", Usage: "let other users of this machine in; the guest's owners and modes decide who reads what"},
			&cli.StringFlag{Name: "webdav", Usage: "serve WebDAV on `ADDRESS:PORT`"},
			&cli.StringFlag{Name: "webdav-user", Usage: "`NAME` that goes with the password", Value: "lifeboat"},
			&cli.StringFlag{Name: "tls-cert", Usage: "certificate for WebDAV, a PEM `FILE`"},
			&cli.StringFlag{Name: "tls-key", Usage: "its key, a PEM `FILE`"},
		},
		Action: p.mount,
	}
}

// shutdownPatience is how long WebDAV requests under way may go on.
const shutdownPatience = 2 * time.Second

func (p *program) mount(c *cli.Context) error {
	if err := arguments(c, 0, 1); err != nil {
		return err
	}
	dir, dav := c.Args().First(), c.String("webdav")
	if dir == "" && dav == "" {
		return fmt.Errorf("%w: name a directory to mount on, or an address for --webdav", appliance.ErrUsage)
	}
	listener, err := p.webdavListener(c, dav)
	if err != nil {
		return err
	}
	if listener != nil {
		defer listener.Close()
	}
	lasting := context.WithoutCancel(c.Context)
	return p.withFilesRepo(lasting, func(repo *store.Repository) (err error) {
		b := appliance.NewBrowser(repo, p.guestOptions())
		defer func() { err = errors.Join(err, b.Close()) }()
		ctx, stop := context.WithCancelCause(c.Context)
		defer stop(nil)
		ends := make(chan error, 2)
		running := 0
		ready := map[string]string{}
		if dir != "" {
			m, err := appliance.MountBrowser(dir, b, appliance.MountOptions{AllowOther: c.Bool("allow-other"), Logger: p.log})
			if err != nil {
				return err
			}
			running++
			ready["mount"] = m.Dir()
			go func() { ends <- m.Run(ctx) }()
		}
		if listener != nil {
			running++
			ready["webdav"] = webdavURL(c, listener)
			go func() {
				ends <- p.serveWebDAV(ctx, listener, appliance.WebDAVHandler(b, appliance.WebDAVOptions{
					User: c.String("webdav-user"), Password: os.Getenv("LIFEBOAT_WEBDAV_PASSWORD"), Logger: p.log,
				}))
			}()
		}
		if err := p.say(ready, "%s", mountReady(ready)); err != nil {
			stop(err)
		}
		for range running { // the first that ends ends the other
			err = errors.Join(err, <-ends)
			stop(nil)
		}
		return err
	})
}

func mountReady(ready map[string]string) string {
	var b strings.Builder
	if d := ready["mount"]; d != "" {
		fmt.Fprintf(&b, "All restore points are in %s.\n", d)
	}
	if u := ready["webdav"]; u != "" {
		fmt.Fprintf(&b, "All restore points are at %s (WebDAV).\n", u)
	}
	b.WriteString("Ctrl-C ends it.\n")
	return b.String()
}

func webdavURL(c *cli.Context, l net.Listener) string {
	scheme := "http"
	if c.IsSet("tls-cert") {
		scheme = "https"
	}
	return scheme + "://" + l.Addr().String() + "/"
}

// webdavListener opens the port, or says why not. nil where none is wanted.
func (p *program) webdavListener(c *cli.Context, addr string) (net.Listener, error) {
	if c.IsSet("tls-cert") != c.IsSet("tls-key") {
		return nil, fmt.Errorf("%w: --tls-cert and --tls-key go together", appliance.ErrUsage)
	}
	if addr == "" {
		return nil, nil
	}
	ap, err := netip.ParseAddrPort(addr)
	if err != nil {
		return nil, fmt.Errorf("%w: --webdav %q: use ADDRESS:PORT, such as 127.0.0.1:8080", appliance.ErrUsage, addr)
	}
	if !ap.Addr().IsLoopback() && os.Getenv("LIFEBOAT_WEBDAV_PASSWORD") == "" {
		return nil, fmt.Errorf("%w: --webdav %s can be reached by others, and shows every file of every VM: set LIFEBOAT_WEBDAV_PASSWORD, or use a loopback address", appliance.ErrUsage, addr)
	}
	if !ap.Addr().IsLoopback() && !c.IsSet("tls-cert") {
		p.log.Warn("WebDAV without TLS: passwords and files pass the network in clear text; --tls-cert and --tls-key end that")
	}
	l, err := net.Listen("tcp", ap.String())
	if err != nil {
		return nil, fmt.Errorf("serve WebDAV: %w; choose another port", err)
	}
	if c.IsSet("tls-cert") {
		cert, err := tls.LoadX509KeyPair(c.String("tls-cert"), c.String("tls-key"))
		if err != nil {
			l.Close()
			return nil, fmt.Errorf("%w: the certificate for WebDAV: %w", appliance.ErrUsage, err)
		}
		l = tls.NewListener(l, &tls.Config{Certificates: []tls.Certificate{cert}, MinVersion: tls.VersionTLS12})
	}
	return l, nil
}

// serveWebDAV serves until ctx is done.
func (p *program) serveWebDAV(ctx context.Context, l net.Listener, h http.Handler) error {
	s := &http.Server{Handler: h, ReadHeaderTimeout: 10 * time.Second, IdleTimeout: 2 * time.Minute}
	served := make(chan error, 1)
	go func() { served <- s.Serve(l) }()
	select {
	case err := <-served:
		return err
	case <-ctx.Done():
	}
	end, cancel := context.WithTimeout(context.WithoutCancel(ctx), shutdownPatience)
	defer cancel()
	if s.Shutdown(end) != nil {
		return s.Close()
	}
	return nil
}
