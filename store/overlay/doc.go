// Package overlay is the crash-safe, writable layer over an immutable image
// during a recovery.
package overlay
