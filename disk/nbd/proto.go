// Package nbd is the part of the NBD protocol in which Lifeboat and its helper
// processes give each other disks over a unix socket: newstyle handshake,
// structured replies, base:allocation. Both sides are strict and keep to the
// specification, so that either can be checked against QEMU's.
//
// Source: https://github.com/NetworkBlockDevice/nbd/blob/master/doc/proto.md.
// Numbers are big-endian. There is no TLS: the socket never leaves the machine.
package nbd

import (
	"encoding/binary"
	"errors"
	"fmt"
)

// MaxRequest is the longest read or write that either side takes, bytes.
const MaxRequest = 1 << 20

// sector is the unit in which requests are made, bytes.
const sector = 512

// maxStatus is the longest range that allocation is asked for at once. The
// protocol has 32 bits for it; a reply of 8 bytes for each 64 KiB of it stays
// below maxPayload.
const maxStatus = 4<<30 - 64<<10

// maxPayload is the longest chunk of a reply that is not data, bytes.
const maxPayload = 1 << 20

const (
	magicServer  = 0x4e42444d41474943 // "NBDMAGIC"
	magicOption  = 0x49484156454f5054 // "IHAVEOPT"
	magicReply   = 0x0003e889045565a9
	magicRequest = 0x25609513
	magicSimple  = 0x67446698
	magicChunk   = 0x668e33ef
)

// Handshake.
const (
	flagFixedNewstyle = 1 << 0
	flagNoZeroes      = 1 << 1

	optExportName      = 1
	optAbort           = 2
	optList            = 3
	optInfo            = 6
	optGo              = 7
	optStructuredReply = 8
	optListMeta        = 9
	optSetMeta         = 10

	repAck     = 1
	repServer  = 2
	repInfo    = 3
	repMeta    = 4
	repError   = 1 << 31
	repUnsup   = repError + 1
	repInvalid = repError + 3
	repUnknown = repError + 6
	repTooBig  = repError + 9

	infoExport    = 0
	infoBlockSize = 3

	maxOption = 4096 // bytes of one option's data, either way
)

// Transmission.
const (
	hasFlags    = 1 << 0
	hasReadOnly = 1 << 1
	hasFlush    = 1 << 2

	flagOne = 1 << 3 // of cmdStatus

	cmdRead   = 0
	cmdWrite  = 1
	cmdDisc   = 2
	cmdFlush  = 3
	cmdStatus = 7

	chunkNone        = 0
	chunkData        = 1
	chunkHole        = 2
	chunkStatus      = 5
	chunkError       = 1<<15 + 1
	chunkErrorOffset = 1<<15 + 2

	chunkDone = 1 << 0

	stateHole = 1 << 0
	stateZero = 1 << 1

	allocation = "base:allocation"
	metaID     = 1 // what our server calls it
)

// Errors as the protocol numbers them.
const (
	EPERM     = 1
	EIO       = 5
	ENOMEM    = 12
	EINVAL    = 22
	ENOSPC    = 28
	EOVERFLOW = 75
	ENOTSUP   = 95
	ESHUTDOWN = 108
)

// Error is a request that the server refused or could not carry out.
type Error struct {
	Code    uint32 // EIO, …
	Message string // the server's own words; "" = none
}

func (e *Error) Error() string {
	if e.Message == "" {
		return fmt.Sprintf("NBD error %d", e.Code)
	}
	return e.Message
}

// Errors of the connection. They arrive wrapped; use errors.Is.
var (
	// ErrProtocol: the other side does not keep to the protocol.
	ErrProtocol = errors.New("not NBD as it is written")
	// ErrTimeout: a request was not answered in time.
	ErrTimeout = errors.New("no answer in time")
	// ErrLost: the connection ended with requests in flight, or before them.
	ErrLost = errors.New("the NBD connection ended")
)

func protocolError(format string, args ...any) error {
	return fmt.Errorf("%w: %s", ErrProtocol, fmt.Sprintf(format, args...))
}

// Extent is a run of the disk that holds data, or reads as zeros and holds
// nothing.
type Extent struct {
	Length int64 // bytes, > 0
	Hole   bool
}

// be collects big-endian fields of a message.
type be []byte

func (b be) u16(v uint16) be { return binary.BigEndian.AppendUint16(b, v) }
func (b be) u32(v uint32) be { return binary.BigEndian.AppendUint32(b, v) }
func (b be) u64(v uint64) be { return binary.BigEndian.AppendUint64(b, v) }
func (b be) str(s string) be { return append(b.u32(uint32(len(s))), s...) }

func get16(b []byte) uint16 { return binary.BigEndian.Uint16(b) }
func get32(b []byte) uint32 { return binary.BigEndian.Uint32(b) }
func get64(b []byte) uint64 { return binary.BigEndian.Uint64(b) }
