package s3_test

import (
	"bytes"
	"errors"
	"fmt"
	"io/fs"
	"net/http"
	"net/http/httptest"
	"runtime"
	"strconv"
	"strings"
	"testing"
	"time"

	"lifeboat/store/backend"
	"lifeboat/store/backend/s3"
	"lifeboat/store/backend/s3/s3test"
)

// hostile is a server that answers as a test wants.
func hostile(t *testing.T, handler http.HandlerFunc) *s3.Bucket {
	t.Helper()
	server := httptest.NewServer(handler)
	t.Cleanup(server.Close)
	b, err := s3.Open(t.Context(), s3test.URL(server.URL, "bucket", "p"), s3.Options{
		Keys: s3.Keys{Access: "a", Secret: "s"}, Pause: time.Millisecond, Attempts: 2, Stall: time.Second,
	})
	if err != nil {
		t.Fatal(err)
	}
	return b
}

// TestHostileRanges: lengths, ranges and ETags that do not belong to each other
// are errors, and nothing is allocated because they say so.
func TestHostileRanges(t *testing.T) {
	body := bytes.Repeat([]byte("x"), 1000)
	for name, header := range map[string]map[string]string{
		"a range of something else":   {"Content-Range": "bytes 0-999/2000"},
		"a range beyond the size":     {"Content-Range": "bytes 1000-1999/1500"},
		"a range that runs backwards": {"Content-Range": "bytes 999-0/1000"},
		"a size beyond all bounds":    {"Content-Range": "bytes 9223372036854774807-9223372036854775806/9223372036854775807"},
		"a tail larger than asked":    {"Content-Range": "bytes 0-999999999/1000000000"},
		"no numbers":                  {"Content-Range": "bytes a-b/c"},
		"no range":                    {},
		"shorter than its range":      {"Content-Range": "bytes 0-1999/2000"},
	} {
		t.Run(name, func(t *testing.T) {
			status := http.StatusPartialContent
			length := len(body)
			if name == "no range" {
				status, length = http.StatusOK, 1<<40
			}
			b := hostile(t, func(w http.ResponseWriter, _ *http.Request) {
				for key, value := range header {
					w.Header().Set(key, value)
				}
				w.Header().Set("ETag", `"e"`)
				w.Header().Set("Last-Modified", "Sat, 21 Nov 2026 10:00:00 GMT")
				w.Header().Set("Content-Length", strconv.Itoa(length))
				w.WriteHeader(status)
				_, _ = w.Write(body)
			})
			var before, after runtime.MemStats
			runtime.ReadMemStats(&before)
			if o, err := b.Open(t.Context(), "x"); err == nil {
				t.Errorf("an object of %d bytes was opened", o.Size())
			}
			runtime.ReadMemStats(&after)
			if n := after.TotalAlloc - before.TotalAlloc; n > 8<<20 {
				t.Errorf("%d bytes were allocated", n)
			}
		})
	}
}

// TestHostileLists: listings that never end, run backwards or make no sense.
func TestHostileLists(t *testing.T) {
	entry := func(key string, size int64) string {
		return fmt.Sprintf("<Contents><Key>%s</Key><Size>%d</Size><LastModified>2026-11-21T10:00:00.000Z</LastModified></Contents>", key, size)
	}
	list := func(more bool, entries ...string) string {
		return fmt.Sprintf("<ListBucketResult><IsTruncated>%v</IsTruncated><NextContinuationToken>again</NextContinuationToken>%s</ListBucketResult>",
			more, strings.Join(entries, ""))
	}
	for name, answer := range map[string]string{
		"the same page for ever": list(true, entry("p/a", 1), entry("p/b", 1)),
		"backwards":              list(false, entry("p/b", 1), entry("p/a", 1)),
		"twice the same":         list(false, entry("p/a", 1), entry("p/a", 1)),
		"an endless empty page":  list(true),
		"no XML":                 "<html>Sign in to the hotel's WLAN",
		"numbers that are none":  "<ListBucketResult><Contents><Key>p/a</Key><Size>many</Size></Contents></ListBucketResult>",
	} {
		t.Run(name, func(t *testing.T) {
			b := hostile(t, func(w http.ResponseWriter, _ *http.Request) { fmt.Fprint(w, answer) })
			var err error
			n := 0
			for _, err = range b.List(t.Context(), "") {
				if n++; n > 10 {
					t.Fatal("it does not end")
				}
			}
			if err == nil || errors.Is(err, fs.ErrNotExist) {
				t.Errorf("%d objects, %v, want an error", n, err)
			}
		})
	}
	b := hostile(t, func(w http.ResponseWriter, _ *http.Request) {
		fmt.Fprint(w, list(false, entry("elsewhere", 1), entry("p/../up", 1), entry("p/UP", 1), entry("p/a", -1), entry("p/b", 7), entry("p/tmp/probe", 1)))
	})
	for info, err := range b.List(t.Context(), "") {
		if err != nil || info.Name != "b" || info.Size != 7 {
			t.Errorf("%+v, %v", info, err)
		}
	}
}

// TestHostileWrites: a server that says yes to everything and keeps nothing.
func TestHostileWrites(t *testing.T) {
	b := hostile(t, func(w http.ResponseWriter, r *http.Request) {
		if r.Method == http.MethodHead {
			w.WriteHeader(http.StatusNotFound)
		}
	})
	if ok, err := b.ProbeExclusive(t.Context()); ok {
		t.Errorf("%v, %v", ok, err)
	}
	w, err := b.Create(t.Context(), "x", backend.Replace)
	if err != nil {
		t.Fatal(err)
	}
	defer w.Abort()
	_, err = w.Write(make([]byte, 33<<20)) // parts without ETags, of an upload without an ID
	if err == nil {
		err = w.Commit(t.Context())
	}
	if err == nil {
		t.Error("an upload that the server knows nothing of was committed")
	}
}
