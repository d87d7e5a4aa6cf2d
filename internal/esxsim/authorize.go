package esxsim

import (
	"github.com/vmware/govmomi/simulator"
	"github.com/vmware/govmomi/vim25/types"
)

type denial struct{ user, privilege, entity string }

type authorizationCalls struct{ base }

func (s *Sim) mayNot(ctx *simulator.Context, m *simulator.Method) types.BaseMethodFault { return nil }
