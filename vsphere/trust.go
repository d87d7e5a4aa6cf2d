package vsphere

import (
	"bufio"
	"context"
	"crypto/sha1"
	"crypto/sha256"
	"crypto/subtle"
	"crypto/tls"
	"crypto/x509"
	"encoding/hex"
	"errors"
	"fmt"
	"net"
	"os"
	"path/filepath"
	"strings"
	"sync"
	"time"
)

// trust decides which certificates are accepted. A pinned thumbprint stands for
// exactly one certificate, whatever a chain would say; a server without one is
// trusted when its chain leads to an authority, or when a known_hosts file
// lists its thumbprint (the order in which govc decides).
type trust struct {
	insecure   bool
	pinned     string // of the server itself
	server     string // host:port that pinned is about
	roots      *x509.CertPool
	knownHosts string

	mu     sync.Mutex
	listed map[string][]string // host:port → thumbprints
	seen   string              // SHA-256 of the server's certificate that was accepted last
}

// newTrust reads the files that Options name. A known_hosts file that is not
// there lists nothing, as for govc; a CA file must be there.
func newTrust(o Options, server string) (*trust, error) {
	t := &trust{insecure: o.Insecure, server: server, knownHosts: o.KnownHosts, listed: map[string][]string{}}
	if o.Thumbprint != "" {
		if t.pinned = canonicalThumbprint(o.Thumbprint); t.pinned == "" {
			return nil, fmt.Errorf("thumbprint %q: want the 32 bytes of a SHA-256 or the 20 of a SHA-1 in hexadecimal", o.Thumbprint)
		}
	}
	for _, name := range filepath.SplitList(o.CAFile) {
		pem, err := os.ReadFile(name)
		if err != nil {
			return nil, fmt.Errorf("certificates of authorities: %w", err)
		}
		if t.roots == nil {
			t.roots = x509.NewCertPool()
		}
		if !t.roots.AppendCertsFromPEM(pem) {
			return nil, fmt.Errorf("%s holds no certificate in PEM form", name)
		}
	}
	for _, name := range filepath.SplitList(o.KnownHosts) {
		if err := t.load(name); err != nil {
			return nil, err
		}
	}
	return t, nil
}

func (t *trust) load(name string) error {
	f, err := os.Open(name)
	if errors.Is(err, os.ErrNotExist) {
		return nil
	}
	if err != nil {
		return fmt.Errorf("known hosts: %w", err)
	}
	defer f.Close()
	s := bufio.NewScanner(f)
	for s.Scan() {
		host, thumbprint, ok := strings.Cut(strings.TrimSpace(s.Text()), " ")
		if seen := canonicalThumbprint(thumbprint); ok && seen != "" {
			t.accept(host, seen)
		}
	}
	if err := s.Err(); err != nil {
		return fmt.Errorf("known hosts: %s: %w", name, err)
	}
	return nil
}

// accept lists a thumbprint for a host: from a file, or told by vCenter for one
// of its hosts.
func (t *trust) accept(host, thumbprint string) {
	if thumbprint = canonicalThumbprint(thumbprint); thumbprint == "" {
		return
	}
	t.mu.Lock()
	defer t.mu.Unlock()
	host = withPort(host)
	t.listed[host] = append(t.listed[host], thumbprint)
}

func (t *trust) isListed(server, sha1sum, sha256sum string) bool {
	t.mu.Lock()
	defer t.mu.Unlock()
	for _, l := range t.listed[server] {
		if same(l, sha256sum) || same(l, sha1sum) {
			return true
		}
	}
	return false
}

