package nbd

import (
	"bytes"
	"fmt"
)

// reply takes one simple reply or one chunk of a structured one. An error ends
// the connection.
func (c *Client) reply() error {
	var head [20]byte
	if err := c.full(head[:16]); err != nil {
		return err
	}
	switch get32(head[:]) {
	case magicSimple:
		return c.simple(get64(head[8:]), get32(head[4:]))
	case magicChunk:
		if err := c.full(head[16:]); err != nil {
			return err
		}
		return c.chunk(get64(head[8:]), get16(head[4:]), get16(head[6:]), get32(head[16:]))
	}
	return protocolError("a reply that begins with %08x", get32(head[:]))
}

// simple is a reply to anything but a read: structured replies were agreed on.
func (c *Client) simple(cookie uint64, code uint32) error {
	k, err := c.find(cookie)
	if err != nil {
		return err
	}
	if code != 0 {
		k.err = &Error{Code: code}
	} else if k.kind == cmdRead || k.kind == cmdStatus {
		return protocolError("a simple reply to %s", kindName(k.kind))
	}
	c.finish(cookie, k)
	return nil
}

// chunk takes one chunk. Of a read, data and holes have to come in order and
// without gaps, as every server that we know sends them.
func (c *Client) chunk(cookie uint64, flags, kind uint16, length uint32) error {
	k, err := c.find(cookie)
	if err != nil {
		return err
	}
	switch {
	case kind == chunkNone && length == 0:
	case kind == chunkData && k.kind == cmdRead && length > 8:
		err = c.data(k, int64(length)-8)
	case kind == chunkHole && k.kind == cmdRead && length == 12:
		err = c.hole(k)
	case kind == chunkStatus && k.kind == cmdStatus && length >= 12 && length <= maxPayload && length%8 == 4:
		err = c.status(k, int(length))
	case kind&(1<<15) != 0 && length >= 6 && length <= maxOption+16:
		err = c.failure(k, int(length))
	default:
		err = protocolError("a chunk of type %d with %d bytes in answer to %s", kind, length, kindName(k.kind))
	}
	if err != nil || flags&chunkDone == 0 {
		return err
	}
	if k.err == nil && k.kind == cmdRead && k.filled < len(k.buf) {
		return protocolError("%d bytes of %d in answer to a read", k.filled, len(k.buf))
	}
	if k.err == nil && k.kind == cmdStatus && len(k.extents) == 0 {
		return protocolError("no extents in answer to a question for them")
	}
	c.finish(cookie, k)
	return nil
}

// place checks that n bytes at the offset that comes next are what a read
// waits for, and returns their memory.
func (c *Client) place(k *call, off, n int64) ([]byte, error) {
	if off != k.off+int64(k.filled) || n <= 0 || n > int64(len(k.buf)-k.filled) {
		return nil, protocolError("%d bytes at %d, where the read of %d at %d has come to %d", n, off, len(k.buf), k.off, k.filled)
	}
	p := k.buf[k.filled : k.filled+int(n)]
	k.filled += int(n)
	return p, nil
}

func (c *Client) data(k *call, n int64) error {
	var off [8]byte
	if err := c.full(off[:]); err != nil {
		return err
	}
	p, err := c.place(k, int64(get64(off[:])), n)
	if err != nil {
		return err
	}
	return c.full(p)
}

func (c *Client) hole(k *call) error {
	var b [12]byte
	if err := c.full(b[:]); err != nil {
		return err
	}
	p, err := c.place(k, int64(get64(b[:])), int64(get32(b[8:])))
	clear(p)
	return err
}

// status takes runs of allocation. The last may reach beyond what was asked
// about, as the protocol allows; it is cut.
func (c *Client) status(k *call, length int) error {
	b := make([]byte, length)
	if err := c.full(b); err != nil {
		return err
	}
	if k.extents != nil {
		return protocolError("the allocation twice in one answer")
	}
	if id := get32(b); id != c.meta {
		return protocolError("the state of metadata %d, which was not asked for", id)
	}
	left := int64(k.length)
	for b = b[4:]; len(b) > 0 && left > 0; b = b[8:] {
		n, state := int64(get32(b)), get32(b[4:])
		if n == 0 || n%c.block != 0 {
			return protocolError("a run of %d bytes", n)
		}
		n = min(n, left)
		left -= n
		hole := state&stateZero != 0
		if last := len(k.extents) - 1; last >= 0 && k.extents[last].Hole == hole {
			k.extents[last].Length += n
			continue
		}
		k.extents = append(k.extents, Extent{Length: n, Hole: hole})
	}
	return nil
}

