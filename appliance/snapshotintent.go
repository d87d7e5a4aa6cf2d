package appliance

import (
	"context"
	"errors"

	"lifeboat/vsphere"
)

// undoSnapshot removes the snapshot of a backup that did not come to its end.
func (s *State) undoSnapshot(ctx context.Context, c *vsphere.Client, in Intent) (string, error) {
	return "", errors.New("not implemented")
}
