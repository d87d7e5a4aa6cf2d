package vsphere

import (
	"log/slog"
	"time"
)

// Options say which server to talk to, as whom, and what to trust.
type Options struct {
	URL      string // "vcenter.example.com", "host:8443", "https://user@host/sdk"; a user and password in it are taken when the fields are empty
	Username string
	Password string

	Insecure   bool   // any certificate; said in the log
	CAFile     string // PEM file or list of them (filepath.ListSeparator); "" = the system's authorities
	KnownHosts string // file or list of them: lines "host:port thumbprint", as govc keeps them (GOVC_TLS_KNOWN_HOSTS)
	Thumbprint string // the server's certificate, SHA-256 or SHA-1; then nothing else is accepted

	Logger      *slog.Logger  // nil = discard
	CallTimeout time.Duration // per call; 0 = 2 minutes
	KeepAlive   time.Duration // idle time after which the session is used so that it stays; 0 = 5 minutes, < 0 = never
	UserAgent   string        // "" = "lifeboat"
}

// About says what answers.
type About struct {
	Name         string `json:"name"` // "VMware vCenter Server"
	Version      string `json:"version"`
	Build        string `json:"build"`
	API          string `json:"api"` // version of the API
	VCenter      bool   `json:"vcenter"`
	InstanceUUID string `json:"instance_uuid"` // of a stand-alone host: the hardware's UUID
	Server       string `json:"server"`        // host or host:port, as connected to
}
