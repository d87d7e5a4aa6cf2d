package appliance

import (
	"context"
	"crypto/sha256"
	"encoding/hex"
	"errors"
	"fmt"
	"io"
	"regexp"
	"strings"
	"time"

	"lifeboat/guestfs"
	"lifeboat/vsphere"
)

// Files are put in batches, because a question to a guest costs more than a small
// file:
//
//  1. each file is written under a name of the run in its directory, new and with
//     what belongs to it;
//  2. the guest makes links and tells checksums, all with one script;
//  3. sizes are asked, one question for each directory;
//  4. what is as it should be is renamed to where it belongs, the rest is removed;
//  5. new directories that are complete get owner, permissions and times.

// Limits of a batch.
const (
	maxBatch       = 128
	maxBatchWeight = 256 << 20 // bytes
)

// What a putting is.
const (
	putFile = iota
	putLink // symbolic
	putName // another name of a file
	putDir  // what belongs to a new directory
)

// putting is something on its way into its place.
type putting struct {
	kind   int
	it     *item
	dir    string // where it goes
	temp   string // its name there, for now; none for putDir
	to     string // its path at last
	from   string // putName: path of the file
	size   int64  // bytes
	sum    string // SHA-256 of what was sent, in hex
	over   bool   // there is a file in its place
	check  string // how it was checked, see PutFile
	reason string // why it does not go on
}

func (p *putting) path(s guestStyle) string { return s.join(p.dir, p.temp) }

// prefix is what the names of this run begin with.
func (t *vmTaker) prefix() string { return ".lifeboat-" + t.run + "-" }

// add puts something in the batch, which is brought to its end when it is full.
func (t *vmTaker) add(ctx context.Context, p *putting) error {
	t.batch = append(t.batch, p)
	t.weight += p.size
	if len(t.batch) < maxBatch && t.weight < maxBatchWeight {
		return nil
	}
	return t.flush(ctx)
}

func (t *vmTaker) take(ctx context.Context, it *item) error {
	dir, err := t.parent(ctx, it)
	if err != nil {
		return err
	}
	if dir.skip {
		t.lose(it, "file below it", "its directory is not in the guest")
		return nil
	}
	if why := t.style.refuses(it.name); why != "" {
		t.lose(it, "unspeakable name", why)
		return nil
	}
	key := t.style.key(it.name)
	there := dir.has[key]
	switch {
	case there == vmOurs:
		t.lose(it, "doubled name", "the guest does not tell its name from that of another file")
		return nil
	case there == vmDirectory:
		t.lose(it, "file", "the guest has a directory in its place")
		return nil
	case there != "" && !t.req.Overwrite:
		t.lose(it, "existing file", "it is in the guest; --overwrite replaces it")
		return nil
	}
	t.names++
	p := &putting{it: it, dir: dir.path, to: t.style.join(dir.path, it.name), temp: fmt.Sprintf("%s%d", t.prefix(), t.names), over: there != ""}
	if err := t.send(ctx, p); err != nil {
		return err
	}
	if p.reason == "" {
		dir.has[key] = vmOurs
	}
	return nil
}

// send begins with a file or link.
func (t *vmTaker) send(ctx context.Context, p *putting) error {
	id := fileID{p.it.fs, p.it.inode}
	first, linked := t.links[id]
	if linked && t.shell != "" && t.inBatch(first) { // it gets its name before there can be another
		if err := t.flush(ctx); err != nil {
			return err
		}
		first, linked = t.links[id]
	}
	switch kind := p.it.attr.Type(); {
	case linked && t.shell != "":
		p.kind, p.from = putName, first
		return t.add(ctx, p)
	case kind == guestfs.TypeFile:
		if linked {
			p.it.leave("hard links", "the guest has no shell that makes them: each name is a file of its own")
		}
		return t.file(ctx, p)
	case kind == guestfs.TypeSymlink:
		return t.symlink(ctx, p)
	}
	p.reason = "no guest operation makes them"
	t.lose(p.it, "special file", p.reason)
	return nil
}

func (t *vmTaker) inBatch(to string) bool {
	for _, p := range t.batch {
		if p.to == to {
			return true
		}
	}
	return false
}

