package main

import (
	"bufio"
	"bytes"
	"context"
	"encoding/binary"
	"errors"
	"fmt"
	"io"
	"net"
	"os"
	"strconv"
	"sync"
	"time"

	"lifeboat/disk"
	"lifeboat/store"
)

// As much of NBD (the protocol document of the NBD project) as two programs need
// that read one disk: the fixed newstyle handshake with EXPORT_NAME, READ and
// DISC, simple replies.
const (
	nbdMagic       = 0x4e42444d41474943 // "NBDMAGIC"
	nbdOption      = 0x49484156454f5054 // "IHAVEOPT"
	nbdFlags       = 3                  // fixed newstyle, no zeroes
	nbdExportName  = 1
	nbdRequest     = 0x25609513
	nbdReply       = 0x67446698
	nbdRead        = 0
	nbdDisconnect  = 2
	nbdRequestSize = 28
	nbdReplySize   = 16
	nbdMaxRead     = 4 << 20
)

// nbdConn is a client's connection.
type nbdConn struct {
	conn net.Conn
	in   *bufio.Reader
	size int64
}

func dialNBD(ctx context.Context, socket string) (_ *nbdConn, err error) {
	conn, err := (&net.Dialer{}).DialContext(ctx, "unix", socket)
	if err != nil {
		return nil, err
	}
	defer func() {
		if err != nil {
			conn.Close()
		}
	}()
	c := &nbdConn{conn: conn, in: bufio.NewReaderSize(conn, 1<<20)}
	var hello struct {
		Magic, Option uint64
		Flags         uint16
	}
	if err := binary.Read(c.in, binary.BigEndian, &hello); err != nil {
		return nil, err
	}
	if hello.Magic != nbdMagic || hello.Option != nbdOption {
		return nil, errors.New("not an NBD server of this century")
	}
	out := binary.BigEndian.AppendUint32(nil, nbdFlags)
	out = binary.BigEndian.AppendUint64(out, nbdOption)
	out = binary.BigEndian.AppendUint32(out, nbdExportName)
	out = binary.BigEndian.AppendUint32(out, 0)
	if _, err := conn.Write(out); err != nil {
		return nil, err
	}
	var export struct {
		Size  int64
		Flags uint16
	}
	if err := binary.Read(c.in, binary.BigEndian, &export); err != nil {
		return nil, err
	}
	c.size = export.Size
	return c, nil
}

func (c *nbdConn) close() error {
	_, err := c.conn.Write(request(nil, nbdDisconnect, 0, 0, 0))
	return errors.Join(err, c.conn.Close())
}

func request(b []byte, kind uint16, slot uint64, off int64, length int) []byte {
	b = binary.BigEndian.AppendUint32(b, nbdRequest)
	b = binary.BigEndian.AppendUint16(b, 0)
	b = binary.BigEndian.AppendUint16(b, kind)
	b = binary.BigEndian.AppendUint64(b, slot)
	b = binary.BigEndian.AppendUint64(b, uint64(off))
	return binary.BigEndian.AppendUint32(b, uint32(length))
}

// reads keeps depth reads under way for some time; next gives their offsets.
// It returns how many were answered.
func (c *nbdConn) reads(ctx context.Context, size, depth int, d time.Duration, next func() int64) (int64, error) {
	if err := c.conn.SetDeadline(time.Now().Add(d + time.Minute)); err != nil {
		return 0, err
	}
	var batch []byte
	for i := range depth {
		batch = request(batch, nbdRead, uint64(i), next(), size)
	}
	if _, err := c.conn.Write(batch); err != nil {
		return 0, err
	}
	end := time.Now().Add(d)
	var done int64
	reply := make([]byte, nbdReplySize+size)
	batch = batch[:0]
	for flying := depth; flying > 0; done++ {
		if _, err := io.ReadFull(c.in, reply[:nbdReplySize]); err != nil {
			return done, err
		}
		if binary.BigEndian.Uint32(reply) != nbdReply || binary.BigEndian.Uint32(reply[4:]) != 0 {
			return done, fmt.Errorf("NBD error %d", binary.BigEndian.Uint32(reply[4:])) // no data follows
		}
		if _, err := io.ReadFull(c.in, reply[nbdReplySize:]); err != nil {
			return done, err
		}
		if time.Now().Before(end) && ctx.Err() == nil {
			batch = request(batch, nbdRead, binary.BigEndian.Uint64(reply[8:]), next(), size)
		} else {
			flying--
		}
		if c.in.Buffered() < len(reply) && len(batch) > 0 {
			if _, err := c.conn.Write(batch); err != nil {
				return done, err
			}
			batch = batch[:0]
		}
	}
	return done, ctx.Err()
}