func (c *Client) failure(k *call, length int) error {
	b := make([]byte, length)
	if err := c.full(b); err != nil {
		return err
	}
	code, n := get32(b), int(get16(b[4:]))
	if code == 0 || n > length-6 {
		return protocolError("an error of number %d with a message of %d bytes in %d", code, n, length)
	}
	if k.err == nil {
		k.err = &Error{Code: code, Message: printable(b[6 : 6+n])}
	}
	return nil
}

// printable is a message of the other side, safe to show.
func printable(b []byte) string {
	return string(bytes.ToValidUTF8(bytes.Map(func(r rune) rune {
		if r < ' ' || r == 0x7f {
			return ' '
		}
		return r
	}, b), []byte("?")))
}

// shake is the client's half of the handshake.
func (c *Client) shake(export string) error {
	var b [18]byte
	if err := c.full(b[:]); err != nil {
		return err
	}
	flags := get16(b[16:])
	if get64(b[:]) != magicServer || get64(b[8:]) != magicOption || flags&flagFixedNewstyle == 0 {
		return protocolError("the other side begins with %x", b)
	}
	if _, err := c.conn.Write(be(nil).u32(uint32(flags & (flagFixedNewstyle | flagNoZeroes)))); err != nil {
		return err
	}
	if err := c.option(optStructuredReply, nil, nil); err != nil {
		return fmt.Errorf("structured replies: %w", err)
	}
	query := be(nil).str(export).u32(1).str(allocation)
	err := c.option(optSetMeta, query, func(kind uint32, data []byte) error {
		if kind != repMeta || len(data) < 4 || string(data[4:]) != allocation {
			return protocolError("metadata context %q", printable(data))
		}
		c.meta, c.mapped = get32(data), true
		return nil
	})
	if err != nil {
		return fmt.Errorf("metadata contexts: %w", err)
	}
	c.size = -1
	ask := be(nil).str(export).u16(1).u16(infoBlockSize)
	if err := c.option(optGo, ask, c.info); err != nil {
		return fmt.Errorf("export %q: %w", export, err)
	}
	if c.size < 0 {
		return protocolError("no size of the export was told")
	}
	return nil
}

// option sends one option and takes its replies up to the acknowledgement.
func (c *Client) option(number uint32, data []byte, info func(kind uint32, data []byte) error) error {
	head := be(nil).u64(magicOption).u32(number).u32(uint32(len(data)))
	if _, err := c.conn.Write(append(head, data...)); err != nil {
		return err
	}
	for range 32 { // no option has so many replies
		var b [20]byte
		if err := c.full(b[:]); err != nil {
			return err
		}
		kind, length := get32(b[12:]), get32(b[16:])
		if get64(b[:]) != magicReply || get32(b[8:]) != number || length > maxOption {
			return protocolError("a reply of %x to option %d", b, number)
		}
		payload := make([]byte, length)
		if err := c.full(payload); err != nil {
			return err
		}
		switch {
		case kind == repAck:
			return nil
		case kind&repError != 0:
			return &Error{Code: kind, Message: fmt.Sprintf("the server refuses option %d (%#x) %s", number, kind, printable(payload))}
		case info == nil:
			return protocolError("a reply of type %d to option %d", kind, number)
		}
		if err := info(kind, payload); err != nil {
			return err
		}
	}
	return protocolError("no end of replies to option %d", number)
}

// info takes what the server tells about the export.
func (c *Client) info(kind uint32, b []byte) error {
	if kind != repInfo || len(b) < 2 {
		return protocolError("a reply of type %d with %d bytes about the export", kind, len(b))
	}
	switch get16(b) {
	case infoExport:
		if len(b) != 12 || get64(b[2:]) > 1<<62 {
			return protocolError("an export described by %x", b)
		}
		c.size, c.flags = int64(get64(b[2:])), get16(b[10:])
	case infoBlockSize:
		if len(b) != 14 {
			return protocolError("block sizes of %d bytes", len(b))
		}
		least, most := int64(get32(b[2:])), int64(get32(b[10:]))
		if least == 0 || least&(least-1) != 0 || least > 64<<10 || most < least {
			return protocolError("block sizes of %d to %d bytes", least, most)
		}
		c.block, c.most = least, min(MaxRequest, most/least*least)
	}
	return nil
}
