package esxsim

import (
	"context"
	"crypto/rand"
	"errors"
	"fmt"
	"log/slog"
	"net/url"
	"os"
	"path/filepath"
	"sync"
	"sync/atomic"

	"github.com/vmware/govmomi/simulator"
	"github.com/vmware/govmomi/vim25/types"
)

// Sim is one simulated vSphere. Its methods are safe for concurrent use.
type Sim struct {
	opts Options
	log  *slog.Logger

	svc      *simulator.Service
	reg      *simulator.Registry
	front    *front
	calls    *injector
	sessions *sessionBook
	watched  watchBook
	ctx      context.Context // ends with Close: tasks, heartbeats, machines
	stop     context.CancelCauseFunc
	sockets  string         // directory of the disks' sockets: a short name
	running  sync.WaitGroup // tasks and heartbeats

	taskNumber atomic.Int64
	moveDelay  atomic.Int64 // nanoseconds before each mebibyte of a relocation
	moveFails  atomic.Int64 // percent at which one fails; < 0: never

	mu         sync.Mutex
	dc         types.ManagedObjectReference
	vmFolder   types.ManagedObjectReference
	cluster    *simulator.ClusterComputeResource // nil when stand-alone
	pool       types.ManagedObjectReference
	hosts      []*host
	datastores map[types.ManagedObjectReference]*datastore
	vms        map[types.ManagedObjectReference]*vm
	layers     map[string]*layer // by descriptor, all that were ever opened and still exist
	snapshots  map[types.ManagedObjectReference]*snapshot
	tasks      map[types.ManagedObjectReference]*task
	leases     map[types.ManagedObjectReference]*lease
	tickets    map[string]bool
	denied     []denial
	corrupt    *corruption
	nextMAC    int
}

var errClosed = errors.New("esxsim: the simulation was closed")

// Start builds the inventory and serves the API. ctx governs its life as Close
// does.
func Start(ctx context.Context, opts Options) (*Sim, error) {
	opts, err := opts.withDefaults()
	if err != nil {
		return nil, err
	}
	if err := os.MkdirAll(opts.Dir, 0o755); err != nil {
		return nil, fmt.Errorf("esxsim: making the scratch directory: %w", err)
	}
	if opts.Dir, err = filepath.Abs(opts.Dir); err != nil {
		return nil, fmt.Errorf("esxsim: %w", err)
	}
	s := &Sim{
		opts: opts, log: opts.Logger, calls: newInjector(), sessions: newSessionBook(),
		datastores: map[types.ManagedObjectReference]*datastore{},
		vms:        map[types.ManagedObjectReference]*vm{},
		layers:     map[string]*layer{},
		snapshots:  map[types.ManagedObjectReference]*snapshot{},
		tasks:      map[types.ManagedObjectReference]*task{},
		leases:     map[types.ManagedObjectReference]*lease{},
		tickets:    map[string]bool{},
	}
	// The name of a unix socket has 108 bytes, and a test's directory may have more.
	if s.sockets, err = os.MkdirTemp("", "esxsim-"); err != nil {
		return nil, fmt.Errorf("esxsim: %w", err)
	}
	s.moveFails.Store(-1)
	s.ctx, s.stop = context.WithCancelCause(ctx)
	if err := s.build(); err != nil {
		s.Close()
		return nil, fmt.Errorf("esxsim: %w", err)
	}
	return s, nil
}

func (s *Sim) build() error {
	if err := s.buildInventory(); err != nil {
		return fmt.Errorf("building the inventory: %w", err)
	}
	if err := s.serve(); err != nil {
		return fmt.Errorf("serving the API: %w", err)
	}
	for _, spec := range s.opts.VMs {
		if err := s.addVM(spec); err != nil {
			return fmt.Errorf("making the VM %q: %w", spec.Name, err)
		}
	}
	return s.attachTags()
}

// Close ends the API, every task and every virtual machine. Files stay.
func (s *Sim) Close() {
	s.stop(errClosed)
	if s.front != nil {
		s.front.close()
	}
	s.running.Wait()
	s.closeMachines()
	_ = os.RemoveAll(s.sockets)
}

// URL is the API's address with user and password, as GOVC_URL takes it.
func (s *Sim) URL() *url.URL {
	return &url.URL{Scheme: "https", Host: s.front.addr, Path: "/sdk", User: url.UserPassword(s.opts.Username, s.opts.Password)}
}

// Username and Password log in.
func (s *Sim) Username() string { return s.opts.Username }

// Password goes with Username.
func (s *Sim) Password() string { return s.opts.Password }

// InstanceUUID identifies the vCenter; of a stand-alone host it is the
// hardware's UUID.
func (s *Sim) InstanceUUID() string {
	if s.opts.Standalone {
		return s.hosts[0].obj.Hardware.SystemInfo.Uuid
	}
	return s.opts.InstanceUUID
}

// DatastoreDir is where the files of a VMFS datastore are on this machine; ""
// when there is no such datastore.
func (s *Sim) DatastoreDir(name string) string {
	s.mu.Lock()
	defer s.mu.Unlock()
	for _, d := range s.datastores {
		if l, ok := d.vol.(localVolume); ok && d.name == name {
			return l.dir
		}
	}
	return ""
}

// background is a context for the registry that shares no lock with another.
func (s *Sim) background() *simulator.Context {
	return &simulator.Context{Context: context.Background(), Map: s.reg, Session: s.svc.Context.Session}
}

// randomUUID is a version 4 UUID.
func randomUUID() string {
	var b [16]byte
	_, _ = rand.Read(b[:]) // never fails
	b[6], b[8] = b[6]&0x0f|0x40, b[8]&0x3f|0x80
	return fmt.Sprintf("%x-%x-%x-%x-%x", b[:4], b[4:6], b[6:8], b[8:10], b[10:])
}

func randomToken() string { return rand.Text() }
