// Package s3test runs S3 servers for tests: versitygw, which is a real one,
// and proxies before it through which things go wrong or take long.
package s3test

import (
	"bufio"
	"context"
	"crypto/rand"
	"encoding/hex"
	"errors"
	"fmt"
	"io"
	"net"
	"net/http"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"sync"
	"syscall"
	"testing"
	"time"
)

// Server is a versitygw of one test: on the loopback, over a directory of its
// own, with keys of its own.
type Server struct {
	// Endpoint is http://127.0.0.1:PORT.
	Endpoint string
	// Access and Secret are the keys that open it.
	Access, Secret string

	dir  string // everything below is the server's
	root string // one directory for each bucket
	cmd  *exec.Cmd
	log  *tail
	once sync.Once
}

// Options say what a server is to be able to do.
type Options struct {
	// Versions has buckets keep versions if they are asked to; object lock
	// needs it.
	Versions bool
}

// Start starts a server and returns when it answers. Close ends it.
func Start(ctx context.Context, opts Options) (*Server, error) {
	binary, err := gateway(ctx)
	if err != nil {
		return nil, err
	}
	dir, err := os.MkdirTemp("", "lifeboat-s3-")
	if err != nil {
		return nil, err
	}
	s := &Server{Access: "lifeboat-test", Secret: randomHex(16), dir: dir, root: filepath.Join(dir, "buckets"), log: &tail{}}
	if err := s.start(ctx, binary, opts); err != nil {
		s.Close()
		return nil, fmt.Errorf("start %s: %w\n%s", binary, err, s.log)
	}
	return s, nil
}

// Run is Start for a test, at whose end the server ends too.
func Run(t testing.TB, opts Options) *Server {
	t.Helper()
	s, err := Start(t.Context(), opts)
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() {
		s.Close()
		if t.Failed() {
			t.Logf("the server's last words:\n%s", s.log)
		}
	})
	return s
}

func (s *Server) start(ctx context.Context, binary string, opts Options) error {
	args := []string{"posix"}
	if opts.Versions {
		versions := filepath.Join(s.dir, "versions")
		if err := os.Mkdir(versions, 0o700); err != nil {
			return err
		}
		args = append(args, "--versioning-dir", versions)
	}
	if err := os.Mkdir(s.root, 0o700); err != nil {
		return err
	}
	for range 5 { // the port may be taken between our look and its
		port, err := freePort()
		if err != nil {
			return err
		}
		global := []string{"--quiet", "--port", port, "--access", s.Access, "--secret", s.Secret, "--health", "/alive"}
		err = s.run(ctx, binary, append(append(global, args...), s.root))
		s.Endpoint = "http://" + port
		if err == nil || !strings.Contains(s.log.String(), "address already in use") {
			return err
		}
	}
	return errors.New("no free port")
}

// run starts the server's process and waits until it answers or ends.
func (s *Server) run(ctx context.Context, binary string, args []string) error {
	s.cmd = exec.Command(binary, args...)
	s.cmd.Dir = s.dir
	s.cmd.Stdout, s.cmd.Stderr = s.log, s.log
	s.cmd.SysProcAttr = &syscall.SysProcAttr{Pdeathsig: syscall.SIGKILL}
	if err := s.cmd.Start(); err != nil {
		return err
	}
	ended := make(chan error, 1)
	cmd := s.cmd
	go func() { ended <- cmd.Wait() }()
	ctx, cancel := context.WithTimeout(ctx, time.Minute)
	defer cancel()
	port := args[2]
	for {
		if answers(ctx, "http://"+port+"/alive") {
			return nil
		}
		select {
		case err := <-ended:
			return fmt.Errorf("it ended: %w", err)
		case <-ctx.Done():
			return fmt.Errorf("it does not answer: %w", ctx.Err())
		case <-time.After(20 * time.Millisecond):
		}
	}
}

