//go:build linux && amd64

// Lifeboat-vddk serves one virtual disk, which it opens with VMware's
// libvixDiskLib, as NBD. Lifeboat starts it; package lifeboat/vddk/handover says
// how they talk. By hand it can be tried with any NBD client:
//
//	lifeboat-vddk --socket /run/disk.sock < request.json
//	qemu-img info nbd+unix:///?socket=/run/disk.sock
//
// It serves one connection, and ends with it.
package main

import (
	"encoding/json"
	"errors"
	"flag"
	"fmt"
	"io"
	"log/slog"
	"net"
	"os"
	"os/signal"
	"syscall"
	"time"

	"lifeboat/disk/nbd"
	"lifeboat/vddk/handover"
)

// goodbye bounds how long the library may take to close a disk when the other
// side has gone.
const goodbye = 50 * time.Second

func main() {
	// Ctrl-C on a terminal goes to all processes of a command; ours ends when
	// its socket does. Writing to a reader that died must not kill us before
	// the disk is closed.
	signal.Ignore(syscall.SIGINT, syscall.SIGHUP, syscall.SIGPIPE)
	// No core files: there is a password in this memory.
	_ = syscall.Setrlimit(syscall.RLIMIT_CORE, &syscall.Rlimit{})
	socket := flag.String("socket", "", "serve on this unix `path` instead of the socket that was inherited, and answer on standard output")
	flag.Parse()
	log := slog.New(slog.NewJSONHandler(os.Stderr, &slog.HandlerOptions{Level: slog.LevelDebug}))
	if err := run(os.Stdin, *socket, log); err != nil {
		log.Error("lifeboat-vddk failed", "error", err)
		os.Exit(1)
	}
}

// maxRequest bounds the request, bytes.
const maxRequest = 1 << 20

func run(in io.Reader, socket string, log *slog.Logger) error {
	var req handover.Request
	if err := json.NewDecoder(io.LimitReader(in, maxRequest)).Decode(&req); err != nil {
		return fmt.Errorf("the request on standard input: %w", err)
	}
	answer := os.Stdout
	if socket == "" {
		answer = os.NewFile(handover.Answer, "answer")
	}
	tell := func(s handover.Status) error {
		if err := json.NewEncoder(answer).Encode(s); err != nil {
			return fmt.Errorf("answer: %w", err)
		}
		return answer.Close()
	}
	refuse := func(err error) error { return errors.Join(err, tell(handover.Status{Failure: failure(err)})) }

	lib, err := loadLibrary(req.Library, log)
	if err != nil {
		return refuse(err)
	}
	if err := lib.start(req); err != nil {
		return refuse(err)
	}
	defer lib.do(func() { lib.exit() })
	switch req.Do {
	case handover.Probe:
		return tell(handover.Status{Modes: lib.modes()})
	case handover.Cleanup:
		status, err := lib.cleanUp(req)
		if err != nil {
			return refuse(err)
		}
		return tell(status)
	case handover.Serve:
	default:
		return refuse(fmt.Errorf("nothing that is called %q can be done", req.Do))
	}
	d, err := lib.openDisk(req)
	if err != nil {
		return refuse(err)
	}
	status := handover.Status{Modes: lib.modes(), Transport: d.transport, Size: d.size}
	return serve(d, socket, func() error { return tell(status) })
}

// failure is err as it goes to the other side.
func failure(err error) *handover.Failure {
	var f *handover.Failure
	if errors.As(err, &f) {
		return f
	}
	return &handover.Failure{Text: err.Error()}
}

// serve serves the disk until the other side goes, and closes it.
func serve(d *openDisk, socket string, ready func() error) error {
	conn, err := accept(socket, ready)
	if err == nil {
		stop := make(chan os.Signal, 1)
		signal.Notify(stop, syscall.SIGTERM)
		go func() {
			<-stop
			conn.Close()
		}()
		err = nbd.Serve(conn, d, nbd.ServerOptions{
			Size: d.size, ReadOnly: !d.write, Mapped: true, Buffers: d.buffers, Gone: d.watch,
		})
	}
	return errors.Join(err, d.close())
}

// watch ends the process if the library does not let go of the disk: one that
// hangs must not keep this process for ever.
func (d *openDisk) watch() {
	time.AfterFunc(goodbye, func() {
		d.log.Error("the library does not close the disk; giving up", "after", goodbye)
		os.Exit(1)
	})
}

// accept gets the connection: the one that was inherited, or the first on the
// path. ready is called when a client may talk.
func accept(socket string, ready func() error) (net.Conn, error) {
	if socket == "" {
		file := os.NewFile(handover.Socket, "socket")
		conn, err := net.FileConn(file)
		if err != nil {
			return nil, fmt.Errorf("descriptor %d is no socket: %w", handover.Socket, err)
		}
		return conn, errors.Join(file.Close(), ready())
	}
	l, err := net.Listen("unix", socket)
	if err != nil {
		return nil, err
	}
	defer l.Close()
	if err := ready(); err != nil {
		return nil, err
	}
	return l.Accept()
}

// cleanUp undoes what a process that died left at the VM.
func (l *library) cleanUp(req handover.Request) (handover.Status, error) {
	p, err := l.connectParams(req)
	if err != nil {
		return handover.Status{}, err
	}
	defer l.release(p)
	var cleaned, remaining uint32
	var ended, code uint64
	l.do(func() {
		identity := l.duplicate(req.Identity)
		ended = l.endAccess(p.at, identity)
		l.free(identity)
		code = l.cleanup(p.at, &cleaned, &remaining)
	})
	if err := l.failure("EndAccess", ended); err != nil {
		l.log.Warn("methods of the VM may stay disabled", "error", err)
	}
	if err := l.failure("Cleanup", code); err != nil {
		return handover.Status{}, err
	}
	return handover.Status{Remaining: int(remaining)}, nil
}
