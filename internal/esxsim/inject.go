package esxsim

import (
	"fmt"
	"maps"
	"reflect"
	"sync"
	"time"

	"github.com/vmware/govmomi/vim25/types"
)

// injector counts calls, and makes them slow or fail.
type injector struct {
	mu     sync.Mutex
	counts map[string]int
	faults map[string][]*injection // by method: before it does anything
	tasks  map[string][]*injection // by method: inside its task
	delays map[string]time.Duration
}

type injection struct {
	left  int // < 0: for ever
	late  bool
	fault types.BaseMethodFault
}

func newInjector() *injector {
	return &injector{
		counts: map[string]int{}, faults: map[string][]*injection{},
		tasks: map[string][]*injection{}, delays: map[string]time.Duration{},
	}
}

// Fail makes the next calls of a method ("CreateSnapshot_Task") fail before
// they do anything; times < 0: all. fault is a types.BaseMethodFault, or the
// name of one ("NotAuthenticated"), or nil for SystemError.
func (s *Sim) Fail(method string, times int, fault any) {
	s.calls.add(s.calls.faults, method, &injection{left: times, fault: faultOf(fault)})
}

// FailTask makes the tasks of a method fail before they have any effect.
func (s *Sim) FailTask(method string, times int, fault any) {
	s.calls.add(s.calls.tasks, method, &injection{left: times, fault: faultOf(fault)})
}

// FailTaskLate makes the tasks of a method fail after they had their effect.
func (s *Sim) FailTaskLate(method string, times int, fault any) {
	s.calls.add(s.calls.tasks, method, &injection{left: times, late: true, fault: faultOf(fault)})
}

// Delay makes every call of a method slow; 0 ends it.
func (s *Sim) Delay(method string, d time.Duration) {
	s.calls.mu.Lock()
	defer s.calls.mu.Unlock()
	s.calls.delays[method] = d
}

// ClearFaults ends what Fail, FailTask and Delay began.
func (s *Sim) ClearFaults() {
	s.calls.mu.Lock()
	defer s.calls.mu.Unlock()
	clear(s.calls.faults)
	clear(s.calls.tasks)
	clear(s.calls.delays)
}

// Calls is how often each method was called.
func (s *Sim) Calls() map[string]int {
	s.calls.mu.Lock()
	defer s.calls.mu.Unlock()
	return maps.Clone(s.calls.counts)
}

func (j *injector) add(to map[string][]*injection, method string, i *injection) {
	j.mu.Lock()
	defer j.mu.Unlock()
	to[method] = append(to[method], i)
}

// take is the fault that a call or task of a method gets now, if any.
func (j *injector) take(from map[string][]*injection, method string, late bool) types.BaseMethodFault {
	j.mu.Lock()
	defer j.mu.Unlock()
	for _, i := range from[method] {
		if i.left == 0 || i.late != late {
			continue
		}
		i.left--
		return i.fault
	}
	return nil
}

// count notes a call and tells how slow it is to be.
func (j *injector) count(method string) time.Duration {
	j.mu.Lock()
	defer j.mu.Unlock()
	j.counts[method]++
	return j.delays[method]
}

// faultOf is the fault that a test names. A name that does not exist is the
// test's error, and nothing can go on.
func faultOf(f any) types.BaseMethodFault {
	switch f := f.(type) {
	case nil:
		return &types.SystemError{Reason: "injected"}
	case types.BaseMethodFault:
		return f
	case string:
		if kind, ok := types.TypeFunc()(f); ok {
			if fault, ok := reflect.New(kind).Interface().(types.BaseMethodFault); ok {
				return fault
			}
		}
	}
	panic(fmt.Sprintf("esxsim: %v names no fault", f))
}
