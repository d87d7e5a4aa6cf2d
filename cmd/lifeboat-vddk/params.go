//go:build linux && amd64

package main

import (
	"encoding/binary"
	"errors"

	"lifeboat/vddk/handover"
)

// Where the members of VixDiskLibConnectParams lie (amd64, vixDiskLib.h of 6.7
// to 8.0), bytes. The library allocates the structure, so that members which
// were added at its end are there and zero.
const (
	paramsVMX        = 0
	paramsServer     = 8
	paramsThumbprint = 16
	paramsCredType   = 32
	paramsUser       = 40
	paramsPassword   = 48
	paramsPort       = 64
	paramsLength     = 128

	credUserPassword = 1
)

// Where the capacity, in sectors, lies in VixDiskLibInfo.
const infoCapacity = 24

// params are connection parameters in the library's memory.
type params struct {
	at      uintptr
	strings []uintptr
}

// connectParams makes the parameters of a connection.
func (l *library) connectParams(req handover.Request) (*params, error) {
	p := &params{}
	var failed bool
	l.do(func() {
		if p.at = l.allocateParams(); p.at == 0 {
			failed = true
			return
		}
		b := memory(p.at, paramsLength)
		for at, value := range map[int]string{
			paramsVMX: req.VM, paramsServer: req.Server, paramsThumbprint: req.Thumbprint,
			paramsUser: req.User, paramsPassword: req.Password,
		} {
			s := l.duplicate(value)
			failed = failed || s == 0 && value != ""
			p.strings = append(p.strings, s)
			binary.LittleEndian.PutUint64(b[at:], uint64(s))
		}
		binary.LittleEndian.PutUint32(b[paramsCredType:], credUserPassword)
		binary.LittleEndian.PutUint32(b[paramsPort:], req.Port)
	})
	if failed {
		return nil, errors.New("no memory for the connection's parameters")
	}
	return p, nil
}

// release gives the memory back. The strings are ours: the library must not
// free what it did not allocate, so it does not get to see them.
func (l *library) release(p *params) {
	l.do(func() {
		b := memory(p.at, paramsLength)
		for _, at := range []int{paramsVMX, paramsServer, paramsThumbprint, paramsUser, paramsPassword} {
			binary.LittleEndian.PutUint64(b[at:], 0)
		}
		l.freeParams(p.at)
		for _, s := range p.strings {
			if s != 0 {
				l.free(s)
			}
		}
	})
}
