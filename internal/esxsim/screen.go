package esxsim

import (
	"bytes"
	"context"
	"errors"
	"hash/fnv"
	"image"
	"image/color"
	"image/png"
	"net/http"
	"os"
	"path/filepath"

	"github.com/vmware/govmomi/simulator"
	"github.com/vmware/govmomi/vim25/methods"
	"github.com/vmware/govmomi/vim25/soap"
	"github.com/vmware/govmomi/vim25/types"
)

// serveScreen is GET /screen?id=<moref>: what a running VM's screen shows, as a
// PNG, without a file on a datastore [field].
func (s *Sim) serveScreen(w http.ResponseWriter, r *http.Request) {
	if !s.authorized(r) {
		w.Header().Set("WWW-Authenticate", `Basic realm="VMware HTTP server"`)
		http.Error(w, "no session", http.StatusUnauthorized)
		return
	}
	s.mu.Lock()
	v := s.vms[ref{Type: "VirtualMachine", Value: r.URL.Query().Get("id")}]
	s.mu.Unlock()
	if v == nil {
		http.NotFound(w, r)
		return
	}
	shot, err := s.screenshot(r.Context(), v)
	if err != nil {
		http.Error(w, err.Error(), http.StatusInternalServerError)
		return
	}
	w.Header().Set("Content-Type", "image/png")
	_, _ = w.Write(shot)
}

// screenshot asks QEMU; of a VM without one it is a picture of its own name.
func (s *Sim) screenshot(ctx context.Context, v *vm) ([]byte, error) {
	s.mu.Lock()
	m, on, name := v.machine, v.power == poweredOn, v.name
	s.mu.Unlock()
	if !on {
		return nil, errors.New("the VM is not powered on")
	}
	if m == nil {
		h := fnv.New32a()
		h.Write([]byte(name))
		sum := h.Sum32()
		img := image.NewPaletted(image.Rect(0, 0, 720, 400), color.Palette{color.Black, color.RGBA{byte(sum), byte(sum >> 8), byte(sum >> 16), 255}})
		for x := range 360 {
			img.SetColorIndex(x, 200, 1)
		}
		var b bytes.Buffer
		err := png.Encode(&b, img)
		return b.Bytes(), err
	}
	dir, err := os.MkdirTemp(s.sockets, "screen-")
	if err != nil {
		return nil, err
	}
	defer os.RemoveAll(dir)
	file := filepath.Join(dir, "screen.png")
	if err := m.Screenshot(ctx, file); err != nil {
		return nil, err
	}
	return os.ReadFile(file)
}

// CreateScreenshotTask leaves the picture beside the .vmx [API:
// CreateScreenshot_Task].
func (d *vmCalls) CreateScreenshotTask(ctx *simulator.Context, req *types.CreateScreenshot_Task) soap.HasFault {
	t, f := d.powerTaskResult(ctx, "CreateScreenshot_Task", req.This, func(ctx context.Context, v *vm) (any, types.BaseMethodFault) {
		if v.power != poweredOn {
			return nil, wrongPower(v, poweredOn)
		}
		shot, err := d.s.screenshot(ctx, v)
		if err != nil {
			return nil, &types.SystemError{Reason: err.Error()}
		}
		at := v.vmx.dir().join(fileStem(v.name) + "-" + itoa(int(d.s.taskNumber.Add(1))) + ".png")
		if err := writeFile(at.ds.vol, at.path, shot); err != nil {
			return nil, fileFault(at.String(), err)
		}
		return at.String(), nil
	})
	if f != nil {
		return &methods.CreateScreenshot_TaskBody{Fault_: f}
	}
	return &methods.CreateScreenshot_TaskBody{Res: &types.CreateScreenshot_TaskResponse{Returnval: t}}
}
