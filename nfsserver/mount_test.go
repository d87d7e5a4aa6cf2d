package nfsserver

import (
	"errors"
	"fmt"
	"net"
	"net/netip"
	"slices"
	"strings"
	"testing"
	"time"

	"github.com/google/go-cmp/cmp"

	"lifeboat/disk/disktest"
	"lifeboat/nfsserver/nfstest"
)

func TestMount(t *testing.T) {
	w := newWorld(t, disktest.NewMemory(1<<20))
	c := w.dial()
	root, flavors, err := c.MountFlavors(ExportPath)
	must(t, err)
	want(t, "flavours", fmt.Sprint(flavors), "[1]")
	vm, err := c.Mount("//lifeboat///s1/vm/")
	must(t, err)
	same, err := c.Walk(root, "s1/vm")
	must(t, err)
	want(t, "handle", string(vm), string(same))
	for path, st := range map[string]nfstest.MountStatus{
		"": nfstest.MountNoEnt, "/": nfstest.MountNoEnt, "lifeboat": nfstest.MountNoEnt, "/lifeboats": nfstest.MountNoEnt,
		"/etc": nfstest.MountNoEnt, "/lifeboat/nothing": nfstest.MountNoEnt,
		"/lifeboat/../etc": nfstest.MountAcces, "/lifeboat/s1/..": nfstest.MountAcces,
		"/lifeboat/" + diskPath: nfstest.MountNotDir, "/lifeboat/s1/\x00": nfstest.MountInval,
		"/lifeboat/" + strings.Repeat("x", 256): nfstest.MountNameTooLong,
	} {
		_, err := c.Mount(path)
		var got nfstest.MountStatus
		if !errors.As(err, &got) || got != st {
			t.Errorf("MNT %q: %v, want %v", path, err, st)
		}
	}
	_, err = c.Mount(strings.Repeat("/lifeboat", 200))
	want(t, "MNT of 1800 bytes", rpcError(t, err).Stat, acceptGarbageArgs)

	exports, err := c.Exports()
	must(t, err)
	if diff := cmp.Diff(map[string][]string{ExportPath: {"127.0.0.0/8", "::1/128"}}, exports); diff != "" {
		t.Error(diff)
	}
	mounts, err := c.Mounts()
	must(t, err)
	if diff := cmp.Diff([][2]string{{"127.0.0.1", ExportPath}, {"127.0.0.1", ExportPath + "/s1/vm"}}, mounts); diff != "" {
		t.Error(diff)
	}
	must(t, c.Umount(ExportPath+"/s1/vm"))
	mounts, err = c.Mounts()
	must(t, err)
	want(t, "mounts after UMNT", len(mounts), 1)
	must(t, c.UmountAll())
	mounts, err = c.Mounts()
	must(t, err)
	want(t, "mounts after UMNTALL", len(mounts), 0)
	must(t, c.Umount("/never/mounted"))
	_, err = c.Call(nfstest.ProgMount, 3, 0, nil)
	must(t, err)
}

func TestMountTableIsBounded(t *testing.T) {
	var table mountTable
	for i := range 3 * maxMounts {
		table.add(netip.MustParseAddr("::1"), fmt.Sprint(i))
	}
	want(t, "mounts", len(table.list()), maxMounts)
	want(t, "the newest is kept", slices.ContainsFunc(table.list(), func(e mountEntry) bool { return e.path == fmt.Sprint(3*maxMounts-1) }), true)
}

// Many MNTs at once go through go-nfs, each by itself.
func TestMountConcurrently(t *testing.T) {
	w := newWorld(t, nil)
	var calls []*nfstest.Call
	c := w.dial()
	for i := range 300 {
		path := ExportPath + "/s1"
		if i%3 == 0 {
			path = "/nowhere"
		}
		calls = append(calls, c.Go(nfstest.ProgMount, 3, 1, nfstest.Enc{}.Str(path)))
	}
	for i, call := range calls {
		d, err := call.Wait()
		must(t, err)
		want(t, "refused", d.U32() != 0, i%3 == 0)
	}
}

