package ntfs

// Unfix and Fix take the update sequence of a record away and put it back, so
// that a test can change what it guards.
func Unfix(b []byte) error { return unfix(b, "a test's record") }

// Fix is the reverse of Unfix.
func Fix(b []byte) { fix(b) }

// Fixable reports whether a record says where its update sequence is.
func Fixable(b []byte) bool {
	at, count := int(b[4])|int(b[5])<<8, int(b[6])|int(b[7])<<8
	return count == len(b)/stride+1 && at+2*count <= len(b)
}
