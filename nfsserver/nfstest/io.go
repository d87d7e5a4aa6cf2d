package nfstest

// Stable says how durable a WRITE must be: stable_how.
type Stable uint32

// The values of stable_how.
const (
	Unstable Stable = 0
	DataSync Stable = 1
	FileSync Stable = 2
)

// ReadArgs encodes a READ.
func ReadArgs(h Handle, off uint64, count uint32) Enc { return Enc{}.Bytes(h).U64(off).U32(count) }

// WriteArgs encodes a WRITE.
func WriteArgs(h Handle, off uint64, p []byte, how Stable) Enc {
	return Enc{}.Bytes(h).U64(off).U32(uint32(len(p)), uint32(how)).Bytes(p)
}

// ReadResult is the result of READ.
type ReadResult struct {
	Attr *Attr
	Data []byte
	EOF  bool
}

// Read is READ.
func (c *Client) Read(h Handle, off uint64, count uint32) (ReadResult, error) {
	return c.GoRead(h, off, count).ReadResult()
}

// GoRead starts a READ.
func (c *Client) GoRead(h Handle, off uint64, count uint32) *Call {
	return c.Go(ProgNFS, VersNFS, 6, ReadArgs(h, off, count))
}

// ReadResult waits for a READ.
func (c *Call) ReadResult() (r ReadResult, err error) {
	d, st, err := c.Status()
	if err == nil {
		if r.Attr = d.PostOp(); st == 0 {
			n := d.U32()
			r.EOF, r.Data = d.Bool(), d.Opaque()
			d.bad = d.bad || int(n) != len(r.Data)
		}
	}
	return r, finish(d, st, err)
}

// WriteResult is the result of WRITE.
type WriteResult struct {
	WCC       WCC
	Count     uint32
	Committed Stable
	Verifier  [8]byte
}

// Write is WRITE.
func (c *Client) Write(h Handle, off uint64, p []byte, how Stable) (WriteResult, error) {
	return c.GoWrite(h, off, p, how).WriteResult()
}

// GoWrite starts a WRITE.
func (c *Client) GoWrite(h Handle, off uint64, p []byte, how Stable) *Call {
	return c.Go(ProgNFS, VersNFS, 7, WriteArgs(h, off, p, how))
}

// WriteResult waits for a WRITE.
func (c *Call) WriteResult() (r WriteResult, err error) {
	d, st, err := c.Status()
	if err == nil {
		if r.WCC = d.WCC(); st == 0 {
			r.Count, r.Committed = d.U32(), Stable(d.U32())
			copy(r.Verifier[:], d.take(8))
		}
	}
	return r, finish(d, st, err)
}

// Commit is COMMIT of the whole file.
func (c *Client) Commit(h Handle) (verifier [8]byte, w WCC, err error) {
	d, st, err := c.NFS(21, Enc{}.Bytes(h).U64(0).U32(0))
	if err == nil {
		if w = d.WCC(); st == 0 {
			copy(verifier[:], d.take(8))
		}
	}
	return verifier, w, finish(d, st, err)
}
