package nbd

import (
	"errors"
	"io"
	"net"
)

// request is one request as it came.
type request struct {
	kind   uint16
	cookie uint64
	off    int64
	length uint32
	one    bool   // of a status, one run is enough
	refuse *Error // it is not carried out
}

// request takes one request and has it carried out. io.EOF is goodbye.
func (s *Server) request() error {
	var b [28]byte
	if _, err := io.ReadFull(s.in, b[:]); err != nil {
		return err // EOF between requests is as good as a goodbye
	}
	if get32(b[:]) != magicRequest {
		return protocolError("a request that begins with %08x", get32(b[:]))
	}
	r := request{kind: get16(b[6:]), cookie: get64(b[8:]), off: int64(get64(b[16:])), length: get32(b[24:])}
	if r.kind == cmdDisc {
		return io.EOF
	}
	if r.kind == cmdWrite && r.length > MaxRequest {
		return protocolError("a write of %d bytes", r.length) // its data cannot be passed over
	}
	flags := get16(b[4:])
	if r.kind == cmdStatus {
		r.one = flags&flagOne != 0
		flags &^= flagOne
	}
	r.refuse = s.check(r, flags)
	slot := <-s.free
	p := s.opts.Buffers[slot][:min(r.length, MaxRequest)]
	if r.kind == cmdWrite {
		if _, err := io.ReadFull(s.in, p); err != nil {
			s.free <- slot
			return err
		}
	}
	s.work.Go(func() {
		defer func() { s.free <- slot }()
		if err := s.carryOut(r, slot, p); err != nil {
			s.conn.Close() // which ends the receiver too
		}
	})
	return nil
}

// check says why a request cannot be carried out; nil if it can.
func (s *Server) check(r request, flags uint16) *Error {
	end := r.off + int64(r.length)
	switch {
	case r.kind == cmdFlush:
		return nil
	case flags != 0:
		return &Error{EINVAL, "no command has flags here"}
	case r.kind == cmdStatus && !s.meta:
		return &Error{EINVAL, "base:allocation was not agreed on"}
	case r.kind == cmdWrite && s.opts.ReadOnly:
		return &Error{EPERM, "the disk was opened for reading"}
	case r.kind != cmdRead && r.kind != cmdWrite && r.kind != cmdStatus:
		return &Error{ENOTSUP, "there is no such command here"}
	case r.length == 0 || r.off < 0 || end < r.off || end > s.opts.Size:
		return &Error{EINVAL, "outside the disk"}
	case r.off%sector != 0 || r.length%sector != 0:
		return &Error{EINVAL, "not whole sectors"}
	case r.kind == cmdRead && r.length > MaxRequest:
		return &Error{EOVERFLOW, "more than 1 MiB at once"}
	}
	return nil
}

// carryOut does one request and answers it.
func (s *Server) carryOut(r request, slot int, p []byte) error {
	if r.refuse != nil {
		return s.fail(r, r.refuse)
	}
	switch r.kind {
	case cmdRead:
		if err := s.backend.Read(slot, p, r.off); err != nil {
			return s.fail(r, err)
		}
		if !s.chunks {
			return s.reply(be(nil).u32(magicSimple).u32(0).u64(r.cookie), p)
		}
		return s.reply(s.chunk(r, chunkData, 8+len(p)).u64(uint64(r.off)), p)
	case cmdWrite:
		if err := s.backend.Write(slot, p, r.off); err != nil {
			return s.fail(r, err)
		}
	case cmdFlush:
		if err := s.backend.Flush(); err != nil {
			return s.fail(r, err)
		}
	case cmdStatus:
		return s.status(r)
	}
	return s.reply(be(nil).u32(magicSimple).u32(0).u64(r.cookie), nil)
}

func (s *Server) status(r request) error {
	extents, err := s.backend.Extents(r.off, int64(r.length))
	if err != nil {
		return s.fail(r, err)
	}
	most := (maxPayload - 4) / 8
	if r.one {
		most = 1
	}
	runs := be(nil).u32(metaID)
	for _, e := range extents[:min(len(extents), most)] {
		var state uint32
		if e.Hole {
			state = stateHole | stateZero
		}
		runs = runs.u32(uint32(e.Length)).u32(state)
	}
	return s.reply(s.chunk(r, chunkStatus, len(runs)), runs)
}

// fail answers with what went wrong.
func (s *Server) fail(r request, err error) error {
	var known *Error
	if !errors.As(err, &known) {
		known = &Error{Code: EIO, Message: err.Error()}
	}
	if !s.chunks {
		return s.reply(be(nil).u32(magicSimple).u32(known.Code).u64(r.cookie), nil)
	}
	text := err.Error()
	text = text[:min(len(text), 1024)]
	return s.reply(append(s.chunk(r, chunkError, 6+len(text)).u32(known.Code).u16(uint16(len(text))), text...), nil)
}

// chunk is the head of a reply of one chunk with length bytes after it.
func (s *Server) chunk(r request, kind uint16, length int) be {
	return be(nil).u32(magicChunk).u16(chunkDone).u16(kind).u64(r.cookie).u32(uint32(length))
}

func (s *Server) reply(head be, data []byte) error {
	message := net.Buffers{head}
	if len(data) > 0 {
		message = append(message, data)
	}
	s.send.Lock()
	defer s.send.Unlock()
	_, err := message.WriteTo(s.conn)
	return err
}