// A client outside the list: connects, is refused at MOUNT, at handles it has
// guessed or kept, and everywhere else; the log names it.
func TestAllowList(t *testing.T) {
	w := newWorld(t, disktest.NewMemory(1<<20))
	c, dir, flat := w.mount()
	w.srv.SetAllow([]netip.Prefix{netip.MustParsePrefix("192.0.2.0/24")})
	refused := func(c *nfstest.Client) {
		t.Helper()
		must(t, c.Null())
		_, err := c.Mount(ExportPath)
		want(t, "MNT", fmt.Sprint(err), nfstest.MountAcces.Error())
		_, err = c.Getattr(flat)
		wantStatus(t, "GETATTR", err, nfstest.Acces)
		_, err = c.Read(flat, 0, 512)
		wantStatus(t, "READ", err, nfstest.Acces)
		_, err = c.Write(flat, 0, make([]byte, 512), nfstest.FileSync)
		wantStatus(t, "WRITE", err, nfstest.Acces)
		_, _, err = c.Rename(dir, "vm", dir, "x")
		wantStatus(t, "RENAME", err, nfstest.Acces)
		_, _, err = c.Link(flat, dir, "x")
		wantStatus(t, "LINK", err, nfstest.Acces)
		_, err = c.Readdirplus(dir, 0, 0, 4096, 4096)
		wantStatus(t, "READDIRPLUS", err, nfstest.Acces)
		_, err = c.Exports()
		want(t, "EXPORT", rpcError(t, err).Denied, true)
	}
	refused(c)
	refused(w.dial())
	if log := w.log.String(); !strings.Contains(log, "refused a client") || !strings.Contains(log, "client=127.0.0.1") {
		t.Error("the log does not say who was refused")
	}
	w.srv.SetAllow([]netip.Prefix{netip.MustParsePrefix("127.0.0.1/8")})
	_, err := c.Getattr(flat)
	must(t, err)
}

func TestStrangersGetFewPlaces(t *testing.T) {
	w := newWorld(t, nil, func(o *Options) { o.Allow = []netip.Prefix{netip.MustParsePrefix("192.0.2.1/32")} })
	for range maxStrangers {
		must(t, w.dial().Null())
	}
	extra := w.dial()
	within(t, "refusal", func() { <-extra.Closed() })
}

func TestPortmap(t *testing.T) {
	w := newWorld(t, nil, func(o *Options) { o.PortmapAddr, o.MountAddr = "127.0.0.1:0", "127.0.0.2:0" })
	addrs := w.srv.Addrs()
	if addrs.Mount == addrs.NFS || addrs.Portmap.Port() == 0 {
		t.Fatalf("addresses: %+v", addrs)
	}
	c, err := nfstest.Dial(addrs.Portmap.String())
	must(t, err)
	t.Cleanup(func() { c.Close() })
	for _, x := range []struct{ prog, vers, proto, port uint32 }{
		{nfstest.ProgNFS, 3, 6, uint32(addrs.NFS.Port())},
		{nfstest.ProgMount, 3, 6, uint32(addrs.Mount.Port())},
		{nfstest.ProgPortmap, 2, 17, uint32(addrs.Portmap.Port())},
		{nfstest.ProgNFS, 3, 17, 0},
		{nfstest.ProgNFS, 4, 6, 0},
		{100021, 4, 6, 0},
	} {
		port, err := c.Getport(x.prog, x.vers, x.proto)
		must(t, err)
		want(t, fmt.Sprintf("GETPORT %d.%d", x.prog, x.vers), port, x.port)
	}
	list, err := c.Portmaps()
	must(t, err)
	want(t, "DUMP", len(list), 4)
	_, err = c.Call(nfstest.ProgPortmap, 2, 0, nil)
	must(t, err)
	for _, proc := range []uint32{1, 2} {
		d, err := c.Call(nfstest.ProgPortmap, 2, proc, nfstest.Enc{}.U32(1, 2, 3, 4))
		must(t, err)
		want(t, "SET, UNSET", d.Bool(), false)
	}
	_, err = c.Call(nfstest.ProgPortmap, 2, 5, nil)
	want(t, "CALLIT", rpcError(t, err).Stat, acceptProcUnavail)
	for _, vers := range []uint32{3, 4} {
		_, err = c.Call(nfstest.ProgPortmap, vers, 3, nil)
		if diff := cmp.Diff(nfstest.RPCError{Stat: acceptProgMismatch, Detail: []uint32{2, 2}}, rpcError(t, err)); diff != "" {
			t.Errorf("rpcbind version %d: %s", vers, diff)
		}
	}
	_, err = c.Call(nfstest.ProgNFS, 3, 0, nil)
	want(t, "NFS on the portmapper's port", rpcError(t, err).Stat, acceptProgUnavail)

	m, err := nfstest.Dial(addrs.Mount.String())
	must(t, err)
	t.Cleanup(func() { m.Close() })
	_, err = m.Mount(ExportPath)
	must(t, err)
}

