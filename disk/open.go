package disk

import (
	"context"
	"errors"
	"fmt"
	"log/slog"
	"os"
	"path"
	"path/filepath"
	"slices"
	"strings"
	"syscall"
)

// Limits on what an image may make us open.
const (
	defaultMaxDepth   = 64
	defaultCacheBytes = 32 << 20 // half for tables, half for clusters
	maxOpenFiles      = 4096
	// maxDiskSize is far beyond what any hypervisor makes (vSphere: 62 TB) and
	// keeps a few forged bytes from costing years of reading.
	maxDiskSize = 1 << 50
)

// OpenOptions are the choices of [Open]. The zero value is good.
type OpenOptions struct {
	// Format, if set, is believed instead of the file's content. Raw disks of
	// untrusted guests are best opened with FormatRaw: a guest can write
	// another format's header into its first sector.
	Format Format
	// CacheBytes bounds the memory for mapping tables and decompressed
	// clusters of the image and all its backing files. 0 = 32 MiB.
	CacheBytes int64
	// MaxDepth bounds the chain of backing files below the image. 0 = 64.
	MaxDepth int
	// Logger gets warnings about images that were not closed properly.
	// nil = none.
	Logger *slog.Logger
}

// Open opens the disk image in the file, or on the block device, called name,
// and recognises by content what it is: qcow2 (versions 2 and 3), vmdk
// (descriptor with flat, vmfs, zero or sparse extents; monolithicSparse;
// streamOptimized) or else raw. Beyond [Image], what it
// returns implements [Mapper], [Usage] and [Described].
//
// Backing files, parents and extents are followed only inside the folder of
// name: no absolute names, no "..", no symbolic link that leads out, no
// protocols ("nbd:", "json:"). The chain is bounded in depth, and loops are
// found. Mapping tables are read as they are needed, into a bounded cache.
//
// Cancelling ctx fails reads in flight and all later ones; a read that the
// kernel is doing is given back when the kernel returns. An image that is not
// valid gives a [FormatError]. A file that shrinks or is removed while it is
// read makes that read fail with [ErrChanged].
func Open(ctx context.Context, name string, opts OpenOptions) (Image, error) {
	o := newOpener(ctx, name, opts)
	img, err := o.open()
	if err != nil {
		o.close()
		return nil, err
	}
	return img, nil
}

// opener opens one image and what it stands on, and owns what they share.
type opener struct {
	ctx    context.Context
	cancel context.CancelCauseFunc
	name   string
	opts   OpenOptions

	root     *os.Root // the image's own folder; opened when first needed
	files    []*hostFile
	tables   *pageCache
	clusters *pageCache
	codecs   *codecs
}

func newOpener(ctx context.Context, name string, opts OpenOptions) *opener {
	if opts.CacheBytes <= 0 {
		opts.CacheBytes = defaultCacheBytes
	}
	if opts.MaxDepth <= 0 {
		opts.MaxDepth = defaultMaxDepth
	}
	if opts.Logger == nil {
		opts.Logger = slog.New(slog.DiscardHandler)
	}
	o := &opener{name: name, opts: opts, codecs: &codecs{}}
	o.ctx, o.cancel = context.WithCancelCause(ctx)
	o.tables = newPageCache(opts.CacheBytes / 2)
	o.clusters = newPageCache(opts.CacheBytes / 2)
	return o
}

func (o *opener) open() (Image, error) {
	file, err := os.OpenFile(o.name, os.O_RDONLY|syscall.O_NONBLOCK, 0)
	if err != nil {
		return nil, fmt.Errorf("open disk image: %w", err)
	}
	host, err := o.adopt(file, o.name, true)
	if err != nil {
		return nil, err
	}
	top, format, err := o.layer(host, node{name: filepath.Base(o.name), format: o.opts.Format})
	if err != nil {
		return nil, err
	}
	if top.size() > maxDiskSize {
		return nil, &FormatError{
			Path: o.name, Format: format, Where: "size", Err: ErrUnsupported,
			What: fmt.Sprintf("a disk of %d bytes (at most %d are read)", top.size(), int64(maxDiskSize)),
		}
	}
	return &image{layer: top, format: format, opener: o}, nil
}

func (o *opener) close() error {
	o.cancel(os.ErrClosed)
	var errs []error
	for _, h := range o.files {
		errs = append(errs, h.file.Close())
	}
	if o.root != nil {
		errs = append(errs, o.root.Close())
	}
	return errors.Join(errs...)
}

