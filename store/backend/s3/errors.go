package s3

import (
	"context"
	"crypto/tls"
	"crypto/x509"
	"errors"
	"fmt"
	"io/fs"
	"net"
	"net/http"
	"strings"
	"syscall"

	"github.com/minio/minio-go/v7"
)

// What a caller may decide on. Errors about objects match fs.ErrNotExist,
// fs.ErrExist and fs.ErrPermission.
var (
	// ErrKeys: the keys are missing or wrong.
	ErrKeys error = &kind{"the keys for S3 are not right", fs.ErrPermission}
	// ErrDenied: the keys are right but may not do this.
	ErrDenied error = &kind{"access denied", fs.ErrPermission}
	// ErrBucket: there is no such bucket.
	ErrBucket = errors.New("no such bucket")
	// ErrRegion: the bucket is in another region.
	ErrRegion = errors.New("the region is not right")
	// ErrClock: this machine's clock is too far from the server's.
	ErrClock = errors.New("the clock is wrong")
	// ErrUnreachable: no answer comes from the endpoint.
	ErrUnreachable = errors.New("the S3 server cannot be reached")
	// ErrReplaced: an object that is open was replaced. It also matches
	// syscall.ESTALE, as with a file on NFS.
	ErrReplaced error = &kind{"the object was replaced while it was open", syscall.ESTALE}
)

// kind is an error that is one of the standard library's too.
type kind struct {
	text string
	is   error
}

func (k *kind) Error() string { return k.text }
func (k *kind) Unwrap() error { return k.is }

// errRefused: the server does not know what it is asked, such as If-None-Match.
var errRefused = errors.New("the server refuses a request that it does not know")

// errStalled ends a request in which nothing moves.
var errStalled = errors.New("nothing moved for too long")

// errShort ends the reading of a body that was cut off.
var errShort = errors.New("the answer was cut off")

// verdict is what an error of one request means for the next try.
type verdict struct {
	retry bool // it may pass
	doubt bool // the server may have done what it was asked
	down  bool // no connection came about at all
}

// judge says what to do about the error of a request.
func judge(err error) verdict {
	var answer minio.ErrorResponse
	if errors.As(err, &answer) && answer.StatusCode != 0 {
		return judgeAnswer(answer)
	}
	if isTLS(err) {
		return verdict{}
	}
	var op *net.OpError
	if errors.As(err, &op) && op.Op == "dial" {
		return verdict{retry: true, down: true}
	}
	// Whatever else went wrong did so on the way there or back. Answers that
	// make no sense are among it: of a proxy, mostly.
	return verdict{retry: true, doubt: true}
}

func judgeAnswer(answer minio.ErrorResponse) verdict {
	switch answer.Code {
	case "SlowDown", "SlowDownRead", "SlowDownWrite", "Throttling", "ThrottlingException", "RequestLimitExceeded",
		"RequestThrottled", "ServiceUnavailable", "ConditionalRequestConflict", "OperationAborted", "RequestTimeout":
		return verdict{retry: true} // these say that nothing was done
	case "BadDigest", "XAmzContentSHA256Mismatch", "IncompleteBody":
		return verdict{retry: true} // damaged on the way
	}
	switch code := answer.StatusCode; {
	case code == http.StatusTooManyRequests || code == http.StatusRequestTimeout || code == http.StatusServiceUnavailable:
		return verdict{retry: true, doubt: code == http.StatusServiceUnavailable && answer.Code != "ServiceUnavailable"}
	case code == http.StatusNotImplemented:
		return verdict{}
	case code >= 500 || code < 300: // a success with an error in its body too
		return verdict{retry: true, doubt: true}
	}
	return verdict{}
}

func isTLS(err error) bool {
	var (
		authority x509.UnknownAuthorityError
		host      x509.HostnameError
		invalid   x509.CertificateInvalidError
		verify    *tls.CertificateVerificationError
		record    tls.RecordHeaderError
	)
	return errors.As(err, &authority) || errors.As(err, &host) || errors.As(err, &invalid) || errors.As(err, &verify) ||
		errors.As(err, &record) || strings.Contains(err.Error(), "server gave HTTP response to HTTPS client")
}

