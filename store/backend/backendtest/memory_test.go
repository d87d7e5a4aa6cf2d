package backendtest_test

import (
	"testing"

	"lifeboat/store/backend"
	"lifeboat/store/backend/backendtest"
)

func TestMemory(t *testing.T) {
	backendtest.Run(t, func(*testing.T) backend.Backend { return backendtest.NewMemory() })
}
