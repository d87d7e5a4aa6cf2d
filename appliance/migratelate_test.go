package appliance

import (
	"errors"
	"strings"
	"testing"

	"lifeboat/vsphere"
)

// TestSwitchedOnDuringTheCutOver: somebody switches the old VM on while, or after,
// the last of it is copied. What its guest then writes must not be lost.
func TestSwitchedOnDuringTheCutOver(t *testing.T) {
	t.Parallel()
	for _, at := range []string{"off", "copied"} {
		w := newRecoverWorld(t, nil, testVM(t, "web", 1))
		got := w.recover(w.request("web"))[0]
		want := w.disks["web"][0]
		req := CopyVMRequest{Session: got.Session, Datastore: "datastore2"}
		req.hook = func(place string) {
			if place != at {
				return
			}
			if err := w.vc.PowerOn(t.Context(), w.vmNamed(got.VM).Ref); err != nil {
				t.Fatal(err)
			}
			w.write(got.VM, 0, want, 3<<20, []byte("acknowledged"))
		}
		if err := MigrateByCopy(t.Context(), w.state, w.repo, w.vc, req); !errors.Is(err, ErrBusy) || !strings.Contains(err.Error(), "on while") && !strings.Contains(err.Error(), "written since") {
			t.Errorf("switched on when %q: %v", at, err)
		}
		w.sameDisk(got.VM, 0, want)
		if names := w.newVMs(); len(names) != 1 || w.vmNamed(got.VM).Power != vsphere.PoweredOn {
			t.Errorf("switched on when %q: VMs %q", at, names)
		}
		if err := Stop(t.Context(), w.state, w.vc, StopRequest{Session: got.Session}); err != nil {
			t.Fatal(err)
		}
		w.nothingLeft()
	}
}

// TestOutOfReachIsNotMoved: of a VM whose files are out of reach vSphere tells no
// disks. That is no sign that it is on other storage.
func TestOutOfReachIsNotMoved(t *testing.T) {
	t.Parallel()
	w := &vsphereWork{datastore: "lifeboat-01234567"}
	for _, vm := range []vsphere.VM{{}, {VMX: "[lifeboat-01234567] s/web/web.vmx"}} {
		if w.onOurs(&vm) == "" {
			t.Errorf("%+v has moved", vm)
		}
	}
}
