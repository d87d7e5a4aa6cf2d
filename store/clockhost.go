package store

import (
	"bytes"
	"crypto/rand"
	"encoding/hex"
	"os"
	"time"

	"github.com/zeebo/blake3"
	"golang.org/x/sys/unix"
)

// linuxClock is the host's clock.
type linuxClock struct {
	boot string
	wall func() time.Time
}

// newHostClock is the clock of this host; wall tells the time of day.
func newHostClock(wall func() time.Time) hostClock { return linuxClock{bootToken(), wall} }

func (c linuxClock) Boot() string    { return c.boot }
func (c linuxClock) Wall() time.Time { return c.wall() }

// Uptime is CLOCK_BOOTTIME, or where there is none the process's own.
func (c linuxClock) Uptime() time.Duration {
	var ts unix.Timespec
	if err := unix.ClockGettime(unix.CLOCK_BOOTTIME, &ts); err != nil {
		return 0
	}
	return time.Duration(ts.Nano())
}

// bootToken names this boot. In a time namespace (time_namespaces(7)) the clock
// of the boot has an offset of the namespace's maker's choice: that is taken for
// another boot. Where the kernel tells no boot, every process is one.
func bootToken() string {
	boot, err := os.ReadFile("/proc/sys/kernel/random/boot_id")
	if err != nil || len(boot) == 0 {
		boot = make([]byte, 16)
		rand.Read(boot) // never fails (crypto/rand)
	}
	namespace, _ := os.Readlink("/proc/self/ns/time")
	offsets, _ := os.ReadFile("/proc/self/timens_offsets")
	sum := blake3.Sum256(bytes.Join([][]byte{boot, []byte(namespace), offsets, nil}, []byte{0}))
	return hex.EncodeToString(sum[:8])
}
