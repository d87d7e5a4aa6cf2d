package webdav_test

import (
	"context"
	"encoding/xml"
	"io"
	"log/slog"
	"net/http"
	"net/http/httptest"
	"net/url"
	"os"
	"path/filepath"
	"strings"
	"testing"
	"time"

	"lifeboat/disk"
	"lifeboat/guestfs"
	"lifeboat/guestfs/browse"
	"lifeboat/guestfs/ext4"
	"lifeboat/guestfs/guestfstest"
	"lifeboat/webdav"
)

// source is one point of one VM with one ext4.
type source struct{ image string }

func (s source) VMs(context.Context) ([]browse.VM, error) { return []browse.VM{{Name: "web 1"}}, nil }

func (s source) Points(context.Context, string) ([]browse.Point, error) {
	return []browse.Point{{ID: "p", Name: "2026-11-21T10-00-00Z", Time: time.Unix(1_700_000_000, 0), Disks: []browse.Disk{{Name: "disk0.raw", Size: 32 << 20}}}}, nil
}

func (s source) OpenDisk(ctx context.Context, _ string, _ int) (disk.Image, error) {
	return disk.Open(ctx, s.image, disk.OpenOptions{Format: disk.FormatRaw})
}

func (s source) OpenFiles(ctx context.Context, p string) (browse.Files, error) {
	img, err := s.OpenDisk(ctx, p, 0)
	if err != nil {
		return nil, err
	}
	fsys, err := ext4.Open(ctx, img)
	return &files{img, fsys}, err
}

type files struct {
	disk.Image
	fsys guestfs.FS
}

func (f *files) Trees() []string                               { return []string{"root"} }
func (f *files) Open(context.Context, int) (guestfs.FS, error) { return f.fsys, nil }

const point = "/web%201/2026-11-21T10-00-00Z"

func server(t *testing.T, o webdav.Options) *httptest.Server {
	t.Helper()
	guestfstest.NeedMount(t, "ext4", "mke2fs")
	image := guestfstest.NewImage(t, 32<<20)
	guestfstest.Run(t, "mke2fs", "-q", "-F", "-t", "ext4", image)
	dir, unmount := guestfstest.Mount(t, image, "ext4", "")
	must := func(err error) {
		t.Helper()
		if err != nil {
			t.Fatal(err)
		}
	}
	must(os.MkdirAll(filepath.Join(dir, "etc"), 0o755))
	must(os.WriteFile(filepath.Join(dir, "etc/hosts"), []byte("0123456789"), 0o644))
	must(os.WriteFile(filepath.Join(dir, "page.html"), []byte("<script>"), 0o644))
	must(os.WriteFile(filepath.Join(dir, "Größe & <co> #1?.txt"), []byte("odd"), 0o644))
	must(os.Symlink("/etc/hosts", filepath.Join(dir, "link")))
	must(os.Symlink("/etc", filepath.Join(dir, "linked")))
	must(os.Symlink(strings.Repeat("../", 20)+"etc/shadow", filepath.Join(dir, "out")))
	unmount()
	tree := browse.New(source{image}, browse.Options{})
	o.Logger = slog.New(slog.DiscardHandler)
	s := httptest.NewServer(webdav.Handler(tree, o))
	t.Cleanup(func() {
		s.Close()
		if err := tree.Close(); err != nil {
			t.Error(err)
		}
	})
	return s
}

func do(t *testing.T, s *httptest.Server, method, path string, header ...string) (int, string, http.Header) {
	t.Helper()
	req, err := http.NewRequestWithContext(t.Context(), method, s.URL+path, nil)
	if err != nil {
		t.Fatal(err)
	}
	for i := 0; i+1 < len(header); i += 2 {
		req.Header.Set(header[i], header[i+1])
	}
	resp, err := s.Client().Do(req)
	if err != nil {
		t.Fatal(err)
	}
	defer resp.Body.Close()
	b, err := io.ReadAll(resp.Body)
	if err != nil {
		t.Fatal(err)
	}
	return resp.StatusCode, string(b), resp.Header
}

// listing is the names that PROPFIND shows below a directory.
func listing(t *testing.T, s *httptest.Server, path string) map[string]string {
	t.Helper()
	code, body, _ := do(t, s, "PROPFIND", path, "Depth", "1")
	if code != http.StatusMultiStatus {
		t.Fatalf("PROPFIND %s: %d %s", path, code, body)
	}
	var all struct {
		Responses []struct {
			Href string `xml:"href"`
			Size string `xml:"propstat>prop>getcontentlength"`
		} `xml:"response"`
	}
	if err := xml.Unmarshal([]byte(body), &all); err != nil {
		t.Fatal(err)
	}
	out := map[string]string{}
	for _, r := range all.Responses[1:] {
		name, err := url.PathUnescape(strings.TrimSuffix(r.Href, "/"))
		if err != nil {
			t.Fatal(err)
		}
		out[name[strings.LastIndexByte(name, '/')+1:]] = r.Size
	}
	return out
}

