package vsphere

import (
	"context"
	"errors"
	"fmt"
	"io"
	"net/http"
	"net/url"
	"slices"
	"strconv"
	"strings"
	"sync"

	"github.com/vmware/govmomi/vim25/methods"
	"github.com/vmware/govmomi/vim25/types"
)

// Files on datastores, through the server's /folder (vSphere Web Services SDK
// Programming Guide, "Accessing Datastore Files"): GET with ranges, PUT. vCenter
// hands the bytes on from a host; the session's cookie is what it asks for.
// Datastores of vSAN and vVols do not give their disks this way.

// places knows in which datacenter a datastore is: file URLs want to know.
type places struct {
	mu     sync.Mutex
	byName map[string][]place // name → where
}

type place struct {
	path string // of the datacenter, as in URLs
	ref  types.ManagedObjectReference
}

func (p *places) learn(list []Datastore) {
	byName := map[string][]place{}
	for _, d := range list {
		at := place{path: d.Datacenter, ref: d.datacenter}
		if !slices.Contains(byName[d.Name], at) {
			byName[d.Name] = append(byName[d.Name], at)
		}
	}
	p.mu.Lock()
	p.byName = byName
	p.mu.Unlock()
}

func (p *places) find(name string) []place {
	p.mu.Lock()
	defer p.mu.Unlock()
	return p.byName[name]
}

// Files are the datastores' files of one datacenter. Paths are "[datastore]
// folder/file". Every method is safe for concurrent use; there is one request
// per call.
type Files struct {
	c          *Client
	datacenter string
}

// Files gives access to a datacenter's files (VM.Datacenter). With "" a
// datastore's name has to be its only one at the server.
func (c *Client) Files(datacenter string) *Files { return &Files{c: c, datacenter: datacenter} }

// locate splits a path and finds the datacenter.
func (f *Files) locate(ctx context.Context, op, dsPath string) (ds, file string, at place, err error) {
	ds, file, ok := SplitPath(dsPath)
	if !ok || slices.Contains(strings.Split(file, "/"), "..") {
		return "", "", place{}, &Error{Op: op, Kind: ErrInvalid, Text: `the path has to be "[datastore] folder/file"`}
	}
	for try := 0; ; try++ {
		found := f.c.places.find(plainName(ds))
		if f.datacenter != "" {
			found = slices.DeleteFunc(slices.Clone(found), func(p place) bool { return p.path != f.datacenter })
		}
		switch {
		case len(found) == 1:
			return ds, file, found[0], nil
		case len(found) > 1:
			return "", "", place{}, &Error{Op: op, Kind: ErrAmbiguous, Text: "several datacenters have a datastore of this name"}
		case try > 0:
			return "", "", place{}, &Error{Op: op, Kind: ErrNotFound, Text: "there is no datastore " + strconv.Quote(plainName(ds))}
		}
		if err := f.c.learnPlaces(ctx, op); err != nil {
			return "", "", place{}, err
		}
	}
}

func (c *Client) learnPlaces(ctx context.Context, op string) error {
	objects, err := c.retrieve(ctx, types.PropertyFilterSpec{
		ObjectSet: []types.ObjectSpec{{Obj: c.vim.ServiceContent.RootFolder, SelectSet: wholeInventory()}},
		PropSet: []types.PropertySpec{
			{Type: "Datastore", PathSet: []string{"name", "parent"}},
			{Type: "Folder", PathSet: []string{"name", "parent"}},
			{Type: "Datacenter", PathSet: []string{"name", "parent"}},
		},
	})
	if err != nil {
		return c.fail(op, err)
	}
	t, err := newTree(objects)
	if err != nil {
		return c.fail(op, err)
	}
	inv := &Inventory{}
	for _, o := range t.order {
		c.add(inv, t, o)
	}
	c.places.learn(inv.Datastores)
	return nil
}

