package appliance

import (
	"context"
	"crypto/rand"
	"encoding/hex"
	"errors"
	"fmt"
	"log/slog"
	"path"
	"slices"
	"strings"
	"time"
	"unicode/utf8"

	"lifeboat/guestfs"
	"lifeboat/guestfs/inspect"
	"lifeboat/guestfs/tree"
	"lifeboat/vsphere"
)

// vmTaker is a taker that writes into a running guest. It is for one goroutine.
//
// Invariant: whatever exists in the guest under a name of this run (".lifeboat-",
// the run's number, "-") is in batch, or has been renamed or removed. cleanup
// empties batch, whichever way the work ended.
type vmTaker struct {
	g      *Guest
	guest  *vsphere.Guest
	style  guestStyle
	req    ToVMRequest
	result *ToVMResult
	log    *slog.Logger

	run    string // the run's number
	names  int    // that were given
	temp   string // directory of the guest for what runs there
	shell  string // program that runs scripts, or ""
	chown  bool   // whether this user may give files away
	posix  bool   // whether what is restored has owners and permissions
	failed int    // files in a row

	stack  []*vmDir
	tops   map[string]*vmDir // directories where places go, by key
	batch  []*putting
	late   []lateDir         // directories that no item stands for
	weight int64             // bytes in batch
	links  map[fileID]string // where the first name of a file with several went
}

// vmDir is a directory of the guest that things go to.
type vmDir struct {
	path string
	has  map[string]string // types of what is in it, by the key of its name
	skip bool              // nothing can go there
	made bool              // it is new, and gets what belongs to it in the end
}

func newVMTaker(g *Guest, guest *vsphere.Guest, style guestStyle, req ToVMRequest, result *ToVMResult) *vmTaker {
	var run [4]byte
	_, _ = rand.Read(run[:]) // it never fails
	return &vmTaker{
		g: g, guest: guest, style: style, req: req, result: result, log: logger(req.Logger), run: hex.EncodeToString(run[:]),
		posix: !style.windows && g.systemKind() != inspect.Windows, tops: map[string]*vmDir{}, links: map[fileID]string{},
	}
}

// cleanupTime bounds what is done in the guest after the work was interrupted.
const cleanupTime = 30 * time.Second

func (t *vmTaker) takeAll(ctx context.Context, get GetRequest) (*GetResult, error) {
	if err := t.prepare(ctx); err != nil {
		return nil, err
	}
	got, err := t.g.get(ctx, get, t)
	if err == nil {
		err = t.flush(ctx)
	}
	if err == nil {
		err = t.dressLate(ctx)
	}
	return got, err
}

// putAll is takeAll with an end: nothing under a name of ours stays in the guest.
func (t *vmTaker) putAll(ctx context.Context, get GetRequest) (*GetResult, error) {
	got, err := t.takeAll(ctx, get)
	after, cancel := context.WithTimeout(context.WithoutCancel(ctx), cleanupTime)
	defer cancel()
	if left := t.cleanup(after); left != nil {
		err = errors.Join(err, fmt.Errorf("files named %s* are left in the guest, remove them: %w", t.prefix(), left))
	}
	if ctx.Err() != nil {
		err = errors.Join(context.Cause(ctx), err)
	}
	return got, err
}

// prepare finds out what this user may do in the guest.
func (t *vmTaker) prepare(ctx context.Context) error {
	temp, err := t.guest.TempDir(ctx, "lifeboat-")
	if err != nil {
		return err
	}
	t.temp = temp
	if t.style.windows {
		return nil
	}
	somebody := int32(1)
	err = t.guest.SetAttributes(ctx, temp, vsphere.GuestFileAttrs{Owner: &somebody, Group: &somebody})
	if t.chown = err == nil; !t.chown && fatalInGuest(ctx, err) {
		return err
	}
	if t.chown {
		nobody := int32(0)
		if err := t.guest.SetAttributes(ctx, temp, vsphere.GuestFileAttrs{Owner: &nobody, Group: &nobody, Mode: 0o700}); err != nil {
			return err
		}
	}
	return t.findShell(ctx)
}

// parent is the directory that an item goes to.
func (t *vmTaker) parent(ctx context.Context, it *item) (*vmDir, error) {
	if n := len(t.stack); n > 0 {
		return t.stack[n-1], nil
	}
	if t.req.To != "" {
		return t.top(ctx, t.req.To, "")
	}
	inTree := path.Dir(it.from)
	return t.top(ctx, t.style.native(inTree), inTree)
}

// top is a directory where places go. Where it does not exist it is made, and those
// above it; inTree, if not "", is where the restore point has it.
func (t *vmTaker) top(ctx context.Context, dir, inTree string) (*vmDir, error) {
	if d, ok := t.tops[t.style.key(dir)]; ok {
		return d, nil
	}
	above, name := t.style.split(dir)
	if name == "" {
		return t.existing(ctx, dir)
	}
	f, err := t.guest.Find(ctx, above, name, t.style.windows)
	if errors.Is(err, vsphere.ErrNotFound) {
		aboveInTree := ""
		if inTree != "" {
			aboveInTree = path.Dir(inTree)
		}
		parent, err := t.top(ctx, above, aboveInTree)
		if err != nil {
			return nil, err
		}
		return t.makeTop(ctx, parent, dir, name, inTree)
	}
	if err != nil {
		return nil, err
	}
	if f.Type == vmFile {
		return nil, fmt.Errorf("%w: %s is a file in the guest, not a directory", ErrUsage, dir)
	}
	return t.existing(ctx, dir)
}

