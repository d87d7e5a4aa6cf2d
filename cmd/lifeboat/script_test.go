package main

import (
	"bytes"
	"encoding/json"
	"fmt"
	"io"
	"math/rand/v2"
	"os"
	"strconv"
	"strings"
	"testing"

	"github.com/rogpeppe/go-internal/testscript"
)

// TestScript runs testdata/script: what a person or a script types, and what
// comes back.
func TestScript(t *testing.T) {
	testscript.Run(t, testscript.Params{
		Dir: "testdata/script",
		Setup: func(env *testscript.Env) error {
			env.Setenv("LIFEBOAT_PASSWORD", "correct horse")
			env.Setenv("LIFEBOAT_REPO", env.Getenv("WORK")+"/repo")
			env.Setenv("LIFEBOAT_STATE", env.Getenv("WORK")+"/state")
			env.Setenv("TZ", "UTC")
			return nil
		},
		Cmds: scriptCommands(),
		Condition: func(cond string) (bool, error) {
			if cond == "root" {
				return os.Geteuid() == 0, nil
			}
			return false, fmt.Errorf("unknown condition %q", cond)
		},
	})
}

// scriptCommands are what scripts have besides testscript's own.
func scriptCommands() map[string]func(*testscript.TestScript, bool, []string) {
	return map[string]func(*testscript.TestScript, bool, []string){
		"mkdisk": mkdisk, "scribble": scribble, "flip": flip, "json": jsonField, "same": same, "patch": patch, "size": sizeIs, "code": exitCodeIs, "mkrepo": mkrepo,
		"vsphere": vsphereCmd, "fewcalls": fewCalls, "guest": guest, "guestdir": guestDirCmd,
		"background": background, "stop": stop, "crash": crash, "nfs": nfs,
	}
}

// mkdisk FILE SIZE SEED OFFSET:LENGTH… makes a sparse raw disk with
// reproducible content in the named areas.
func mkdisk(ts *testscript.TestScript, neg bool, args []string) {
	f, err := os.Create(ts.MkAbs(args[0]))
	ts.Check(err)
	defer f.Close()
	ts.Check(f.Truncate(number(ts, args[1])))
	fill(ts, f, args[2:])
}

// scribble FILE SEED OFFSET:LENGTH… writes reproducible content.
func scribble(ts *testscript.TestScript, neg bool, args []string) {
	f, err := os.OpenFile(ts.MkAbs(args[0]), os.O_RDWR, 0)
	ts.Check(err)
	defer f.Close()
	fill(ts, f, args[1:])
}

func fill(ts *testscript.TestScript, f *os.File, args []string) {
	rng := rand.NewChaCha8([32]byte{byte(number(ts, args[0]))})
	for _, area := range args[1:] {
		offset, length, ok := strings.Cut(area, ":")
		if !ok {
			ts.Fatalf("area %q: want OFFSET:LENGTH", area)
		}
		buf := make([]byte, number(ts, length))
		_, err := rng.Read(buf)
		ts.Check(err)
		_, err = f.WriteAt(buf, number(ts, offset))
		ts.Check(err)
	}
}

// number reads a number with an optional K, M, G or T (powers of 1024).
func number(ts *testscript.TestScript, s string) int64 {
	shift := 0
	if i := strings.IndexByte("KMGT", s[len(s)-1]); i >= 0 {
		shift, s = 10*(i+1), s[:len(s)-1]
	}
	n, err := strconv.ParseInt(s, 10, 64)
	ts.Check(err)
	return n << shift
}

// flip FILE OFFSET turns one bit of a file over; a negative offset counts from
// its end.
func flip(ts *testscript.TestScript, neg bool, args []string) {
	data, err := os.ReadFile(ts.MkAbs(args[0]))
	ts.Check(err)
	at := number(ts, args[1])
	if at < 0 {
		at += int64(len(data))
	}
	data[at] ^= 0x10
	ts.Check(os.WriteFile(ts.MkAbs(args[0]), data, 0o600))
}

