package main

import (
	"context"
	"errors"
	"fmt"
	"net"
	"os"
	"path/filepath"
	"time"
)

// ganesha is nfs-ganesha with one directory exported, and the port mapper that
// it will not start without.
type ganesha struct {
	mapper, server *process
	dir            string
}

const (
	ganeshaNFS   = "12049"
	ganeshaMount = "12050"
)

// ganeshaConfig leaves everything as Debian has it but what NFSv3 alone does not
// need.
const ganeshaConfig = `NFS_CORE_PARAM { NFS_Protocols = 3; NFS_Port = %s; MNT_Port = %s; Enable_NLM = false; Enable_RQUOTA = false; }
NFSV4 { Graceless = true; RecoveryRoot = %q; }
EXPORT { Export_Id = 1; Path = %q; Pseudo = "/bench"; Access_Type = RW; Squash = None; SecType = sys; Protocols = 3; Transports = TCP; FSAL { Name = VFS; } }
LOG { Default_Log_Level = WARN; }
`

// startGanesha exports a directory. It must not hold secrets.
func (b *bench) startGanesha(ctx context.Context, dir string) (_ *ganesha, err error) {
	g := &ganesha{dir: dir}
	defer func() {
		if err != nil {
			_ = g.stop()
		}
	}()
	if g.mapper, err = start("rpcbind", nil, "rpcbind", "-f"); err != nil {
		return nil, err
	}
	if err := g.mapper.await(ctx, "127.0.0.1:111"); err != nil {
		return nil, err
	}
	home := b.path("ganesha")
	if err := os.MkdirAll(home, 0o700); err != nil {
		return nil, err
	}
	conf := filepath.Join(home, "conf")
	text := fmt.Sprintf(ganeshaConfig, ganeshaNFS, ganeshaMount, home, dir)
	if err := os.WriteFile(conf, []byte(text), 0o600); err != nil {
		return nil, err
	}
	if g.server, err = start("ganesha.nfsd", nil, "ganesha.nfsd", "-F", "-f", conf,
		"-L", filepath.Join(home, "log"), "-p", filepath.Join(home, "pid")); err != nil {
		return nil, err
	}
	for _, port := range []string{ganeshaNFS, ganeshaMount} {
		if err := g.server.await(ctx, "127.0.0.1:"+port); err != nil {
			return nil, err
		}
	}
	return g, nil
}

// target is where the load client finds a file of the exported directory.
func (g *ganesha) target(file string) target {
	return target{nfs: ganeshaNFS, mount: ganeshaMount, dir: g.dir, file: file, pid: g.server.pid()}
}

func (g *ganesha) stop() error {
	var errs []error
	for _, p := range []*process{g.server, g.mapper} {
		if p != nil {
			errs = append(errs, p.stop())
		}
	}
	return errors.Join(errs...)
}

// readyWithin bounds a peer's start.
const readyWithin = 30 * time.Second

// await waits until somebody listens at addr.
func (p *process) await(ctx context.Context, addr string) error {
	ctx, cancel := context.WithTimeout(ctx, readyWithin)
	defer cancel()
	for {
		conn, err := (&net.Dialer{}).DialContext(ctx, "tcp", addr)
		if err == nil {
			return conn.Close()
		}
		select {
		case <-p.exited:
			return fmt.Errorf("%s ended: %w: %s", p.name, p.err, p.log.String())
		default:
		}
		if pause(ctx, 20*time.Millisecond) != nil {
			return fmt.Errorf("%s does not listen at %s: %w", p.name, addr, err)
		}
	}
}
