package vsphere_test

import (
	"bytes"
	"context"
	"crypto/tls"
	"io"
	"net/http"
	"net/http/httptest"
	"net/http/httputil"
	"strings"
	"sync/atomic"
	"testing"
	"time"

	"lifeboat/internal/esxsim"
	"lifeboat/vsphere"
)

// cutter stands between client and server and loses the answer to a call, after
// the server has carried it out.
type cutter struct {
	*httptest.Server
	method atomic.Pointer[string] // whose answer is lost, once
	seen   atomic.Int64           // how often it was asked
}

func cut(t *testing.T, s *esxsim.Sim) *cutter {
	t.Helper()
	c := &cutter{}
	to := *s.URL()
	to.Path, to.User = "", nil
	proxy := httputil.NewSingleHostReverseProxy(&to)
	proxy.Transport = &http.Transport{TLSClientConfig: &tls.Config{InsecureSkipVerify: true}}
	c.Server = httptest.NewTLSServer(http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		body, err := io.ReadAll(r.Body)
		if err != nil {
			return
		}
		r.Body = io.NopCloser(bytes.NewReader(body))
		name := c.method.Load()
		if name == nil || !strings.Contains(string(body), "<"+*name+" ") {
			proxy.ServeHTTP(w, r)
			return
		}
		if c.seen.Add(1) > 1 {
			proxy.ServeHTTP(w, r)
			return
		}
		proxy.ServeHTTP(httptest.NewRecorder(), r)
		panic(http.ErrAbortHandler)
	}))
	t.Cleanup(func() {
		c.Close()
		proxy.Transport.(*http.Transport).CloseIdleConnections()
	})
	return c
}

// TestLostAnswers: a call that changes something is made once, whatever becomes
// of its answer; one that changes nothing is made again.
func TestLostAnswers(t *testing.T) {
	t.Parallel()
	s := simulate(t, esxsim.Options{VMs: []esxsim.VMSpec{{Name: "a", PowerOn: true, Disks: []esxsim.DiskSpec{{Size: 1 << 20}}}}})
	between := cut(t, s)
	o := options(s)
	o.URL, o.Insecure = between.Listener.Addr().String(), true
	c, err := vsphere.Dial(t.Context(), o)
	if err != nil {
		t.Fatal(err)
	}
	defer c.Close(context.Background())
	vm := vmOf(t, c, "a")
	lose := func(method string) {
		between.seen.Store(0)
		between.method.Store(&method)
	}
	lose("RetrievePropertiesEx")
	if _, err := c.VM(t.Context(), vm.Ref); err != nil || between.seen.Load() != 2 {
		t.Errorf("a retrieval was made %d times, %v", between.seen.Load(), err)
	}
	lose("CreateSnapshot_Task")
	_, err = c.CreateSnapshot(t.Context(), vm.Ref, vsphere.SnapshotSpec{Name: "s"})
	says(t, err, vsphere.ErrUnreachable)
	if n := between.seen.Load(); n != 1 {
		t.Errorf("a snapshot was asked for %d times", n)
	}
	for len(s.VM("a").Snapshots()) == 0 { // the server carries it out nevertheless
		time.Sleep(time.Millisecond)
	}
	v, err := c.VM(t.Context(), vm.Ref)
	if err != nil || len(v.Snapshots) != 1 {
		t.Fatalf("%+v, %v", v, err)
	}
	for _, method := range []string{"WaitForUpdatesEx", "CreateFilter", "DestroyPropertyFilter"} {
		lose(method)
		ref, err := c.CreateSnapshot(t.Context(), vm.Ref, vsphere.SnapshotSpec{Name: "t"})
		if err == nil {
			err = c.RemoveSnapshot(t.Context(), ref, vsphere.RemoveOptions{})
		}
		if err != nil || between.seen.Load() < 2 {
			t.Errorf("%s was made %d times, %v", method, between.seen.Load(), err)
		}
	}
}

// TestMovedQuestion: a host that asks whether a VM was moved is answered.
func TestMovedQuestion(t *testing.T) {
	t.Parallel()
	s := simulate(t, esxsim.Options{VMs: []esxsim.VMSpec{{Name: "a", Disks: []esxsim.DiskSpec{{Size: 1 << 20}}}}})
	c := connect(t, s)
	ctx := t.Context()
	vm := vmOf(t, c, "a")
	if err := c.Unregister(ctx, vm.Ref); err != nil {
		t.Fatal(err)
	}
	r, err := c.Download(ctx, vm.VMX, 0, -1)
	if err != nil {
		t.Fatal(err)
	}
	vmx, err := io.ReadAll(r)
	r.Close()
	if err != nil {
		t.Fatal(err)
	}
	var kept []string
	for line := range strings.Lines(string(vmx)) {
		if !strings.HasPrefix(line, "uuid.location") && !strings.HasPrefix(line, "uuid.action") {
			kept = append(kept, line)
		}
	}
	kept = append(kept, `uuid.location = "56 4d 11 11 11 11 11 11-22 22 22 22 22 22 22 22"`+"\n")
	text := strings.Join(kept, "")
	if err := c.Upload(ctx, vm.VMX, strings.NewReader(text), int64(len(text))); err != nil {
		t.Fatal(err)
	}
	again, err := c.RegisterVM(ctx, vsphere.RegisterSpec{Path: vm.VMX, Name: "a", Host: vm.HostRef})
	if err != nil {
		t.Fatal(err)
	}
	if err := c.PowerOn(ctx, again); err != nil {
		t.Fatal(err)
	}
	if s.Calls()["AnswerVM"] != 1 {
		t.Errorf("the question was not asked, or not answered: %v", s.Calls())
	}
	if v, err := c.VM(ctx, again); err != nil || v.BIOSUUID != vm.BIOSUUID || v.Power != vsphere.PoweredOn {
		t.Errorf("%+v, %v; want the UUID %s", v, err, vm.BIOSUUID)
	}
}
