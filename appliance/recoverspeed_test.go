package appliance

import (
	"fmt"
	"os"
	"testing"
	"time"

	"lifeboat/internal/esxsim"
)

// TestRecoverIsFast recovers one VM, and five (with LIFEBOAT_FIGURES set: twenty) at once, and leaves out of the
// time what the simulated vSphere took for itself. The limits are the product's:
// 1 s for one and 5 s for twenty until the guest's first instruction.
func TestRecoverIsFast(t *testing.T) {
	many := 5
	if os.Getenv("LIFEBOAT_FIGURES") != "" {
		many = 20
	}
	var specs []esxsim.VMSpec
	var names []string
	for n := range many {
		name := fmt.Sprintf("vm%02d", n)
		specs, names = append(specs, testVM(t, name, 1)), append(names, name)
	}
	w := newRecoverWorld(t, nil, specs...)
	for _, c := range []struct {
		vms   []string
		limit time.Duration
	}{{names[:1], time.Second}, {names, 5 * time.Second}} {
		began, busy, calls := time.Now(), w.sim.Busy(), w.vc.Calls()
		got := w.recover(w.request(c.vms...))
		wall := time.Since(began)
		own := wall - (w.sim.Busy() - busy)
		t.Logf("%d VMs: %.3f s, %.3f s without the simulator's own time, %d calls; first VM: %+v", len(c.vms), wall.Seconds(), own.Seconds(), w.vc.Calls()-calls, steps(got[0]))
		if own > c.limit {
			t.Errorf("%d VMs took %s, more than %s", len(c.vms), own, c.limit)
		}
		for _, r := range got {
			if err := Stop(t.Context(), w.state, w.vc, StopRequest{Session: r.Session}); err != nil {
				t.Fatal(err)
			}
		}
	}
	w.nothingLeft()
}

func steps(r Recovered) string {
	out := ""
	for _, s := range r.Steps {
		out += fmt.Sprintf("%s %.3f s ", s.Name, s.Seconds)
	}
	return out
}
