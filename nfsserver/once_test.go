package nfsserver

import (
	"bytes"
	"fmt"
	"os"
	"path/filepath"
	"sync"
	"testing"

	"lifeboat/disk/disktest"
	"lifeboat/nfsserver/nfstest"
)

// A retransmitted REMOVE answers what the first did, also on a new connection;
// another request with the same xid is another request.
func TestRetransmission(t *testing.T) {
	w := newWorld(t, disktest.NewMemory(1<<20))
	c, dir, _ := w.mount()
	for i := range uint32(100) {
		name := fmt.Sprintf("f%d", i)
		first, err := c.GoXID(1000+i, nfstest.ProgNFS, 3, 8, nfstest.CreateArgs(dir, name, 1, nfstest.SetAttr{})).Made()
		must(t, err)
		other := w.dial()
		again, err := other.GoXID(1000+i, nfstest.ProgNFS, 3, 8, nfstest.CreateArgs(dir, name, 1, nfstest.SetAttr{})).Made()
		must(t, err)
		want(t, "the same answer", string(again.Handle), string(first.Handle))
		_, err = other.GoXID(2000+i, nfstest.ProgNFS, 3, 8, nfstest.CreateArgs(dir, name, 1, nfstest.SetAttr{})).Made()
		wantStatus(t, "another xid", err, nfstest.Exist)
		_, err = other.GoXID(1000+i, nfstest.ProgNFS, 3, 8, nfstest.CreateArgs(dir, name, 1, nfstest.SetAttr{Mode: nfstest.Ptr[uint32](0o600)})).Made()
		wantStatus(t, "other arguments", err, nfstest.Exist)
		must(t, other.Close())
	}
	args := nfstest.Enc{}.Bytes(dir).Str("f0")
	for range 3 {
		_, st, err := c.GoXID(7, nfstest.ProgNFS, 3, 12, args).Status()
		must(t, err)
		want(t, "REMOVE", st, 0)
	}
	_, st, err := c.GoXID(8, nfstest.ProgNFS, 3, 12, args).Status()
	must(t, err)
	want(t, "REMOVE again", st, nfstest.NoEnt)
	_, st, err = c.GoXID(7, nfstest.ProgNFS, 3, 13, args).Status()
	must(t, err)
	want(t, "another procedure", st, nfstest.NoEnt)
}

// A failure is kept as well: the name may exist by the time of the repetition.
func TestRetransmittedFailure(t *testing.T) {
	w := newWorld(t, disktest.NewMemory(1<<20))
	c, dir, _ := w.mount()
	args := nfstest.Enc{}.Bytes(dir).Str("f")
	_, st, err := c.GoXID(1, nfstest.ProgNFS, 3, 12, args).Status()
	must(t, err)
	want(t, "REMOVE of nothing", st, nfstest.NoEnt)
	_, err = c.Create(dir, "f", nfstest.SetAttr{})
	must(t, err)
	_, st, err = c.GoXID(1, nfstest.ProgNFS, 3, 12, args).Status()
	must(t, err)
	want(t, "repeated", st, nfstest.NoEnt)
	_, _, err = c.Lookup(dir, "f")
	must(t, err)
}

func TestReplyCache(t *testing.T) {
	rc := newReplyCache()
	key := func(i int) replyKey { return replyKey{xid: uint32(i)} }
	reply := &buffer{}
	want(t, "new", rc.begin(key(0), &task{}, reply), firstSeen)
	twins := []*task{{}, {}}
	want(t, "twin", rc.begin(key(0), twins[0], reply), underWay)
	want(t, "twin", rc.begin(key(0), twins[1], reply), underWay)
	want(t, "one too many", rc.begin(key(0), &task{}, reply), superseded)
	got := rc.end(key(0), []byte("reply"), true)
	want(t, "waiting twins", len(got), 2)
	want(t, "later", rc.begin(key(0), &task{}, reply), answered)
	want(t, "the reply", string(reply.b), "reply")

	want(t, "new", rc.begin(key(1), &task{}, reply), firstSeen)
	rc.end(key(1), []byte("jukebox"), false)
	want(t, "forgotten", rc.begin(key(1), &task{}, reply), firstSeen)
	rc.end(key(1), bytes.Repeat([]byte{1}, cachedReplyBytes+1), true)
	want(t, "too long to keep", rc.begin(key(1), &task{}, reply), firstSeen)

	for i := 2; i < 3*cachedReplies; i++ {
		rc.begin(key(i), &task{}, reply)
		rc.end(key(i), []byte("x"), true)
	}
	if n := len(rc.entries); n > cachedReplies+1 {
		t.Fatalf("%d entries are kept", n)
	}
	want(t, "under way is never dropped", rc.begin(key(1), &task{}, reply), underWay)
	want(t, "the oldest is", rc.begin(key(0), &task{}, reply), firstSeen)
}

// Two clients race for a lock file: one wins, each time.
func TestExclusiveRace(t *testing.T) {
	w := newWorld(t, disktest.NewMemory(1<<20))
	_, dir, _ := w.mount()
	clients := []*nfstest.Client{w.dial(), w.dial(), w.dial()}
	for round := range 50 {
		var wg sync.WaitGroup
		wins := make([]bool, len(clients))
		for i, c := range clients {
			wg.Go(func() {
				_, err := c.CreateExclusive(dir, fmt.Sprintf(".lck-%d", round), [8]byte{byte(i + 1), byte(round)})
				wins[i] = err == nil
			})
		}
		wg.Wait()
		n := 0
		for _, won := range wins {
			if won {
				n++
			}
		}
		want(t, "winners", n, 1)
	}
}

// A restarted server knows the handles of the old one, has a new verifier, and
// asks clients to wait while a session is not attached.
func TestRestart(t *testing.T) {
	mem := disktest.NewMemory(1 << 20)
	w := newWorld(t, mem)
	c, dir, flat := w.mount()
	f, err := c.Create(dir, "f", nfstest.SetAttr{})
	must(t, err)
	first, err := c.Write(flat, 0, []byte("before"), nfstest.Unstable)
	must(t, err)
	second, err := c.Write(f.Handle, 0, []byte("file"), nfstest.FileSync)
	must(t, err)
	want(t, "one verifier for all", first.Verifier, second.Verifier)
	before, err := c.Getattr(flat)
	must(t, err)
	must(t, w.stop())
	within(t, "the old connection", func() { <-c.Closed() })

	w.start()
	c = w.dial()
	after, err := c.Getattr(flat)
	must(t, err)
	want(t, "fileid", after.FileID, before.FileID)
	want(t, "fsid", after.FSID, before.FSID)
	r, err := c.Read(flat, 0, 6)
	must(t, err)
	want(t, "content", string(r.Data), "before")
	r, err = c.Read(f.Handle, 0, 10)
	must(t, err)
	want(t, "content", string(r.Data), "file")
	third, err := c.Write(flat, 0, []byte("x"), nfstest.Unstable)
	must(t, err)
	if third.Verifier == first.Verifier {
		t.Fatal("the write verifier is the same after a restart: lost UNSTABLE writes would go unnoticed")
	}
	must(t, w.tree.Detach("s1"))
	_, err = c.Getattr(flat)
	wantStatus(t, "a detached session", err, nfstest.Jukebox)
	_, err = c.Mount(ExportPath + "/s1")
	want(t, "MNT of it", fmt.Sprint(err), nfstest.MountNoEnt.Error())
	must(t, os.RemoveAll(filepath.Join(w.root, "s1")))
	_, err = c.Getattr(flat)
	wantStatus(t, "a removed session", err, nfstest.Stale)
}
