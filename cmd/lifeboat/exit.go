package main

import (
	"context"
	"errors"

	"lifeboat/appliance"
	"lifeboat/store"
	"lifeboat/vsphere"
)

// Exit codes, as scripts rely on them.
const (
	exitFailed      = 1
	exitUsage       = 2
	exitPartial     = 3
	exitNotFound    = 4
	exitDamaged     = 5
	exitInterrupted = 130
)

// exitCode is the one table from errors to exit codes.
func exitCode(err error) int {
	for _, row := range []struct {
		is   error
		code int
	}{
		{context.Canceled, exitInterrupted},
		{appliance.ErrUsage, exitUsage},
		{appliance.ErrNotFound, exitNotFound},
		{store.ErrNotFound, exitNotFound},
		{vsphere.ErrNotFound, exitNotFound},
		{store.ErrAmbiguous, exitUsage},
		{appliance.ErrDamaged, exitDamaged},
		{store.ErrDamaged, exitDamaged},
		{appliance.ErrPartial, exitPartial},
	} {
		if errors.Is(err, row.is) {
			return row.code
		}
	}
	if err != nil {
		return exitFailed
	}
	return 0
}