// codeOf is the S3 error code of an answer, "" where there was none.
func codeOf(err error) string {
	var answer minio.ErrorResponse
	if errors.As(err, &answer) {
		return answer.Code
	}
	return ""
}

// isPrecondition reports whether If-None-Match or If-Match did not hold.
func isPrecondition(err error) bool {
	var answer minio.ErrorResponse
	return errors.As(err, &answer) && (answer.StatusCode == http.StatusPreconditionFailed || answer.Code == minio.PreconditionFailed)
}

// explain makes of a request's error one that says what it means here and what
// to do about it.
func (b *Bucket) explain(err error) error {
	if errors.Is(err, context.Canceled) || errors.Is(err, context.DeadlineExceeded) {
		return err
	}
	var answer minio.ErrorResponse
	if errors.As(err, &answer) && answer.StatusCode != 0 {
		return b.explainAnswer(answer)
	}
	endpoint := b.core.EndpointURL()
	switch v := judge(err); {
	case isTLS(err):
		return fmt.Errorf("%w: %s: %w; is it http or https, and is its certificate known here (SSL_CERT_FILE)?", ErrUnreachable, endpoint, err)
	case v.down:
		return fmt.Errorf("%w: %s: %w; check the endpoint in the URL and that the server runs", ErrUnreachable, endpoint, err)
	}
	return fmt.Errorf("%s: %w", endpoint, err)
}

func (b *Bucket) explainAnswer(answer minio.ErrorResponse) error {
	switch answer.Code {
	case minio.NoSuchKey, "NotFound", "NoSuchVersion", "ObjectParentIsFile":
		return fs.ErrNotExist
	case minio.NoSuchBucket:
		return fmt.Errorf("%w: %s at %s; make it first, or correct the name", ErrBucket, b.loc.bucket, b.core.EndpointURL())
	case "InvalidAccessKeyId", "XAdminUserNotFound", "InvalidToken", "ExpiredToken", "TokenRefreshRequired":
		return fmt.Errorf("%w: %w; check AWS_ACCESS_KEY_ID and AWS_SESSION_TOKEN", ErrKeys, answer)
	case "SignatureDoesNotMatch":
		return fmt.Errorf("%w: %w; check AWS_SECRET_ACCESS_KEY, and that no proxy rewrites requests", ErrKeys, answer)
	case minio.AccessDenied, "AccountProblem", "AllAccessDisabled":
		return fmt.Errorf("%w: %w; the keys need s3:GetObject, s3:PutObject, s3:DeleteObject, s3:AbortMultipartUpload and s3:ListBucket "+
			"for %s, and an object that is locked stays until its time is over", ErrDenied, answer, b)
	case "RequestTimeTooSkewed", "RequestExpired":
		return fmt.Errorf("%w: %w; set this machine's clock, or the server's", ErrClock, answer)
	case minio.InvalidRegion, "AuthorizationHeaderMalformed", "PermanentRedirect", "TemporaryRedirect", "IllegalLocationConstraintException":
		where := ""
		if answer.Region != "" {
			where = fmt.Sprintf(": the bucket is in %q", answer.Region)
		}
		return fmt.Errorf("%w%s: %w; put region=… into the repository's URL", ErrRegion, where, answer)
	}
	switch answer.StatusCode {
	case http.StatusNotImplemented:
		if answer.Code == codeNotS3 {
			return fmt.Errorf("%s does not do what S3 does: %w; use a server, or a version of it, that does", b.core.EndpointURL(), answer)
		}
		return fmt.Errorf("%w: %s: %w", errRefused, b.core.EndpointURL(), answer)
	case http.StatusForbidden, http.StatusUnauthorized:
		return fmt.Errorf("%w: %w (%s)", ErrDenied, answer, answer.Code)
	}
	return fmt.Errorf("%s answers %d %s: %w", b.core.EndpointURL(), answer.StatusCode, answer.Code, answer)
}