// request sends one request for a file; a session that was lost is established
// once more. body is nil, or can be sent again only if it can seek.
func (f *Files) request(ctx context.Context, op, method, dsPath string, header http.Header, body io.Reader, size int64) (*http.Response, error) {
	ds, file, at, err := f.locate(ctx, op, dsPath)
	if err != nil {
		return nil, err
	}
	u := *f.c.vim.URL()
	u.Path, u.RawPath = "/folder/"+file, ""
	q := url.Values{"dsName": {ds}}
	if at.path != "" {
		q.Set("dcPath", at.path)
	}
	u.RawQuery = q.Encode()
	res, err := f.c.send(ctx, method, u.String(), header, body, size)
	if err != nil {
		return nil, f.c.fail(op, err)
	}
	return res, nil
}

// send makes a plain HTTP request within the session.
func (c *Client) send(ctx context.Context, method, u string, header http.Header, body io.Reader, size int64) (*http.Response, error) {
	for try := 0; ; try++ {
		epoch := c.session.epoch.Load()
		req, err := http.NewRequestWithContext(ctx, method, u, nil)
		if err != nil {
			return nil, err
		}
		for k, v := range header {
			req.Header[k] = v
		}
		req.Header.Set("User-Agent", c.o.UserAgent)
		req.Header.Set("Accept-Encoding", "identity") // lengths are checked
		if body != nil {
			req.Body, req.ContentLength = io.NopCloser(body), size
			if size == 0 {
				req.Body = http.NoBody
			} else {
				req.Header.Set("Expect", "100-continue") // a refusal comes before the bytes go
			}
		}
		res, err := c.vim.Client.Client.Do(req)
		if err != nil {
			return nil, err
		}
		if res.StatusCode != http.StatusUnauthorized || try > 0 || !rewind(body) {
			return res, nil
		}
		res.Body.Close()
		if err := c.session.relogin(ctx, epoch); err != nil {
			return nil, err
		}
	}
}

func rewind(body io.Reader) bool {
	if body == nil {
		return true
	}
	s, ok := body.(io.Seeker)
	if !ok {
		return false
	}
	_, err := s.Seek(0, io.SeekStart)
	return err == nil
}

// refused makes an error of an answer that is not the one wanted.
func refused(op string, res *http.Response) error {
	e := &Error{Op: op, Detail: res.Status}
	switch res.StatusCode {
	case http.StatusNotFound, http.StatusGone:
		e.Kind, e.Text = ErrNotFound, "the file does not exist"
	case http.StatusUnauthorized, http.StatusForbidden:
		e.Kind, e.Text = ErrPermission, "this user may not; the privileges Datastore.Browse and Datastore.FileManagement are wanted"
	case http.StatusRequestedRangeNotSatisfiable:
		e.Kind, e.Text = ErrInvalid, "the file ends before that"
	case http.StatusServiceUnavailable, http.StatusTooManyRequests, http.StatusBadGateway, http.StatusGatewayTimeout:
		e.Kind, e.Text = ErrBusy, "the server cannot give it now, most often because too many transfers are running"
	case http.StatusInsufficientStorage:
		e.Kind, e.Text = ErrSpace, "there is no space left on the datastore"
	default:
		e.Kind, e.Text = ErrFile, "the host does not give the file; it may be in use by a running VM"
	}
	return e
}

// Download reads length bytes from off on, less where the file ends; length < 0
// reads to the end. The reader fails with io.ErrUnexpectedEOF when the
// connection ends before. The caller closes it.
func (f *Files) Download(ctx context.Context, dsPath string, off, length int64) (io.ReadCloser, error) {
	op := "read " + dsPath
	if off < 0 {
		return nil, &Error{Op: op, Kind: ErrInvalid, Text: fmt.Sprintf("offset %d", off)}
	}
	if length == 0 {
		return http.NoBody, nil
	}
	header := http.Header{}
	if length > 0 {
		header.Set("Range", fmt.Sprintf("bytes=%d-%d", off, off+length-1))
	} else if off > 0 {
		header.Set("Range", fmt.Sprintf("bytes=%d-", off))
	}
	res, err := f.request(ctx, op, http.MethodGet, dsPath, header, nil, 0)
	if err != nil {
		return nil, err
	}
	want, err := checkRange(op, res, off, length)
	if err != nil {
		res.Body.Close()
		return nil, err
	}
	return &exactBody{body: res.Body, left: want, open: want < 0}, nil
}

