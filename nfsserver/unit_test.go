package nfsserver

import (
	"net"
	"net/netip"
	"sync"
	"testing"
	"time"

	"pgregory.net/rapid"

	"lifeboat/disk/disktest"
	"lifeboat/nfsserver/datastore"
	"lifeboat/nfsserver/nfstest"
)

func TestFIFO(t *testing.T) {
	rapid.Check(t, func(t *rapid.T) {
		var q fifo[int]
		var model []int
		for i := range rapid.IntRange(0, 200).Draw(t, "steps") {
			if len(model) == 0 || rapid.Bool().Draw(t, "push") {
				q.push(i)
				model = append(model, i)
			} else {
				if got := q.pop(); got != model[0] {
					t.Fatalf("got %d, want %d", got, model[0])
				}
				model = model[1:]
			}
			if q.len() != len(model) || (len(model) > 0 && q.peek() != model[0]) {
				t.Fatal("the queue differs from the model")
			}
		}
	})
}

// Whatever is submitted is run once; shares, InFlight and memory are kept; and
// in the end nothing is counted any more.
func TestSchedulerProperty(t *testing.T) {
	rapid.Check(t, func(t *rapid.T) {
		limits := Limits{
			Workers: rapid.IntRange(4, 12).Draw(t, "workers"), InFlight: rapid.IntRange(4, 12).Draw(t, "inflight"),
			Waiting: rapid.IntRange(1, 8).Draw(t, "waiting"), MemoryPerConnection: 2000,
		}
		var mu sync.Mutex
		var s *scheduler
		ran, working, busy := 0, map[*lane]*[classes]int{}, [classes]int{}
		var problem string
		check := func(ok bool, what string) {
			if !ok && problem == "" {
				problem = what
			}
		}
		lanes := map[*task]*lane{}
		s = newScheduler(limits, func(k *task) {
			c, out := k.class, k.outCost
			mu.Lock()
			l := lanes[k]
			ran++
			working[l][c]++
			busy[c]++
			check(working[l][c] <= c.share(limits.InFlight), "InFlight exceeded")
			check(busy[c] <= c.share(limits.Workers), "share of the workers exceeded")
			mu.Unlock()
			s.mu.Lock()
			mu.Lock()
			check(l.out <= max(1000, out), "memory exceeded")
			waiting := 0
			for c := range l.queue {
				waiting += l.queue[c].len()
			}
			check(waiting <= limits.Waiting, "Waiting exceeded")
			mu.Unlock()
			s.mu.Unlock()
			mu.Lock()
			working[l][c]--
			busy[c]--
			mu.Unlock()
			s.finish(l, k)
			s.release(l, out)
			s.leave(c)
		})
		total := 0
		var all []*lane
		var queues [][]*task
		for range rapid.IntRange(1, 4).Draw(t, "connections") {
			l := s.newLane()
			all = append(all, l)
			working[l] = &[classes]int{}
			var tasks []*task
			for range rapid.IntRange(0, 60).Draw(t, "tasks") {
				k := &task{class: class(rapid.IntRange(0, int(classes)-1).Draw(t, "class")), argCost: rapid.IntRange(0, 300).Draw(t, "args"), outCost: rapid.IntRange(1, 1500).Draw(t, "out")}
				lanes[k] = l
				tasks = append(tasks, k)
			}
			total += len(tasks)
			queues = append(queues, tasks)
		}
		var wg sync.WaitGroup
		for i, l := range all {
			wg.Go(func() {
				for _, k := range queues[i] {
					if !s.submit(l, k) {
						s.awaitRoom(l)
					}
				}
				s.settle(l)
			})
		}
		wg.Wait()
		s.close()
		if problem != "" || ran != total {
			t.Fatalf("%s; ran %d of %d", problem, ran, total)
		}
		for _, l := range all {
			if l.args != 0 || l.out != 0 || !l.empty() {
				t.Fatalf("left over: %+v", l)
			}
		}
	})
}

func TestDecoder(t *testing.T) {
	d := decoder{b: nfstest.Enc{}.U32(5).Fixed([]byte("hello")).U64(7).U32(1)}
	want(t, "opaque", string(d.opaque(5)), "hello")
	want(t, "u64", d.u64(), 7)
	want(t, "bool", d.boolean(), true)
	want(t, "bad", d.bad, false)
	want(t, "beyond the end", d.u32(), 0)
	want(t, "bad", d.bad, true)
	for name, in := range map[string]nfstest.Enc{"longer than its bound": nfstest.Enc{}.Str("123456"), "longer than the record": nfstest.Enc{}.U32(5, 0), "4 GiB": nfstest.Enc{}.U32(1<<32 - 1)} {
		d := decoder{b: in}
		if d.opaque(5); !d.bad {
			t.Errorf("opaque data %s is accepted", name)
		}
	}
	d = decoder{b: []byte{0, 0, 0, 2}}
	if d.boolean(); !d.bad {
		t.Error("a bool of 2 is accepted")
	}
	d = decoder{b: []byte{0, 0, 0, 1, 'x'}} // no padding at the end of the record
	want(t, "opaque", string(d.opaque(5)), "x")
	want(t, "bad", d.bad, false)
}

