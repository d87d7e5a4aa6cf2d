package vsphere

import (
	"context"
	"fmt"
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
