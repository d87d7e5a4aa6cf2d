package wtf8_test

import (
	"slices"
	"testing"
	"unicode/utf16"
	"unicode/utf8"

	"pgregory.net/rapid"

	"lifeboat/guestfs/internal/wtf8"
)

// TestRoundTrip: nothing is lost, whatever the units, and what is proper UTF-16
// becomes proper UTF-8.
func TestRoundTrip(t *testing.T) {
	unit := rapid.OneOf(rapid.Uint16(), rapid.Uint16Range(0xd7f0, 0xe010))
	rapid.Check(t, func(t *rapid.T) {
		units := rapid.SliceOf(unit).Draw(t, "units")
		name := wtf8.Decode(units)
		if back := wtf8.Encode(name); !slices.Equal(back, units) {
			t.Fatalf("%x became %x by way of %q", units, back, name)
		}
		if proper := string(utf16.Decode(units)); utf8.ValidString(name) && proper != name {
			t.Fatalf("%x is %q, want %q", units, name, proper)
		}
	})
}

func TestKnown(t *testing.T) {
	for name, units := range map[string][]uint16{
		"":                 {},
		"Größe 日本":         {'G', 'r', 0xf6, 0xdf, 'e', ' ', 0x65e5, 0x672c},
		"🛟":                {0xd83d, 0xdedf},
		"a\xed\xa0\xbdb":   {'a', 0xd83d, 'b'},
		"\xed\xbb\x9f\x00": {0xdedf, 0},
	} {
		if got := wtf8.Decode(units); got != name {
			t.Errorf("%x is %q, want %q", units, got, name)
		}
	}
	if got := wtf8.Encode("\xff\xed\xa0"); !slices.Equal(got, []uint16{0xfffd, 0xfffd, 0xfffd}) {
		t.Errorf("what is no WTF-8 became %x", got)
	}
	if got := wtf8.DecodeBytes([]byte{'a', 0, 'b'}); got != "a" {
		t.Errorf("an odd byte: %q", got)
	}
}
