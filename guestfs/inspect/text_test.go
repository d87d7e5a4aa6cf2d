package inspect

import (
	"strings"
	"testing"
	"unicode/utf8"
)

func TestRelease(t *testing.T) {
	got := parseRelease([]byte("# comment\nNAME=Plain\n PRETTY_NAME = x\nA=\"double \\\"quoted\\\" \\$HOME\"\nB='single'\nC=\"open\nEMPTY=\nbroken\n"))
	for key, want := range map[string]string{"NAME": "Plain", "A": `double "quoted" $HOME`, "B": "single", "C": `"open`, "EMPTY": "", "broken": ""} {
		if got[key] != want {
			t.Errorf("%s is %q, want %q", key, got[key], want)
		}
	}
}

// FuzzTexts: what a guest's small files say is taken apart within bounds, and can
// be shown.
func FuzzTexts(f *testing.F) {
	f.Add([]byte("UUID=1-2 /a\\040b ext4 subvol=@,bind 0 0\n/dev/mapper/x / x x"))
	f.Add([]byte("PRETTY_NAME=\"a\\\"b\"\nsda3_crypt UUID=1 none luks"))
	f.Fuzz(func(t *testing.T, text []byte) {
		for _, e := range parseFstab(text) {
			if !strings.HasPrefix(e.path, "/") || strings.Contains(e.path, "/../") {
				t.Errorf("a mount at %q", e.path)
			}
			g := &Guest{report: Report{Volumes: []Volume{{Name: "disk0"}}}}
			if i, ok := g.byDevice(e.device, parseCrypttab(text)); ok && i != 0 {
				t.Errorf("%q is volume %d", e.device, i)
			}
		}
		for _, v := range parseRelease(text) {
			if !utf8.ValidString(v) || strings.ContainsAny(v, "\n\x1b") {
				t.Errorf("text to show: %q", v)
			}
		}
	})
}
