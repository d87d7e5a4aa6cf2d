package vddk

import (
	"crypto/sha1"
	"crypto/sha256"
	"io"
	"log"
	"net/http/httptest"
	"strings"
	"testing"
)

func TestServerOf(t *testing.T) {
	for name, want := range map[string]struct {
		host string
		port uint16
	}{
		"vcenter.example.com":                 {"vcenter.example.com", 0},
		"host:8443":                           {"host", 8443},
		"https://user:p@host:8443/sdk":        {"host", 8443},
		"https://administrator@host/sdk":      {"host", 0},
		"host/sdk":                            {"host", 0},
		"[fe80::1]:443":                       {"fe80::1", 443},
		"[fe80::1]":                           {"fe80::1", 0},
		"host:99999":                          {"host:99999", 0},
		"https://administrator%40v@[::1]/sdk": {"::1", 0},
	} {
		if host, port := serverOf(name); host != want.host || port != want.port {
			t.Errorf("serverOf(%q) = %q, %d", name, host, port)
		}
	}
}

func TestLibraryThumbprint(t *testing.T) {
	server := httptest.NewUnstartedServer(nil)
	server.Config.ErrorLog = log.New(io.Discard, "", 0)
	server.StartTLS()
	defer server.Close()
	host, port := serverOf(server.URL)
	cert := server.Certificate().Raw
	long, short := sha256.Sum256(cert), sha1.Sum(cert)
	got, err := libraryThumbprint(t.Context(), host, port, strings.ToLower(colons(long[:])))
	if err != nil || got != colons(short[:]) {
		t.Errorf("from SHA-256: %q, %v; want %q", got, err, colons(short[:]))
	}
	if got, err := libraryThumbprint(t.Context(), host, port, colons(short[:])); err != nil || got != colons(short[:]) {
		t.Errorf("from SHA-1: %q, %v", got, err)
	}
	long[0] ^= 1
	if got, err := libraryThumbprint(t.Context(), host, port, colons(long[:])); err == nil || !strings.Contains(err.Error(), "not the one that is trusted") {
		t.Errorf("another certificate: %q, %v", got, err)
	}
	if got, err := libraryThumbprint(t.Context(), host, port, ""); err == nil {
		t.Errorf("a certificate that nobody vouches for: %q", got)
	}
}
