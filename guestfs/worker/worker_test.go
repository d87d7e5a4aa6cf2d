package worker_test

import (
	"os"
	"testing"

	"lifeboat/guestfs/inspect"
	"lifeboat/guestfs/worker"
)

func TestMain(m *testing.M) {
	worker.Main(inspect.NativeReaders())
	os.Exit(m.Run())
}
