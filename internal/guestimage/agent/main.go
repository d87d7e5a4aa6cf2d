// Command agent runs inside a test guest and uses a mounted file system the
// way programs do: through the kernel. Every subcommand is one scenario; it
// checks each result itself, prints what the caller wants to know, and ends
// with status 1 and a message at the first thing that is not as POSIX or
// NFSv3's description has it.
//
// It uses the standard library only, so that it can be built anywhere from its
// sources alone (CGO_ENABLED=0).
package main

import (
	"fmt"
	"os"
	"sort"
	"strings"
)

// scenario is one subcommand; args are what follows its name.
type scenario struct {
	usage string
	run   func(args []string) error
}

func scenarios() map[string]scenario {
	return map[string]scenario{
		"mount":       {"SOURCE DIRECTORY OPTIONS", mount},
		"umount":      {"DIRECTORY", unmount},
		"files":       {"DIRECTORY", files},
		"names":       {"DIRECTORY", names},
		"attributes":  {"DIRECTORY", attributes},
		"permissions": {"DIRECTORY", permissions},
		"links":       {"DIRECTORY", links},
		"open-unlink": {"DIRECTORY", openUnlink},
		"open-rename": {"DIRECTORY", openRename},
		"list":        {"DIRECTORY PREFIX COUNT", list},
		"list-remove": {"DIRECTORY COUNT", listRemove},
		"race":        {"DIRECTORY-A DIRECTORY-B COUNT", race},
		"sparse":      {"DIRECTORY", sparse},
		"holes":       {"FILE", unsupported},
		"random":      {"FILE SEED BYTES WRITES", random},
		"verify":      {"FILE SEED BYTES WRITES", verify},
		"mapped":      {"FILE", mapped},
		"disk":        {"FILE SEED BYTES WRITES", disk},
		"append":      {"DIRECTORY COUNT", appendLines},
		"hold":        {"DIRECTORY SECONDS", hold},
	}
}

func main() {
	all := scenarios()
	if len(os.Args) >= 2 {
		if s, ok := all[os.Args[1]]; ok && len(os.Args)-2 == len(strings.Fields(s.usage)) {
			if err := s.run(os.Args[2:]); err != nil {
				fmt.Printf("%s: %v\n", os.Args[1], err)
				os.Exit(1)
			}
			return
		}
	}
	var lines []string
	for name, s := range all {
		lines = append(lines, "  agent "+name+" "+s.usage)
	}
	sort.Strings(lines)
	fmt.Println("usage:\n" + strings.Join(lines, "\n"))
	os.Exit(2)
}