func (t *vmTaker) symlink(ctx context.Context, p *putting) error {
	switch {
	case t.shell == "":
		p.reason = "no guest operation makes them, and no shell could be run in the guest"
	case p.it.target == "" || !speakable(p.it.target):
		p.reason = "vSphere cannot be told where it points to"
	}
	if p.reason != "" {
		t.lose(p.it, "symbolic link", p.reason)
		return nil
	}
	p.kind = putLink
	t.leaveOut(p.it)
	p.it.leave("times of symbolic links", "VMware Tools cannot set them")
	return t.add(ctx, p)
}

// file sends the content of a file under its name for now.
func (t *vmTaker) file(ctx context.Context, p *putting) error {
	img, err := p.it.open(ctx)
	if err != nil {
		return fmt.Errorf("%w: %w", errContent, err)
	}
	defer img.Close()
	p.size = img.Size()
	content := &sending{ctx: ctx, img: img, sum: sha256.New(), sent: p.it.written}
	t.batch = append(t.batch, p) // before it exists: see the invariant of vmTaker
	err = t.guest.Upload(ctx, p.path(t.style), content, p.size, t.attrs(p.it), false)
	failed := content.end()
	t.batch = t.batch[:len(t.batch)-1]
	if err == nil && failed == nil && content.off == p.size {
		p.sum = hex.EncodeToString(content.sum.Sum(nil))
		if p.it.attr.Links > 1 {
			t.links[fileID{p.it.fs, p.it.inode}] = p.to
		}
		t.leaveOut(p.it)
		return t.add(ctx, p)
	}
	if err == nil {
		err = io.ErrUnexpectedEOF
	}
	p.reason = err.Error()
	if ctx.Err() != nil || failed == nil && fatalInGuest(ctx, err) {
		t.batch = append(t.batch, p) // for cleanup
		return fmt.Errorf("%s: %w", p.it.from, err)
	}
	if err := t.remove(ctx, p); err != nil {
		t.batch = append(t.batch, p)
		return err
	}
	if failed != nil {
		return fmt.Errorf("%w: %w", errContent, failed)
	}
	return t.lost(ctx, p.it, "unwritable file", err)
}

// remove takes away what has its name for now.
func (t *vmTaker) remove(ctx context.Context, p *putting) error {
	err := t.guest.Remove(ctx, p.path(t.style))
	if err == nil || errors.Is(err, vsphere.ErrNotFound) {
		return nil
	}
	return fmt.Errorf("%s: %w", p.it.from, err)
}

// attrs are what belongs to a file as guest operations can set it.
func (t *vmTaker) attrs(it *item) vsphere.GuestFileAttrs {
	var out vsphere.GuestFileAttrs
	if at := moment(it.attr.Mtime); at != nil {
		out.Modified = *at
	}
	if at := moment(it.attr.Atime); at != nil {
		out.Accessed = *at
	}
	if t.style.windows {
		out.Windows, out.Hidden, out.ReadOnly = true, it.attr.Flags&guestfs.Hidden != 0, it.attr.Flags&guestfs.ReadOnly != 0
		if at := moment(it.attr.Btime); at != nil {
			out.Created = *at
		}
		return out
	}
	if !t.posix {
		return out
	}
	out.Mode = it.attr.Mode & 0o7777
	if !t.chown {
		out.Mode &= 0o777 // set-user-ID to somebody else than the file had
		return out
	}
	uid, gid := int32(it.attr.UID), int32(it.attr.GID)
	out.Owner, out.Group = &uid, &gid
	return out
}

// leaveOut says what of an item guest operations have no word for.
func (t *vmTaker) leaveOut(it *item) {
	if len(it.xattrs) > 0 {
		it.leave("extended attributes", "VMware Tools cannot set them")
	}
	if len(it.streams) > 0 {
		it.leave("named streams", "VMware Tools cannot write them")
	}
	if len(it.sd) > 0 {
		it.leave("security descriptors", "VMware Tools cannot set them: the file has what its directory passes on")
	}
	if t.posix && !t.chown {
		it.leave("owner", "this user of the guest may not set it")
	}
	if t.posix && it.attr.Type() != guestfs.TypeSymlink && it.attr.Mode&0o7777 == 0 {
		it.leave("permissions", "VMware Tools cannot say that there are none")
	}
	if it.attr.Flags&(guestfs.Immutable|guestfs.AppendOnly|guestfs.System) != 0 {
		it.leave("flags", "VMware Tools cannot set immutable, append-only and system")
	}
}

