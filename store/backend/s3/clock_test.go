package s3

import "testing"

func TestServerClock(t *testing.T) {
	for host, want := range map[string]bool{
		"s3.example.net": true, "192.0.2.7:9000": true, "[2001:db8::1]:9000": true, "localhost.example.net": true,
		"localhost": false, "localhost:9000": false, "127.0.0.1:9000": false, "[::1]:9000": false, "127.8.8.8": false,
	} {
		b := &Bucket{loc: location{host: host}}
		if got := b.ServerClock(); got != want {
			t.Errorf("%s: %t", host, got)
		}
	}
}
