package store

import (
	"context"

	"lifeboat/store/internal/keyring"
)

// ErrRecoveryKey: what was given looks like a recovery key and has a typing
// mistake; the message says in which group.
var ErrRecoveryKey = keyring.ErrRecoveryKey

// recoveryLabel is what the list of keys calls a recovery key.
const recoveryLabel = "recovery key"

// AddRecoveryKey makes a recovery key: a password to be kept on paper, with
// which mistakes in typing are found and located. It opens the repository like
// any password, and its key can be removed like any. It is returned once and
// kept nowhere.
func (r *Repository) AddRecoveryKey(ctx context.Context) (id, recovery string, err error) {
	recovery = keyring.NewRecoveryKey()
	id, err = r.AddPassword(ctx, []byte(recovery), recoveryLabel)
	if err != nil {
		return "", "", err
	}
	return id, recovery, nil
}
