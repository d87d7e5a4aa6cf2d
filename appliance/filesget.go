package appliance

import (
	"context"
	"errors"
	"fmt"
	"strings"
	"sync/atomic"

	"lifeboat/disk"
	"lifeboat/guestfs"
	"lifeboat/guestfs/tree"
	"lifeboat/guestfs/worker"
)

// GetRequest says what is taken out of a guest.
type GetRequest struct {
	Places []string // VOLUME/PATH, see Guest.Locate: files, or directories with all below them
	// Progress, if not nil, hears of content: of all there is as far as it was
	// counted yet, and when counted is false it is not all.
	Progress func(files, bytes, total int64, counted bool)
	// Scattered says that places do not go to one directory: two of them may have
	// the same name.
	Scattered bool
}

// GetResult is what came of it.
type GetResult struct {
	Files   int64     `json:"files"` // of all types
	Bytes   int64     `json:"bytes"` // of content
	LeftOut []LeftOut `json:"left_out"`
}

// LeftOut is something that was not taken, the same for many files.
type LeftOut struct {
	What  string   `json:"what"`           // "content", "owner", "named streams", …
	Why   string   `json:"why"`            // of the first
	Count int64    `json:"count"`          // files
	Paths []string `json:"paths"`          // the first of them, in the guest
	Data  bool     `json:"data,omitempty"` // files or their content are missing, not only what belongs to them
}

// maxLeftOutPaths bounds how many paths are kept of each kind.
const maxLeftOutPaths = 100

// item is a file on its way out of a guest.
type item struct {
	name    string // in its directory; checked to be one
	path    string // relative to where things go, of checked names with slashes
	from    string // in the guest, for messages
	attr    *guestfs.Attr
	xattrs  []guestfs.Xattr
	target  string            // of a symbolic link
	linked  string            // path of an item that is the same file; "" for the first
	streams []guestfs.Stream  // named ones
	sd      []byte            // Windows' security descriptor
	fs      guestfs.FS        // to open the content from
	inode   guestfs.Inode     // the same
	left    func(LeftOut)     // what a taker could not take of it
	written func(bytes int64) // content that was taken
}

func (i *item) open(ctx context.Context) (disk.Image, error) { return i.fs.Open(ctx, i.inode) }

// leave notes that something of the item is left out.
func (i *item) leave(what, why string) {
	i.left(LeftOut{What: what, Why: why, Paths: []string{i.from}})
}

// taker is where files go: a directory, an archive. Its methods are called by one
// goroutine; a directory comes before what is in it. An error ends everything.
type taker interface {
	// enter takes a directory, whose items follow.
	enter(ctx context.Context, dir *item) error
	// take takes anything else. An error that matches errContent is the item's.
	take(ctx context.Context, it *item) error
	// leave ends a directory.
	leave(ctx context.Context, dir *item) error
}

// errContent marks an error that one file has: it is left out, and the rest goes on.
var errContent = errors.New("its content cannot be read")

// getting is a Get under way.
type getting struct {
	g       *Guest
	to      taker
	req     GetRequest
	result  GetResult
	kinds   map[string]int    // of LeftOut, by What
	names   map[fileID]string // first path of files that have several
	dirs    map[fileID]bool   // that were seen
	taken   map[string]bool   // names at the top
	total   atomic.Int64      // bytes that were counted
	counted atomic.Bool       // that is all
}

// fileID is a file in a guest: several places may be in several file systems.
type fileID struct {
	fs    guestfs.FS
	inode guestfs.Inode
}

// get hands everything that was asked for to a taker. What cannot be read is left
// out and told of in the result; the error is what ended it before its end.
func (g *Guest) get(ctx context.Context, req GetRequest, to taker) (*GetResult, error) {
	s := &getting{
		g: g, to: to, req: req, result: GetResult{LeftOut: []LeftOut{}},
		kinds: map[string]int{}, names: map[fileID]string{}, dirs: map[fileID]bool{}, taken: map[string]bool{},
	}
	ctx, stop := context.WithCancel(ctx)
	defer stop()
	counting := s.count(ctx)
	defer func() { stop(); <-counting }()
	for _, place := range req.Places {
		if err := s.place(ctx, place); err != nil {
			return &s.result, err
		}
	}
	s.progress()
	return &s.result, nil
}

