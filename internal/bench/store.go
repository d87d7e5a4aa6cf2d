package main

import (
	"context"
	"errors"
	"fmt"
	"math/rand/v2"
	"os"
	"path/filepath"
	"strconv"
	"sync"
	"time"

	"lifeboat/appliance"
	"lifeboat/disk"
	"lifeboat/store"
)

// Caches of the cold rows, in bytes. Random reads find next to nothing in the
// first; the second leaves room for reading ahead and is a sixteenth of what
// goes through it, so nothing in it is found twice.
const (
	coldCache = 1 << 20
	seqCache  = 64 << 20
)

// store: the system image in a repository against the same image as zstd qcow2
// behind qemu-nbd. The files of both are in the host's page cache, what they
// hold decoded is not. Rates are per second of the serving process's processor
// time.
func (b *bench) store(ctx context.Context) error {
	r, err := b.systemRepo(ctx)
	if err != nil {
		return err
	}
	qcow2, err := b.systemQCOW2(ctx)
	if err != nil {
		return err
	}
	for _, files := range []string{r.url, qcow2} {
		if _, err := warm(files); err != nil {
			return err
		}
	}
	if err := b.storeRandom(ctx, r, qcow2); err != nil {
		return err
	}
	if err := b.storeSequential(ctx, r, qcow2); err != nil {
		return err
	}
	return b.storeHot(ctx, r)
}

// nbdServer is a server of the system image on a socket.
type nbdServer struct {
	*process
	conn *nbdConn
}

func (b *bench) qemuNBD(ctx context.Context, qcow2 string) (*nbdServer, error) {
	socket := b.path("qemu-nbd.sock")
	p, err := start("qemu-nbd", nil, "qemu-nbd", "-r", "-t", "-f", "qcow2", "-k", socket, qcow2)
	if err != nil {
		return nil, err
	}
	return b.connect(ctx, p, socket)
}

func (b *bench) storeNBD(ctx context.Context, r *repo, cache int64) (*nbdServer, error) {
	self, err := os.Executable()
	if err != nil {
		return nil, err
	}
	socket, profile := b.path("store.sock"), ""
	if b.opt.profile != "" {
		if profile, err = profileName(b.opt.profile, "store-"+strconv.FormatInt(cache>>20, 10)); err != nil {
			return nil, err
		}
	}
	p, err := start("our store behind NBD", r.env(), self, childNBD, socket, strconv.FormatInt(cache, 10), profile)
	if err != nil {
		return nil, err
	}
	if _, err := p.line(ctx); err != nil {
		return nil, err
	}
	return b.connect(ctx, p, socket)
}

func (b *bench) connect(ctx context.Context, p *process, socket string) (*nbdServer, error) {
	ctx, cancel := context.WithTimeout(ctx, readyWithin)
	defer cancel()
	for {
		conn, err := dialNBD(ctx, socket)
		if err == nil {
			return &nbdServer{p, conn}, nil
		}
		if pause(ctx, 20*time.Millisecond) != nil {
			return nil, errors.Join(fmt.Errorf("%s does not answer: %w", p.name, err), p.stop())
		}
	}
}

func (s *nbdServer) stop() error { return errors.Join(s.conn.close(), s.process.stop()) }

// perCore measures reads of a server by its processor time.
func (b *bench) perCore(s *nbdServer, size, depth int, scale float64, next func() int64) measure {
	return func(ctx context.Context) (sample, error) {
		before, err := cpuTime(s.pid())
		if err != nil {
			return sample{}, err
		}
		begin := time.Now()
		n, err := s.conn.reads(ctx, size, depth, time.Duration(b.opt.seconds*float64(time.Second)), next)
		if err != nil {
			return sample{}, err
		}
		wall := time.Since(begin)
		after, err := cpuTime(s.pid())
		used := (after - before).Seconds()
		return sample{scale * float64(n) / used, notes{"per second": scale * float64(n) / wall.Seconds()}}, err
	}
}

// anywhere yields random offsets in the dense part of the image, a fresh
// sequence each time.
func (img systemImage) anywhere(size int64, seed uint64) func() int64 {
	rng := rand.New(rand.NewPCG(seed, 1))
	return func() int64 { return img.dense + rng.Int64N((img.size-img.dense)/size)*size }
}

func (img systemImage) inOrder(size int64) func() int64 {
	at := img.dense - size
	return func() int64 {
		if at += size; at+size > img.size {
			at = img.dense
		}
		return at
	}
}

func (b *bench) storeRandom(ctx context.Context, r *repo, qcow2 string) (err error) {
	const size, depth = 4 << 10, 32
	ours, err := b.storeNBD(ctx, r, coldCache)
	if err != nil {
		return err
	}
	defer func() { err = errors.Join(err, ours.stop()) }()
	peer, err := b.qemuNBD(ctx, qcow2)
	if err != nil {
		return err
	}
	defer func() { err = errors.Join(err, peer.stop()) }()

	img := b.made.image
	theirs := b.perCore(peer, size, depth, 1, img.anywhere(size, 1))
	served := b.perCore(ours, size, depth, 1, img.anywhere(size, 1))
	repo, disk, err := b.openInProcess(ctx, r, coldCache)
	if err != nil {
		return err
	}
	defer repo.Close()
	defer disk.Close()
	direct := b.direct(disk, size, 2, 1, func(n int) func() int64 { return img.anywhere(size, uint64(n)) })
	f := Figure{What: "store, cold 4K random per core", Unit: "reads/CPU s", PeerName: "qemu-nbd, zstd qcow2, QD32", Target: 3}
	if err := b.compare(ctx, f, b.opt.rounds, direct, theirs); err != nil {
		return err
	}
	f.What, f.Target = "store, cold 4K random per core, ours behind NBD too", 0
	return b.compare(ctx, f, b.opt.rounds, served, theirs)
}

