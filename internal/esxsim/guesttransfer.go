package esxsim

import (
	"errors"
	"io"
	"io/fs"
	"net/http"
	"os"
	"path"

	"github.com/vmware/govmomi/simulator"
	"github.com/vmware/govmomi/vim25/methods"
	"github.com/vmware/govmomi/vim25/soap"
	"github.com/vmware/govmomi/vim25/types"
)

// guestFilePath is where files go into and out of guests.
const guestFilePath = "/guestFile"

func (s *Sim) transferURL(v *vm, t transfer) string {
	token := randomToken()
	s.mu.Lock()
	defer s.mu.Unlock()
	v.guest.transfers[token] = t
	return "https://" + s.front.addr + guestFilePath + "?id=" + v.ref.Value + "&token=" + token
}

// InitiateFileTransferToGuest [API].
func (d *guestCalls) InitiateFileTransferToGuest(_ *simulator.Context, req *types.InitiateFileTransferToGuest) soap.HasFault {
	var url string
	f := d.guest(req.Vm, req.Auth, req.GuestFilePath, func(v *vm, root *os.Root, at string) error {
		if fi, err := root.Lstat(at); err == nil && (!req.Overwrite || fi.IsDir()) {
			return fs.ErrExist
		}
		if _, err := root.Stat(path.Dir(at)); err != nil {
			return err
		}
		url = d.s.transferURL(v, transfer{path: at, upload: true, size: req.FileSize, overwrite: req.Overwrite, attr: req.FileAttributes})
		return nil
	})
	if f != nil {
		return &methods.InitiateFileTransferToGuestBody{Fault_: f}
	}
	return &methods.InitiateFileTransferToGuestBody{Res: &types.InitiateFileTransferToGuestResponse{Returnval: url}}
}

// InitiateFileTransferFromGuest [API].
func (d *guestCalls) InitiateFileTransferFromGuest(_ *simulator.Context, req *types.InitiateFileTransferFromGuest) soap.HasFault {
	var info types.FileTransferInformation
	f := d.guest(req.Vm, req.Auth, req.GuestFilePath, func(v *vm, root *os.Root, at string) error {
		fi, err := root.Stat(at)
		if err != nil {
			return err
		}
		if fi.IsDir() {
			return errors.New("not a file")
		}
		info = types.FileTransferInformation{Size: fi.Size(), Attributes: d.s.guestFile(v, root, at, fi, fi.Name()).Attributes}
		info.Url = d.s.transferURL(v, transfer{path: at})
		return nil
	})
	if f != nil {
		return &methods.InitiateFileTransferFromGuestBody{Fault_: f}
	}
	return &methods.InitiateFileTransferFromGuestBody{Res: &types.InitiateFileTransferFromGuestResponse{Returnval: info}}
}

// serveGuestFile moves one file, once.
func (s *Sim) serveGuestFile(w http.ResponseWriter, r *http.Request) {
	q := r.URL.Query()
	s.mu.Lock()
	v := s.vms[ref{Type: "VirtualMachine", Value: q.Get("id")}]
	var t transfer
	ok := false
	var dir string
	if v != nil {
		t, ok = v.guest.transfers[q.Get("token")]
		delete(v.guest.transfers, q.Get("token"))
		dir = v.guest.dir
	}
	s.mu.Unlock()
	if !ok || t.upload != (r.Method == http.MethodPut) {
		http.NotFound(w, r)
		return
	}
	root, err := os.OpenRoot(dir)
	if err != nil {
		http.Error(w, err.Error(), http.StatusInternalServerError)
		return
	}
	defer root.Close()
	if !t.upload {
		f, err := root.Open(t.path)
		if err != nil {
			http.Error(w, err.Error(), http.StatusInternalServerError)
			return
		}
		defer f.Close()
		s.send(w, f)
		return
	}
	if err := s.takeGuestFile(v, root, t, r); err != nil {
		http.Error(w, err.Error(), http.StatusInternalServerError)
	}
}

// takeGuestFile stores what comes; it has to have the size that was announced.
func (s *Sim) takeGuestFile(v *vm, root *os.Root, t transfer, r *http.Request) error {
	flags := os.O_CREATE | os.O_WRONLY | os.O_TRUNC
	if !t.overwrite {
		flags |= os.O_EXCL
	}
	f, err := root.OpenFile(t.path, flags, 0o644)
	if err != nil {
		return err
	}
	n, err := io.Copy(f, r.Body)
	err = errors.Join(err, f.Close())
	if err == nil && n != t.size {
		err = errors.New("the file has another size than was announced")
	}
	if err != nil {
		return errors.Join(err, root.Remove(t.path))
	}
	return s.setGuestAttr(v, root, t.path, t.attr)
}
