package keyring

import (
	"context"
	"fmt"

	"lifeboat/store/backend"
)

// WriteHeader writes the header as it was when the repository was opened, for
// when it was lost or damaged since.
func (r *Repo) WriteHeader(ctx context.Context, b backend.Backend) error {
	if err := writeSmall(ctx, b, HeaderName, r.headerDoc, backend.Replace); err != nil {
		return fmt.Errorf("restore %s: %w", HeaderName, err)
	}
	return nil
}