// place takes what is at a place: a file under its own name, the root of a volume
// or of the tree with what is in it.
func (s *getting) place(ctx context.Context, place string) error {
	fsys, at, err := s.g.find(ctx, place, tree.NoFollow)
	if err != nil {
		return err
	}
	e := guestfs.Describe(ctx, fsys, at.Dirent, true)
	if e.Attr == nil {
		return guestError(e.Err)
	}
	if at.Path == "/" {
		return s.children(ctx, fsys, &item{from: "/", inode: at.Inode})
	}
	if s.taken[e.Name] && !s.req.Scattered {
		return fmt.Errorf("%w: two of the places are called %q", ErrUsage, e.Name)
	}
	s.taken[e.Name] = true
	return s.entry(ctx, fsys, &item{from: strings.TrimSuffix(at.Path, "/"+e.Name)}, e)
}

// maxGetDepth bounds how deep directories are followed: each costs a descriptor.
const maxGetDepth = 1000

// children takes what is in a directory.
func (s *getting) children(ctx context.Context, fsys guestfs.FS, dir *item) error {
	id := fileID{fsys, dir.inode}
	switch {
	case s.dirs[id]:
		s.left(LeftOut{What: "directory", Why: "it is in the tree twice, which damage or malice makes", Data: true, Paths: []string{dir.from}})
		return nil
	case strings.Count(dir.path, "/") > maxGetDepth:
		s.left(LeftOut{What: "directory", Why: fmt.Sprintf("it lies deeper than %d directories", maxGetDepth), Data: true, Paths: []string{dir.from}})
		return nil
	}
	s.dirs[id] = true
	seen := map[string]bool{}
	for e, err := range guestfs.ReadDirPlus(ctx, fsys, dir.inode, 0, true) {
		if err != nil {
			return s.failed(ctx, "directory", dir.from, err)
		}
		if seen[e.Name] {
			s.left(LeftOut{What: "file", Why: "its name is in the directory twice", Data: true, Paths: []string{childPath(dir.from, e.Name)}})
			continue
		}
		seen[e.Name] = true
		if err := s.entry(ctx, fsys, dir, e); err != nil {
			return err
		}
	}
	return nil
}

// entry takes one entry of a directory.
func (s *getting) entry(ctx context.Context, fsys guestfs.FS, dir *item, e guestfs.Entry) error {
	if ctx.Err() != nil {
		return context.Cause(ctx)
	}
	it := &item{
		name: e.Name, path: e.Name, from: childPath(dir.from, e.Name), attr: e.Attr, xattrs: e.Xattrs,
		fs: fsys, inode: e.Inode, left: s.left, written: s.wrote,
	}
	if dir.path != "" {
		it.path = dir.path + "/" + e.Name
	}
	if !properName(e.Name) {
		s.left(LeftOut{What: "file", Why: "its name is none", Data: true, Paths: []string{it.from}})
		return nil
	}
	if e.Attr == nil {
		return s.failed(ctx, "file", it.from, e.Err)
	}
	if e.Err != nil {
		it.leave("extended attributes", e.Err.Error())
	}
	if err := s.more(ctx, it); err != nil {
		return err
	}
	s.result.Files++
	if it.attr.Type() != guestfs.TypeDir {
		return s.file(ctx, it)
	}
	if err := s.to.enter(ctx, it); err != nil {
		return err
	}
	if err := s.children(ctx, fsys, it); err != nil {
		return err
	}
	return s.to.leave(ctx, it)
}

// properName reports whether a name can be that of one file, anywhere. It is what
// keeps things where they belong.
func properName(name string) bool {
	return name != "" && name != "." && name != ".." && !strings.ContainsAny(name, "/\x00") && len(name) < 4096
}

