package appliance

import (
	"context"
	"log/slog"
	"net/http"

	"lifeboat/fusefs"
	"lifeboat/guestfs/browse"
	"lifeboat/webdav"
)

// MountOptions say who may look at the tree of all points on this machine.
type MountOptions = fusefs.Options

// WebDAVOptions say who may over the network.
type WebDAVOptions = webdav.Options

// Mounted is a tree that is mounted.
type Mounted interface {
	Dir() string
	// Run waits until ctx is done or somebody has unmounted the tree, and leaves no
	// mount behind.
	Run(ctx context.Context) error
}

// MountBrowser mounts the tree of all points on a directory.
func MountBrowser(dir string, tree *browse.Namespace, o MountOptions) (Mounted, error) {
	if o.Logger == nil {
		o.Logger = slog.New(slog.DiscardHandler)
	}
	return fusefs.New(dir, tree, o)
}

// WebDAVHandler serves the tree of all points.
func WebDAVHandler(tree *browse.Namespace, o WebDAVOptions) http.Handler {
	return webdav.Handler(tree, o)
}
