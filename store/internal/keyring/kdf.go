package keyring

import (
	"fmt"
	"runtime/debug"

	"golang.org/x/crypto/argon2"
)

// KDF says what it costs to try a password: the parameters of Argon2id
// (RFC 9106 §3.1). Zero fields take [DefaultKDF]'s values.
type KDF struct {
	MemoryKiB uint32 `json:"memory_kib"`
	Passes    uint32 `json:"passes"`
	Lanes     uint8  `json:"lanes"`
}

// DefaultKDF is RFC 9106's second recommended option: 64 MiB, 3 passes, 4
// lanes; about 0.1 s on two cores.
func DefaultKDF() KDF { return KDF{MemoryKiB: 64 << 10, Passes: 3, Lanes: 4} }

// CheapKDF is for tests only: it protects nothing.
func CheapKDF() KDF { return KDF{MemoryKiB: 8, Passes: 1, Lanes: 1} }

// What a key file may ask for. A hostile one costs at most 1 GiB of memory
// and some seconds.
const (
	maxMemoryKiB = 1 << 20
	maxPasses    = 64
	maxLanes     = 64
	maxWork      = 4 << 20 // memory × passes, KiB
)

func (k KDF) orDefault() KDF {
	d := DefaultKDF()
	if k.MemoryKiB != 0 {
		d.MemoryKiB = k.MemoryKiB
	}
	if k.Passes != 0 {
		d.Passes = k.Passes
	}
	if k.Lanes != 0 {
		d.Lanes = k.Lanes
	}
	return d
}

// check returns an error unless k is something that we are ready to compute.
func (k KDF) check() error {
	switch {
	case k.Passes < 1 || k.Passes > maxPasses:
		return fmt.Errorf("Argon2id with %d passes: want 1 to %d", k.Passes, maxPasses)
	case k.Lanes < 1 || k.Lanes > maxLanes:
		return fmt.Errorf("Argon2id with %d lanes: want 1 to %d", k.Lanes, maxLanes)
	case k.MemoryKiB < 8*uint32(k.Lanes) || k.MemoryKiB > maxMemoryKiB:
		return fmt.Errorf("Argon2id with %d KiB of memory: want %d to %d", k.MemoryKiB, 8*uint32(k.Lanes), maxMemoryKiB)
	case uint64(k.MemoryKiB)*uint64(k.Passes) > maxWork:
		return fmt.Errorf("Argon2id with %d passes over %d KiB: want at most %d KiB in all", k.Passes, k.MemoryKiB, maxWork)
	}
	return nil
}

// hugeMemoryKiB is from where on the memory of a derivation is given back to
// the system at once.
const hugeMemoryKiB = 8 << 10

func (k KDF) derive(password, salt []byte) [KeySize]byte {
	key := [KeySize]byte(argon2.IDKey(password, salt, k.Passes, k.MemoryKiB, k.Lanes, KeySize))
	if k.MemoryKiB >= hugeMemoryKiB {
		// The runtime keeps what was freed for the next allocation of the kind,
		// and there is none: an idle server would hold 64 MiB for good.
		debug.FreeOSMemory()
	}
	return key
}
