package s3

import (
	"errors"
	"strings"
	"testing"
)

func TestParseURL(t *testing.T) {
	t.Setenv("AWS_REGION", "")
	t.Setenv("AWS_DEFAULT_REGION", "eu-north-1")
	for raw, want := range map[string]location{
		"s3://bucket": {bucket: "bucket", host: "s3.amazonaws.com", secure: true, amazon: true, region: "eu-north-1"},
		"s3://bucket/?region=us-west-2": {
			bucket: "bucket", host: "s3.amazonaws.com", secure: true, amazon: true, region: "us-west-2",
		},
		"s3://my.bucket/a/b/?endpoint=http://127.0.0.1:9000&region=us-east-1&style=path": {
			bucket: "my.bucket", prefix: "a/b/", host: "127.0.0.1:9000", region: "us-east-1", style: "path",
		},
		"s3://bucket/Ä%20b?endpoint=https%3A%2F%2Fceph.example%2F": {
			bucket: "bucket", prefix: "Ä b/", host: "ceph.example", secure: true, region: "eu-north-1",
		},
	} {
		if got, err := parseURL(raw); err != nil || got != want {
			t.Errorf("%s\ngot  %+v, %v\nwant %+v", raw, got, err, want)
		}
	}
	for raw, says := range map[string]string{
		"http://bucket/x":                          "scheme",
		"s3://":                                    "bucket",
		"s3:///prefix":                             "bucket",
		"s3://Bucket":                              "bucket",
		"s3://bucket/..":                           "component",
		"s3://bucket/a//b":                         "component",
		"s3://bucket:9000/a":                       "not a server",
		"s3://key:secret@bucket/a":                 "AWS_ACCESS_KEY_ID",
		"s3://bucket/a#b":                          "s3://BUCKET",
		"s3://bucket/a?endpoint=host:9000":         "http://HOST:PORT",
		"s3://bucket/a?endpoint=ftp://host":        "http://HOST:PORT",
		"s3://bucket/a?endpoint=http://host/x":     "nothing else",
		"s3://bucket/a?endpoint=http://u@host":     "nothing else",
		"s3://bucket/a?regoin=x":                   "regoin",
		"s3://bucket/a?region=x&region=y":          "2 times",
		"s3://bucket/a?style=host":                 "path or dns",
		"s3://bucket/%zz":                          "escape",
		"s3://bucket/" + strings.Repeat("p", 1000): "1000 bytes",
	} {
		_, err := parseURL(raw)
		if !errors.Is(err, ErrURL) || !strings.Contains(err.Error(), says) {
			t.Errorf("%.80s: %v, want ErrURL that says %q", raw, err, says)
		}
		if err != nil && strings.Contains(err.Error(), "secret") {
			t.Errorf("%s: the error shows the secret: %v", raw, err)
		}
	}
}

func FuzzParseURL(f *testing.F) {
	f.Add("s3://bucket/prefix?endpoint=http://host:1&region=r")
	f.Add("s3://bucket/a%2fb?style=dns")
	f.Fuzz(func(t *testing.T, raw string) {
		loc, err := parseURL(raw)
		if (err != nil) != errors.Is(err, ErrURL) {
			t.Fatalf("%q: %v is no ErrURL", raw, err)
		}
		if err == nil && (loc.bucket == "" || loc.host == "" || loc.prefix != "" && !strings.HasSuffix(loc.prefix, "/") ||
			strings.HasPrefix(loc.prefix, "/")) {
			t.Fatalf("%q: %+v", raw, loc)
		}
	})
}

func FuzzContentRange(f *testing.F) {
	f.Add("bytes 0-9/10")
	f.Add("bytes 9223372036854775807-9223372036854775807/9223372036854775807")
	f.Fuzz(func(t *testing.T, s string) {
		first, end, size, err := parseContentRange(s)
		if err == nil && (first < 0 || first >= end || end > size) {
			t.Fatalf("%q: %d, %d, %d", s, first, end, size)
		}
	})
}
