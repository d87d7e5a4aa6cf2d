package qemu

import (
	"os"
	"path/filepath"
	"strings"
	"testing"
	"time"
)

// The probe's guest is run under TCG, which exists everywhere: so it is known
// to be right, and a "no" to come from KVM.
func TestProbeGuestEndsWithTheAgreedCode(t *testing.T) {
	firmware := filepath.Join(t.TempDir(), "probe.bin")
	if err := os.WriteFile(firmware, probeFirmware(), 0o600); err != nil {
		t.Fatal(err)
	}
	if err := runProbe(testContext(t), "qemu-system-x86_64", "tcg", "max", firmware, time.Minute); err != nil {
		t.Fatal(err)
	}
	err := runProbe(testContext(t), "qemu-system-x86_64", "tcg", "max", firmware, time.Millisecond)
	if err == nil || !strings.Contains(err.Error(), "not done") {
		t.Fatalf("out of time: %v", err)
	}
	if err := os.WriteFile(firmware, make([]byte, 64<<10), 0o600); err != nil {
		t.Fatal(err)
	}
	if err := runProbe(testContext(t), "qemu-system-x86_64", "tcg", "max", firmware, 300*time.Millisecond); err == nil {
		t.Fatal("a firmware of zeros passed the probe")
	}
}

func TestProbeKVMAgreesWithChooseAccel(t *testing.T) {
	start := time.Now()
	accel, why := ChooseAccel(testContext(t), "")
	if took := time.Since(start); took > probeTime+5*time.Second {
		t.Errorf("the probe took %v", took)
	}
	if (accel == KVM) != (why == nil) {
		t.Fatalf("ChooseAccel = %q, %v", accel, why)
	}
	t.Logf("accelerator %q: %v", accel, why)
}
