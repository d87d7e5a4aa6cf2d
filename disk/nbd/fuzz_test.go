package nbd_test

import (
	"bytes"
	"context"
	"io"
	"net"
	"testing"
	"time"

	"lifeboat/disk/nbd"
)

// script is a connection on which the other side has said all that it will.
type script struct{ io.Reader }

func (script) Write(p []byte) (int, error)      { return len(p), nil }
func (script) Close() error                     { return nil }
func (script) LocalAddr() net.Addr              { return nil }
func (script) RemoteAddr() net.Addr             { return nil }
func (script) SetDeadline(time.Time) error      { return nil }
func (script) SetReadDeadline(time.Time) error  { return nil }
func (script) SetWriteDeadline(time.Time) error { return nil }

// recorded is what the two sides say to each other in a short conversation.
func recorded(f *testing.F) (client, server []byte) {
	near, far := net.Pipe()
	var c, s bytes.Buffer
	m := newMemory(4 << 20)
	served := make(chan error, 1)
	go func() { served <- nbd.Serve(tap{far, &s, &c}, m, options(m)) }()
	cl, err := nbd.Connect(context.Background(), near, nbd.ClientOptions{})
	if err != nil {
		f.Fatal(err)
	}
	p := make([]byte, 1024)
	if err := cl.Read(context.Background(), p, 512); err != nil {
		f.Fatal(err)
	}
	if _, err := cl.Extents(context.Background(), 0, 4<<20); err != nil {
		f.Fatal(err)
	}
	cl.Close()
	<-served
	return c.Bytes(), s.Bytes()
}

// tap keeps what goes through a connection.
type tap struct {
	net.Conn
	out, in *bytes.Buffer
}

func (t tap) Read(p []byte) (int, error) {
	n, err := t.Conn.Read(p)
	t.in.Write(p[:n])
	return n, err
}

func (t tap) Write(p []byte) (int, error) {
	t.out.Write(p)
	return t.Conn.Write(p)
}

func FuzzServer(f *testing.F) {
	client, _ := recorded(f)
	f.Add(client)
	m := newMemory(4 << 20)
	o := options(m)
	f.Fuzz(func(_ *testing.T, said []byte) {
		nbd.Serve(script{bytes.NewReader(said)}, m, o)
	})
}

func FuzzClient(f *testing.F) {
	_, server := recorded(f)
	f.Add(server)
	f.Fuzz(func(t *testing.T, said []byte) {
		c, err := nbd.Connect(t.Context(), script{bytes.NewReader(said)}, nbd.ClientOptions{})
		if err != nil {
			return
		}
		defer c.Close()
		p := make([]byte, 1024)
		c.Read(t.Context(), p[:min(len(p), int(c.Most()))], 512)
		if runs, err := c.Extents(t.Context(), 0, 4<<20); err == nil {
			var sum int64
			for _, r := range runs {
				if sum += r.Length; r.Length <= 0 || sum > 4<<20 {
					t.Errorf("extents %v", runs)
				}
			}
		}
	})
}
