package s3_test

import (
	"errors"
	"fmt"
	"io/fs"
	"net/http"
	"net/http/httptest"
	"os"
	"path/filepath"
	"strings"
	"syscall"
	"testing"
	"time"

	"github.com/minio/minio-go/v7"

	"lifeboat/store/backend"
	"lifeboat/store/backend/backendtest"
	"lifeboat/store/backend/s3"
	"lifeboat/store/backend/s3/s3test"
)

// TestRequests: what it costs to read.
func TestRequests(t *testing.T) {
	r := newRig(t)
	b, _ := r.open(t, s3.Options{})
	data := noise(1, 1<<20)
	backendtest.Put(t, b, "x", data, backend.Exclusive)

	r.proxy.SetPlan(nil)
	o, err := b.Open(t.Context(), "x")
	if err != nil {
		t.Fatal(err)
	}
	defer o.Close()
	p := make([]byte, 4096)
	for off := 1<<20 - 128<<10; off < 1<<20; off += len(p) {
		if n, err := o.ReadAt(p, int64(off)); n != len(p) || err != nil || string(p) != string(data[off:off+n]) {
			t.Fatalf("%d, %v", n, err)
		}
	}
	if n := r.proxy.Count(); n != 1 {
		t.Errorf("opening and reading the tail took %d requests, want 1", n)
	}
	r.proxy.SetPlan(nil)
	if _, err := o.ReadAt(p, 12_345); err != nil {
		t.Fatal(err)
	}
	if n, bytes := r.proxy.Count(), r.proxy.Bytes(); n != 1 || bytes != 4096 {
		t.Errorf("a random read took %d requests and %d bytes, want 1 and 4096", n, bytes)
	}
	if nw, ok := o.(backend.NoWaitReader); !ok || nw.ReadAtNoWait(p, 0) || !nw.ReadAtNoWait(p, 1<<20-4096) {
		t.Error("the tail is what can be read without waiting")
	}
	r.proxy.SetPlan(nil)
	backendtest.Put(t, b, "y", data, backend.Replace)
	if n := r.proxy.Count(); n != 1 {
		t.Errorf("writing what fits in a part took %d requests, want 1", n)
	}
}

func TestReplacedWhileOpen(t *testing.T) {
	r := newRig(t)
	b, _ := r.open(t, s3.Options{})
	backendtest.Put(t, b, "x", noise(1, 1<<20), backend.Replace)
	o, err := b.Open(t.Context(), "x")
	if err != nil {
		t.Fatal(err)
	}
	defer o.Close()
	backendtest.Put(t, b, "x", noise(2, 1<<20), backend.Replace)
	if _, err := o.ReadAt(make([]byte, 10), 0); !errors.Is(err, s3.ErrReplaced) || !errors.Is(err, syscall.ESTALE) {
		t.Errorf("%v, want ErrReplaced", err)
	}
	if err := b.Remove(t.Context(), "x"); err != nil {
		t.Fatal(err)
	}
	if _, err := o.ReadAt(make([]byte, 10), 0); !errors.Is(err, fs.ErrNotExist) {
		t.Errorf("%v, want fs.ErrNotExist", err)
	}
}

// TestListPages: more objects than a request lists, and things among them that
// are no objects.
func TestListPages(t *testing.T) {
	r := newRig(t)
	b, _ := r.open(t, s3.Options{})
	prefix := strings.TrimPrefix(b.String(), "s3://"+rigBucket+"/")
	dir := filepath.Join(r.server.Dir(rigBucket), filepath.FromSlash(prefix), "points")
	if err := os.MkdirAll(dir, 0o755); err != nil {
		t.Fatal(err)
	}
	for i := range 2100 { // three pages
		if err := os.WriteFile(filepath.Join(dir, fmt.Sprintf("%016x", i)), nil, 0o600); err != nil {
			t.Fatal(err)
		}
	}
	if err := os.WriteFile(filepath.Join(dir, "Not Ours"), nil, 0o600); err != nil {
		t.Fatal(err)
	}
	r.proxy.SetPlan(s3test.First(1, "GET", s3test.Drop))
	names := backendtest.Names(t, b, "points/")
	if len(names) != 2100 || names[2099] != "points/0000000000000833" {
		t.Errorf("%d objects are listed", len(names))
	}
	if n := r.proxy.Count(); n > 5 {
		t.Errorf("%d requests for three pages", n)
	}
}

