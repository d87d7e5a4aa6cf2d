package inspect

import (
	"context"

	"lifeboat/guestfs"
	"lifeboat/guestfs/tree"
)

// Tree composes what the guest sees of the volumes of a report: the tree of the
// first system that was found, or, where there is none, a directory for each
// volume. open gives the file system of a volume when it is first looked at.
func Tree(r *Report, open func(ctx context.Context, volume int) (guestfs.FS, error)) *tree.Tree {
	t := tree.New()
	if len(r.Systems) == 0 {
		for i := range r.Volumes {
			mount(t, "/"+r.Volumes[i].Name, Mount{Volume: i}, open)
		}
		return t
	}
	for _, m := range r.Systems[0].Mounts {
		mount(t, m.Path, m, open)
	}
	return t
}

func mount(t *tree.Tree, path string, m Mount, open func(context.Context, int) (guestfs.FS, error)) {
	// The paths were cleaned and are few, so that nothing can fail.
	_ = t.Mount(path, func(ctx context.Context) (guestfs.FS, error) {
		fsys, err := open(ctx, m.Volume)
		if err != nil || m.Sub == "" {
			return fsys, err
		}
		at, err := tree.Walk(ctx, fsys, m.Sub, tree.Follow)
		if err != nil {
			return nil, err
		}
		return tree.Sub(fsys, at.Inode), nil
	})
}
