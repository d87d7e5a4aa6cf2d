package vsphere

import (
	"context"
	"crypto/tls"
	"testing"

	"github.com/vmware/govmomi/simulator"
	_ "github.com/vmware/govmomi/vapi/simulator"
)

// vcsim starts govmomi's own simulator: no more than the protocol's other side.
// What a real vSphere does beyond it is tested against internal/esxsim.
func vcsim(t testing.TB, edit func(*simulator.Model)) (*simulator.Model, *simulator.Server) {
	t.Helper()
	m := simulator.VPX()
	if edit != nil {
		edit(m)
	}
	if err := m.Create(); err != nil {
		t.Fatal(err)
	}
	t.Cleanup(m.Remove)
	m.Service.TLS = new(tls.Config)
	m.Service.RegisterEndpoints = true
	s := m.Service.NewServer()
	t.Cleanup(s.Close)
	return m, s
}

func dialed(t testing.TB, s *simulator.Server, edit func(*Options)) *Client {
	t.Helper()
	o := Options{URL: s.URL.Host, Username: "user", Password: "pass", Insecure: true, KeepAlive: -1}
	if edit != nil {
		edit(&o)
	}
	c, err := Dial(context.Background(), o)
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { _ = c.Close(context.Background()) })
	return c
}

func TestSmoke(t *testing.T) {
	_, s := vcsim(t, nil)
	c := dialed(t, s, nil)
	ctx := context.Background()
	t.Logf("%+v", c.About())
	inv, err := c.Inventory(ctx)
	if err != nil {
		t.Fatal(err)
	}
	t.Logf("%+v", inv.VMs[0])
	t.Logf("%+v", inv.Hosts)
	t.Logf("%+v", inv.Datastores)
	t.Logf("%+v", inv.Networks)
	t.Logf("%+v", inv.Folders)
	t.Logf("%+v", inv.Pools)
	v, err := c.VM(ctx, inv.VMs[0].Ref)
	if err != nil {
		t.Fatal(err)
	}
	t.Logf("%+v", v)
	snap, err := c.CreateSnapshot(ctx, v.Ref, SnapshotSpec{Name: "lifeboat-1"})
	if err != nil {
		t.Fatal(err)
	}
	sv, err := c.SnapshotVM(ctx, snap)
	if err != nil {
		t.Fatal(err)
	}
	t.Logf("%+v", sv)
	if err := c.RemoveSnapshot(ctx, snap, RemoveOptions{}); err != nil {
		t.Fatal(err)
	}
	t.Log(c.CallsByMethod())
}
