package nbd

import (
	"bufio"
	"errors"
	"io"
	"net"
	"sync"
	"syscall"
)

// Backend is the disk that a server serves. Its methods are called by several
// goroutines at once, never two with the same slot: a slot is a number below the
// number of buffers, and names the buffer that p lies in.
type Backend interface {
	// Read fills p from off. Both are multiples of 512, and inside the disk.
	Read(slot int, p []byte, off int64) error
	// Write is Read's counterpart.
	Write(slot int, p []byte, off int64) error
	// Flush makes durable what was written.
	Flush() error
	// Extents tells the allocation from off on: at least one run, all of them
	// together at most length bytes.
	Extents(off, length int64) ([]Extent, error)
}

// ServerOptions are what the server tells of its disk, and with what it works.
type ServerOptions struct {
	Size     int64 // bytes, a multiple of 512
	ReadOnly bool
	// Mapped says that Extents knows more than that all is data.
	Mapped bool
	// Buffers are what requests are done with, MaxRequest bytes each. There
	// are as many requests at work at once as buffers; further ones wait in
	// the socket.
	Buffers [][]byte
	// Gone, if set, is called when the other side has gone and Serve waits for
	// the requests that are still at work.
	Gone func()
}

// Server serves one disk on one connection.
//
// One goroutine receives; each request runs on a goroutine of its own while it
// holds a buffer. Lock: send, while a reply goes out.
type Server struct {
	conn    net.Conn
	in      *bufio.Reader
	backend Backend
	opts    ServerOptions
	free    chan int // slots
	meta    bool     // base:allocation was asked for
	chunks  bool     // structured replies were

	send sync.Mutex
	work sync.WaitGroup
}

// Serve serves the disk until the other side says goodbye or goes away, both of
// which are nil, or the connection fails. No request is at work in the backend
// any more when it returns. The connection is closed.
func Serve(conn net.Conn, backend Backend, opts ServerOptions) error {
	s := &Server{
		conn: conn, in: bufio.NewReaderSize(conn, 4096),
		backend: backend, opts: opts, free: make(chan int, len(opts.Buffers)),
	}
	for slot := range opts.Buffers {
		s.free <- slot
	}
	err := s.handshake()
	for err == nil {
		err = s.request()
	}
	conn.Close()
	if opts.Gone != nil {
		opts.Gone()
	}
	s.work.Wait()
	for _, gone := range []error{io.EOF, io.ErrUnexpectedEOF, net.ErrClosed, syscall.ECONNRESET, syscall.EPIPE} {
		if errors.Is(err, gone) {
			return nil
		}
	}
	return err
}

func (s *Server) flags() uint16 {
	flags := uint16(hasFlags | hasFlush)
	if s.opts.ReadOnly {
		flags |= hasReadOnly
	}
	return flags
}

// handshake haggles until transmission begins. io.EOF means that the client
// has ended it in peace.
func (s *Server) handshake() error {
	if _, err := s.conn.Write(be(nil).u64(magicServer).u64(magicOption).u16(flagFixedNewstyle | flagNoZeroes)); err != nil {
		return err
	}
	var b [16]byte
	if _, err := io.ReadFull(s.in, b[:4]); err != nil {
		return err
	}
	flags := get32(b[:])
	if flags&flagFixedNewstyle == 0 || flags&^(flagFixedNewstyle|flagNoZeroes) != 0 {
		return protocolError("client flags %#x", flags)
	}
	for range 64 { // nobody haggles for so long
		if _, err := io.ReadFull(s.in, b[:]); err != nil {
			return err
		}
		number, length := get32(b[8:]), get32(b[12:])
		if get64(b[:]) != magicOption || length > maxOption {
			return protocolError("an option that begins with %x", b)
		}
		data := make([]byte, length)
		if _, err := io.ReadFull(s.in, data); err != nil {
			return err
		}
		begin, err := s.option(number, data, flags&flagNoZeroes != 0)
		if begin || err != nil {
			return err
		}
	}
	return protocolError("no end of options")
}

// option answers one option and reports whether transmission begins.
func (s *Server) option(number uint32, data []byte, noZeroes bool) (begin bool, err error) {
	switch number {
	case optExportName:
		b := be(nil).u64(uint64(s.opts.Size)).u16(s.flags())
		if !noZeroes {
			b = append(b, make([]byte, 124)...)
		}
		_, err := s.conn.Write(b)
		return true, err
	case optAbort:
		_ = s.answer(number, repAck, nil) // it may have gone already
		return false, io.EOF
	case optStructuredReply:
		if len(data) > 0 {
			return false, s.answer(number, repInvalid, nil)
		}
		s.chunks = true
		return false, s.answer(number, repAck, nil)
	case optList:
		if err := s.answer(number, repServer, be(nil).str("")); err != nil {
			return false, err
		}
		return false, s.answer(number, repAck, nil)
	case optListMeta, optSetMeta:
		return false, s.metadata(number, data)
	case optInfo, optGo:
		return s.export(number, data)
	}
	return false, s.answer(number, repUnsup, nil)
}

func (s *Server) answer(option, kind uint32, data []byte) error {
	b := be(nil).u64(magicReply).u32(option).u32(kind).u32(uint32(len(data)))
	_, err := s.conn.Write(append(b, data...))
	return err
}

// cut takes a string with its length off the front of b.
func cut(b []byte) (value string, rest []byte, ok bool) {
	if len(b) < 4 || uint64(get32(b)) > uint64(len(b)-4) {
		return "", nil, false
	}
	n := 4 + get32(b)
	return string(b[4:n]), b[n:], true
}

// metadata answers a question for metadata contexts, of which there is one.
func (s *Server) metadata(number uint32, data []byte) error {
	_, rest, ok := cut(data) // whatever the export is called: there is only one
	if !ok || len(rest) < 4 || !s.chunks {
		return s.answer(number, repInvalid, nil)
	}
	count, rest := get32(rest), rest[4:]
	found := count == 0 && number == optListMeta
	for range count {
		var query string
		if query, rest, ok = cut(rest); !ok {
			return s.answer(number, repInvalid, nil)
		}
		found = found || query == allocation || query == "base:" && number == optListMeta
	}
	found = found && s.opts.Mapped
	if number == optSetMeta {
		s.meta = found
	}
	if found {
		if err := s.answer(number, repMeta, append(be(nil).u32(metaID), allocation...)); err != nil {
			return err
		}
	}
	return s.answer(number, repAck, nil)
}

// export describes the disk, and begins to serve it if the client says so.
func (s *Server) export(number uint32, data []byte) (begin bool, err error) {
	name, _, ok := cut(data)
	switch {
	case !ok:
		return false, s.answer(number, repInvalid, nil)
	case name != "":
		return false, s.answer(number, repUnknown, []byte("there is one disk, and its name is empty"))
	}
	sizes := be(nil).u16(infoBlockSize).u32(sector).u32(64 << 10).u32(MaxRequest)
	if err := s.answer(number, repInfo, sizes); err != nil {
		return false, err
	}
	if err := s.answer(number, repInfo, be(nil).u16(infoExport).u64(uint64(s.opts.Size)).u16(s.flags())); err != nil {
		return false, err
	}
	return number == optGo, s.answer(number, repAck, nil)
}
