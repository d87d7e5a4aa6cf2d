package main

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"net/netip"
	"os"
	"path/filepath"
	"strconv"
	"time"
)

// repo is a repository in the working directory, with a state directory of its
// own.
type repo struct {
	b   *bench
	dir string
	url string
	// extra is more of the environment of our program: keys.
	extra []string
}

const password = "lifeboat-bench"

func (r *repo) env() []string {
	return append([]string{
		"LIFEBOAT_REPO=" + r.url, "LIFEBOAT_STATE=" + filepath.Join(r.dir, "state"), "LIFEBOAT_CONFIG=",
		"LIFEBOAT_PASSWORD=" + password, "LIFEBOAT_PASSWORD_FILE=",
	}, r.extra...)
}

// newRepo makes an empty repository.
func (b *bench) newRepo(ctx context.Context, name string) (*repo, error) {
	r := &repo{b: b, dir: b.path(name)}
	r.url = filepath.Join(r.dir, "repository")
	if err := os.MkdirAll(r.dir, 0o700); err != nil {
		return nil, err
	}
	_, err := output(ctx, r.env(), b.opt.binary, "init")
	return r, err
}

// remove makes room for the next measurement; what it leaves goes at the end
// with the working directory.
func (r *repo) remove() { _ = os.RemoveAll(r.dir) }

// point is what `backup disk --json` prints.
type point struct {
	ID     string `json:"id"`
	Read   int64  `json:"read_bytes"`
	New    int64  `json:"new_bytes"`
	Stored int64  `json:"stored_bytes"`
}

// backup backs one disk file up as a VM.
func (r *repo) backup(ctx context.Context, vm, file string) (point, usage, error) {
	var p point
	out, used, err := timed(ctx, r.env(), r.b.opt.binary, "--json", "backup", "disk", "--vm", vm, file)
	if err == nil {
		err = json.Unmarshal(out, &p)
	}
	return p, used, err
}

// export is a running `lifeboat publish`.
type export struct {
	*process
	NFS     netip.AddrPort `json:"nfs_addr"`
	Mount   netip.AddrPort `json:"mount_addr"`
	Folders []struct {
		Path  string   `json:"path"`
		Disks []string `json:"disks"`
	} `json:"folders"`

	ready time.Duration // from the command to its word that clients may come
}

// publish exports points until stopped. Flags come before points.
func (r *repo) publish(ctx context.Context, args ...string) (*export, error) {
	program, env := r.b.opt.binary, r.env()
	args = append([]string{"--json", "publish"}, args...)
	if dir := r.b.opt.profile; dir != "" {
		self, err := os.Executable()
		if err != nil {
			return nil, err
		}
		file, err := profileName(dir, r.b.section)
		if err != nil {
			return nil, err
		}
		program, args = self, append([]string{childPublish, file}, args[2:]...)
	}
	begin := time.Now()
	p, err := start("lifeboat publish", env, program, args...)
	if err != nil {
		return nil, err
	}
	line, err := p.line(ctx)
	if err != nil {
		return nil, err
	}
	e := &export{process: p, ready: time.Since(begin)}
	if err := json.Unmarshal(line, e); err != nil || len(e.Folders) == 0 {
		return nil, errors.Join(fmt.Errorf("lifeboat publish printed %q: %w", line, err), p.stop())
	}
	return e, nil
}

// anyPorts let a server share our namespace with a peer's port mapper.
func anyPorts() []string {
	return []string{"--nfs-port", "0", "--mount-port", "0", "--portmap", "off"}
}

// target is where the load client finds disk n of the first folder.
func (e *export) target() target {
	f := e.Folders[0]
	return target{
		nfs: strconv.Itoa(int(e.NFS.Port())), mount: strconv.Itoa(int(e.Mount.Port())),
		dir: f.Path, file: f.Disks[0], pid: e.pid(),
	}
}