// checkRange makes sure that the answer is the part that was asked for (a server
// that ignores ranges must not give the wrong bytes) and says how long it is: less
// than asked for only where the file ends, -1 when the server does not tell.
func checkRange(op string, res *http.Response, off, length int64) (int64, error) {
	switch res.StatusCode {
	case http.StatusOK:
		if off > 0 {
			return 0, &Error{Op: op, Kind: ErrUnsupported, Text: "the server does not give parts of files"}
		}
		if res.ContentLength < 0 || (length >= 0 && length < res.ContentLength) {
			return length, nil
		}
		return res.ContentLength, nil
	case http.StatusPartialContent:
		first, last, size, ok := contentRange(res.Header.Get("Content-Range"))
		if ok && first == off && (length < 0 || last == off+length-1 || (last < off+length-1 && last == size-1)) {
			return last - first + 1, nil
		}
		return 0, &Error{Op: op, Kind: ErrFile, Text: fmt.Sprintf("asked for %d bytes from %d, the server sends %q", length, off, res.Header.Get("Content-Range"))}
	}
	return 0, refused(op, res)
}

// contentRange parses "bytes first-last/size"; size is -1 for "*".
func contentRange(s string) (first, last, size int64, ok bool) {
	s, ok = strings.CutPrefix(strings.TrimSpace(s), "bytes ")
	span, total, found := strings.Cut(s, "/")
	from, to, both := strings.Cut(span, "-")
	if !ok || !found || !both {
		return 0, 0, 0, false
	}
	first, err1 := strconv.ParseInt(strings.TrimSpace(from), 10, 64)
	last, err2 := strconv.ParseInt(strings.TrimSpace(to), 10, 64)
	size = -1
	if total = strings.TrimSpace(total); total != "*" {
		var err error
		if size, err = strconv.ParseInt(total, 10, 64); err != nil {
			return 0, 0, 0, false
		}
	}
	return first, last, size, err1 == nil && err2 == nil && first >= 0 && last >= first
}

// exactBody gives exactly what was promised, or io.ErrUnexpectedEOF.
type exactBody struct {
	body io.ReadCloser
	left int64
	open bool // how much there is was not told
}

func (b *exactBody) Read(p []byte) (int, error) {
	if b.open {
		return b.body.Read(p)
	}
	if b.left == 0 {
		return 0, io.EOF
	}
	n, err := b.body.Read(p[:min(int64(len(p)), b.left)])
	b.left -= int64(n)
	if errors.Is(err, io.EOF) {
		if err = nil; b.left > 0 {
			err = io.ErrUnexpectedEOF
		}
	}
	return n, err
}

func (b *exactBody) Close() error { return b.body.Close() }

// ReadRange fills p from off on, with one request. It returns io.EOF with what
// there is when the file ends before.
func (f *Files) ReadRange(ctx context.Context, dsPath string, off int64, p []byte) (int, error) {
	ctx, cancel := context.WithTimeout(ctx, f.c.o.CallTimeout)
	defer cancel()
	r, err := f.Download(ctx, dsPath, off, int64(len(p)))
	if err != nil {
		return 0, err
	}
	defer r.Close()
	n, err := io.ReadFull(r, p)
	if b, ok := r.(*exactBody); err != nil && ok && b.left == 0 && !b.open {
		return n, io.EOF
	}
	if err != nil {
		return n, f.c.fail(fmt.Sprintf("read %d bytes of %s from %d on", len(p), dsPath, off), err)
	}
	return n, nil
}

