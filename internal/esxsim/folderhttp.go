package esxsim

import (
	"errors"
	"fmt"
	"io"
	"io/fs"
	"net/http"
	"path"
	"strings"
)

// serveFolder is a datastore's files over HTTP: GET with ranges, HEAD, PUT and
// DELETE of /folder/<path>?dcPath=…&dsName=… [vSphere Web Services SDK
// Programming Guide, "HTTP access to vSphere server files"].
func (s *Sim) serveFolder(w http.ResponseWriter, r *http.Request) {
	if !s.authorized(r) {
		w.Header().Set("WWW-Authenticate", `Basic realm="VMware HTTP server"`)
		http.Error(w, "no session", http.StatusUnauthorized)
		return
	}
	at, status := s.folderTarget(r)
	if status != 0 {
		http.Error(w, http.StatusText(status), status)
		return
	}
	switch r.Method {
	case http.MethodGet, http.MethodHead:
		s.folderGet(w, r, at)
	case http.MethodPut, http.MethodPost:
		s.folderPut(w, r, at)
	case http.MethodDelete:
		if err := at.ds.vol.change(opRemove, at.path, ""); err != nil {
			folderError(w, err)
			return
		}
		w.WriteHeader(http.StatusNoContent)
	default:
		http.Error(w, "method not allowed", http.StatusMethodNotAllowed)
	}
}

func (s *Sim) folderTarget(r *http.Request) (dsPath, int) {
	name := strings.TrimPrefix(strings.TrimPrefix(r.URL.Path, "/folder"), "/")
	for _, part := range strings.Split(name, "/") {
		if part == ".." {
			return dsPath{}, http.StatusBadRequest
		}
	}
	q := r.URL.Query()
	if dc := path.Base(q.Get("dcPath")); !s.opts.Standalone && dc != datacenterName {
		return dsPath{}, http.StatusNotFound
	}
	s.mu.Lock()
	defer s.mu.Unlock()
	for _, d := range s.datastores {
		if d.name == q.Get("dsName") {
			return dsPath{d, path.Clean("/" + name)[1:]}, 0
		}
	}
	return dsPath{}, http.StatusNotFound
}

func folderError(w http.ResponseWriter, err error) {
	switch {
	case errors.Is(err, fs.ErrNotExist):
		http.Error(w, "404 Not Found", http.StatusNotFound)
	default:
		// What a host answers for a file that a running VM holds [field].
		http.Error(w, err.Error(), http.StatusInternalServerError)
	}
}

// inUse: a VM that is on holds the file: the data of a disk's top for itself,
// everything below, and the descriptors, against writers. What a snapshot froze
// can be read. Sim.mu is held.
func (s *Sim) inUse(at dsPath, writing bool) bool {
	for _, v := range s.vms {
		if !v.holdsDisks() {
			continue
		}
		for _, d := range v.disks {
			for l := d.top; l != nil; l = l.parent {
				if l.at.ds != at.ds || l.data != at.path && l.at.path != at.path {
					continue
				}
				if writing || l == d.top && l.data == at.path {
					return true
				}
			}
		}
	}
	return false
}

func (s *Sim) folderGet(w http.ResponseWriter, r *http.Request, at dsPath) {
	s.mu.Lock()
	locked := s.inUse(at, false)
	s.mu.Unlock()
	if locked {
		folderError(w, errLocked)
		return
	}
	e, err := at.ds.vol.stat(at.path)
	if err != nil {
		folderError(w, err)
		return
	}
	if e.dir {
		s.folderList(w, at)
		return
	}
	f, err := at.ds.vol.open(at.path, openRead)
	if err != nil {
		folderError(w, err)
		return
	}
	defer f.Close()
	size, err := f.Size()
	if err != nil {
		folderError(w, err)
		return
	}
	from, n, partial, ok := byteRange(r.Header.Get("Range"), size)
	if !ok {
		w.Header().Set("Content-Range", fmt.Sprintf("bytes */%d", size))
		http.Error(w, "range", http.StatusRequestedRangeNotSatisfiable)
		return
	}
	w.Header().Set("Content-Type", "application/octet-stream")
	w.Header().Set("Accept-Ranges", "bytes")
	w.Header().Set("Content-Length", fmt.Sprint(n))
	if partial {
		w.Header().Set("Content-Range", fmt.Sprintf("bytes %d-%d/%d", from, from+n-1, size))
		w.WriteHeader(http.StatusPartialContent)
	}
	if r.Method == http.MethodGet {
		s.send(w, s.corrupting(at, io.NewSectionReader(f, from, n), from))
	}
}

// send copies a body; what goes wrong now breaks the connection, as it should.
func (s *Sim) send(w io.Writer, from io.Reader) {
	buf := make([]byte, 256<<10)
	if _, err := io.CopyBuffer(struct{ io.Writer }{w}, struct{ io.Reader }{from}, buf); err != nil {
		s.log.Debug("sending a file", "err", err)
		panic(http.ErrAbortHandler)
	}
}

// byteRange reads a Range header with one range.
func byteRange(header string, size int64) (from, n int64, partial, ok bool) {
	spec, found := strings.CutPrefix(header, "bytes=")
	if !found || strings.Contains(spec, ",") {
		return 0, size, false, true
	}
	var first, last int64
	switch a, b, _ := strings.Cut(spec, "-"); {
	case a == "":
		if _, err := fmt.Sscan(b, &n); err != nil || n <= 0 {
			return 0, size, false, true
		}
		n = min(n, size)
		return size - n, n, true, n > 0
	case b == "":
		if _, err := fmt.Sscan(a, &first); err != nil {
			return 0, size, false, true
		}
		last = size - 1
	default:
		if _, err := fmt.Sscan(a, &first); err != nil {
			return 0, size, false, true
		}
		if _, err := fmt.Sscan(b, &last); err != nil || last < first {
			return 0, size, false, true
		}
	}
	if first < 0 || first >= size {
		return 0, 0, false, false
	}
	return first, min(last, size-1) - first + 1, true, true
}

func (s *Sim) folderList(w http.ResponseWriter, at dsPath) {
	list, err := at.ds.vol.list(at.path)
	if err != nil {
		folderError(w, err)
		return
	}
	w.Header().Set("Content-Type", "text/plain; charset=utf-8")
	for _, e := range list {
		fmt.Fprintln(w, e.name)
	}
}

// folderPut stores a file; one that exists is replaced.
func (s *Sim) folderPut(w http.ResponseWriter, r *http.Request, at dsPath) {
	s.mu.Lock()
	locked := s.inUse(at, true)
	s.mu.Unlock()
	if locked {
		folderError(w, errLocked)
		return
	}
	vol := at.ds.vol
	if err := vol.change(opMkdir, path.Dir(at.path), ""); err != nil {
		folderError(w, err)
		return
	}
	_, err := vol.stat(at.path)
	status := http.StatusOK
	how := openWrite
	if err != nil {
		status, how = http.StatusCreated, openNew
	}
	f, err := vol.open(at.path, how)
	if err != nil {
		folderError(w, err)
		return
	}
	defer f.Close()
	n, err := io.CopyBuffer(struct{ io.Writer }{io.NewOffsetWriter(f, 0)}, r.Body, make([]byte, 256<<10))
	if err == nil {
		err = f.Truncate(n)
	}
	if err == nil {
		err = f.Sync()
	}
	if err != nil {
		folderError(w, err)
		return
	}
	w.WriteHeader(status)
}
