package esxsim

import (
	"bufio"
	"encoding/binary"
	"errors"
	"fmt"
	"io"
	"net"
	"sync"
)

// nbdServer gives one virtual disk to a QEMU: the NBD protocol's fixed newstyle
// negotiation and simple replies (NetworkBlockDevice/nbd doc/proto.md), one
// export without a name, on a unix socket. So a machine's disk can be frozen,
// mirrored and switched here, whatever it stands on, and every write is seen.
type nbdServer struct {
	d      *vdisk
	ln     net.Listener
	failed func(error) // told of I/O that failed

	mu    sync.Mutex
	conns map[net.Conn]struct{}
	done  sync.WaitGroup
}

// Numbers of the protocol.
const (
	nbdOptionMagic  = 0x49484156454F5054 // "IHAVEOPT"
	nbdReplyMagic   = 0x3e889045565a9
	nbdRequestMagic = 0x25609513
	nbdSimpleMagic  = 0x67446698

	nbdExportName, nbdAbort, nbdInfo, nbdGo = 1, 2, 6, 7
	nbdAck, nbdInfoReply                    = 1, 3
	nbdUnsupported                          = 1<<31 | 1

	nbdRead, nbdWrite, nbdDisconnect, nbdFlush, nbdWriteZeroes = 0, 1, 2, 3, 6
	// flags of the export: has flags, flush, FUA, write zeroes
	nbdFlags = 1 | 1<<2 | 1<<3 | 1<<6
	nbdFUA   = 1 << 0

	nbdMaxLength  = 32 << 20
	nbdMaxOption  = 64 << 10
	nbdInFlight   = 16
	nbdErrIO      = 5
	nbdErrInvalid = 22
)

func serveNBD(socket string, d *vdisk, failed func(error)) (*nbdServer, error) {
	ln, err := net.Listen("unix", socket)
	if err != nil {
		return nil, err
	}
	s := &nbdServer{d: d, ln: ln, failed: failed, conns: map[net.Conn]struct{}{}}
	s.done.Add(1)
	go s.accept()
	return s, nil
}

// Close ends the export and waits for what is under way.
func (s *nbdServer) Close() error {
	err := s.ln.Close()
	s.mu.Lock()
	for c := range s.conns {
		_ = c.Close()
	}
	s.mu.Unlock()
	s.done.Wait()
	return err
}

func (s *nbdServer) accept() {
	defer s.done.Done()
	for {
		c, err := s.ln.Accept()
		if err != nil {
			return
		}
		s.mu.Lock()
		s.conns[c] = struct{}{}
		s.mu.Unlock()
		s.done.Add(1)
		go func() {
			defer s.done.Done()
			defer c.Close()
			_ = s.serve(c) // the peer is gone: nobody could be told
		}()
	}
}

func (s *nbdServer) serve(c net.Conn) error {
	r := bufio.NewReaderSize(c, 256<<10)
	if err := s.negotiate(r, c); err != nil {
		return err
	}
	return s.transmit(r, c)
}

func (s *nbdServer) negotiate(r io.Reader, w io.Writer) error {
	hello := append([]byte("NBDMAGIC"), binary.BigEndian.AppendUint64(nil, nbdOptionMagic)...)
	if _, err := w.Write(binary.BigEndian.AppendUint16(hello, 1|2)); err != nil { // fixed newstyle, no zeroes
		return err
	}
	var flags [4]byte
	if _, err := io.ReadFull(r, flags[:]); err != nil {
		return err
	}
	for {
		var head [16]byte
		if _, err := io.ReadFull(r, head[:]); err != nil {
			return err
		}
		option, n := binary.BigEndian.Uint32(head[8:]), binary.BigEndian.Uint32(head[12:])
		if binary.BigEndian.Uint64(head[:]) != nbdOptionMagic || n > nbdMaxOption {
			return errors.New("not an NBD option")
		}
		if _, err := io.CopyN(io.Discard, r, int64(n)); err != nil {
			return err
		}
		switch option {
		case nbdExportName:
			_, err := w.Write(s.export())
			return err
		case nbdGo, nbdInfo:
			info := append([]byte{0, 0}, s.export()...) // NBD_INFO_EXPORT
			if err := nbdReply(w, option, nbdInfoReply, info); err != nil {
				return err
			}
			if err := nbdReply(w, option, nbdAck, nil); err != nil || option == nbdGo {
				return err
			}
		case nbdAbort:
			_ = nbdReply(w, option, nbdAck, nil)
			return io.EOF
		default:
			if err := nbdReply(w, option, nbdUnsupported, nil); err != nil {
				return err
			}
		}
	}
}

