package vsphere

import (
	"context"
	"fmt"
	"io"
	"net/http"
	"path"
	"regexp"
	"strings"

	"github.com/vmware/govmomi/vim25/methods"
	"github.com/vmware/govmomi/vim25/types"
)

// List lists a directory. Errors: ErrNotFound.
func (g *Guest) List(ctx context.Context, dir string) ([]GuestFile, error) {
	return g.ListMatching(ctx, dir, "")
}

// ListMatching lists the entries of a directory whose names fit a regular
// expression; "" is all. The guest looks at all of them, and only those that fit
// are sent. Errors: ErrNotFound.
func (g *Guest) ListMatching(ctx context.Context, dir, pattern string) ([]GuestFile, error) {
	op := "list " + dir + " in the guest"
	var out []GuestFile
	for index := 0; ; {
		res, err := methods.ListFilesInGuest(ctx, g.c.session, &types.ListFilesInGuest{
			This: g.files, Vm: g.vm, Auth: g.auth, FilePath: dir, Index: int32(index), MaxResults: 1000, MatchPattern: pattern,
		})
		if err != nil {
			return nil, g.fail(op, err)
		}
		for _, f := range res.Returnval.Files {
			if base := path.Base(strings.ReplaceAll(f.Path, `\`, "/")); base != "." && base != ".." {
				out = append(out, guestFile(f))
			}
		}
		index += len(res.Returnval.Files)
		if res.Returnval.Remaining <= 0 || len(res.Returnval.Files) == 0 {
			return out, nil
		}
		if index > maxListed {
			return nil, &Error{Op: op, Kind: ErrInvalid, Text: fmt.Sprintf("the directory has more than %d entries", maxListed)}
		}
	}
}

// Find tells of one entry of a directory, without following it if it is a link.
// fold finds it whatever its case, as Windows does. Errors: ErrNotFound, of the
// directory, too.
func (g *Guest) Find(ctx context.Context, dir, name string, fold bool) (GuestFile, error) {
	pattern := "^" + regexp.QuoteMeta(name) + "$"
	if fold {
		pattern = "(?i)" + pattern
	}
	list, err := g.ListMatching(ctx, dir, pattern)
	if err != nil {
		return GuestFile{}, err
	}
	for _, f := range list {
		if f.Path == name || fold && strings.EqualFold(f.Path, name) {
			return f, nil
		}
	}
	return GuestFile{}, &Error{Op: "find " + name + " in " + dir + " of the guest", Kind: ErrNotFound, Text: "there is no such file"}
}

// maxRefusal is how much is read of what a host says about a transfer, bytes.
const maxRefusal = 512

// guestRefused tells why a host did not move a file: Tools know the reason, and
// what they say of it is a line of text at most.
func guestRefused(op string, res *http.Response) error {
	said, _ := io.ReadAll(io.LimitReader(res.Body, maxRefusal)) // what is there helps, the rest is not missed
	e := &Error{Op: op, Kind: ErrFile, Text: "the guest did not move the file; most often its disk is full, or another program has the file", Detail: res.Status}
	if text := strings.TrimSpace(strings.ToValidUTF8(string(said), "?")); text != "" && !strings.HasPrefix(text, "<") {
		e.Detail += ": " + text
	}
	return e
}