// node is one file in a chain of images.
type node struct {
	name   string   // relative to the image's folder, slash separated
	format Format   // "" = by content
	chain  []fileID // the files above this one, top first
}

// layer makes a layer of host, whatever its format.
func (o *opener) layer(host *hostFile, n node) (layer, Format, error) {
	head := make([]byte, min(sniffLen, host.size))
	if err := host.readFull(head, 0); err != nil {
		return nil, "", err
	}
	if n.format == "" {
		var refused string
		if n.format, refused = recognise(head); refused != "" {
			return nil, "", &FormatError{
				Path: host.name, Format: FormatRaw, Where: "signature", Err: ErrUnsupported,
				What: fmt.Sprintf("this is %s; convert it to raw, qcow2 or vmdk first", refused),
			}
		}
	}
	n.chain = append(slices.Clone(n.chain), host.id)
	var l layer
	var err error
	switch n.format {
	case FormatRaw:
		l = &flat{host: host, length: host.size}
	case FormatQCOW2:
		l, err = openQCOW2(o, host, n)
	case FormatVMDK:
		l, err = openVMDK(o, host, n, head)
	default:
		err = fmt.Errorf("%s: format %q: %w", host.name, n.format, ErrUnsupported)
	}
	return l, n.format, err
}

// below opens the image called name on which the image n stands.
func (o *opener) below(n node, name string, format Format) (layer, error) {
	host, err := o.beside(n, name)
	if err != nil {
		return nil, err
	}
	if slices.Contains(n.chain, host.id) {
		return nil, &FormatError{
			Path: n.name, Format: n.format, Where: "backing file", Err: ErrFormat,
			What: fmt.Sprintf("%q is part of the chain already: the images name each other in a loop", name),
		}
	}
	if len(n.chain) > o.opts.MaxDepth {
		return nil, &FormatError{
			Path: n.name, Format: n.format, Where: "backing file", Err: ErrUnsupported,
			What: fmt.Sprintf("the chain of backing files is deeper than %d; flatten it with qemu-img convert", o.opts.MaxDepth),
		}
	}
	l, _, err := o.layer(host, node{name: resolve(n, name), format: format, chain: n.chain})
	return l, err
}

// beside opens a regular file that image n names, inside the folder only.
func (o *opener) beside(n node, name string) (*hostFile, error) {
	if why := notLocal(name); why != "" {
		return nil, &FormatError{
			Path: n.name, Format: n.format, Where: "name of another file", Err: ErrUnsupported,
			What: fmt.Sprintf("%.200q %s; an image may only name files in its own folder", name, why),
		}
	}
	if len(o.files) >= maxOpenFiles {
		return nil, &FormatError{
			Path: n.name, Format: n.format, Where: "files", Err: ErrUnsupported,
			What: fmt.Sprintf("the image consists of more than %d files", maxOpenFiles),
		}
	}
	if o.root == nil {
		root, err := os.OpenRoot(filepath.Dir(o.name))
		if err != nil {
			return nil, fmt.Errorf("open the folder of %s: %w", o.name, err)
		}
		o.root = root
	}
	rel := resolve(n, name)
	file, err := o.root.OpenFile(filepath.FromSlash(rel), os.O_RDONLY|syscall.O_NONBLOCK, 0)
	if err != nil {
		return nil, fmt.Errorf("%s: open %q, which it names: %w", n.name, name, err)
	}
	return o.adopt(file, rel, false)
}

// resolve is the name relative to the folder of n's own file.
func resolve(n node, name string) string { return path.Join(path.Dir(n.name), name) }

// notLocal says why name may not be followed; "" if it may.
func notLocal(name string) string {
	first, _, _ := strings.Cut(name, "/")
	switch {
	case name == "":
		return "is empty"
	case strings.ContainsRune(name, 0):
		return "contains a NUL byte"
	case strings.Contains(first, ":"):
		return "names a protocol or a drive"
	case strings.HasPrefix(name, "/") || strings.HasPrefix(name, `\`):
		return "is an absolute path"
	case slices.Contains(strings.FieldsFunc(name, func(r rune) bool { return r == '/' || r == '\\' }), ".."):
		return `leads out of the folder with ".."`
	}
	return ""
}

// adopt takes an open file into the opener's care. Block devices are for the
// image that the caller named, never for one that an image names.
func (o *opener) adopt(file *os.File, name string, device bool) (*hostFile, error) {
	h, err := newHostFile(o.ctx, file, name, device)
	if err != nil {
		return nil, errors.Join(err, file.Close())
	}
	o.files = append(o.files, h)
	return h, nil
}
