package netns

import (
	"bytes"
	"context"
	"fmt"
	"net"
	"os"
	"strings"
	"testing"
	"time"
)

// TestMain is also the program that TestCommand starts inside.
func TestMain(m *testing.M) {
	if os.Getenv("NETNS_TEST") == "inside" {
		if err := inside(); err != nil {
			fmt.Println(err)
			os.Exit(1)
		}
		fmt.Println("well")
		os.Exit(0)
	}
	os.Exit(m.Run())
}

// inside listens on port 111 and connects to it.
func inside() error {
	if !Inside() {
		return fmt.Errorf("not inside")
	}
	if err := Up(); err != nil {
		return err
	}
	l, err := net.Listen("tcp", "127.0.0.1:111")
	if err != nil {
		return err
	}
	defer l.Close()
	c, err := net.Dial("tcp", l.Addr().String())
	if err != nil {
		return err
	}
	defer c.Close()
	ifs, err := net.Interfaces()
	if err != nil {
		return err
	}
	for _, i := range ifs {
		if i.Flags&net.FlagUp != 0 && i.Flags&net.FlagLoopback == 0 {
			return fmt.Errorf("there is more than a loopback: %s", i.Name)
		}
	}
	return nil
}

func TestCommand(t *testing.T) {
	ctx, cancel := context.WithTimeout(t.Context(), time.Minute)
	defer cancel()
	if err := Check(ctx); err != nil {
		t.Fatalf("this test needs network namespaces: %v", err)
	}
	if Inside() {
		t.Fatal("the test itself believes to be inside")
	}
	if err := Up(); err == nil {
		t.Fatal("Up worked outside")
	}
	self, err := os.Executable()
	if err != nil {
		t.Fatal(err)
	}
	cmd := Command(ctx, self)
	cmd.Env = append(cmd.Env, "NETNS_TEST=inside")
	var out bytes.Buffer
	cmd.Stdout, cmd.Stderr = &out, &out
	if err := cmd.Run(); err != nil || strings.TrimSpace(out.String()) != "well" {
		t.Fatalf("%v: %s", err, out.String())
	}
}