// dial opens a TLS connection to addr and decides on its certificate.
func (t *trust) dial(ctx context.Context, network, addr string) (net.Conn, error) {
	d := net.Dialer{Timeout: 20 * time.Second, KeepAlive: 30 * time.Second}
	raw, err := d.DialContext(ctx, network, addr)
	if err != nil {
		return nil, err
	}
	host, _, err := net.SplitHostPort(addr)
	if err != nil {
		host = addr
	}
	conn := tls.Client(raw, &tls.Config{
		ServerName: host,
		// The chain is verified in check, which knows of thumbprints too.
		InsecureSkipVerify: true,
		VerifyConnection: func(s tls.ConnectionState) error {
			err := t.check(addr, host, s.PeerCertificates)
			if err == nil && addr == t.server && len(s.PeerCertificates) > 0 {
				t.note(s.PeerCertificates[0])
			}
			return err
		},
	})
	ctx, cancel := context.WithTimeout(ctx, 20*time.Second)
	defer cancel()
	if err := conn.HandshakeContext(ctx); err != nil {
		raw.Close()
		return nil, err
	}
	return conn, nil
}

// note remembers the server's certificate, for who connects to it on his own.
func (t *trust) note(leaf *x509.Certificate) {
	sum := sha256.Sum256(leaf.Raw)
	t.mu.Lock()
	defer t.mu.Unlock()
	t.seen = colons(sum[:])
}

// Thumbprint is the SHA-256 of the certificate by which the server was last
// believed, whatever it was believed for: another program that is given it
// trusts the same server, and no other.
func (c *Client) Thumbprint() string {
	c.trust.mu.Lock()
	defer c.trust.mu.Unlock()
	return c.trust.seen
}

func (t *trust) check(addr, host string, chain []*x509.Certificate) error {
	if t.insecure {
		return nil
	}
	if len(chain) == 0 {
		return &CertificateError{Server: addr, Reason: errors.New("none was shown")}
	}
	leaf := chain[0]
	sum1, sum256 := sha1.Sum(leaf.Raw), sha256.Sum256(leaf.Raw)
	refused := &CertificateError{Server: addr, SHA1: colons(sum1[:]), SHA256: colons(sum256[:]), KnownHosts: t.knownHosts}
	if t.pinned != "" && addr == t.server {
		if same(t.pinned, refused.SHA256) || same(t.pinned, refused.SHA1) {
			return nil
		}
		refused.Expected = t.pinned
		return refused
	}
	if t.isListed(addr, refused.SHA1, refused.SHA256) {
		return nil
	}
	between := x509.NewCertPool()
	for _, c := range chain[1:] {
		between.AddCert(c)
	}
	if _, err := leaf.Verify(x509.VerifyOptions{DNSName: host, Roots: t.roots, Intermediates: between}); err != nil {
		refused.Reason = err
		t.mu.Lock()
		if known := t.listed[addr]; len(known) > 0 {
			refused.Expected = known[len(known)-1]
		}
		t.mu.Unlock()
		return refused
	}
	return nil
}

func same(a, b string) bool { return subtle.ConstantTimeCompare([]byte(a), []byte(b)) == 1 }

// canonicalThumbprint brings "ab:cd", "ABCD" and "SHA256:ab cd" to "AB:CD"; ""
// when it is no thumbprint.
func canonicalThumbprint(s string) string {
	s = strings.ToUpper(strings.TrimSpace(s))
	s = strings.TrimPrefix(strings.TrimPrefix(s, "SHA256:"), "SHA1:")
	raw, err := hex.DecodeString(strings.NewReplacer(":", "", " ", "", "-", "").Replace(s))
	if err != nil || (len(raw) != sha1.Size && len(raw) != sha256.Size) {
		return ""
	}
	return colons(raw)
}

func colons(sum []byte) string {
	out := make([]string, len(sum))
	for i, b := range sum {
		out[i] = fmt.Sprintf("%02X", b)
	}
	return strings.Join(out, ":")
}

// withPort is host:port, with 443 where none is said.
func withPort(host string) string {
	if _, _, err := net.SplitHostPort(host); err == nil {
		return host
	}
	return net.JoinHostPort(strings.Trim(host, "[]"), "443")
}
