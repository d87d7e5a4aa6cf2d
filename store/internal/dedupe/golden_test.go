package dedupe

import (
	"encoding/base64"
	"flag"
	"os"
	"path/filepath"
	"strings"
	"testing"

	"lifeboat/store/backend/backendtest"
)

var update = flag.Bool("update", false, "write the golden file anew")

// The golden file pins the format: the same entries, salt and name give the
// same bytes, for ever.
func TestGolden(t *testing.T) {
	b := backendtest.NewMemory()
	w := &runWriter{
		id: 0x0123456789abcdef, salt: [saltSize]byte([]byte("golden salt of thirty-two bytes.")),
		build: new(builder), stamp: 1_800_000_000_000_000_000, replaces: []runID{0xfedcba9876543210},
	}
	if err := w.start(t.Context(), b, testKeys()); err != nil {
		t.Fatal(err)
	}
	list := entries(0, 3)
	for _, i := range []int{2, 1, 0} { // the order of their identities
		if err := w.add(list[i]); err != nil {
			t.Fatal(err)
		}
	}
	if err := w.commit(t.Context()); err != nil {
		t.Fatal(err)
	}
	wantAll(t, openIndex(t, b), 0, 3)
	wantNoDamage(t, b)

	got := lines(base64.StdEncoding.EncodeToString(backendtest.Get(t, b, w.id.object())))
	file := filepath.Join("testdata", "run.base64")
	if *update {
		if err := os.WriteFile(file, []byte(got), 0o600); err != nil {
			t.Fatal(err)
		}
	}
	want, err := os.ReadFile(file)
	if err != nil {
		t.Fatal(err)
	}
	if got != string(want) {
		t.Error("a run is written differently now: readers of the format would not agree")
	}
}

func lines(text string) string {
	var out strings.Builder
	for len(text) > 0 {
		n := min(len(text), 76)
		out.WriteString(text[:n] + "\n")
		text = text[n:]
	}
	return out.String()
}