// serveStore is our store in qemu-nbd's place: the first disk of the latest
// point of VM "system" behind the same protocol, one system call for each
// reply as there. args: socket, cache size in bytes, profile or "".
func serveStore(ctx context.Context, args []string, stdout io.Writer) error {
	cache, err := strconv.ParseInt(args[1], 10, 64)
	if err != nil {
		return err
	}
	repo, err := openRepo(ctx, store.Options{CacheBytes: cache})
	if err != nil {
		return err
	}
	defer repo.Close()
	img, err := openSystem(ctx, repo)
	if err != nil {
		return err
	}
	defer img.Close()
	ln, err := net.Listen("unix", args[0])
	if err != nil {
		return err
	}
	context.AfterFunc(ctx, func() { ln.Close() })
	fmt.Fprintln(stdout, "ready")
	return profiled(args[2], func() error {
		for {
			conn, err := ln.Accept()
			if err != nil {
				return nil //nolint:nilerr // closed: the measurement is over
			}
			if err := serveNBD(conn, img); err != nil && !errors.Is(err, io.EOF) {
				return err
			}
		}
	})
}

// openSystem opens the system image in its repository.
func openSystem(ctx context.Context, repo *store.Repository) (*store.Image, error) {
	points, err := repo.Points(ctx)
	if err != nil {
		return nil, err
	}
	if len(points) == 0 {
		return nil, errors.New("the repository is empty")
	}
	return repo.OpenDisk(ctx, points[len(points)-1], 0)
}

// nbdWorkers answer what is not in memory.
const nbdWorkers = 8

// serveNBD serves one connection to its end.
func serveNBD(conn net.Conn, img disk.Image) error {
	defer conn.Close()
	in := bufio.NewReaderSize(conn, 64<<10)
	if err := greet(conn, in, img.Size()); err != nil {
		return err
	}
	type job struct {
		slot uint64
		off  int64
		size int
	}
	var (
		writing sync.Mutex
		group   sync.WaitGroup
		jobs    = make(chan job, 256)
	)
	for range nbdWorkers {
		group.Go(func() {
			buf := make([]byte, nbdReplySize+nbdMaxRead)
			for j := range jobs {
				clear(buf[:nbdReplySize])
				binary.BigEndian.PutUint32(buf, nbdReply)
				binary.BigEndian.PutUint64(buf[8:], j.slot)
				out := buf[:nbdReplySize+j.size]
				if n, err := img.ReadAt(out[nbdReplySize:], j.off); n < j.size {
					fmt.Fprintln(os.Stderr, "bench NBD server:", err)
					binary.BigEndian.PutUint32(buf[4:], 5) // EIO
					out = buf[:nbdReplySize]
				}
				writing.Lock()
				_, _ = conn.Write(out)
				writing.Unlock()
			}
		})
	}
	defer group.Wait()
	defer close(jobs)
	var req [nbdRequestSize]byte
	for {
		if _, err := io.ReadFull(in, req[:]); err != nil {
			return err
		}
		size := int(binary.BigEndian.Uint32(req[24:]))
		if binary.BigEndian.Uint32(req[:]) != nbdRequest || binary.BigEndian.Uint16(req[6:]) != nbdRead || size > nbdMaxRead {
			return io.EOF
		}
		jobs <- job{binary.BigEndian.Uint64(req[8:]), int64(binary.BigEndian.Uint64(req[16:])), size}
	}
}

func greet(conn net.Conn, in *bufio.Reader, size int64) error {
	var out bytes.Buffer
	hello := []any{uint64(nbdMagic), uint64(nbdOption), uint16(nbdFlags)}
	for _, v := range hello {
		if err := binary.Write(&out, binary.BigEndian, v); err != nil {
			return err
		}
	}
	if _, err := conn.Write(out.Bytes()); err != nil {
		return err
	}
	var opt struct {
		Flags  uint32
		Magic  uint64
		Option uint32
		Length uint32
	}
	if err := binary.Read(in, binary.BigEndian, &opt); err != nil {
		return err
	}
	if opt.Magic != nbdOption || opt.Option != nbdExportName || opt.Length != 0 {
		return errors.New("an NBD client that is not ours")
	}
	answer := binary.BigEndian.AppendUint64(nil, uint64(size))
	_, err := conn.Write(binary.BigEndian.AppendUint16(answer, 1|2)) // has flags, read-only
	return err
}
