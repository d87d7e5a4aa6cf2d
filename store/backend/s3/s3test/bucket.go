package s3test

import (
	"context"
	"testing"

	"github.com/minio/minio-go/v7"
	"github.com/minio/minio-go/v7/pkg/credentials"
)

// Client speaks S3 to the server without any of the product's code.
func (s *Server) Client() (*minio.Client, error) {
	return minio.New(trimScheme(s.Endpoint), &minio.Options{
		Creds: credentials.NewStaticV4(s.Access, s.Secret, ""), Region: "us-east-1",
	})
}

// CreateBucket makes a bucket, with object lock (and so versions) if locking.
func (s *Server) CreateBucket(ctx context.Context, bucket string, locking bool) error {
	client, err := s.Client()
	if err != nil {
		return err
	}
	return client.MakeBucket(ctx, bucket, minio.MakeBucketOptions{ObjectLocking: locking})
}

// MakeBucket is CreateBucket for a test.
func (s *Server) MakeBucket(t testing.TB, bucket string) {
	t.Helper()
	if err := s.CreateBucket(t.Context(), bucket, false); err != nil {
		t.Fatal(err)
	}
}

// Unique is a prefix that nobody else uses.
func Unique() string { return "p" + randomHex(6) }
