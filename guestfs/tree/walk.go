package tree

import (
	"context"
	"errors"
	"fmt"
	"io/fs"
	"strings"

	"lifeboat/guestfs"
)

// Mode says what Walk does with a symbolic link at the end of a path.
type Mode int

// The modes.
const (
	Follow   Mode = iota // what it points to
	NoFollow             // the link itself
)

// Found is where a path leads.
type Found struct {
	guestfs.Dirent        // Name is the directory's own spelling; "" for the root
	Path           string // absolute, without links, "." and ".."
	Parent         guestfs.Inode
}

// Limits of a walk: of links as in Linux, and of everything that they expand to.
const (
	maxLinks = 40
	maxSteps = 4096
)

// LoopError says that symbolic links lead nowhere.
type LoopError struct{ Path string }

func (e *LoopError) Error() string {
	return fmt.Sprintf("%q: too many levels of symbolic links", e.Path)
}

// Walk finds a path, whose parts are separated by slashes, in fsys. Links are
// followed within fsys: an absolute one, and "..", lead no further up than to
// its root. Errors: fs.ErrNotExist, guestfs.ErrNotDir, LoopError, and those of
// fsys.
func Walk(ctx context.Context, fsys guestfs.FS, path string, mode Mode) (Found, error) {
	w := walker{fsys: fsys, asked: path}
	w.restart()
	todo := split(path)
	for steps := 0; len(todo) > 0; steps++ {
		if steps > maxSteps {
			return Found{}, &LoopError{path}
		}
		part := todo[0]
		todo = todo[1:]
		more, err := w.step(ctx, part, len(todo) > 0 || mode == Follow || strings.HasSuffix(path, "/"))
		if err != nil {
			return Found{}, err
		}
		if more != nil {
			todo = append(more, todo...)
		}
	}
	return w.found(), nil
}

// walker is a walk that is under way: stack is the way from the root to here.
type walker struct {
	fsys  guestfs.FS
	asked string
	stack []guestfs.Dirent
	links int
}

func (w *walker) restart() {
	w.stack = append(w.stack[:0], guestfs.Dirent{Inode: w.fsys.Root(), Type: guestfs.TypeDir})
}

func (w *walker) here() *guestfs.Dirent { return &w.stack[len(w.stack)-1] }

func (w *walker) path() string {
	var b strings.Builder
	for _, e := range w.stack[1:] {
		b.WriteByte('/')
		b.WriteString(e.Name)
	}
	if b.Len() == 0 {
		return "/"
	}
	return b.String()
}

func (w *walker) found() Found {
	f := Found{Dirent: *w.here(), Path: w.path(), Parent: w.fsys.Root()}
	if n := len(w.stack); n > 1 {
		f.Parent = w.stack[n-2].Inode
	}
	return f
}

// step goes one part further. Where that is a link to follow, what it stands for
// is returned, not nil.
func (w *walker) step(ctx context.Context, part string, follow bool) ([]string, error) {
	if w.here().Type != guestfs.TypeDir {
		return nil, fmt.Errorf("%q: %w", w.path(), guestfs.ErrNotDir)
	}
	switch part {
	case ".":
		return nil, nil
	case "..":
		if len(w.stack) > 1 {
			w.stack = w.stack[:len(w.stack)-1]
		}
		return nil, nil
	}
	e, err := guestfs.Lookup(ctx, w.fsys, w.here().Inode, part)
	if err != nil {
		return nil, &fs.PathError{Op: "look up", Path: join(w.path(), part), Err: plain(err)}
	}
	if e.Type == 0 {
		a, err := w.fsys.Stat(ctx, e.Inode)
		if err != nil {
			return nil, err
		}
		e.Type = a.Type()
	}
	if e.Type != guestfs.TypeSymlink || !follow {
		w.stack = append(w.stack, e)
		return nil, nil
	}
	return w.follow(ctx, e)
}

// plain leaves of an error about a name that is not there only that: the path is
// said already.
func plain(err error) error {
	if errors.Is(err, fs.ErrNotExist) {
		return fs.ErrNotExist
	}
	return err
}

func (w *walker) follow(ctx context.Context, e guestfs.Dirent) ([]string, error) {
	if w.links++; w.links > maxLinks {
		return nil, &LoopError{w.asked}
	}
	target, err := guestfs.ReadLink(ctx, w.fsys, e.Inode)
	if err != nil {
		return nil, err
	}
	target = slashes(target, windows(w.fsys, e.Inode))
	if strings.HasPrefix(target, "/") {
		w.restart()
	}
	if target == "" {
		return nil, &fs.PathError{Op: "follow", Path: join(w.path(), e.Name), Err: fs.ErrNotExist}
	}
	parts := split(target)
	if parts == nil {
		parts = []string{}
	}
	return parts, nil
}

func join(dir, name string) string { return strings.TrimSuffix(dir, "/") + "/" + name }

// split takes a path apart; empty parts fall out.
func split(path string) []string {
	return strings.FieldsFunc(path, func(r rune) bool { return r == '/' })
}

// slashes writes a link's target of Windows as a path from the root of the
// guest: \??\C:\Users is /C:/Users. Others stay as they are.
func slashes(target string, windows bool) string {
	if !windows {
		return target
	}
	for _, prefix := range []string{`\??\`, `\\?\`, `\\.\`} {
		if rest, ok := strings.CutPrefix(target, prefix); ok {
			target = `\` + rest
			break
		}
	}
	target = strings.ReplaceAll(target, `\`, "/")
	if len(target) >= 2 && target[1] == ':' {
		target = "/" + target
	}
	return target
}

// windows reports whether links of an inode are written by Windows.
func windows(fsys guestfs.FS, inode guestfs.Inode) bool {
	if t, ok := fsys.(*Tree); ok {
		return t.windows(inode)
	}
	if s, ok := fsys.(*sub); ok {
		return windows(s.FS, inode)
	}
	d, ok := fsys.(guestfs.Describer)
	return ok && isWindows(d.Info().Type)
}

func isWindows(fsType string) bool { return fsType == "ntfs" || fsType == "ReFS" }
