package backend

// As finds, in b or in what it wraps, an implementation of an optional
// interface such as [Prober] or [Locker]. A backend that wraps another says so
// by a method Unwrap() Backend; one that must hide what it wraps has none.
func As[T any](b Backend) (T, bool) {
	for b != nil {
		if t, ok := b.(T); ok {
			return t, true
		}
		w, ok := b.(interface{ Unwrap() Backend })
		if !ok {
			break
		}
		b = w.Unwrap()
	}
	var none T
	return none, false
}
