package main

import (
	"strings"

	"github.com/urfave/cli/v2"
)

// permute sorts a command line so that flags may stand anywhere, as people
// expect: urfave/cli stops looking for flags at the first argument that is
// none, and takes a global flag only before the command. The result is
// program, global flags, command, its flags, arguments. "--" ends the flags.
func permute(app *cli.App, args []string) []string {
	if len(args) == 0 {
		return args
	}
	var global, path, local, rest []string
	commands, flags := app.Commands, app.Flags
	deeper := true
	for i := 1; i < len(args); i++ {
		arg := args[i]
		if arg == "--" {
			rest = append(rest, args[i:]...)
			break
		}
		if len(arg) > 1 && arg[0] == '-' {
			run := []string{arg}
			name, _, hasValue := strings.Cut(strings.TrimLeft(arg, "-"), "=")
			own, ok := findFlag(flags, name)
			glob, isGlobal := findFlag(app.Flags, name)
			if !ok {
				own = glob
			}
			if own != nil && !hasValue && takesValue(own) && i+1 < len(args) {
				i++
				run = append(run, args[i])
			}
			if isGlobal {
				global = append(global, run...)
			} else {
				local = append(local, run...)
			}
			continue
		}
		if deeper {
			if c := findCommand(commands, arg); c != nil {
				path, commands, flags = append(path, arg), c.Subcommands, c.Flags
				deeper = len(commands) > 0
				continue
			}
			deeper = false
		}
		rest = append(rest, arg)
	}
	out := append([]string{args[0]}, global...)
	out = append(out, path...)
	out = append(out, local...)
	return append(out, rest...)
}

func findCommand(commands []*cli.Command, name string) *cli.Command {
	for _, c := range commands {
		if c.HasName(name) {
			return c
		}
	}
	return nil
}

func findFlag(flags []cli.Flag, name string) (cli.Flag, bool) {
	for _, f := range flags {
		for _, n := range f.Names() {
			if n == name {
				return f, true
			}
		}
	}
	return nil, false
}

func takesValue(f cli.Flag) bool {
	_, isBool := f.(*cli.BoolFlag)
	return !isBool
}