// json PATH [VALUE] looks at the last standard output as JSON. PATH is keys and
// indices with dots between them. With VALUE it compares, without it sets the
// environment variable VALUE.
func jsonField(ts *testscript.TestScript, neg bool, args []string) {
	var doc any
	dec := json.NewDecoder(strings.NewReader(ts.ReadFile("stdout")))
	dec.UseNumber()
	ts.Check(dec.Decode(&doc))
	if dec.More() {
		ts.Fatalf("more than one JSON document on standard output")
	}
	got := fmt.Sprint(walk(ts, doc, args[0]))
	switch {
	case len(args) == 1:
		ts.Setenv("VALUE", got)
	case (got == args[1]) == neg:
		ts.Fatalf("%s is %q, want %q (negated: %t)", args[0], got, args[1], neg)
	}
}

func walk(ts *testscript.TestScript, doc any, path string) any {
	for _, key := range strings.Split(path, ".") {
		switch v := doc.(type) {
		case map[string]any:
			next, ok := v[key]
			if !ok {
				ts.Fatalf("no field %q in %v", key, v)
			}
			doc = next
		case []any:
			if key == "len" {
				return len(v)
			}
			i, err := strconv.Atoi(key)
			ts.Check(err)
			if i < 0 {
				i += len(v)
			}
			if i < 0 || i >= len(v) {
				ts.Fatalf("no element %s of %d", key, len(v))
			}
			doc = v[i]
		default:
			ts.Fatalf("%q: %v is not an object or a list", key, doc)
		}
	}
	return doc
}

// same FILE FILE compares two files byte for byte; they may be large.
func same(ts *testscript.TestScript, neg bool, args []string) {
	a, err := os.Open(ts.MkAbs(args[0]))
	ts.Check(err)
	defer a.Close()
	b, err := os.Open(ts.MkAbs(args[1]))
	ts.Check(err)
	defer b.Close()
	if diff := firstDifference(ts, a, b); (diff < 0) == neg {
		ts.Fatalf("%s and %s: first difference at %d (negated: %t)", args[0], args[1], diff, neg)
	}
}

func firstDifference(ts *testscript.TestScript, a, b io.Reader) int64 {
	x, y := make([]byte, 1<<20), make([]byte, 1<<20)
	for at := int64(0); ; {
		n, errA := io.ReadFull(a, x)
		m, errB := io.ReadFull(b, y)
		if n != m || !bytes.Equal(x[:n], y[:n]) {
			return at
		}
		if errA != nil || errB != nil {
			return -1
		}
		at += int64(n)
	}
}

// patch FILE OFFSET FROM writes one file's content into another.
func patch(ts *testscript.TestScript, neg bool, args []string) {
	data, err := os.ReadFile(ts.MkAbs(args[2]))
	ts.Check(err)
	f, err := os.OpenFile(ts.MkAbs(args[0]), os.O_RDWR, 0)
	ts.Check(err)
	defer f.Close()
	_, err = f.WriteAt(data, number(ts, args[1]))
	ts.Check(err)
}

// sizeIs FILE BYTES checks a file's length.
func sizeIs(ts *testscript.TestScript, neg bool, args []string) {
	fi, err := os.Stat(ts.MkAbs(args[0]))
	ts.Check(err)
	if (fi.Size() == number(ts, args[1])) == neg {
		ts.Fatalf("%s has %d bytes (negated: %t)", args[0], fi.Size(), neg)
	}
}

// code N COMMAND… runs a program and checks its exit code exactly.
func exitCodeIs(ts *testscript.TestScript, neg bool, args []string) {
	want := int(number(ts, args[0]))
	got := 0
	if err := ts.Exec(args[1], args[2:]...); err != nil {
		got = -1
		if e, ok := err.(interface{ ExitCode() int }); ok {
			got = e.ExitCode()
		}
	}
	if got != want {
		ts.Fatalf("exit code %d, want %d", got, want)
	}
}
