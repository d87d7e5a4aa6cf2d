package main

import (
	"context"
	"encoding/json"
	"errors"
	"flag"
	"fmt"
	"io"
	"net/netip"
	"os"
	"path/filepath"
	"runtime/debug"
	"runtime/pprof"

	"lifeboat/appliance"
	"lifeboat/store"
)

// Names of the modes in which this program is a server of its own.
const (
	childPublish = "child-publish" // FILE publish-flags… POINT…: lifeboat publish under a profiler
	childNBD     = "child-nbd"     // SOCKET CACHE PROFILE: a repository's disk behind NBD
)

type child func(ctx context.Context, args []string, stdout io.Writer) error

func children() map[string]child {
	return map[string]child{childPublish: publishProfiled, childNBD: serveStore}
}

// profileName is a new file for a profile.
func profileName(dir, section string) (string, error) {
	if err := os.MkdirAll(dir, 0o755); err != nil {
		return "", err
	}
	for n := 1; ; n++ {
		name := filepath.Join(dir, fmt.Sprintf("%s-%d.pprof", section, n))
		if _, err := os.Stat(name); errors.Is(err, os.ErrNotExist) {
			return filepath.Abs(name)
		}
	}
}

// profiled runs f and writes its CPU profile to a file, if one is named.
func profiled(file string, f func() error) error {
	if file == "" {
		return f()
	}
	out, err := os.Create(file)
	if err != nil {
		return err
	}
	if err := pprof.StartCPUProfile(out); err != nil {
		return errors.Join(err, out.Close())
	}
	err = f()
	pprof.StopCPUProfile()
	return errors.Join(err, out.Close())
}

// openRepo opens the repository that the environment names, as lifeboat does.
func openRepo(ctx context.Context, opt store.Options) (*store.Repository, error) {
	return appliance.OpenRepository(ctx, os.Getenv("LIFEBOAT_REPO"), []byte(os.Getenv("LIFEBOAT_PASSWORD")), opt)
}

// publishProfiled does what `lifeboat publish` does.
func publishProfiled(ctx context.Context, args []string, stdout io.Writer) error {
	debug.SetGCPercent(50) // as lifeboat's main does
	fs := flag.NewFlagSet(childPublish, flag.ContinueOnError)
	req := appliance.PublishRequest{Listen: netip.MustParseAddr("127.0.0.1"), RepoURL: os.Getenv("LIFEBOAT_REPO")}
	fs.IntVar(&req.NFSPort, "nfs-port", 2049, "")
	fs.IntVar(&req.MountPort, "mount-port", 20048, "")
	fs.StringVar(&req.Portmap, "portmap", "127.0.0.1:111", "")
	if err := fs.Parse(args[1:]); err != nil {
		return err
	}
	req.Points = fs.Args()
	st, err := appliance.OpenState(os.Getenv("LIFEBOAT_STATE"))
	if err != nil {
		return err
	}
	lasting := context.WithoutCancel(ctx)
	repo, err := openRepo(lasting, store.Options{})
	if err != nil {
		return err
	}
	defer repo.Close()
	pub, err := appliance.Publish(lasting, st, repo, req)
	if err != nil {
		return err
	}
	return profiled(args[0], func() error {
		err := json.NewEncoder(stdout).Encode(pub.Ready)
		err = errors.Join(err, pub.Run(ctx))
		_, endErr := pub.End()
		return errors.Join(err, endErr)
	})
}
