package hive

import (
	"bytes"
	"encoding/binary"
	"errors"
	"io/fs"
	"testing"

	"www.velocidex.com/golang/regparser"

	"lifeboat/guestfs/inspect/hive/hivetest"
)

func sample(version string) []hivetest.Value {
	return []hivetest.Value{
		hivetest.Text(`Microsoft\Windows NT\CurrentVersion`, "ProductName", version),
		hivetest.Number(`Microsoft\Windows NT\CurrentVersion`, "Major", 10),
		{Key: `Microsoft\Big`, Name: "large", Type: 3, Data: bytes.Repeat([]byte("0123456789"), 5000)},
		{Key: `Microsoft\Empty`, Name: "", Type: 3},
	}
}

// TestValues: what a hive holds is found, whatever the case, and another reader
// finds the same.
func TestValues(t *testing.T) {
	data := hivetest.Make(7, sample("Windows Server 2022")...)
	h, err := Open(data)
	if err != nil || h.Dirty || h.Replayed {
		t.Fatalf("%+v, %v", h, err)
	}
	peer, err := regparser.NewRegistry(bytes.NewReader(data))
	if err != nil {
		t.Fatal(err)
	}
	for _, key := range []string{`microsoft\WINDOWS nt\currentversion`, `Microsoft\Big`, `Microsoft\Empty`} {
		values, err := h.Values(key)
		if err != nil {
			t.Fatalf("%s: %v", key, err)
		}
		theirs := peer.OpenKey("/" + string(bytes.ReplaceAll([]byte(key), []byte(`\`), []byte("/"))))
		if theirs == nil || len(theirs.Values()) != len(values) {
			t.Fatalf("%s: %d values, the peer has %v", key, len(values), theirs)
		}
		for i, v := range theirs.Values() {
			if v.ValueName() != values[i].Name && values[i].Name != "" || int(v.DataSize()) != len(values[i].Data) {
				t.Errorf("%s: value %q of %d bytes; the peer has %q of %d", key, values[i].Name, len(values[i].Data), v.ValueName(), v.DataSize())
			}
		}
	}
	values, err := h.Values(`Microsoft\Windows NT\CurrentVersion`)
	if err != nil || values[0].Text() != "Windows Server 2022" || values[1].Number() != 10 {
		t.Errorf("%+v, %v", values, err)
	}
	if values, err = h.Values(`Microsoft\Big`); err != nil || !bytes.Equal(values[0].Data, bytes.Repeat([]byte("0123456789"), 5000)) {
		t.Errorf("a large value: %v", err)
	}
	if _, err := h.Values(`Microsoft\Nothing`); !errors.Is(err, fs.ErrNotExist) {
		t.Errorf("a key that is not there: %v", err)
	}
}

// TestReplay: what was in the logs only is seen, of the newest transactions that
// are whole and follow each other.
func TestReplay(t *testing.T) {
	first, second, third := hivetest.Make(4, sample("first!")...), hivetest.Make(4, sample("second")...), hivetest.Make(4, sample("third!")...)
	torn := append([]byte(nil), first...)
	binary.LittleEndian.PutUint32(torn[4:], 5) // begun, and not ended
	hivetest.Seal(torn)
	log := hivetest.Log(4, marvin, first, second, third)
	whole := func(b []byte) []byte { return b }
	for name, c := range map[string]struct {
		log      func([]byte) []byte
		want     string
		replayed bool
	}{
		"both":              {whole, "third!", true},
		"the last is torn":  {func(b []byte) []byte { b[len(b)-1] ^= 1; return b }, "second", true},
		"cut off":           {func(b []byte) []byte { return b[:len(b)-700] }, "second", true},
		"the first is torn": {func(b []byte) []byte { b[512+100] ^= 1; return b }, "first!", false},
		"header is torn":    {func(b []byte) []byte { b[100] ^= 1; return b }, "first!", false},
		"older":             {func([]byte) []byte { return hivetest.Log(2, marvin, first, second) }, "first!", false},
		"with a gap":        {func([]byte) []byte { return hivetest.Log(4, marvin, first, second) }, "second", true},
	} {
		h, err := Open(torn, nil, c.log(append([]byte(nil), log...)))
		if err != nil {
			t.Errorf("%s: %v", name, err)
			continue
		}
		values, err := h.Values(`Microsoft\Windows NT\CurrentVersion`)
		if err != nil || values[0].Text() != c.want || h.Replayed != c.replayed || h.Dirty == c.replayed {
			t.Errorf("%s: %+v, replayed %t, dirty %t, %v", name, values, h.Replayed, h.Dirty, err)
		}
	}
	if h, err := Open(torn); err != nil || !h.Dirty {
		t.Errorf("without logs: %+v, %v", h, err)
	}
	if h, err := Open(first, log); err != nil || h.Replayed || h.Dirty {
		t.Errorf("a hive that is whole: %v", err)
	}
}

// FuzzOpen: no hive and no log makes it crash or hang.
func FuzzOpen(f *testing.F) {
	base := hivetest.Make(4, sample("first!")[:2]...)
	torn := append([]byte(nil), base...)
	torn[4]++
	f.Add(torn, hivetest.Log(4, marvin, base, hivetest.Make(4, sample("second")[:2]...)))
	f.Add(base, []byte("regf"))
	f.Fuzz(func(_ *testing.T, data, log []byte) {
		h, err := Open(data, log)
		if err != nil {
			return
		}
		for _, key := range []string{`Microsoft\Windows NT\CurrentVersion`, `Microsoft\Big`, "Select"} {
			values, err := h.Values(key)
			for _, v := range values {
				if err == nil {
					_, _ = v.Text(), v.Number()
				}
			}
		}
	})
}
