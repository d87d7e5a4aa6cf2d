package appliance

import (
	"os"
	"testing"
)

func TestMain(m *testing.M) {
	GuestWorker() // tests that open guests are their own worker
	os.Exit(m.Run())
}