// Size of a file, bytes.
func (f *Files) Size(ctx context.Context, dsPath string) (int64, error) {
	op := "look at " + dsPath
	res, err := f.request(ctx, op, http.MethodHead, dsPath, nil, nil, 0)
	if err != nil {
		return 0, err
	}
	res.Body.Close()
	if res.StatusCode == http.StatusOK && res.ContentLength >= 0 {
		return res.ContentLength, nil
	}
	if res.StatusCode == http.StatusNotFound {
		return 0, refused(op, res)
	}
	// Some versions refuse HEAD; a range of one byte tells the size too.
	res, err = f.request(ctx, op, http.MethodGet, dsPath, http.Header{"Range": {"bytes=0-0"}}, nil, 0)
	if err != nil {
		return 0, err
	}
	defer res.Body.Close()
	if _, _, size, ok := contentRange(res.Header.Get("Content-Range")); ok && size >= 0 && res.StatusCode == http.StatusPartialContent {
		return size, nil
	}
	if res.StatusCode == http.StatusOK && res.ContentLength >= 0 {
		return res.ContentLength, nil
	}
	return 0, refused(op, res)
}

// Upload writes a whole file of size bytes, in place of what is there.
func (f *Files) Upload(ctx context.Context, dsPath string, r io.Reader, size int64) error {
	op := "write " + dsPath
	header := http.Header{"Content-Type": {"application/octet-stream"}}
	res, err := f.request(ctx, op, http.MethodPut, dsPath, header, r, size)
	if err != nil {
		return err
	}
	defer res.Body.Close()
	switch res.StatusCode {
	case http.StatusOK, http.StatusCreated, http.StatusNoContent:
		return nil
	}
	return refused(op, res)
}

// Delete removes a file or a folder with what is in it. Errors: ErrNotFound, ErrLocked.
func (f *Files) Delete(ctx context.Context, dsPath string) error {
	op := "delete " + dsPath
	_, _, at, err := f.locate(ctx, op, dsPath)
	if err != nil {
		return err
	}
	task, err := methods.DeleteDatastoreFile_Task(ctx, f.c.session, &types.DeleteDatastoreFile_Task{
		This: *f.c.vim.ServiceContent.FileManager, Name: dsPath, Datacenter: at.datacenter(),
	})
	if err != nil {
		return f.c.fail(op, err)
	}
	_, err = f.c.wait(ctx, op, task.Returnval, nil)
	return err
}

// MakeDir makes a folder and those above it. Errors: ErrExists.
func (f *Files) MakeDir(ctx context.Context, dsPath string) error {
	op := "make the folder " + dsPath
	_, _, at, err := f.locate(ctx, op, dsPath)
	if err != nil {
		return err
	}
	_, err = methods.MakeDirectory(ctx, f.c.session, &types.MakeDirectory{
		This: *f.c.vim.ServiceContent.FileManager, Name: dsPath, Datacenter: at.datacenter(), CreateParentDirectories: types.NewBool(true),
	})
	return f.c.fail(op, err)
}

func (p place) datacenter() *types.ManagedObjectReference {
	if p.ref.Value == "" {
		return nil
	}
	return &p.ref
}

// Download is Files("").Download.
func (c *Client) Download(ctx context.Context, dsPath string, off, length int64) (io.ReadCloser, error) {
	return c.Files("").Download(ctx, dsPath, off, length)
}

// Upload is Files("").Upload.
func (c *Client) Upload(ctx context.Context, dsPath string, r io.Reader, size int64) error {
	return c.Files("").Upload(ctx, dsPath, r, size)
}

// FileSize is Files("").Size.
func (c *Client) FileSize(ctx context.Context, dsPath string) (int64, error) {
	return c.Files("").Size(ctx, dsPath)
}

// DeleteFile is Files("").Delete.
func (c *Client) DeleteFile(ctx context.Context, dsPath string) error {
	return c.Files("").Delete(ctx, dsPath)
}

// MakeDir is Files("").MakeDir.
func (c *Client) MakeDir(ctx context.Context, dsPath string) error {
	return c.Files("").MakeDir(ctx, dsPath)
}
