package guestimage

import (
	"bytes"
	"fmt"
	"strconv"
	"strings"
	"testing"
)

// readCPIO is an independent reading of the format: "type+mode name=content".
func readCPIO(b []byte) ([]string, error) {
	var entries []string
	for pos := 0; ; {
		if pos+110 > len(b) || string(b[pos:pos+6]) != "070701" {
			return entries, fmt.Errorf("no header at %d", pos)
		}
		var field [13]int
		for i := range field {
			n, err := strconv.ParseUint(string(b[pos+6+8*i:pos+14+8*i]), 16, 32)
			if err != nil {
				return entries, err
			}
			field[i] = int(n)
		}
		mode, size, nameLen := field[1], field[6], field[11]
		name := string(b[pos+110 : pos+110+nameLen-1])
		pos = (pos + 110 + nameLen + 3) &^ 3
		content := string(b[pos : pos+size])
		pos = (pos + size + 3) &^ 3
		if name == "TRAILER!!!" {
			return entries, nil
		}
		entries = append(entries, fmt.Sprintf("%o %s=%s", mode, name, content))
	}
}

func TestCPIO(t *testing.T) {
	var out bytes.Buffer
	c := newCPIO(&out)
	for _, err := range []error{
		c.file("a/b/c", 0o755, []byte("12345")),
		c.link("a/l", "b/c"),
		c.file("a/./b/d", 0o600, nil),
		c.dir("e/f"),
		c.close(),
	} {
		if err != nil {
			t.Fatal(err)
		}
	}
	got, err := readCPIO(out.Bytes())
	want := []string{"40755 a=", "40755 a/b=", "100755 a/b/c=12345", "120777 a/l=b/c", "100600 a/b/d=", "40755 e=", "40755 e/f="}
	if err != nil || strings.Join(got, "\n") != strings.Join(want, "\n") {
		t.Fatalf("%v\n%s", err, strings.Join(got, "\n"))
	}
	if out.Len()%4 != 0 {
		t.Errorf("length %d is not padded", out.Len())
	}
	for _, bad := range []string{"/abs", "../up", "a/../../up"} {
		if err := c.file(bad, 0o644, nil); err == nil {
			t.Errorf("%s was taken", bad)
		}
	}
}