// TestNothingIsLeft: no unfinished upload stays behind an abort; one that did
// is swept when it is old.
func TestNothingIsLeft(t *testing.T) {
	r := newRig(t)
	b, _ := r.open(t, s3.Options{PartSize: 5 << 20})
	w, err := b.Create(t.Context(), "x", backend.Exclusive)
	if err != nil {
		t.Fatal(err)
	}
	if _, err := w.Write(noise(1, 11<<20)); err != nil {
		t.Fatal(err)
	}
	if n := uploads(t, r.server); n != 1 {
		t.Fatalf("%d uploads in the middle of writing", n)
	}
	w.Abort()
	if n := uploads(t, r.server); n != 0 {
		t.Errorf("%d uploads after Abort", n)
	}

	client, err := r.server.Client()
	if err != nil {
		t.Fatal(err)
	}
	key := strings.TrimPrefix(b.String(), "s3://"+rigBucket+"/") + "x"
	core := minio.Core{Client: client}
	if _, err := core.NewMultipartUpload(t.Context(), rigBucket, key, minio.PutObjectOptions{}); err != nil {
		t.Fatal(err)
	}
	if n, err := b.Sweep(t.Context()); n != 0 || err != nil {
		t.Errorf("Sweep took %d of the living, %v", n, err)
	}
	// A part that was under way when its upload was aborted may bring it back.
	if n, err := b.SweepBefore(t.Context(), time.Now().Add(time.Hour)); n < 1 || n > 2 || err != nil {
		t.Errorf("Sweep took %d of the dead, %v", n, err)
	}
	if n := uploads(t, r.server); n != 0 {
		t.Errorf("%d uploads after Sweep", n)
	}
}

// uploads counts the uploads that are not finished.
func uploads(t *testing.T, server *s3test.Server) (n int) {
	t.Helper()
	client, err := server.Client()
	if err != nil {
		t.Fatal(err)
	}
	for u := range client.ListIncompleteUploads(t.Context(), rigBucket, "", true) {
		if u.Err != nil {
			t.Fatal(u.Err)
		}
		n++
	}
	return n
}

func TestProbe(t *testing.T) {
	r := newRig(t)
	b, direct := r.open(t, s3.Options{})
	if ok, err := b.ProbeExclusive(t.Context()); !ok || err != nil {
		t.Errorf("versitygw: %v, %v", ok, err)
	}
	if left := backendtest.Names(t, direct, ""); len(left) != 0 {
		t.Errorf("the probe left %q", left)
	}

	weak := s3test.RunWeak(t, "weak")
	b, err := s3.Open(t.Context(), s3test.URL(weak.Endpoint, "weak", "p"), s3.Options{Keys: s3.Keys{Access: "a", Secret: "s"}})
	if err != nil {
		t.Fatal(err)
	}
	for range 2 { // before and after it is known
		if err := put(t.Context(), b, "x", []byte("first"), backend.Exclusive); err != nil && !errors.Is(err, fs.ErrExist) {
			t.Fatal(err)
		}
		if err := put(t.Context(), b, "x", []byte("second"), backend.Exclusive); !errors.Is(err, fs.ErrExist) {
			t.Errorf("a name that is taken, without a race: %v, want fs.ErrExist", err)
		}
		if got := backendtest.Get(t, b, "x"); string(got) != "first" {
			t.Errorf("the object became %q", got)
		}
		if ok, err := b.ProbeExclusive(t.Context()); ok || err != nil {
			t.Errorf("a server that ignores If-None-Match: %v, %v", ok, err)
		}
	}
}

// TestLock: with a bucket that locks objects, none goes before its time.
func TestLock(t *testing.T) {
	server := s3test.Run(t, s3test.Options{Versions: true})
	ctx := t.Context()
	if err := server.CreateBucket(ctx, "locked", true); err != nil {
		t.Fatal(err)
	}
	server.MakeBucket(t, "plain")
	b := open(t, server.URL("locked", "p"), server, s3.Options{})
	plain := open(t, server.URL("plain", "p"), server, s3.Options{})
	if err := b.LockSupport(ctx); err != nil {
		t.Fatal(err)
	}
	if err := plain.LockSupport(ctx); !errors.Is(err, s3.ErrNoLock) {
		t.Errorf("a bucket without object lock: %v", err)
	}

	backendtest.Put(t, b, "x", []byte("kept"), backend.Exclusive)
	if until, err := b.LockedUntil(ctx, "x"); !until.IsZero() || err != nil {
		t.Errorf("before: %v, %v", until, err)
	}
	until := time.Now().Add(time.Hour)
	for _, at := range []time.Time{until, until.Add(-time.Minute)} { // the second changes nothing
		if err := b.Lock(ctx, "x", at); err != nil {
			t.Fatal(err)
		}
		if got, err := b.LockedUntil(ctx, "x"); err != nil || got.Before(until) || got.After(until.Add(time.Second)) {
			t.Errorf("locked until %v, %v, want %v", got, err, until)
		}
	}
	if err := b.Remove(ctx, "x"); !errors.Is(err, fs.ErrPermission) {
		t.Errorf("Remove: %v, want fs.ErrPermission", err)
	}
	if got := backendtest.Get(t, b, "x"); string(got) != "kept" {
		t.Errorf("it holds %q", got)
	}
	if err := b.Lock(ctx, "missing", until); !errors.Is(err, fs.ErrNotExist) {
		t.Errorf("locking what is not there: %v", err)
	}
}

