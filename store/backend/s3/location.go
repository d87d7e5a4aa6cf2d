package s3

import (
	"errors"
	"fmt"
	"net/url"
	"os"
	"strings"

	"github.com/minio/minio-go/v7/pkg/s3utils"

	"lifeboat/store/backend"
)

// ErrURL: the URL of a repository in S3 storage says something that cannot be.
var ErrURL = errors.New("not a valid S3 URL")

const urlForm = "s3://BUCKET/PREFIX?endpoint=https://HOST:PORT&region=REGION"

// location is what a URL says.
type location struct {
	bucket string
	prefix string // "" or ends in a slash
	host   string // host, or host:port, of the endpoint
	secure bool   // TLS
	amazon bool   // no endpoint is named: it is Amazon's
	region string // "": to be asked of the server
	style  string // "", "path" or "dns": how the bucket is addressed
}

// Scheme begins the URLs that [Open] understands.
const Scheme = "s3://"

// parseURL reads s3://bucket/prefix?endpoint=…&region=…&style=path|dns. A
// region that is not in the URL comes from AWS_REGION or AWS_DEFAULT_REGION.
func parseURL(raw string) (location, error) {
	u, err := url.Parse(raw)
	if err != nil {
		var inner *url.Error
		if errors.As(err, &inner) {
			err = inner.Err // the URL itself may hold a secret by mistake
		}
		return location{}, fmt.Errorf("%w: %w; the form is %s", ErrURL, err, urlForm)
	}
	switch {
	case u.Scheme != "s3":
		return location{}, fmt.Errorf("%w: the scheme is %q; the form is %s", ErrURL, u.Scheme, urlForm)
	case u.User != nil:
		return location{}, fmt.Errorf("%w: keys do not belong into a URL, where logs show them; set AWS_ACCESS_KEY_ID and AWS_SECRET_ACCESS_KEY", ErrURL)
	case u.Fragment != "" || u.Port() != "":
		return location{}, fmt.Errorf("%w: what follows s3:// is the name of a bucket, not a server; the form is %s", ErrURL, urlForm)
	}
	l := location{bucket: u.Host, region: firstOf(os.Getenv("AWS_REGION"), os.Getenv("AWS_DEFAULT_REGION"))}
	if err := s3utils.CheckValidBucketNameStrict(l.bucket); err != nil {
		return location{}, fmt.Errorf("%w: bucket %.80q: %w; the form is %s", ErrURL, l.bucket, err, urlForm)
	}
	if l.prefix, err = parsePrefix(u.Path); err != nil {
		return location{}, err
	}
	return l, l.parseQuery(u.RawQuery)
}

func parsePrefix(path string) (string, error) {
	path = strings.Trim(path, "/")
	if path == "" {
		return "", nil
	}
	for part := range strings.SplitSeq(path, "/") {
		if part == "" || part == "." || part == ".." {
			return "", fmt.Errorf("%w: the prefix %.200q has a component %q", ErrURL, path, part)
		}
	}
	// S3 allows 1024 bytes for a key; ours come after the prefix.
	if limit := 1024 - backend.MaxName - 1; len(path) > limit {
		return "", fmt.Errorf("%w: the prefix has %d bytes, more than %d", ErrURL, len(path), limit)
	}
	return path + "/", nil
}

func (l *location) parseQuery(raw string) error {
	query, err := url.ParseQuery(raw)
	if err != nil {
		return fmt.Errorf("%w: %w", ErrURL, err)
	}
	endpoint := ""
	for key, values := range query {
		if len(values) != 1 {
			return fmt.Errorf("%w: %s is given %d times", ErrURL, key, len(values))
		}
		switch value := values[0]; key {
		case "endpoint":
			endpoint = value
		case "region":
			l.region = value
		case "style":
			if l.style = value; value != "path" && value != "dns" {
				return fmt.Errorf("%w: style=%.40q, want path or dns", ErrURL, value)
			}
		default:
			return fmt.Errorf("%w: %.40q is not known; there are endpoint, region and style", ErrURL, key)
		}
	}
	return l.parseEndpoint(endpoint)
}

func (l *location) parseEndpoint(raw string) error {
	if raw == "" {
		l.host, l.secure, l.amazon = "s3.amazonaws.com", true, true
		return nil
	}
	if !strings.Contains(raw, "://") {
		return fmt.Errorf("%w: endpoint=%.200q, want http://HOST:PORT or https://HOST:PORT", ErrURL, raw)
	}
	u, err := url.Parse(raw)
	if err != nil || u.Host == "" || u.User != nil || strings.Trim(u.Path, "/") != "" || u.RawQuery != "" ||
		u.Scheme != "http" && u.Scheme != "https" {
		return fmt.Errorf("%w: endpoint=%.200q, want http://HOST:PORT or https://HOST:PORT and nothing else", ErrURL, raw)
	}
	l.host, l.secure = u.Host, u.Scheme == "https"
	l.amazon = s3utils.IsAmazonEndpoint(*u)
	return nil
}

func firstOf(values ...string) string {
	for _, v := range values {
		if v != "" {
			return v
		}
	}
	return ""
}
