package esxsim

import "net/http"

const leasePath = "/nfc/"

type lease struct{}

type leaseCalls struct{ base }

func (s *Sim) serveLease(w http.ResponseWriter, r *http.Request) { http.NotFound(w, r) }

func (s *Sim) serveScreen(w http.ResponseWriter, r *http.Request) { http.NotFound(w, r) }
