package vddk

import (
	"context"
	"errors"
	"fmt"
	"iter"
	"os"
	"strings"
	"sync"
	"syscall"
	"time"

	"lifeboat/disk"
	"lifeboat/disk/nbd"
	"lifeboat/vddk/handover"
)

// defaultModes are the library's modes that are tried when none is asked for.
// Its hotadd is left out because what it leaves behind after a crash is worse
// than what it gains over hotadd through the API; and nbd because data would
// cross the network in the clear without anybody having said so.
const defaultModes = SAN + ":" + NBDSSL

// libraryPort is a disk that a helper serves.
type libraryPort struct {
	name   string
	req    Request
	opts   Options
	helper *helper
	client *nbd.Client
	broken sync.Once // the log is told about the loss once
	lost   error     // set by it

	// edges is held for writing while a sector is read, changed in part and
	// written back, and for reading by other writes.
	edges sync.RWMutex
}

func libraryReader(modes string) func(context.Context, Request, Options) (port, error) {
	return func(ctx context.Context, req Request, opts Options) (port, error) {
		return openLibrary(ctx, req, opts, modes, false)
	}
}

func libraryWriter(modes string) func(context.Context, Request, Options) (writePort, error) {
	return func(ctx context.Context, req Request, opts Options) (writePort, error) {
		return openLibrary(ctx, req, opts, modes, true)
	}
}

func openLibrary(ctx context.Context, req Request, opts Options, modes string, write bool) (*libraryPort, error) {
	lib, err := req.Library.find()
	if err != nil {
		return nil, err
	}
	if req.Server == "" || req.VM == "" || req.Path == "" {
		return nil, unavailable("the server, the VM or the disk's path is not known")
	}
	if modes == "" {
		modes = defaultModes
	}
	ask := libraryRequest(handover.Serve, lib, req)
	if ask.Thumbprint, err = libraryThumbprint(ctx, ask.Server, uint16(ask.Port), req.Thumbprint); err != nil {
		return nil, err
	}
	ask.Path, ask.Modes, ask.Write, ask.Buffers = req.Path, modes, write, opts.Buffers
	if ask.Config == "" {
		config, err := writeConfig(opts.Buffers)
		if err != nil {
			return nil, err
		}
		defer os.Remove(config)
		ask.Config = config
	}
	h, conn, err := startHelper(ctx, lib, ask, opts.Logger)
	if err != nil {
		return nil, err
	}
	client, err := nbd.Connect(ctx, conn, nbd.ClientOptions{Timeout: opts.Timeout})
	if err != nil {
		return nil, errors.Join(err, h.finish(closeTimeout))
	}
	return &libraryPort{name: h.status.Transport, req: req, opts: opts, helper: h, client: client}, nil
}

// libraryRequest is what all requests to a helper have in common.
func libraryRequest(do string, lib located, req Request) handover.Request {
	server, port := serverOf(req.Server)
	ask := handover.Request{
		Do: do, Library: lib.file, Dir: lib.root, Config: req.Library.Config,
		Server: server, Port: uint32(port), User: req.Username, Password: req.Password, Thumbprint: req.Thumbprint,
		Identity: fmt.Sprintf("lifeboat-%d", req.Key),
	}
	if req.VM != "" {
		ask.VM = "moref=" + bare(req.VM)
	}
	ask.Snapshot = bare(req.Snapshot)
	return ask
}

// bare drops the type in front of a reference.
func bare(ref string) string {
	if _, value, ok := strings.Cut(ref, ":"); ok {
		return value
	}
	return ref
}

// writeConfig makes a configuration for the library with buffers of 1 MiB, the
// number that is wanted. Source: VMware, Virtual Disk Programming Guide, "NFC
// asynchronous I/O".
func writeConfig(buffers int) (path string, err error) {
	f, err := os.CreateTemp("", "lifeboat-vddk-*.conf")
	if err != nil {
		return "", fmt.Errorf("configuration for the library: %w", err)
	}
	_, err = fmt.Fprintf(f, "vixDiskLib.nfcAio.Session.BufSizeIn64KB=%d\nvixDiskLib.nfcAio.Session.BufCount=%d\n", requestBytes>>16, buffers)
	if err = errors.Join(err, f.Close()); err != nil {
		os.Remove(f.Name())
		return "", fmt.Errorf("configuration for the library: %w", err)
	}
	return f.Name(), nil
}

func (p *libraryPort) transport() string { return p.name }
func (p *libraryPort) size() int64       { return p.client.Size() }

func (p *libraryPort) smallReadsAreDear() {}

// read implements port. The library knows only whole sectors.
func (p *libraryPort) read(ctx context.Context, b []byte, off int64) error {
	from, to := p.sectors(off, len(b))
	if from == off && to == off+int64(len(b)) {
		return p.explain(p.client.Read(ctx, b, off))
	}
	whole := make([]byte, to-from)
	if err := p.client.Read(ctx, whole, from); err != nil {
		return p.explain(err)
	}
	copy(b, whole[off-from:])
	return nil
}

// sectors are the borders of the whole sectors around n bytes at off.
func (p *libraryPort) sectors(off int64, n int) (from, to int64) {
	block := p.client.Block()
	return off / block * block, (off + int64(n) + block - 1) / block * block
}

// write implements writePort.
func (p *libraryPort) write(ctx context.Context, b []byte, off int64) error {
	from, to := p.sectors(off, len(b))
	if from == off && to == off+int64(len(b)) {
		p.edges.RLock()
		defer p.edges.RUnlock()
		return p.explain(p.client.Write(ctx, b, off))
	}
	p.edges.Lock()
	defer p.edges.Unlock()
	whole := make([]byte, to-from)
	if err := p.client.Read(ctx, whole, from); err != nil {
		return p.explain(err)
	}
	copy(whole[off-from:], b)
	return p.explain(p.client.Write(ctx, whole, from))
}

