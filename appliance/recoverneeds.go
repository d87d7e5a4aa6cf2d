package appliance

import (
	"context"
	"strings"

	"lifeboat/store"
)

// NeededServer says for which sessions a server should run.
type NeededServer struct {
	Names   []string
	RepoURL string // of the first of them
}

// ServerNeeded returns what the server is needed for, nil for nothing: sessions
// with a VM on a vSphere stand still without it.
func ServerNeeded(st *State) (*NeededServer, error) {
	recs, err := st.sessions()
	if err != nil {
		return nil, err
	}
	var n *NeededServer
	for _, rec := range recs {
		if !rec.Served || rec.Recovery == nil {
			continue
		}
		if n == nil {
			n = &NeededServer{RepoURL: rec.RepoURL}
		}
		n.Names = append(n.Names, rec.Name)
	}
	return n, nil
}

// NewestPoints returns the newest restore point of every VM, of those that were
// in a VM folder or below it. "/" is all.
func NewestPoints(ctx context.Context, repo *store.Repository, folder string) ([]*store.Point, error) {
	all, err := repo.Points(ctx)
	if err != nil {
		return nil, err
	}
	newest := map[string]*store.Point{}
	var order []string
	for _, pt := range all {
		key := pt.VMID
		if key == "" {
			key = "name " + pt.VM
		}
		have, ok := newest[key]
		if !ok {
			order = append(order, key)
		}
		if !ok || pt.Time.After(have.Time) {
			newest[key] = pt
		}
	}
	var out []*store.Point
	for _, key := range order {
		pt := newest[key]
		if folder != "/" {
			saved, err := readConfig(ctx, repo, pt)
			if err != nil {
				return nil, err
			}
			if saved.vm == nil || !strings.HasPrefix("/"+strings.Trim(saved.vm.Folder, "/")+"/", strings.TrimSuffix(folder, "/")+"/") {
				continue
			}
		}
		out = append(out, pt)
	}
	return out, nil
}