// more asks for what only some file systems have.
func (s *getting) more(ctx context.Context, it *item) error {
	if it.attr.Type() == guestfs.TypeSymlink {
		target, err := guestfs.ReadLink(ctx, it.fs, it.inode)
		if err != nil {
			return s.failed(ctx, "target of a link", it.from, err)
		}
		it.target = target
	}
	if !s.g.hasWindows(it.fs) {
		return nil
	}
	if r, ok := it.fs.(guestfs.StreamReader); ok {
		list, err := r.Streams(ctx, it.inode)
		if err != nil {
			return s.failed(ctx, "named streams", it.from, err)
		}
		it.streams = list
	}
	if r, ok := it.fs.(guestfs.SecurityReader); ok {
		sd, err := r.SecurityDescriptor(ctx, it.inode)
		if err != nil {
			return s.failed(ctx, "security descriptor", it.from, err)
		}
		it.sd = sd
	}
	return nil
}

// hasWindows reports whether anything here may have streams and descriptors: it
// saves two questions for each file of all others.
func (g *Guest) hasWindows(fsys guestfs.FS) bool {
	if d, ok := fsys.(guestfs.Describer); ok {
		return d.Info().Type == "ntfs"
	}
	for i := range g.report.Volumes {
		if g.report.Volumes[i].Type == "ntfs" {
			return true
		}
	}
	return false
}

// file takes what is no directory.
func (s *getting) file(ctx context.Context, it *item) error {
	if it.attr.Links > 1 {
		id := fileID{it.fs, it.inode}
		it.linked = s.names[id]
		if it.linked == "" {
			s.names[id] = it.path
		}
	}
	err := s.to.take(ctx, it)
	if errors.Is(err, errContent) {
		delete(s.names, fileID{it.fs, it.inode})
		return s.failed(ctx, "content", it.from, err)
	}
	s.progress()
	return err
}

// failed leaves something out, unless all that follows would fail, too.
func (s *getting) failed(ctx context.Context, what, path string, err error) error {
	var ended *worker.FailureError
	switch {
	case ctx.Err() != nil:
		return context.Cause(ctx)
	case errors.As(err, &ended) && ended.Final:
		return fmt.Errorf("%s: %w", path, err)
	}
	s.left(LeftOut{What: what, Why: err.Error(), Data: true, Paths: []string{path}})
	return nil
}

// left adds to what is left out.
func (s *getting) left(l LeftOut) {
	i, ok := s.kinds[l.What]
	if !ok {
		i = len(s.result.LeftOut)
		s.kinds[l.What] = i
		s.result.LeftOut = append(s.result.LeftOut, LeftOut{What: l.What, Why: l.Why, Data: l.Data, Paths: []string{}})
	}
	k := &s.result.LeftOut[i]
	k.Count++
	for _, path := range l.Paths {
		if len(k.Paths) < maxLeftOutPaths {
			k.Paths = append(k.Paths, strings.ToValidUTF8(path, "\uFFFD"))
		}
	}
}

func (s *getting) wrote(n int64) {
	s.result.Bytes += n
	s.progress()
}

func (s *getting) progress() {
	if s.req.Progress != nil {
		s.req.Progress(s.result.Files, s.result.Bytes, max(s.total.Load(), s.result.Bytes), s.counted.Load())
	}
}

// Err is what the result means for who asked: damage and whatever else keeps files
// away is an error, what belongs to them and has no room where they went is not.
func (r *GetResult) Err() error {
	for _, l := range r.LeftOut {
		if l.Data {
			return fmt.Errorf("%w: %d %s left out, such as %s: %s", ErrPartial, l.Count, plural(l.What, l.Count), l.Paths[0], l.Why)
		}
	}
	return nil
}

func plural(what string, n int64) string {
	if n == 1 || strings.HasSuffix(what, "s") {
		return what
	}
	if base, ok := strings.CutSuffix(what, "y"); ok {
		return base + "ies"
	}
	return what + "s"
}