// TestVersions: in a bucket that keeps versions, what is removed is gone, and
// what is replaced again and again does not pile up.
func TestVersions(t *testing.T) {
	server := s3test.Run(t, s3test.Options{Versions: true})
	if err := server.CreateBucket(t.Context(), "locked", true); err != nil {
		t.Fatal(err)
	}
	b := open(t, server.URL("locked", "p"), server, s3.Options{})
	versions := func() (n int) {
		client, err := server.Client()
		if err != nil {
			t.Fatal(err)
		}
		for o := range client.ListObjectsIter(t.Context(), "locked", minio.ListObjectsOptions{Recursive: true, WithVersions: true}) {
			if o.Err != nil {
				t.Fatal(o.Err)
			}
			n++
		}
		return n
	}
	for i := range 5 {
		backendtest.Put(t, b, "claims/1", noise(i, 100), backend.Replace)
	}
	if n := versions(); n != 1 {
		t.Errorf("%d versions of an object that one process replaces", n)
	}
	other := open(t, server.URL("locked", "p"), server, s3.Options{})
	backendtest.Put(t, other, "claims/1", noise(9, 100), backend.Replace)
	if n := versions(); n != 2 {
		t.Errorf("%d versions of an object that two processes replaced", n)
	}
	if err := other.Remove(t.Context(), "claims/1"); err != nil {
		t.Fatal(err)
	}
	if n := versions(); n != 0 {
		t.Errorf("%d versions of an object that was removed", n)
	}
	if _, err := get(t.Context(), b, "claims/1"); !errors.Is(err, fs.ErrNotExist) {
		t.Errorf("%v, want fs.ErrNotExist", err)
	}
}

// TestErrors: what is wrong, and what to do about it.
func TestErrors(t *testing.T) {
	server := s3test.Run(t, s3test.Options{})
	server.MakeBucket(t, rigBucket)
	fast := s3.Options{Pause: time.Millisecond}
	canned := func(status int, code, extra string) string {
		s := httptest.NewServer(http.HandlerFunc(func(w http.ResponseWriter, _ *http.Request) {
			w.WriteHeader(status)
			fmt.Fprintf(w, "<Error><Code>%s</Code><Message>So it is.</Message>%s</Error>", code, extra)
		}))
		t.Cleanup(s.Close)
		return s3test.URL(s.URL, rigBucket, "p")
	}
	good := s3.Keys{Access: server.Access, Secret: server.Secret}
	for _, test := range []struct {
		name, url string
		keys      s3.Keys
		want      error
		says      string
	}{
		{"no such bucket", server.URL("nobody", "p"), good, s3.ErrBucket, "nobody"},
		{"wrong key", server.URL(rigBucket, "p"), s3.Keys{Access: "nobody", Secret: "x"}, s3.ErrKeys, "AWS_ACCESS_KEY_ID"},
		{"wrong secret", server.URL(rigBucket, "p"), s3.Keys{Access: server.Access, Secret: "x"}, s3.ErrKeys, "AWS_SECRET_ACCESS_KEY"},
		{"nobody there", s3test.URL("http://127.0.0.1:1", rigBucket, "p"), good, s3.ErrUnreachable, "127.0.0.1:1"},
		{"https to http", strings.Replace(server.URL(rigBucket, "p"), "http:", "https:", 1), good, s3.ErrUnreachable, "http or https"},
		{"denied", canned(403, "AccessDenied", ""), good, s3.ErrDenied, "s3:PutObject"},
		{"wrong region", canned(400, "AuthorizationHeaderMalformed", "<Region>eu-west-1</Region>"), good, s3.ErrRegion, `"eu-west-1"`},
		{"wrong clock", canned(403, "RequestTimeTooSkewed", ""), good, s3.ErrClock, "clock"},
	} {
		t.Run(test.name, func(t *testing.T) {
			opts := fast
			opts.Keys = test.keys
			b, err := s3.Open(t.Context(), test.url, opts)
			if err != nil {
				t.Fatal(err)
			}
			_, err = b.Open(t.Context(), "x")
			if !errors.Is(err, test.want) || !strings.Contains(err.Error(), test.says) {
				t.Errorf("%v\nwant %v, and in it %q", err, test.want, test.says)
			}
			if errors.Is(err, fs.ErrNotExist) {
				t.Errorf("%v passes for an object that is not there", err)
			}
			for _, err := range b.List(t.Context(), "") {
				if !errors.Is(err, test.want) {
					t.Errorf("List: %v", err)
				}
			}
		})
	}
}

// TestNoKeys: without keys it says so before it asks anybody.
func TestNoKeys(t *testing.T) {
	for _, name := range []string{"AWS_ACCESS_KEY_ID", "AWS_ACCESS_KEY", "AWS_SECRET_ACCESS_KEY", "AWS_SECRET_KEY", "AWS_PROFILE"} {
		t.Setenv(name, "")
	}
	t.Setenv("HOME", t.TempDir())
	t.Setenv("AWS_SHARED_CREDENTIALS_FILE", filepath.Join(t.TempDir(), "none"))
	t.Setenv("AWS_CONFIG_FILE", filepath.Join(t.TempDir(), "none"))
	if _, err := s3.Open(t.Context(), s3test.URL("http://127.0.0.1:1", "bucket", ""), s3.Options{}); !errors.Is(err, s3.ErrKeys) || !strings.Contains(err.Error(), "AWS_ACCESS_KEY_ID") {
		t.Errorf("%v, want ErrKeys", err)
	}
}
