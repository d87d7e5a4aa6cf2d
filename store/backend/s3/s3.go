// Package s3 keeps a repository's objects in a bucket of S3-compatible storage:
// Amazon, Ceph, MinIO and others.
//
// An object is the key PREFIX/name. It is written by one PUT, or, where it is
// larger than a part, by a multipart upload; both are atomic. Exclusive is
// If-None-Match: *, which a server has to keep ([Bucket.ProbeExclusive]).
//
// Every request is tried again, with growing pauses, after what may pass: lost
// connections, time-outs, 5xx, "slow down". What makes that safe:
//
//   - Reading is safe to repeat. A reader pins the ETag that it saw first, so
//     that no two requests of one reader see two versions of an object.
//   - Each object carries a number of its writer's, drawn anew for each Create.
//     Whether a PUT took place although its answer was lost, is found by
//     looking whose number is there. So an Exclusive that is answered "exists"
//     at the second try is known to be won if it was won at the first.
//   - What stays unknown is said to be ([backend.ErrUncertain]).
package s3

import (
	"context"
	"errors"
	"fmt"
	"log/slog"
	"net"
	"net/http"
	"sync"
	"sync/atomic"
	"time"

	"github.com/minio/minio-go/v7"
	"github.com/minio/minio-go/v7/pkg/credentials"

	"lifeboat/store/backend"
)

// Options are what seldom needs to be other than the zero value.
type Options struct {
	// Keys sign requests. Default: AWS_ACCESS_KEY_ID, AWS_SECRET_ACCESS_KEY and
	// AWS_SESSION_TOKEN; or the profile of AWS_PROFILE in ~/.aws; or, at Amazon,
	// the role of the machine or container.
	Keys Keys
	// Tail is how much of an object's end Open fetches and keeps in memory
	// until Close, in bytes: one request answers what an object is and where
	// its parts are. Default: 128 KiB.
	Tail int
	// PartSize is the size of a part of a multipart upload, in bytes, at least
	// 5 MiB. Smaller objects are written by one request. Default: 16 MiB.
	PartSize int
	// Uploads is how many parts are on their way at once, of all objects
	// together. Memory for writing is at most one part for each of them and for
	// each object being written. Default: 4.
	Uploads int
	// Attempts is how often a request is tried. Default: 10, over about 30 s.
	Attempts int
	// Pause is how long the first pause between two tries is; each is twice as
	// long as the one before, up to 80 times this. Default: 100 ms.
	Pause time.Duration
	// Stall is how long a request may go without a byte moving before it is
	// given up and tried again. Default: 30 s.
	Stall time.Duration
	// Logger gets what went wrong but hurts nobody. Default: nowhere.
	Logger *slog.Logger
}

// Keys are what requests are signed with.
type Keys struct {
	Access, Secret string
	Session        string // only with keys that are valid for a time
}

func (o Options) withDefaults() Options {
	o.Tail = positive(o.Tail, 128<<10)
	o.PartSize = max(positive(o.PartSize, 16<<20), minPart)
	o.Uploads = positive(o.Uploads, 4)
	o.Attempts = positive(o.Attempts, 10)
	if o.Pause <= 0 {
		o.Pause = 100 * time.Millisecond
	}
	if o.Stall <= 0 {
		o.Stall = 30 * time.Second
	}
	if o.Logger == nil {
		o.Logger = slog.New(slog.DiscardHandler)
	}
	return o
}

func positive(n, otherwise int) int {
	if n > 0 {
		return n
	}
	return otherwise
}

// minPart is what every server accepts as a part that is not the last.
const minPart = 5 << 20

// Bucket is the part of a bucket below a prefix.
type Bucket struct {
	loc  location
	core *minio.Core
	http *http.Transport
	opts Options
	log  *slog.Logger

	reached   atomic.Bool  // an answer has come from the server
	exclusive atomic.Int32 // exclusiveUnknown…: what a probe found
	uploads   chan struct{}
	parts     sync.Pool // *[]byte of PartSize bytes

	mu        sync.Mutex
	versioned int               // versionsUnknown…
	replaced  map[string]string // object → the version that this process wrote last
}

