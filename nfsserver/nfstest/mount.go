package nfstest

import (
	"fmt"
	"net"
)

// MountStatus is a mountstat3 other than MNT3_OK, as an error.
type MountStatus uint32

// The statuses that tests ask for (RFC 1813 §5.1.5).
const (
	MountNoEnt       MountStatus = 2
	MountAcces       MountStatus = 13
	MountNotDir      MountStatus = 20
	MountInval       MountStatus = 22
	MountNameTooLong MountStatus = 63
)

func (s MountStatus) Error() string { return fmt.Sprintf("mountstat3 %d", uint32(s)) }

// Mount is MNT.
func (c *Client) Mount(path string) (Handle, error) {
	h, _, err := c.MountFlavors(path)
	return h, err
}

// MountFlavors is MNT with the authentication flavours that it offers.
func (c *Client) MountFlavors(path string) (h Handle, flavors []uint32, err error) {
	d, err := c.Call(ProgMount, VersMount, 1, Enc{}.Str(path))
	if err != nil {
		return nil, nil, err
	}
	if st := d.U32(); st != 0 {
		if err := d.End(); err != nil {
			return nil, nil, err
		}
		return nil, nil, MountStatus(st)
	}
	h = d.Opaque()
	for range d.U32() {
		flavors = append(flavors, d.U32())
		if d.bad {
			break
		}
	}
	return h, flavors, d.End()
}

// Umount is UMNT.
func (c *Client) Umount(path string) error { return c.void(3, Enc{}.Str(path)) }

// UmountAll is UMNTALL.
func (c *Client) UmountAll() error { return c.void(4, nil) }

func (c *Client) void(proc uint32, args Enc) error {
	d, err := c.Call(ProgMount, VersMount, proc, args)
	if err != nil {
		return err
	}
	return d.End()
}

// Mounts is DUMP: pairs of client and path.
func (c *Client) Mounts() (list [][2]string, err error) {
	d, err := c.Call(ProgMount, VersMount, 2, nil)
	if err != nil {
		return nil, err
	}
	for d.Bool() {
		list = append(list, [2]string{d.Str(), d.Str()})
	}
	return list, d.End()
}

// Exports is EXPORT: each path with its groups.
func (c *Client) Exports() (map[string][]string, error) {
	d, err := c.Call(ProgMount, VersMount, 5, nil)
	if err != nil {
		return nil, err
	}
	exports := map[string][]string{}
	for d.Bool() {
		path := d.Str()
		exports[path] = nil
		for d.Bool() {
			exports[path] = append(exports[path], d.Str())
		}
	}
	return exports, d.End()
}

// Mapping is an entry of the portmapper; Proto is 6 (TCP) or 17 (UDP).
type Mapping struct{ Prog, Vers, Proto, Port uint32 }

// Getport asks a portmapper.
func (c *Client) Getport(prog, vers, proto uint32) (uint32, error) {
	d, err := c.Call(ProgPortmap, VersPortmap, 3, Enc{}.U32(prog, vers, proto, 0))
	if err != nil {
		return 0, err
	}
	port := d.U32()
	return port, d.End()
}

// Portmaps is the portmapper's DUMP.
func (c *Client) Portmaps() (list []Mapping, err error) {
	d, err := c.Call(ProgPortmap, VersPortmap, 4, nil)
	if err != nil {
		return nil, err
	}
	for d.Bool() {
		list = append(list, Mapping{d.U32(), d.U32(), d.U32(), d.U32()})
	}
	return list, d.End()
}

// Packet sends one RPC message as a datagram and waits for the answer.
func Packet(conn net.Conn, msg []byte) ([]byte, error) {
	if _, err := conn.Write(msg); err != nil {
		return nil, err
	}
	buf := make([]byte, 64<<10)
	n, err := conn.Read(buf)
	return buf[:n], err
}
