//go:build linux && amd64

package main

import (
	"context"
	"fmt"
	"log/slog"
	"runtime"
	"strings"
	"unsafe"

	"github.com/ebitengine/purego"

	"lifeboat/vddk/handover"
)

// apiMajor and apiMinor are the version of the interface that is asked for.
// Every library from 6.7 on has it, and later ones still take the number.
const (
	apiMajor = 6
	apiMinor = 5
)

const sector = 512

// Flags of VixDiskLib_Open.
const (
	openUnbuffered = 1
	openReadOnly   = 4
)

// functions are those of VMware's library that are used. Types as C has them
// on amd64: VixError is 64 bits, Bool is a char, handles are pointers.
type functions struct {
	initEx         func(major, minor uint32, log, warn, panics uintptr, dir, config *byte) uint64
	exit           func()
	errorText      func(code uint64, locale *byte) uintptr
	freeErrorText  func(text uintptr)
	listModes      func() uintptr
	allocateParams func() uintptr
	freeParams     func(params uintptr)
	prepare        func(params uintptr, identity uintptr) uint64
	endAccess      func(params uintptr, identity uintptr) uint64
	cleanup        func(params uintptr, cleaned, remaining *uint32) uint64
	connectEx      func(params uintptr, readOnly int8, snapshot, modes uintptr, connection *uintptr) uint64
	disconnect     func(connection uintptr) uint64
	open           func(connection uintptr, path uintptr, flags uint32, handle *uintptr) uint64
	closeDisk      func(handle uintptr) uint64
	info           func(handle uintptr, info *uintptr) uint64
	freeInfo       func(info uintptr)
	transport      func(handle uintptr) uintptr
	readAsync      func(handle uintptr, start, count uint64, buf, callback, data uintptr) uint64
	writeAsync     func(handle uintptr, start, count uint64, buf, callback, data uintptr) uint64
	flush          func(handle uintptr) uint64
	wait           func(handle uintptr) uint64
	allocated      func(handle uintptr, start, count, chunk uint64, list *uintptr) uint64
	freeBlocks     func(list uintptr) uint64

	// of the C library, which VMware's brings along
	malloc    func(size uint64) uintptr
	memalign  func(memory *uintptr, alignment, size uint64) int32
	free      func(memory uintptr)
	vsnprintf func(buf *byte, size uint64, format, args uintptr) int32
}

// library is VMware's library in this process.
//
// It wants to be initialised once, and opened and closed on the same thread;
// and no two calls on one handle may run at once. Therefore every call is made
// on one thread, by [library.do]; only callbacks come on others.
type library struct {
	functions
	calls chan func()
	log   *slog.Logger
}

// loadLibrary loads the file and resolves what is used of it. The thread that
// it makes lives as long as the process.
func loadLibrary(path string, log *slog.Logger) (*library, error) {
	l := &library{calls: make(chan func()), log: log}
	go func() {
		runtime.LockOSThread()
		for call := range l.calls {
			call()
		}
	}()
	var err error
	l.do(func() { err = l.resolve(path) })
	return l, err
}

// do runs call on the library's thread.
func (l *library) do(call func()) {
	done := make(chan struct{})
	l.calls <- func() {
		defer close(done)
		call()
	}
	<-done
}

