package esxsim

import "fmt"

// Lose is an accident: a VM's machine stops and the VM is deleted with its
// files, whatever state it is in, with nobody asked.
func (s *Sim) Lose(name string) error {
	s.mu.Lock()
	v := s.vmByName(name)
	busy := v != nil && v.busy != nil
	s.mu.Unlock()
	switch {
	case v == nil:
		return fmt.Errorf("esxsim: there is no VM %q", name)
	case busy:
		return fmt.Errorf("esxsim: a task of VM %q is running", name)
	}
	s.powerOff(v)
	s.mu.Lock()
	defer s.mu.Unlock()
	s.leave(v)
	if f := s.removeFiles(v); f != nil {
		return fmt.Errorf("esxsim: deleting VM %q: %s", name, describe(f))
	}
	return nil
}