// makeTop makes a directory that no item stands for.
func (t *vmTaker) makeTop(ctx context.Context, parent *vmDir, dir, name, inTree string) (*vmDir, error) {
	if err := t.guest.MakeDir(ctx, dir, false); err != nil && !errors.Is(err, vsphere.ErrExists) {
		return nil, err
	}
	t.result.Dirs++
	parent.has[t.style.key(name)] = vmDirectory
	if inTree != "" {
		t.late = append(t.late, lateDir{dir, inTree})
	}
	d := &vmDir{path: dir, has: map[string]string{}}
	t.tops[t.style.key(dir)] = d
	return d, nil
}

// lateDir is a new directory that gets what the one of the restore point has when
// all else is done.
type lateDir struct{ path, inTree string }

func (t *vmTaker) dressLate(ctx context.Context) error {
	for _, d := range slices.Backward(t.late) { // those above come first
		if err := t.dressTop(ctx, d.path, d.inTree); err != nil {
			return err
		}
	}
	return nil
}

func (t *vmTaker) dressTop(ctx context.Context, dir, inTree string) error {
	at, err := tree.Walk(ctx, t.g.tree, inTree, tree.Follow)
	if err != nil {
		return guestError(err)
	}
	e := guestfs.Describe(ctx, t.g.tree, at.Dirent, false)
	if e.Attr == nil {
		return guestError(e.Err)
	}
	return t.dress(ctx, dir, &item{attr: e.Attr, left: func(LeftOut) {}})
}

// Types of entries as guest operations tell them.
const (
	vmDirectory = "directory"
	vmFile      = "file"
	vmOurs      = "file of this restore"
)

// existing lists a directory that is there.
func (t *vmTaker) existing(ctx context.Context, dir string) (*vmDir, error) {
	list, err := t.guest.List(ctx, dir)
	if err != nil {
		return nil, err
	}
	d := &vmDir{path: dir, has: make(map[string]string, len(list))}
	for _, f := range list {
		d.has[t.style.key(f.Path)] = f.Type
	}
	if len(t.stack) == 0 {
		t.tops[t.style.key(dir)] = d
	}
	return d, nil
}

// lose leaves an item out whole.
func (t *vmTaker) lose(it *item, what, why string) {
	it.left(LeftOut{What: what, Why: why, Data: true, Paths: []string{it.from}})
}

func (t *vmTaker) enter(ctx context.Context, it *item) error {
	parent, err := t.parent(ctx, it)
	if err != nil {
		return err
	}
	d, err := t.directory(ctx, parent, it)
	if err != nil {
		return err
	}
	t.stack = append(t.stack, d)
	return nil
}

// directory is the guest's directory for one of the restore point.
func (t *vmTaker) directory(ctx context.Context, parent *vmDir, it *item) (*vmDir, error) {
	none := &vmDir{skip: true}
	if parent.skip {
		t.lose(it, "file below it", "its directory is not in the guest")
		return none, nil
	}
	if why := t.style.refuses(it.name); why != "" {
		t.lose(it, "unspeakable name", why)
		return none, nil
	}
	key, to := t.style.key(it.name), t.style.join(parent.path, it.name)
	kind, there := parent.has[key]
	if there && kind != vmDirectory {
		t.lose(it, "directory", "the guest has a "+kind+" in its place")
		return none, nil
	}
	if !there {
		d, err := t.make(ctx, to, it)
		if d == nil {
			return none, err
		}
		parent.has[key] = vmDirectory
		return d, err
	}
	d, err := t.existing(ctx, to)
	if err != nil {
		return none, t.lost(ctx, it, "directory", err)
	}
	return d, nil
}

// make makes a directory; it gets what belongs to it when it is complete.
func (t *vmTaker) make(ctx context.Context, to string, it *item) (*vmDir, error) {
	if err := t.guest.MakeDir(ctx, to, false); err != nil {
		return nil, t.lost(ctx, it, "directory", err)
	}
	t.result.Dirs++
	t.put(PutFile{From: it.from, To: to, Type: "dir"})
	return &vmDir{path: to, has: map[string]string{}, made: true}, nil
}

// leave lets a new directory have its metadata after all that is in it.
func (t *vmTaker) leave(ctx context.Context, it *item) error {
	d := t.stack[len(t.stack)-1]
	t.stack = t.stack[:len(t.stack)-1]
	if !d.made {
		return nil
	}
	return t.add(ctx, &putting{kind: putDir, it: it, to: d.path})
}

// maxFailed is how many files in a row may fail before the work ends: a full disk
// is not tried a million times.
const maxFailed = 100

// lost leaves an item out that could not be put, unless nothing after it would fare
// better.
func (t *vmTaker) lost(ctx context.Context, it *item, what string, err error) error {
	if fatalInGuest(ctx, err) {
		return fmt.Errorf("%s: %w", it.from, err)
	}
	t.lose(it, what, err.Error())
	if t.failed++; t.failed >= maxFailed {
		return fmt.Errorf("%d files in a row could not be put, the last was %s: %w", t.failed, it.from, err)
	}
	return nil
}

func (t *vmTaker) put(f PutFile) {
	t.failed = 0
	f.From, f.To = strings.ToValidUTF8(f.From, "\uFFFD"), strings.ToValidUTF8(f.To, "\uFFFD")
	if t.req.Put != nil {
		t.req.Put(f)
	}
	if len(t.result.Put) >= maxPutListed {
		t.result.More++
		return
	}
	t.result.Put = append(t.result.Put, f)
}

// speakable reports whether vSphere can be told a name: it has to be text that XML
// can carry.
func speakable(name string) bool {
	if !utf8.ValidString(name) {
		return false
	}
	for _, r := range name {
		if r < ' ' && r != '\t' && r != '\n' || r == 0xFFFE || r == 0xFFFF {
			return false
		}
	}
	return true
}