func (s *nbdServer) export() []byte {
	return binary.BigEndian.AppendUint16(binary.BigEndian.AppendUint64(nil, uint64(s.d.size())), nbdFlags)
}

func nbdReply(w io.Writer, option, kind uint32, data []byte) error {
	b := binary.BigEndian.AppendUint64(nil, nbdReplyMagic)
	b = binary.BigEndian.AppendUint32(b, option)
	b = binary.BigEndian.AppendUint32(b, kind)
	b = binary.BigEndian.AppendUint32(b, uint32(len(data)))
	_, err := w.Write(append(b, data...))
	return err
}

type nbdRequest struct {
	flags, kind uint16
	cookie      uint64
	off         int64
	length      uint32
	data        []byte
}

// transmit serves requests, some at a time; their order is the peer's business.
func (s *nbdServer) transmit(r io.Reader, w io.Writer) error {
	var out sync.Mutex
	var busy sync.WaitGroup
	defer busy.Wait()
	slots := make(chan struct{}, nbdInFlight)
	for {
		q, err := readRequest(r)
		if err != nil || q.kind == nbdDisconnect {
			return err
		}
		slots <- struct{}{}
		busy.Add(1)
		go func() {
			defer func() { <-slots; busy.Done() }()
			reply := s.do(q)
			out.Lock()
			defer out.Unlock()
			_, _ = w.Write(reply) // if the peer has gone, so has its question
		}()
	}
}

func readRequest(r io.Reader) (nbdRequest, error) {
	var b [28]byte
	if _, err := io.ReadFull(r, b[:]); err != nil {
		return nbdRequest{}, err
	}
	q := nbdRequest{
		flags: binary.BigEndian.Uint16(b[4:]), kind: binary.BigEndian.Uint16(b[6:]), cookie: binary.BigEndian.Uint64(b[8:]),
		off: int64(binary.BigEndian.Uint64(b[16:])), length: binary.BigEndian.Uint32(b[24:]),
	}
	if binary.BigEndian.Uint32(b[:]) != nbdRequestMagic || q.length > nbdMaxLength && (q.kind == nbdRead || q.kind == nbdWrite) {
		return q, fmt.Errorf("not an NBD request, or one of %d bytes", q.length)
	}
	if q.kind == nbdWrite {
		q.data = make([]byte, q.length)
		_, err := io.ReadFull(r, q.data)
		return q, err
	}
	return q, nil
}

func (s *nbdServer) do(q nbdRequest) []byte {
	reply := make([]byte, 16, 16+len(q.data))
	binary.BigEndian.PutUint32(reply, nbdSimpleMagic)
	binary.BigEndian.PutUint64(reply[8:], q.cookie)
	var err error
	switch q.kind {
	case nbdRead:
		reply = append(reply, make([]byte, q.length)...)
		_, err = s.d.ReadAt(reply[16:], q.off)
	case nbdWrite:
		_, err = s.d.WriteAt(q.data, q.off)
	case nbdWriteZeroes:
		err = s.zero(q.off, int64(q.length))
	case nbdFlush:
		err = s.d.Sync()
	default:
		binary.BigEndian.PutUint32(reply[4:], nbdErrInvalid)
		return reply
	}
	if err == nil && q.flags&nbdFUA != 0 {
		err = s.d.Sync()
	}
	if err != nil {
		s.failed(err)
		binary.BigEndian.PutUint32(reply[4:], nbdErrIO)
		return reply[:16]
	}
	return reply
}

func (s *nbdServer) zero(off, n int64) error {
	zeros := make([]byte, min(n, 1<<20))
	for n > 0 {
		k := min(n, int64(len(zeros)))
		if _, err := s.d.WriteAt(zeros[:k], off); err != nil {
			return err
		}
		off, n = off+k, n-k
	}
	return nil
}
