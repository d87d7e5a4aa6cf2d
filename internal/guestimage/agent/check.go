package main

import (
	"bytes"
	"errors"
	"fmt"
	"os"
	"strconv"
	"syscall"
)

// want is nil when err is exactly the error number no (0: no error).
func want(what string, err error, no syscall.Errno) error {
	var got syscall.Errno
	switch {
	case err == nil && no == 0:
		return nil
	case err == nil:
		return fmt.Errorf("%s succeeded, want %s", what, no.Error())
	case errors.As(err, &got) && got == no:
		return nil
	case no == 0:
		return fmt.Errorf("%s: %w", what, err)
	}
	return fmt.Errorf("%s: %w, want %s", what, err, no.Error())
}

// first is the first error of checks that were all made.
func first(errs ...error) error {
	for _, err := range errs {
		if err != nil {
			return err
		}
	}
	return nil
}

func equal[T comparable](what string, got, want T) error {
	if got != want {
		return fmt.Errorf("%s is %v, want %v", what, got, want)
	}
	return nil
}

// content checks a whole file.
func content(path, want string) error {
	b, err := os.ReadFile(path)
	if err != nil {
		return err
	}
	return sameBytes(path, b, []byte(want))
}

func sameBytes(what string, got, want []byte) error {
	if bytes.Equal(got, want) {
		return nil
	}
	n := min(len(got), len(want))
	for i := range n {
		if got[i] != want[i] {
			return fmt.Errorf("%s: byte %d is %#02x, want %#02x (lengths %d and %d)", what, i, got[i], want[i], len(got), len(want))
		}
	}
	return fmt.Errorf("%s: %d bytes, want %d", what, len(got), len(want))
}

func stat(path string) (*syscall.Stat_t, error) {
	var st syscall.Stat_t
	if err := syscall.Lstat(path, &st); err != nil {
		return nil, fmt.Errorf("stat %s: %w", path, err)
	}
	return &st, nil
}

func number(s string) (int64, error) {
	n, err := strconv.ParseInt(s, 10, 64)
	if err != nil || n < 0 {
		return 0, fmt.Errorf("%q is not a number", s)
	}
	return n, nil
}

func numbers(in ...string) ([]int64, error) {
	out := make([]int64, len(in))
	for i, s := range in {
		n, err := number(s)
		if err != nil {
			return nil, err
		}
		out[i] = n
	}
	return out, nil
}
