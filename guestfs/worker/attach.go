package worker

import (
	"context"
	"os"
	"sync"

	"lifeboat/guestfs"
)

// volumes are the file systems that a server answers for.
type volumes interface {
	FS(volume int) (guestfs.FS, error)
}

// single is one file system that is open already.
type single struct{ fsys guestfs.FS }

func (s single) FS(int) (guestfs.FS, error) { return s.fsys, nil }

// ServeFS answers on a line, for one file system, what a session asks; the other
// side has called [Attach]. It is for a server that somebody else has started and
// confined: in a virtual machine. It returns when the line ends.
func ServeFS(line *os.File, fsys guestfs.FS) error {
	s := &server{control: &conn{file: line}, guest: single{fsys}, calls: map[uint32]context.CancelFunc{}}
	return s.loop(context.Background())
}

// Attach asks who answers on a line, in the way of [ServeFS], about its one file
// system, whose root and description are known. The session has no disks: all
// content comes through the line. It is not started again when it fails. Close
// closes the line.
func Attach(line *os.File, root guestfs.Inode, info guestfs.Info, opts Options) (*Session, guestfs.FS) {
	opts.Restarts = -1
	opts = opts.withDefaults()
	p := &process{child: &child{control: &conn{file: line}}, opts: opts, gone: make(chan struct{}), ended: make(chan struct{}), pending: map[uint32]*pendingCall{}}
	var running sync.WaitGroup
	running.Go(func() {
		p.receive()
		p.fail(&FailureError{Reason: "it ended"})
	})
	running.Go(p.watch)
	go func() {
		running.Wait()
		close(p.gone)
	}()
	s := &Session{opts: opts, current: p, starts: 1, roots: []uint64{uint64(root)}}
	return s, &remoteFS{s: s, info: info}
}

// kill ends the child, if it is one of ours.
func (c *child) kill() {
	if c.cmd != nil {
		// It may be dead already. It has nothing that it could have to put in order.
		_ = c.cmd.Process.Kill()
	}
}
