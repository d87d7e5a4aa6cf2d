package store

import (
	"context"
	"errors"
	"fmt"
	"io/fs"
	"path"
)

// VMPolicy is the policy of the VMs whose name fits a pattern.
type VMPolicy struct {
	// VM is a name, the lasting identity of a VM, or a pattern of path.Match:
	// "web*". "*" is every VM.
	VM     string `json:"vm"`
	Policy Policy `json:"policy"`
}

// Policies are those kept in the repository. For a VM, the first that fits
// counts: exact names stand before patterns, and "*" is last.
type Policies []VMPolicy

// policiesRecord is the object settings/policies.
type policiesRecord struct {
	Format   int      `json:"format"`
	Policies Policies `json:"policies"`
}

// MatchVM reports whether a VM is meant by its name, its lasting identity or a
// pattern of path.Match.
func MatchVM(pattern, name, id string) bool {
	if pattern == "*" || pattern == name || id != "" && pattern == id {
		return true
	}
	ok, err := path.Match(pattern, name)
	return err == nil && ok
}

// For returns the policy of a VM, and whether it has one.
func (ps Policies) For(name, id string) (Policy, bool) {
	var found *VMPolicy
	for i, p := range ps {
		if MatchVM(p.VM, name, id) && (found == nil || p.rank(name, id) < found.rank(name, id)) {
			found = &ps[i]
		}
	}
	if found == nil {
		return Policy{}, false
	}
	return found.Policy, true
}

// rank orders the policies that fit a VM: the one that says most comes first.
func (p VMPolicy) rank(name, id string) int {
	switch p.VM {
	case name, id:
		return 0
	case "*":
		return 2
	}
	return 1
}

func (ps Policies) check() error {
	if len(ps) > maxStoredPolicies {
		return fmt.Errorf("%d policies, at most %d fit", len(ps), maxStoredPolicies)
	}
	seen := make(map[string]bool, len(ps))
	for _, p := range ps {
		if p.VM == "" || len(p.VM) > maxName || seen[p.VM] {
			return fmt.Errorf("%.40q is not the name of a VM or a pattern, or it is there twice", p.VM)
		}
		seen[p.VM] = true
		if err := p.Policy.Check(); err != nil {
			return fmt.Errorf("policy of %.40q: %w", p.VM, err)
		}
		if p.Policy.Empty() {
			return fmt.Errorf("policy of %.40q: it keeps nothing", p.VM)
		}
	}
	return nil
}

func decodePolicies(data []byte) (Policies, error) {
	var rec policiesRecord
	if err := decodeStrict(data, &rec); err != nil {
		return nil, err
	}
	if err := rec.Policies.check(); err != nil {
		return nil, fmt.Errorf("%w: %w", ErrDamaged, err)
	}
	return rec.Policies, nil
}

// Policies returns the policies kept in the repository.
func (r *Repository) Policies(ctx context.Context) (Policies, error) {
	data, err := r.getSealed(ctx, policiesName, maxSettingsBytes)
	if errors.Is(err, fs.ErrNotExist) {
		return nil, nil
	}
	var ps Policies
	if err == nil {
		ps, err = decodePolicies(data)
	}
	if err != nil {
		return nil, fmt.Errorf("%s: %w", policiesName, err)
	}
	return ps, nil
}

// SetPolicies replaces the policies kept in the repository.
func (r *Repository) SetPolicies(ctx context.Context, ps Policies) error {
	if err := ps.check(); err != nil {
		return fmt.Errorf("set the retention policies: %w", err)
	}
	return r.putSetting(ctx, policiesName, policiesRecord{Format: recordFormat, Policies: ps})
}