func TestPutTimeClamps(t *testing.T) {
	for sec, want := range map[int64]uint32{-1: 0, 0: 0, 1 << 31: 1 << 31, 1 << 40: 1<<32 - 1} {
		d := nfstest.Dec{B: appendTime(nil, datastore.Time{Sec: sec, Nsec: 9})}
		if got := d.Time(); got != (nfstest.Time{Sec: want, Nsec: 9}) {
			t.Errorf("%d: %v", sec, got)
		}
	}
}

func TestAllowed(t *testing.T) {
	list := []netip.Prefix{netip.MustParsePrefix("192.0.2.0/24"), netip.MustParsePrefix("2001:db8::/32")}
	for addr, ok := range map[string]bool{"192.0.2.7": true, "192.0.3.7": false, "2001:db8::1": true, "::1": false} {
		want(t, addr, allowed(list, netip.MustParseAddr(addr)), ok)
	}
	want(t, "IPv4 in IPv6", allowed(list, clientAddr(tcpAddr("[::ffff:192.0.2.7]:700"))), true)
	want(t, "zone", clientAddr(tcpAddr("[fe80::1%eth0]:700")).String(), "fe80::1")
}

type tcpAddr string

func (a tcpAddr) Network() string { return "tcp" }
func (a tcpAddr) String() string  { return string(a) }

// What is answered from memory allocates nothing.
func TestNoAllocations(t *testing.T) {
	w := newWorld(t, ram{make([]byte, 1<<20)})
	n, err := w.tree.Walk(diskPath)
	must(t, err)
	_, err = n.Attr() // described once
	must(t, err)
	c := newConn(w.srv, sink{}, netip.MustParseAddr("127.0.0.1"), servesNFS)
	for name, x := range map[string]struct {
		proc uint32
		args nfstest.Enc
	}{
		"NULL":           {0, nil},
		"GETATTR":        {1, nfstest.Enc{}.Bytes(n.Handle())},
		"ACCESS":         {4, nfstest.Enc{}.Bytes(n.Handle()).U32(63)},
		"READ":           {6, nfstest.ReadArgs(n.Handle(), 4096, 4096)},
		"UNSTABLE WRITE": {7, nfstest.WriteArgs(n.Handle(), 4096, make([]byte, 4096), nfstest.Unstable)},
	} {
		c.batch = w.srv.buffers.get(middleBuffer)
		rec := nfstest.Message(1, nfstest.ProgNFS, 3, x.proc, nfstest.Cred{}, x.args)
		allocs := testing.AllocsPerRun(1000, func() {
			must(t, c.answer(rec))
			if len(c.batch.b) < replyOverhead {
				t.Fatalf("%s was not answered inline", name)
			}
			c.batch.b = c.batch.b[:0]
		})
		if allocs > 0 && !raceEnabled {
			t.Errorf("%s: %v allocations", name, allocs)
		}
	}
}

// sink is a connection that nobody listens to.
type sink struct{ net.Conn }

func (sink) RemoteAddr() net.Addr { return tcpAddr("127.0.0.1:1") }

func TestStats(t *testing.T) {
	w := newWorld(t, disktest.NewMemory(1<<20))
	c, dir, flat := w.mount()
	for range 10 {
		_, err := c.Read(flat, 0, 4096)
		must(t, err)
	}
	_, _, err := c.Lookup(dir, "nothing")
	wantStatus(t, "LOOKUP", err, nfstest.NoEnt)
	must(t, w.stop())
	got := map[string]ProcedureStats{}
	for _, st := range w.srv.Stats() {
		got[st.Program+"."+st.Procedure] = st
		var n uint64
		for _, k := range st.Latency {
			n += k
		}
		want(t, st.Procedure+" latencies", n, st.Ops)
	}
	want(t, "READs", got["NFS.READ"].Ops, 10)
	if got["NFS.READ"].BytesOut < 10*4096 || got["NFS.READ"].BytesIn == 0 {
		t.Errorf("bytes: %+v", got["NFS.READ"])
	}
	want(t, "LOOKUPs", got["NFS.LOOKUP"].Ops, 3)
	want(t, "failed LOOKUPs", got["NFS.LOOKUP"].Errors, 1)
	want(t, "MNTs", got["MOUNT.MNT"].Ops, 1)
	want(t, "first bound", LatencyBound(0), time.Microsecond)
}