func answers(ctx context.Context, url string) bool {
	req, err := http.NewRequestWithContext(ctx, http.MethodGet, url, nil)
	if err != nil {
		return false
	}
	resp, err := http.DefaultClient.Do(req)
	if err != nil {
		return false
	}
	defer resp.Body.Close()
	_, _ = io.Copy(io.Discard, resp.Body)
	return resp.StatusCode == http.StatusOK
}

// freePort is a loopback address that nobody listened on a moment ago.
func freePort() (string, error) {
	l, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		return "", err
	}
	return l.Addr().String(), l.Close()
}

// Close ends the server and removes what it stored.
func (s *Server) Close() {
	s.once.Do(func() {
		if s.cmd != nil && s.cmd.Process != nil {
			_ = s.cmd.Process.Kill() // it may have ended by itself
		}
		_ = os.RemoveAll(s.dir)
	})
}

// URL is the URL of a prefix of a bucket, as a repository is named.
func (s *Server) URL(bucket, prefix string) string { return URL(s.Endpoint, bucket, prefix) }

// URL names a prefix of a bucket at an endpoint, as a repository is named.
func URL(endpoint, bucket, prefix string) string {
	return "s3://" + bucket + "/" + prefix + "?endpoint=" + endpoint + "&region=us-east-1"
}

// Dir is the directory in which the server keeps a bucket's objects as files,
// for a test that damages them. Making it makes the bucket.
func (s *Server) Dir(bucket string) string { return filepath.Join(s.root, bucket) }

// tail keeps the last that a process said.
type tail struct {
	mu   sync.Mutex
	text []byte
}

func (t *tail) Write(p []byte) (int, error) {
	const limit = 8 << 10
	t.mu.Lock()
	defer t.mu.Unlock()
	t.text = append(t.text, p...)
	t.text = t.text[max(0, len(t.text)-limit):]
	return len(p), nil
}

func (t *tail) String() string {
	t.mu.Lock()
	defer t.mu.Unlock()
	return string(t.text)
}

func randomHex(n int) string {
	b := make([]byte, n)
	rand.Read(b) // never fails (crypto/rand)
	return hex.EncodeToString(b)
}

// gateway is the path of versitygw, which is built where it is not yet there.
// `make test` has built it before.
func gateway(ctx context.Context) (string, error) {
	out, err := exec.CommandContext(ctx, "go", "env", "GOMOD").Output()
	root := filepath.Dir(strings.TrimSpace(string(out)))
	if err != nil || root == "." || root == os.DevNull {
		return "", fmt.Errorf("find the module's folder: %w: %q", err, out)
	}
	tools := filepath.Join(root, "bin", "tools")
	binary := filepath.Join(tools, "versitygw")
	if _, err := os.Stat(binary); err == nil {
		return binary, nil
	}
	if err := os.MkdirAll(tools, 0o755); err != nil {
		return "", err
	}
	// Tests of several packages come here at once: one builds, the others wait.
	lock, err := os.OpenFile(filepath.Join(tools, ".versitygw.lock"), os.O_RDWR|os.O_CREATE, 0o600)
	if err != nil {
		return "", err
	}
	defer lock.Close()
	if err := syscall.Flock(int(lock.Fd()), syscall.LOCK_EX); err != nil {
		return "", err
	}
	if _, err := os.Stat(binary); err == nil {
		return binary, nil
	}
	return binary, build(ctx, filepath.Join(root, "tools", "s3"), binary)
}

func build(ctx context.Context, module, binary string) error {
	temp := binary + ".new"
	cmd := exec.CommandContext(ctx, "go", "build", "-o", temp, "github.com/versity/versitygw/cmd/versitygw")
	cmd.Dir = module
	if out, err := cmd.CombinedOutput(); err != nil {
		last := ""
		for lines := bufio.NewScanner(strings.NewReader(string(out))); lines.Scan(); {
			last = lines.Text()
		}
		return fmt.Errorf("build versitygw, the S3 server of the tests (make bin/tools/versitygw does it too): %w: %s", err, last)
	}
	return os.Rename(temp, binary)
}