func (l *library) resolve(path string) error {
	handle, err := purego.Dlopen(path, purego.RTLD_NOW|purego.RTLD_GLOBAL)
	if err != nil {
		return fmt.Errorf("load %s: %w", path, err)
	}
	needed := map[string]any{
		"VixDiskLib_InitEx": &l.initEx, "VixDiskLib_Exit": &l.exit,
		"VixDiskLib_GetErrorText": &l.errorText, "VixDiskLib_FreeErrorText": &l.freeErrorText,
		"VixDiskLib_ListTransportModes":    &l.listModes,
		"VixDiskLib_AllocateConnectParams": &l.allocateParams, "VixDiskLib_FreeConnectParams": &l.freeParams,
		"VixDiskLib_PrepareForAccess": &l.prepare, "VixDiskLib_EndAccess": &l.endAccess,
		"VixDiskLib_Cleanup":   &l.cleanup,
		"VixDiskLib_ConnectEx": &l.connectEx, "VixDiskLib_Disconnect": &l.disconnect,
		"VixDiskLib_Open": &l.open, "VixDiskLib_Close": &l.closeDisk,
		"VixDiskLib_GetInfo": &l.info, "VixDiskLib_FreeInfo": &l.freeInfo,
		"VixDiskLib_GetTransportMode": &l.transport,
		"VixDiskLib_ReadAsync":        &l.readAsync, "VixDiskLib_WriteAsync": &l.writeAsync,
		"VixDiskLib_Flush": &l.flush, "VixDiskLib_Wait": &l.wait,
		"VixDiskLib_QueryAllocatedBlocks": &l.allocated, "VixDiskLib_FreeBlockList": &l.freeBlocks,
	}
	for name, function := range needed {
		at, err := purego.Dlsym(handle, name)
		if err != nil {
			return fmt.Errorf("%s has no %s: version 6.7 or later is needed: %w", path, name, err)
		}
		purego.RegisterFunc(function, at)
	}
	for name, function := range map[string]any{
		"malloc": &l.malloc, "posix_memalign": &l.memalign, "free": &l.free, "vsnprintf": &l.vsnprintf,
	} {
		at, err := purego.Dlsym(purego.RTLD_DEFAULT, name)
		if err != nil {
			return fmt.Errorf("the C library has no %s: %w", name, err)
		}
		purego.RegisterFunc(function, at)
	}
	return nil
}

// start initialises the library. The callbacks for its log must not be NULL.
func (l *library) start(req handover.Request) error {
	var dir, config *byte
	if req.Dir != "" {
		dir = cString(req.Dir)
	}
	if req.Config != "" {
		config = cString(req.Config)
	}
	var code uint64
	l.do(func() {
		code = l.initEx(apiMajor, apiMinor,
			l.logger(slog.LevelDebug), l.logger(slog.LevelWarn), l.logger(slog.LevelError), dir, config)
	})
	return l.failure("InitEx", code)
}

// logger is a callback for the library's log. It comes on any thread, with
// printf's format and a va_list, which C has to put together.
func (l *library) logger(level slog.Level) uintptr {
	return purego.NewCallback(func(format, args uintptr) {
		if !l.log.Enabled(context.Background(), level) {
			return
		}
		var line [2048]byte
		n := l.vsnprintf(&line[0], uint64(len(line)), format, args)
		text := line[:max(0, min(int(n), len(line)-1))]
		l.log.Log(context.Background(), level, strings.TrimSpace(string(text)), "from", "libvixDiskLib")
	})
}

// failure makes an error of an error code. It is called off the library's
// thread.
func (l *library) failure(stage string, code uint64) error {
	if code == 0 {
		return nil
	}
	f := &handover.Failure{Stage: stage, Code: uint16(code)}
	l.do(func() {
		if text := l.errorText(code, nil); text != 0 {
			f.Text = goString(text)
			l.freeErrorText(text)
		}
	})
	return f
}

// modes are the transport modes that the library has.
func (l *library) modes() []string {
	var list string
	l.do(func() { list = goString(l.listModes()) })
	return strings.FieldsFunc(list, func(r rune) bool { return r == ':' })
}

// cString is a string for the time of a call. Go's memory does not move, and
// the library copies what it keeps of the two strings that InitEx takes.
func cString(s string) *byte {
	b := append([]byte(s), 0)
	return &b[0]
}

// duplicate puts a string into C's memory; "" is NULL.
func (l *library) duplicate(s string) uintptr {
	if s == "" {
		return 0
	}
	at := l.malloc(uint64(len(s)) + 1)
	if at == 0 {
		return 0
	}
	b := memory(at, len(s)+1)
	copy(b, s)
	b[len(s)] = 0
	return at
}

// memory is C's memory as a slice. The address comes from C and is no Go
// pointer, which vet cannot know from a plain conversion.
func memory(at uintptr, n int) []byte {
	return unsafe.Slice(*(**byte)(unsafe.Pointer(&at)), n)
}

// maxString bounds strings that come from the library.
const maxString = 4096

func goString(at uintptr) string {
	if at == 0 {
		return ""
	}
	for n := range maxString {
		if memory(at, n+1)[n] == 0 {
			return string(memory(at, n))
		}
	}
	return string(memory(at, maxString))
}

// address is where a slice of C's memory lies.
func address(b []byte) uintptr { return uintptr(unsafe.Pointer(unsafe.SliceData(b))) }
