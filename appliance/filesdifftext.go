package appliance

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"unicode/utf8"

	"github.com/aymanbagabas/go-udiff"

	"lifeboat/guestfs"
	"lifeboat/guestfs/tree"
	"lifeboat/store"
)

// maxTextDiff bounds the files that are compared line by line, in bytes.
const maxTextDiff = 8 << 20

// TextDiff is what differs between a file in two restore points.
type TextDiff struct {
	A      string `json:"a"`
	B      string `json:"b"`
	Same   bool   `json:"same"`
	Binary bool   `json:"binary,omitempty"` // or too large: there is no text
	SizeA  int64  `json:"size_a"`
	SizeB  int64  `json:"size_b"`
	Text   string `json:"diff,omitempty"` // unified
}

// errNotFiles says that places are not both of files.
var errNotFiles = errors.New("not two files")

// DiffPlaces compares two places: two files line by line, then the first result is
// given; or what is in two directories, or everything.
func DiffPlaces(ctx context.Context, repo *store.Repository, req FilesDiffRequest) (*TextDiff, *FilesDiff, error) {
	if req.Progress == nil {
		req.Progress = func(string, int64, int64) {}
	}
	p, err := openPair(ctx, repo, req.A.Point, req.B.Point, req.Guest)
	if err != nil {
		return nil, nil, err
	}
	defer p.close()
	if req.A.Place != "" && req.B.Place != "" {
		text, err := p.text(ctx, req)
		if !errors.Is(err, errNotFiles) {
			return text, nil, err
		}
	}
	d, err := p.diff(ctx, req)
	return nil, d, err
}

func (p *guestPair) text(ctx context.Context, req FilesDiffRequest) (*TextDiff, error) {
	out := &TextDiff{A: p.a.Point.ID + ":" + req.A.Place, B: p.b.Point.ID + ":" + req.B.Place}
	one, sizeA, err := p.a.fileBytes(ctx, req.A.Place)
	if err != nil {
		return nil, err
	}
	two, sizeB, err := p.b.fileBytes(ctx, req.B.Place)
	if err != nil {
		return nil, err
	}
	out.SizeA, out.SizeB = sizeA, sizeB
	if one == nil || two == nil { // too large for lines
		out.Binary = true
		out.Same, err = p.sameFiles(ctx, req)
		return out, err
	}
	out.Same = bytes.Equal(one, two)
	if out.Binary = !isText(one) || !isText(two); !out.Binary {
		out.Text = udiff.Unified(out.A, out.B, string(one), string(two))
	}
	return out, nil
}

// isText guesses as diff(1) does, and wants valid UTF-8 besides.
func isText(b []byte) bool { return bytes.IndexByte(b, 0) < 0 && utf8.Valid(b) }

// fileBytes is the content of a file; nil where it is too large.
func (g *Guest) fileBytes(ctx context.Context, place string) ([]byte, int64, error) {
	fsys, at, err := g.find(ctx, place, tree.Follow)
	if err != nil {
		if errors.Is(err, ErrNotFound) { // it may be in the other one
			err = errors.Join(errNotFiles, err)
		}
		return nil, 0, err
	}
	if at.Type != guestfs.TypeFile {
		return nil, 0, errNotFiles
	}
	img, err := fsys.Open(ctx, at.Inode)
	if err != nil {
		return nil, 0, guestError(err)
	}
	defer img.Close()
	if img.Size() > maxTextDiff {
		return nil, img.Size(), nil
	}
	b := make([]byte, img.Size())
	if n, err := img.ReadAt(b, 0); n < len(b) {
		return nil, 0, guestError(fmt.Errorf("%s: %w", place, unexpected(err)))
	}
	return b, img.Size(), nil
}

func (p *guestPair) sameFiles(ctx context.Context, req FilesDiffRequest) (bool, error) {
	fa, a, err := p.a.find(ctx, req.A.Place, tree.Follow)
	if err != nil {
		return false, err
	}
	fb, b, err := p.b.find(ctx, req.B.Place, tree.Follow)
	if err != nil {
		return false, err
	}
	same, err := sameContent(ctx, fa, fb, a.Inode, b.Inode, 0, 1<<62)
	return same, guestError(err)
}