func (p *libraryPort) sync(ctx context.Context) error { return p.explain(p.client.Flush(ctx)) }

func (p *libraryPort) extents(ctx context.Context, within disk.Extent) iter.Seq2[disk.Extent, error] {
	return func(yield func(disk.Extent, error) bool) {
		for off, end := within.Offset, within.End(); off < end; {
			from, to := p.sectors(off, int(min(end-off, maxQuery)))
			runs, err := p.client.Extents(ctx, from, to-from)
			if err != nil {
				yield(disk.Extent{}, p.explain(err))
				return
			}
			for _, r := range runs {
				to := min(from+r.Length, end)
				if to > off && !yield(disk.Extent{Offset: off, Length: to - off, Hole: r.Hole}, nil) {
					return
				}
				off, from = max(off, to), from+r.Length
			}
		}
	}
}

// lostTimeout is how long a helper may take to end when the disk is lost already.
const lostTimeout = 2 * time.Second

// maxQuery bounds what is asked about in one request, bytes.
const maxQuery = 1 << 30

// close ends the helper, which closes the disk. After one that did not do that
// itself, the library is asked to clean up: the VM's methods may be disabled, and
// its snapshot is going to be removed.
func (p *libraryPort) close() error {
	p.client.Close()
	within := closeTimeout
	if p.lost != nil { // then a library that hangs does not close either
		within = lostTimeout
	}
	err := p.helper.finish(within)
	if err == nil {
		return nil
	}
	ctx, cancel := context.WithTimeout(context.Background(), closeTimeout) // the disk's own has ended
	defer cancel()
	if failed := Cleanup(ctx, p.req, p.opts); failed != nil {
		p.opts.Logger.Warn("the library has not cleaned up after itself", "disk", p.req.name(), "error", failed)
	}
	if p.lost != nil { // the reader knows already
		return nil
	}
	return err
}

// explain turns errors of the protocol into those of this package.
func (p *libraryPort) explain(err error) error {
	var refused *nbd.Error
	switch {
	case err == nil:
		return nil
	case errors.Is(err, nbd.ErrTimeout):
		p.broken.Do(func() { p.lost = fmt.Errorf("%w: %w", ErrHung, err) })
		return p.lost
	case errors.Is(err, nbd.ErrLost), errors.Is(err, nbd.ErrProtocol):
		p.broken.Do(func() { p.lost = fmt.Errorf("%w (%w)", p.helper.crashed(), err) })
		return p.lost
	case errors.As(err, &refused):
		switch refused.Code {
		case nbd.ESHUTDOWN:
			return fmt.Errorf("%w: %w", ErrLost, err)
		case nbd.ENOMEM:
			return fmt.Errorf("%w: %w", ErrBusy, err)
		case nbd.ENOSPC:
			return fmt.Errorf("%w: %w", syscall.ENOSPC, err)
		}
	}
	return err
}

// Probe loads VMware's library in the helper and says what it is. Where it is
// not installed the error matches ErrUnavailable.
func Probe(ctx context.Context, lib Library) (LibraryInfo, error) {
	found, err := lib.find()
	info := LibraryInfo{Path: found.file, Version: found.version, Helper: found.helper, Err: err}
	if err != nil {
		return info, err
	}
	opts := Options{}.withDefaults()
	ctx, cancel := context.WithTimeoutCause(ctx, opts.OpenTimeout, fmt.Errorf("%w: the library was not loaded after %v", ErrHung, opts.OpenTimeout))
	defer cancel()
	h, conn, err := startHelper(ctx, found, libraryRequest(handover.Probe, found, Request{Library: lib}), opts.Logger)
	if err == nil {
		info.Modes = h.status.Modes
		err = errors.Join(conn.Close(), h.finish(closeTimeout))
	}
	if err != nil {
		info.Err = fmt.Errorf("%s: %w", found.file, err)
	}
	return info, info.Err
}

// Cleanup undoes what a process that died may have left at the VM of req through
// VMware's library: methods that are disabled while a disk is open, and disks
// that were hot-added. It comes before the snapshot is removed. Where the
// library is not installed there is nothing to do, and it does nothing.
func Cleanup(ctx context.Context, req Request, opts Options) error {
	opts = opts.withDefaults()
	lib, err := req.Library.find()
	if errors.Is(err, ErrUnavailable) || req.Server == "" || req.VM == "" {
		return nil
	}
	if err != nil {
		return err
	}
	ctx, cancel := context.WithTimeoutCause(ctx, opts.OpenTimeout, fmt.Errorf("%w: not cleaned up after %v", ErrHung, opts.OpenTimeout))
	defer cancel()
	ask := libraryRequest(handover.Cleanup, lib, req)
	if ask.Thumbprint, err = libraryThumbprint(ctx, ask.Server, uint16(ask.Port), req.Thumbprint); err != nil {
		return err
	}
	h, conn, err := startHelper(ctx, lib, ask, opts.Logger)
	if err != nil {
		return fmt.Errorf("clean up after VMware's library at %s: %w", req.VM, err)
	}
	conn.Close()
	if err := h.finish(closeTimeout); err != nil {
		return err
	}
	if n := h.status.Remaining; n > 0 {
		return fmt.Errorf("clean up after VMware's library at %s: %d disks stay attached to the VM that Lifeboat runs in; remove them there", req.VM, n)
	}
	return nil
}
