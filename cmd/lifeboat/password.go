package main

import (
	"bytes"
	"errors"
	"fmt"
	"os"

	"golang.org/x/term"

	"lifeboat/appliance"
)

var errNoPassword = errors.New("no password")

// maxPassword bounds a password file: a wrong name must not read a disk.
const maxPassword = 4096

// passwordFrom looks in the environment variable name, then in the file that
// name_FILE (or the configuration) names, then asks a person.
func (p *program) passwordFrom(name, prompt string, twice bool) ([]byte, error) {
	if v := os.Getenv(name); v != "" {
		return []byte(v), nil
	}
	file := os.Getenv(name + "_FILE")
	if file == "" && name == "LIFEBOAT_PASSWORD" {
		file = p.config.PasswordFile
	}
	if file != "" {
		return readPasswordFile(file)
	}
	if !term.IsTerminal(int(p.stdin.Fd())) {
		return nil, fmt.Errorf("%w: %w: set %s or %[3]s_FILE", appliance.ErrUsage, errNoPassword, name)
	}
	return p.ask(prompt, twice)
}

func readPasswordFile(name string) ([]byte, error) {
	f, err := os.Open(name)
	if err != nil {
		return nil, fmt.Errorf("password file: %w", err)
	}
	defer f.Close()
	buf := make([]byte, maxPassword+1)
	n, _ := f.Read(buf)
	if n > maxPassword {
		return nil, fmt.Errorf("password file %s: longer than %d bytes", name, maxPassword)
	}
	pw, _, _ := bytes.Cut(buf[:n], []byte("\n"))
	pw = bytes.TrimSuffix(pw, []byte("\r"))
	if len(pw) == 0 {
		return nil, fmt.Errorf("password file %s: its first line is empty", name)
	}
	return pw, nil
}

func (p *program) ask(prompt string, twice bool) ([]byte, error) {
	read := func(prompt string) ([]byte, error) {
		fmt.Fprint(p.stderr, prompt+": ")
		pw, err := term.ReadPassword(int(p.stdin.Fd()))
		fmt.Fprintln(p.stderr)
		return pw, err
	}
	pw, err := read(prompt)
	if err != nil || len(pw) == 0 {
		return nil, fmt.Errorf("%w: no password given", appliance.ErrUsage)
	}
	if twice {
		again, err := read("The same again")
		if err != nil || !bytes.Equal(pw, again) {
			return nil, fmt.Errorf("%w: the two passwords differ", appliance.ErrUsage)
		}
	}
	return pw, nil
}