var _ backend.Backend = (*Bucket)(nil)

// Open is the backend that a URL names:
// s3://bucket/prefix?endpoint=http://host:port&region=…. Without an endpoint it
// is Amazon's. No request is sent to it yet; ctx is for finding the keys. It
// fails with an error that matches [ErrURL] or [ErrKeys].
func Open(ctx context.Context, rawURL string, opts Options) (*Bucket, error) {
	loc, err := parseURL(rawURL)
	if err != nil {
		return nil, err
	}
	opts = opts.withDefaults()
	keys, err := findKeys(ctx, loc, opts.Keys)
	if err != nil {
		return nil, err
	}
	transport := newTransport()
	core, err := minio.NewCore(loc.host, &minio.Options{
		Creds:        keys,
		Secure:       loc.secure,
		Transport:    transport,
		Region:       loc.region,
		BucketLookup: map[string]minio.BucketLookupType{"path": minio.BucketLookupPath, "dns": minio.BucketLookupDNS}[loc.style],
		MaxRetries:   1, // ours know what may be repeated
	})
	if err != nil {
		return nil, fmt.Errorf("%w: %w", ErrURL, err)
	}
	core.SetAppInfo("lifeboat", "1")
	b := &Bucket{loc: loc, core: core, http: transport, opts: opts, log: opts.Logger, replaced: map[string]string{}}
	b.uploads = make(chan struct{}, opts.Uploads)
	b.parts.New = func() any { p := make([]byte, 0, opts.PartSize); return &p }
	return b, nil
}

// newTransport keeps enough connections for parallel range requests. HTTP/2
// would put them all through one.
func newTransport() *http.Transport {
	return &http.Transport{
		Proxy:                 http.ProxyFromEnvironment,
		DialContext:           (&net.Dialer{Timeout: 10 * time.Second, KeepAlive: 30 * time.Second}).DialContext,
		MaxIdleConns:          256,
		MaxIdleConnsPerHost:   64,
		IdleConnTimeout:       90 * time.Second,
		TLSHandshakeTimeout:   10 * time.Second,
		ExpectContinueTimeout: 5 * time.Second,
		DisableCompression:    true, // it would hide the length of what is read
		ReadBufferSize:        64 << 10,
		WriteBufferSize:       64 << 10,
	}
}

// findKeys looks for keys until it finds some.
func findKeys(ctx context.Context, loc location, given Keys) (*credentials.Credentials, error) {
	if given.Access != "" {
		return credentials.NewStaticV4(given.Access, given.Secret, given.Session), nil
	}
	providers := []credentials.Provider{&credentials.EnvAWS{}, &credentials.FileAWSCredentials{}}
	if loc.amazon {
		providers = append(providers, &credentials.IAM{Client: &http.Client{Timeout: 5 * time.Second}})
	}
	keys := credentials.NewChainCredentials(providers)
	value, err := keys.GetWithContext(&credentials.CredContext{Client: &http.Client{Timeout: 5 * time.Second}, Context: ctx})
	if err == nil && value.AccessKeyID == "" {
		err = errors.New("there are none")
	}
	if err != nil {
		return nil, fmt.Errorf("%w: looking for keys: %w; set AWS_ACCESS_KEY_ID and AWS_SECRET_ACCESS_KEY, "+
			"or AWS_PROFILE with a profile in ~/.aws/credentials", ErrKeys, err)
	}
	return keys, nil
}

// Close lets go of idle connections. Open objects stay usable.
func (b *Bucket) Close() error {
	b.http.CloseIdleConnections()
	return nil
}

// String is the bucket and prefix as a URL, without the endpoint.
func (b *Bucket) String() string { return Scheme + b.loc.bucket + "/" + b.loc.prefix }

// key is an object's key in the bucket.
func (b *Bucket) key(name string) string { return b.loc.prefix + name }
