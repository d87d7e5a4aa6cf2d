package vsphere

import "strings"

// Names in vSphere carry three characters escaped, because paths use them: "%"
// is %25, "/" is %2f and "\" is %5c (ManagedEntity.name in the API reference).
// People see and type the plain characters; the wire has the others.

// plainName is what a person calls it.
func plainName(escaped string) string {
	if !strings.Contains(escaped, "%") {
		return escaped
	}
	var b strings.Builder
	for i := 0; i < len(escaped); i++ {
		if escaped[i] == '%' && i+2 < len(escaped) {
			switch strings.ToLower(escaped[i+1 : i+3]) {
			case "2f":
				b.WriteByte('/')
				i += 2
				continue
			case "5c":
				b.WriteByte('\\')
				i += 2
				continue
			case "25":
				b.WriteByte('%')
				i += 2
				continue
			}
		}
		b.WriteByte(escaped[i])
	}
	return b.String()
}

// wireName is the inverse of plainName.
func wireName(plain string) string {
	return strings.NewReplacer("%", "%25", "/", "%2f", `\`, "%5c").Replace(plain)
}

// element is a name as part of a path: whatever the server sent, "/" is escaped
// and the rest is plain enough to read.
func element(name string) string {
	return strings.ReplaceAll(plainName(name), "/", "%2f")
}

// SplitPath splits "[datastore] folder/file" in two; ok is false when it has
// another form.
func SplitPath(dsPath string) (datastore, path string, ok bool) {
	rest, found := strings.CutPrefix(dsPath, "[")
	if !found {
		return "", "", false
	}
	datastore, path, found = strings.Cut(rest, "]")
	if !found || datastore == "" {
		return "", "", false
	}
	return datastore, strings.TrimPrefix(path, " "), true
}

// JoinPath is the inverse of SplitPath.
func JoinPath(datastore, path string) string { return strings.TrimSuffix("["+datastore+"] "+path, " ") }
