package keyring

import (
	"runtime"
	"testing"
)

// What a derivation takes must not stay with an idle process.
func TestDerivationGivesItsMemoryBack(t *testing.T) {
	k := DefaultKDF()
	k.derive([]byte("password"), make([]byte, 16))
	var m runtime.MemStats
	runtime.ReadMemStats(&m)
	if held := m.HeapSys - m.HeapReleased; held > uint64(k.MemoryKiB)<<10/2 {
		t.Errorf("%d MiB of heap are held after deriving a key with %d MiB", held>>20, k.MemoryKiB>>10)
	}
}
