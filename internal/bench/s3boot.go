package main

import (
	"context"
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"time"

	"lifeboat/internal/qemu"
	"lifeboat/store/backend/s3/s3test"
)

// s3Latency is what is added before the first byte of each answer: object
// storage in the same region, on a good day.
const s3Latency = 15 * time.Millisecond

// s3boot: the machine of the boot section from a repository on S3, 15 ms away,
// against the same repository in a local directory. For each boot there is a
// fresh server with nothing in memory and nothing on local disk; only the trace
// of the boots before, in the repository, is there or not used.
func (b *bench) s3boot(ctx context.Context) (err error) {
	local, disk, err := b.guestRepo(ctx, "s3boot-local", 1)
	if err != nil {
		return err
	}
	defer local.remove()
	far, proxy, err := b.s3Repo(ctx, disk)
	if err != nil {
		return err
	}
	defer far.close()
	accel, why := qemu.ChooseAccel(ctx, "")
	if why != nil {
		b.sayf("software emulation: %v", why)
	}
	boot := func(r *repo, flags ...string) measure {
		return func(ctx context.Context) (sample, error) {
			proxy.SetPlan(nil)
			s, err := b.coldBoot(ctx, r, accel, flags...)
			if r != local && err == nil {
				s.notes["requests"], s.notes["MB from S3"] = float64(proxy.Count()), float64(proxy.Bytes())/1e6
			}
			return s, err
		}
	}
	// Both have learnt from one boot, so that neither figure depends on which
	// round it is.
	for _, r := range []*repo{local, far.repo} {
		if _, err := boot(r)(ctx); err != nil {
			return err
		}
	}
	f := Figure{
		What: "boot from S3, 15 ms away, caches cold, trained by one boot", Unit: "s",
		PeerName: "our local directory", Target: 1.3, AtMost: true,
	}
	if err := b.compare(ctx, f, b.opt.rounds, boot(far.repo), boot(local)); err != nil {
		return err
	}
	f.What, f.Target = "boot from S3, 15 ms away, caches cold, untrained", 0
	return b.compare(ctx, f, min(b.opt.rounds, 3), boot(far.repo, "--no-prefetch"), boot(local, "--no-prefetch"))
}

// coldBoot boots once from a server that has just been started.
func (b *bench) coldBoot(ctx context.Context, r *repo, accel qemu.Accel, flags ...string) (_ sample, err error) {
	if err := os.RemoveAll(filepath.Join(r.dir, "state")); err != nil { // the cache on local disk is in it
		return sample{}, err
	}
	e, err := r.publish(ctx, append(append([]string{"--nfs-port", "0", "--mount-port", "0"}, flags...), "vm0@latest")...)
	if err != nil {
		return sample{}, err
	}
	defer func() { err = errors.Join(err, e.stop()) }()
	took, err := b.bootOnce(ctx, accel, e.disk(0))
	if err != nil {
		return sample{}, err
	}
	cpu, err := cpuTime(e.pid())
	return sample{took.Seconds(), notes{"with publish s": (e.ready + took).Seconds(), "server CPU s": cpu.Seconds()}}, err
}

// s3Place is a repository on an S3 server of its own.
type s3Place struct {
	*repo
	server *s3test.Server
	proxy  *s3test.Proxy
}

func (p *s3Place) close() {
	p.remove()
	p.proxy.Close()
	p.server.Close()
}

// s3Repo backs a disk up to S3, as vm0, and moves it away then.
func (b *bench) s3Repo(ctx context.Context, disk string) (_ *s3Place, _ *s3test.Proxy, err error) {
	const bucket = "bench"
	p := &s3Place{}
	if p.server, err = s3test.Start(ctx, s3test.Options{}); err != nil {
		return nil, nil, err
	}
	defer func() {
		if err != nil {
			p.server.Close()
		}
	}()
	if p.proxy, err = s3test.StartProxy(p.server.Endpoint); err != nil {
		return nil, nil, err
	}
	if err := p.server.CreateBucket(ctx, bucket, false); err != nil {
		return nil, nil, err
	}
	p.repo = &repo{b: b, dir: b.path("s3boot"), url: s3test.URL(p.proxy.Endpoint, bucket, "repository")}
	p.extra = []string{"AWS_ACCESS_KEY_ID=" + p.server.Access, "AWS_SECRET_ACCESS_KEY=" + p.server.Secret}
	if err := os.MkdirAll(p.dir, 0o700); err != nil {
		return nil, nil, err
	}
	if _, err := output(ctx, p.env(), b.opt.binary, "init"); err != nil {
		return nil, nil, err
	}
	if _, _, err := p.backup(ctx, "vm0", disk); err != nil {
		return nil, nil, fmt.Errorf("backup to S3: %w", err)
	}
	p.proxy.SetLatency(s3Latency)
	return p, p.proxy, nil
}
