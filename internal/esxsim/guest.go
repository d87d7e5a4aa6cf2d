package esxsim

import "net/http"

const guestFilePath = "/guestFile"

type guestState struct{}

type guestCalls struct{ base }

func (s *Sim) serveGuestFile(w http.ResponseWriter, r *http.Request) { http.NotFound(w, r) }
