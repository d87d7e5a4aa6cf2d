package vddk

import (
	"bytes"
	"context"
	"crypto/sha1"
	"crypto/sha256"
	"crypto/tls"
	"crypto/x509"
	"encoding/hex"
	"errors"
	"fmt"
	"net"
	"net/url"
	"strconv"
	"strings"
)

// serverOf is the host and port in what names a server: "vcenter.example.com",
// "host:8443", "https://user@host/sdk". port is 0 where none is named.
func serverOf(name string) (host string, port uint16) {
	if u, err := url.Parse(name); err == nil && u.Host != "" {
		name = u.Host
	}
	name, _, _ = strings.Cut(name, "/")
	if h, p, err := net.SplitHostPort(name); err == nil {
		if n, err := strconv.ParseUint(p, 10, 16); err == nil {
			return h, uint16(n)
		}
	}
	return strings.Trim(name, "[]"), 0
}

// libraryThumbprint is the thumbprint as VMware's library wants it: the SHA-1 of
// the server's certificate. Where somebody has pinned the SHA-256, or trusts the
// system's authorities, the certificate is fetched, held against that, and only
// then believed.
func libraryThumbprint(ctx context.Context, host string, port uint16, given string) (string, error) {
	want, err := hex.DecodeString(strings.NewReplacer(":", "", " ", "").Replace(given))
	if given != "" && (err != nil || len(want) != sha256.Size) {
		return given, nil // the library decides what it is
	}
	config := &tls.Config{ServerName: host, MinVersion: tls.VersionTLS12}
	if given != "" {
		config.InsecureSkipVerify = true // the thumbprint is what is verified
		config.VerifyPeerCertificate = func(chain [][]byte, _ [][]*x509.Certificate) error { return pinned(chain, want) }
	}
	if port == 0 {
		port = 443
	}
	dialer := tls.Dialer{Config: config}
	conn, err := dialer.DialContext(ctx, "tcp", net.JoinHostPort(host, strconv.Itoa(int(port))))
	if err != nil {
		return "", fmt.Errorf("certificate of %s for VMware's library: %w", host, err)
	}
	defer conn.Close()
	sum := sha1.Sum(conn.(*tls.Conn).ConnectionState().PeerCertificates[0].Raw)
	return colons(sum[:]), nil
}

func pinned(chain [][]byte, want []byte) error {
	if len(chain) == 0 {
		return errors.New("the server has none")
	}
	if got := sha256.Sum256(chain[0]); !bytes.Equal(got[:], want) {
		return fmt.Errorf("its thumbprint is %s, which is not the one that is trusted", colons(got[:]))
	}
	return nil
}

func colons(b []byte) string {
	parts := make([]string, len(b))
	for i, v := range b {
		parts[i] = fmt.Sprintf("%02X", v)
	}
	return strings.Join(parts, ":")
}