func TestReading(t *testing.T) {
	s := server(t, webdav.Options{})
	if got := listing(t, s, "/"); len(got) != 1 || got["web 1"] != "" {
		t.Errorf("the root: %v", got)
	}
	got := listing(t, s, point+"/files/root/")
	want := map[string]string{"etc": "", "linked": "", "link": "10", "page.html": "8", "Größe & <co> #1?.txt": "3", "lost+found": ""}
	for name, size := range want {
		if have, ok := got[name]; !ok || have != size {
			t.Errorf("%s: %q, %v", name, have, ok)
		}
		delete(got, name)
	}
	if len(got) > 0 {
		t.Errorf("and %v", got)
	}
	for path, content := range map[string]string{
		"/files/root/etc/hosts": "0123456789", "/files/root/link": "0123456789", "/files/root/linked/hosts": "0123456789",
		"/files/root/" + url.PathEscape("Größe & <co> #1?.txt"): "odd",
	} {
		if code, body, _ := do(t, s, "GET", point+path); code != 200 || body != content {
			t.Errorf("%s: %d %q", path, code, body)
		}
	}
	if code, body, _ := do(t, s, "GET", point+"/files/root/etc/hosts", "Range", "bytes=3-5"); code != http.StatusPartialContent || body != "345" {
		t.Errorf("a range: %d %q", code, body)
	}
	if code, body, _ := do(t, s, "GET", point+"/disks/disk0.raw", "Range", "bytes=1080-1081"); code != http.StatusPartialContent || body != "\x53\xef" {
		t.Errorf("a disk: %d %q", code, body)
	}
	if code, _, h := do(t, s, "GET", point+"/files/root/page.html"); code != 200 || h.Get("X-Content-Type-Options") != "nosniff" || !strings.HasPrefix(h.Get("Content-Security-Policy"), "sandbox") {
		t.Errorf("a page: %d %v", code, h)
	}
}

func TestRefusals(t *testing.T) {
	s := server(t, webdav.Options{})
	for _, path := range []string{"/files/root/out", "/files/root/none", "/files/root/etc/hosts/none", "/files/none", "/../../etc/passwd", "/files/root/%2e%2e/%2e%2e/%2e%2e/etc/passwd"} {
		if code, body, _ := do(t, s, "GET", point+path); code != http.StatusNotFound {
			t.Errorf("%s: %d %q", path, code, body)
		}
		if code, body, _ := do(t, s, "PROPFIND", point+path, "Depth", "0"); code != http.StatusNotFound {
			t.Errorf("PROPFIND %s: %d %q", path, code, body)
		}
	}
	for _, method := range []string{"PUT", "DELETE", "MKCOL", "MOVE", "COPY", "LOCK", "PROPPATCH", "POST"} {
		if code, _, h := do(t, s, method, point+"/files/root/etc/hosts"); code != http.StatusMethodNotAllowed || !strings.Contains(h.Get("Allow"), "PROPFIND") {
			t.Errorf("%s: %d", method, code)
		}
	}
	if code, body, _ := do(t, s, "PROPFIND", "/", "Depth", "infinity"); code != http.StatusForbidden || !strings.Contains(body, "propfind-finite-depth") {
		t.Errorf("everything at once: %d %s", code, body)
	}
	if code, _, h := do(t, s, "OPTIONS", "/"); code != 200 || h.Get("DAV") != "1" {
		t.Errorf("OPTIONS: %d %v", code, h)
	}
}

func TestPassword(t *testing.T) {
	s := server(t, webdav.Options{User: "desk", Password: "secret"})
	if code, _, h := do(t, s, "PROPFIND", "/", "Depth", "0"); code != http.StatusUnauthorized || h.Get("WWW-Authenticate") == "" {
		t.Errorf("without: %d", code)
	}
	for auth, want := range map[string]int{"desk:wrong": 401, "other:secret": 401, "desk:secret": http.StatusMultiStatus} {
		user, password, _ := strings.Cut(auth, ":")
		req, err := http.NewRequestWithContext(t.Context(), "PROPFIND", s.URL+"/", nil)
		if err != nil {
			t.Fatal(err)
		}
		req.Header.Set("Depth", "0")
		req.SetBasicAuth(user, password)
		resp, err := s.Client().Do(req)
		if err != nil {
			t.Fatal(err)
		}
		resp.Body.Close()
		if resp.StatusCode != want {
			t.Errorf("%s: %d", auth, resp.StatusCode)
		}
	}
}
