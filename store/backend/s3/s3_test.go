package s3_test

import (
	"testing"

	"lifeboat/store/backend"
	"lifeboat/store/backend/backendtest"
	"lifeboat/store/backend/s3"
	"lifeboat/store/backend/s3/s3test"
)

// open is a bucket of a server, below a prefix of its own.
func open(t testing.TB, url string, server *s3test.Server, opts s3.Options) *s3.Bucket {
	t.Helper()
	opts.Keys = s3.Keys{Access: server.Access, Secret: server.Secret}
	b, err := s3.Open(t.Context(), url, opts)
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { _ = b.Close() })
	return b
}

// TestConformance runs the suite of all backends against a real server.
func TestConformance(t *testing.T) {
	server := s3test.Run(t, s3test.Options{})
	server.MakeBucket(t, "conformance")
	backendtest.Run(t, func(t *testing.T) backend.Backend {
		return open(t, server.URL("conformance", s3test.Unique()), server, s3.Options{PartSize: 5 << 20})
	})
}