func TestPortmapUDP(t *testing.T) {
	w := newWorld(t, nil, func(o *Options) { o.PortmapAddr = "127.0.0.1:0" })
	addrs := w.srv.Addrs()
	conn, err := net.Dial("udp", addrs.Portmap.String())
	must(t, err)
	t.Cleanup(func() { conn.Close() })
	must(t, conn.SetDeadline(time.Now().Add(10*time.Second)))
	ask := func(vers, proc uint32, args nfstest.Enc) *nfstest.Dec {
		t.Helper()
		reply, err := nfstest.Packet(conn, nfstest.Message(5, nfstest.ProgPortmap, vers, proc, nfstest.Cred{None: true}, args))
		must(t, err)
		d := &nfstest.Dec{B: reply}
		want(t, "xid", d.U32(), 5)
		want(t, "reply", d.U32(), msgReply)
		want(t, "accepted", d.U32(), replyAccepted)
		d.U64()
		return d
	}
	getport := nfstest.Enc{}.U32(nfstest.ProgNFS, 3, 6, 0)
	d := ask(2, 3, getport)
	want(t, "success", d.U32(), acceptSuccess)
	want(t, "port", d.U32(), uint32(addrs.NFS.Port()))
	want(t, "garbage", ask(2, 3, nil).U32(), acceptGarbageArgs)
	want(t, "version 4", ask(4, 3, nil).U32(), acceptProgMismatch)
	for _, junk := range [][]byte{{}, {1, 2, 3}, make([]byte, 1000), nfstest.Enc{}.U32(1, 1, 0, 0)} {
		_, err := conn.Write(junk) // no answer: the next one is to the question after it
		must(t, err)
	}
	want(t, "success", ask(2, 3, getport).U32(), acceptSuccess)

	w.srv.SetAllow([]netip.Prefix{netip.MustParsePrefix("192.0.2.0/24")})
	_, err = conn.Write(nfstest.Message(6, nfstest.ProgPortmap, 2, 4, nfstest.Cred{}, nil)) // DUMP: silence
	must(t, err)
	want(t, "GETPORT for anybody", ask(2, 3, getport).U32(), acceptSuccess)
}

// A portmapper bound to all addresses answers from the one that was asked,
// also where the route would prefer another.
func TestPortmapUDPAnswersFromTheAddressAsked(t *testing.T) {
	for _, listen := range []string{"0.0.0.0:0", "[::]:0"} {
		w := newWorld(t, nil, func(o *Options) { o.PortmapAddr = listen })
		port := w.srv.Addrs().Portmap.Port()
		conn, err := net.Dial("udp", fmt.Sprintf("127.0.0.77:%d", port)) // takes answers from there only
		must(t, err)
		must(t, conn.SetDeadline(time.Now().Add(10*time.Second)))
		_, err = nfstest.Packet(conn, nfstest.Message(5, nfstest.ProgPortmap, 2, 0, nfstest.Cred{}, nil))
		must(t, err)
		must(t, conn.Close())
	}
}

func TestListenErrors(t *testing.T) {
	l, err := net.Listen("tcp", "127.0.0.1:0")
	must(t, err)
	defer l.Close()
	w := newWorld(t, nil)
	for _, opt := range []Options{
		{NFSAddr: l.Addr().String()},
		{NFSAddr: "127.0.0.1:0", MountAddr: l.Addr().String()},
		{NFSAddr: "127.0.0.1:0", PortmapAddr: l.Addr().String()},
	} {
		opt.Tree = w.tree
		s, err := New(opt)
		must(t, err)
		err = s.Run(t.Context())
		if err == nil || !strings.Contains(err.Error(), "choose another port") {
			t.Errorf("port in use: %v", err)
		}
	}
	for name, opt := range map[string]Options{
		"no tree": {}, "bad prefix": {Tree: w.tree, Allow: []netip.Prefix{{}}},
		"small memory": {Tree: w.tree, Limits: Limits{MemoryPerConnection: 1}}, "negative": {Tree: w.tree, Limits: Limits{Drain: -1}},
	} {
		if _, err := New(opt); err == nil {
			t.Errorf("%s: no error", name)
		}
	}
}
