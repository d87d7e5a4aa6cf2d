package main

import (
	"fmt"

	"github.com/urfave/cli/v2"

	"lifeboat/store"
)

func (p *program) statsCommand() *cli.Command {
	return &cli.Command{
		Name: "stats", Usage: "show what the repository holds and occupies", ArgsUsage: " ",
		Action: func(c *cli.Context) error {
			if err := arguments(c, 0, 0); err != nil {
				return err
			}
			return p.withRepo(c.Context, func(repo *store.Repository) error {
				st, err := repo.Stat(c.Context)
				if err != nil {
					return err
				}
				if p.json {
					return p.printJSON(st)
				}
				fmt.Fprintf(p.stdout, "Restore points  %d, %s of disks\nStored          %s in %d segments\nIndex           %s\nAll together    %s\n",
					st.Points, size(st.VirtualBytes), size(st.SegmentBytes), st.Segments, size(st.IndexBytes), size(st.TotalBytes))
				return nil
			})
		},
	}
}
