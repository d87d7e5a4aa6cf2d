// Command lifeboat-agent is the only program of the micro-VM that reads guests'
// file systems with the Linux kernel's own drivers: package microvm says how. It
// is of no use outside.
package main

import "lifeboat/guestfs/microvm/agent"

func main() { agent.Main() }