// dress gives a directory what belongs to it.
func (t *vmTaker) dress(ctx context.Context, to string, it *item) error {
	if err := t.guest.SetAttributes(ctx, to, t.attrs(it)); err != nil {
		if fatalInGuest(ctx, err) {
			return fmt.Errorf("%s: %w", to, err)
		}
		it.leave("owner, permissions and times", err.Error())
	}
	t.leaveOut(it)
	return nil
}

// flush brings the batch to its end.
func (t *vmTaker) flush(ctx context.Context) error {
	if err := t.checkAll(ctx); err != nil {
		return err
	}
	for len(t.batch) > 0 {
		p := t.batch[0]
		if err := t.finish(ctx, p); err != nil {
			return err
		}
		t.batch = t.batch[1:]
	}
	t.batch, t.weight = nil, 0
	return nil
}

// finish gives one thing its name, or takes it away.
func (t *vmTaker) finish(ctx context.Context, p *putting) error {
	if p.kind == putDir {
		return t.dress(ctx, p.to, p.it)
	}
	what := "unverified file"
	if p.reason == "" {
		err := t.guest.Rename(ctx, p.path(t.style), p.to, t.req.Overwrite)
		if err == nil {
			t.done(p)
			return nil
		}
		if fatalInGuest(ctx, err) {
			return fmt.Errorf("%s: %w", p.it.from, err)
		}
		what, p.reason = "unwritable file", err.Error()
		if errors.Is(err, vsphere.ErrExists) {
			what, p.reason = "existing file", "it is in the guest; --overwrite replaces it"
		}
	} else if p.kind != putFile {
		what = "link"
	}
	delete(t.links, fileID{p.it.fs, p.it.inode})
	if err := t.remove(ctx, p); err != nil {
		return err
	}
	return t.lost(ctx, p.it, what, errors.New(p.reason))
}

func (t *vmTaker) done(p *putting) {
	t.result.Files++
	t.result.Bytes += p.size
	if p.over {
		t.result.Replaced++
	}
	kind := fileType(p.it.attr.Mode)
	t.put(PutFile{From: p.it.from, To: p.to, Type: kind, Size: p.size, Replaced: p.over, Checked: p.check})
}

// cleanup removes what is left under names of this run. A host that was interrupted
// in a transfer may end it a moment later, so it looks again.
func (t *vmTaker) cleanup(ctx context.Context) error {
	dirs := map[string]bool{}
	for _, p := range t.batch {
		if p.kind != putDir {
			dirs[p.dir] = true
		}
	}
	t.batch = nil
	var failed error
	for dir := range dirs {
		failed = errors.Join(failed, t.sweep(ctx, dir))
	}
	if t.temp != "" {
		failed = errors.Join(failed, t.guest.RemoveDir(ctx, t.temp, true))
	}
	return failed
}

// Sweeping looks this often for what a late transfer makes.
const (
	sweeps     = 3
	sweepPause = 100 * time.Millisecond
)

func (t *vmTaker) sweep(ctx context.Context, dir string) error {
	pattern := "^" + regexp.QuoteMeta(t.prefix())
	for n := 0; ; n++ {
		list, err := t.guest.ListMatching(ctx, dir, pattern)
		if err != nil {
			return err
		}
		if len(list) == 0 && n >= sweeps {
			return nil
		}
		for _, f := range list {
			if !strings.HasPrefix(f.Path, t.prefix()) {
				continue
			}
			if err := t.guest.Remove(ctx, t.style.join(dir, f.Path)); err != nil && !errors.Is(err, vsphere.ErrNotFound) {
				return err
			}
		}
		if n >= sweeps {
			n = sweeps - 1
		}
		select {
		case <-ctx.Done():
			return context.Cause(ctx)
		case <-time.After(sweepPause):
		}
	}
}
