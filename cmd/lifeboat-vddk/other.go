//go:build !linux || !amd64

// Lifeboat-vddk serves one virtual disk through VMware's library, which exists
// for Linux on amd64 only.
package main

import (
	"fmt"
	"os"
)

func main() {
	fmt.Fprintln(os.Stderr, "lifeboat-vddk: VMware's library exists for Linux on x86-64 only")
	os.Exit(1)
}
