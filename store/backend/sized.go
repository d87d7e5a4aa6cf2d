package backend

import "context"

// SizedOpener is implemented by backends where opening costs a request that can
// be saved when the size of an object is known already.
type SizedOpener interface {
	// OpenSized is Open for an object of which the caller knows the size, in
	// bytes, and that has been there. It makes no request: whether the object is
	// still there (fs.ErrNotExist otherwise) and as large as that, the first
	// read tells. The Object holds no more memory than its name.
	OpenSized(ctx context.Context, name string, size int64) (Object, error)
}