func (b *bench) storeSequential(ctx context.Context, r *repo, qcow2 string) (err error) {
	const size, depth = 1 << 20, 8
	ours, err := b.storeNBD(ctx, r, seqCache)
	if err != nil {
		return err
	}
	defer func() { err = errors.Join(err, ours.stop()) }()
	peer, err := b.qemuNBD(ctx, qcow2)
	if err != nil {
		return err
	}
	defer func() { err = errors.Join(err, peer.stop()) }()

	img := b.made.image
	const scale = size / 1e6
	theirs := b.perCore(peer, size, depth, scale, img.inOrder(size))
	served := b.perCore(ours, size, depth, scale, img.inOrder(size))
	repo, disk, err := b.openInProcess(ctx, r, seqCache)
	if err != nil {
		return err
	}
	defer repo.Close()
	defer disk.Close()
	one := img.inOrder(size)
	direct := b.direct(disk, size, 1, scale, func(int) func() int64 { return one })
	f := Figure{What: "store, cold sequential 1M per core", Unit: "MB/CPU s", PeerName: "qemu-nbd, zstd qcow2, QD8", Target: 1.8}
	if err := b.compare(ctx, f, b.opt.rounds, direct, theirs); err != nil {
		return err
	}
	f.What, f.Target = "store, cold sequential 1M per core, ours behind NBD too", 0
	return b.compare(ctx, f, b.opt.rounds, served, theirs)
}

// openInProcess opens the system image here.
func (b *bench) openInProcess(ctx context.Context, r *repo, cache int64) (*store.Repository, *store.Image, error) {
	repo, err := appliance.OpenRepository(ctx, r.url, []byte(password), store.Options{CacheBytes: cache})
	if err != nil {
		return nil, nil, err
	}
	img, err := openSystem(ctx, repo)
	if err != nil {
		return nil, nil, errors.Join(err, repo.Close())
	}
	return repo, img, nil
}

// direct measures reads in this process by its processor time.
func (b *bench) direct(img disk.Image, size, readers int, scale float64, next func(int) func() int64) measure {
	return func(ctx context.Context) (sample, error) {
		before, begin := ownCPU(), time.Now()
		n, err := readFor(ctx, readers, size, time.Duration(b.opt.seconds*float64(time.Second)), next, func(p []byte, off int64) error {
			_, err := img.ReadAt(p, off)
			return err
		})
		used, wall := (ownCPU() - before).Seconds(), time.Since(begin).Seconds()
		return sample{scale * float64(n) / used, notes{"per second": scale * float64(n) / wall}}, err
	}
}

// readFor reads with several goroutines for some time.
func readFor(ctx context.Context, readers, size int, d time.Duration, next func(int) func() int64, read func([]byte, int64) error) (int64, error) {
	counts, errs := make([]int64, readers), make([]error, readers)
	end := time.Now().Add(d)
	var group sync.WaitGroup
	for i := range readers {
		group.Go(func() {
			p, at := make([]byte, size), next(i)
			var n int64
			// The clock is asked now and then: it costs as much as a hot read.
			for (n%64 != 0 || time.Now().Before(end) && ctx.Err() == nil) && errs[i] == nil {
				errs[i] = read(p, at())
				n++
			}
			counts[i] = n
		})
	}
	group.Wait()
	var sum int64
	for _, n := range counts {
		sum += n
	}
	return sum, errors.Join(append(errs, ctx.Err())...)
}

// hotStoreSpan fits into the default cache several times.
const hotStoreSpan = 64 << 20

// storeHot: reads of the image through its cache against pread(2) of the raw
// file in the page cache, both in this process.
func (b *bench) storeHot(ctx context.Context, r *repo) error {
	const size = 4 << 10
	img := b.made.image
	repo, im, err := b.openInProcess(ctx, r, 0)
	if err != nil {
		return err
	}
	defer repo.Close()
	defer im.Close()
	raw, err := os.Open(filepath.Clean(img.path))
	if err != nil {
		return err
	}
	defer raw.Close()
	buf := make([]byte, hotStoreSpan)
	for _, d := range []interface {
		ReadAt([]byte, int64) (int, error)
	}{im, im, raw} {
		if _, err := d.ReadAt(buf, img.dense); err != nil {
			return err
		}
	}
	span := systemImage{dense: img.dense, size: img.dense + hotStoreSpan}
	next := func(n int) func() int64 { return span.anywhere(size, uint64(n)) }
	rate := func(readers int, read func([]byte, int64) error) measure {
		return func(ctx context.Context) (sample, error) {
			d := time.Duration(b.opt.seconds * float64(time.Second) / 4)
			begin := time.Now()
			n, err := readFor(ctx, readers, size, d, next, read)
			return sample{value: float64(n) / time.Since(begin).Seconds()}, err
		}
	}
	cached := func(p []byte, off int64) error {
		if im.ReadCached(p, off) {
			return nil
		}
		_, err := im.ReadAt(p, off)
		return err
	}
	plain := func(p []byte, off int64) error {
		_, err := raw.ReadAt(p, off)
		return err
	}
	for _, readers := range []int{1, 2} {
		f := Figure{What: fmt.Sprintf("store, hot 4K, %d goroutine(s)", readers), Unit: "reads/s", PeerName: "pread, page cache", Target: 1.5}
		if err := b.compare(ctx, f, 4*b.opt.rounds, rate(readers, cached), rate(readers, plain)); err != nil {
			return err
		}
	}
	return nil
}
