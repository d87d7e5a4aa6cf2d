package appliance

import (
	"encoding/json"
	"fmt"
	"net/netip"
	"slices"

	"go.etcd.io/bbolt"

	"lifeboat/nfsserver"
)

// ServeSettings are where the server listened the last time and whom it let in.
// Hosts have mounted that address: a server that is started again, after a crash
// perhaps, must be there.
type ServeSettings struct {
	Listen    string   `json:"listen,omitempty"` // "" before the first start
	NFSPort   int      `json:"nfs_port,omitempty"`
	MountPort int      `json:"mount_port,omitempty"`
	Portmap   string   `json:"portmap,omitempty"`
	Allow     []string `json:"allow,omitempty"` // addresses and networks (CIDR)
}

var (
	bucketServer = []byte("server")
	keySettings  = []byte("settings")
)

// ServeSettings returns what the last server used.
func (s *State) ServeSettings() (ServeSettings, error) {
	var set ServeSettings
	err := s.view(func(tx *bbolt.Tx) error { return readSettings(tx, &set) })
	return set, err
}

func readSettings(tx *bbolt.Tx, set *ServeSettings) error {
	b := tx.Bucket(bucketServer)
	if b == nil {
		return nil
	}
	if data := b.Get(keySettings); data != nil {
		if err := json.Unmarshal(data, set); err != nil {
			return fmt.Errorf("the server's settings in the state database are damaged: %w; start `lifeboat serve` with --listen and --allow", err)
		}
	}
	return nil
}

func (s *State) updateSettings(change func(*ServeSettings)) error {
	return s.update(func(tx *bbolt.Tx) error {
		b, err := tx.CreateBucketIfNotExists(bucketServer)
		if err != nil {
			return err
		}
		var set ServeSettings
		if err := readSettings(tx, &set); err != nil {
			return err
		}
		change(&set)
		data, err := json.Marshal(set)
		if err != nil {
			return err
		}
		return b.Put(keySettings, data)
	})
}

func (s *State) saveServeSettings(req ServeRequest, bound nfsserver.Addrs) error {
	return s.updateSettings(func(set *ServeSettings) {
		set.Listen, set.NFSPort, set.MountPort, set.Portmap = bound.NFS.Addr().String(), int(bound.NFS.Port()), int(bound.Mount.Port()), req.Portmap
	})
}

func (set ServeSettings) allowed() []netip.Prefix {
	var out []netip.Prefix
	for _, text := range set.Allow {
		if p, err := netip.ParsePrefix(text); err == nil {
			out = append(out, p)
		}
	}
	return out
}

// Allow lets more clients in, from now on and after a restart.
func (s *Server) Allow(more []netip.Prefix) error {
	s.mu.Lock()
	for _, p := range more {
		if !slices.Contains(s.req.Allow, p) {
			s.req.Allow = append(s.req.Allow, p)
		}
	}
	all := slices.Clone(s.req.Allow)
	s.mu.Unlock()
	s.nfs.SetAllow(withLoopback(all))
	return s.state.updateSettings(func(set *ServeSettings) {
		for _, p := range more {
			if !slices.Contains(set.Allow, p.String()) {
				set.Allow = append(set.Allow, p.String())
			}
		}
	})
}

// withLoopback adds this host itself, which is always let in.
func withLoopback(more []netip.Prefix) []netip.Prefix {
	return append([]netip.Prefix{netip.MustParsePrefix("127.0.0.0/8"), netip.MustParsePrefix("::1/128")}, more...)
}
