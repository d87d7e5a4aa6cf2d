package main

import (
	"fmt"
	"time"

	"github.com/urfave/cli/v2"

	"lifeboat/store"
)

func (p *program) statsCommand() *cli.Command {
	return &cli.Command{
		Name: "stats", Usage: "show what the repository holds and occupies, for each VM, and how it grows", ArgsUsage: " ",
		Description: "Without --exact it costs a listing and the restore points. With it every block map and every\n" +
			"segment's tables are read: some seconds per terabyte.",
		Flags: []cli.Flag{
			&cli.BoolFlag{Name: "exact", Usage: "count every block once: what is unique, what VMs share, what a prune could free"},
		},
		Action: func(c *cli.Context) error {
			if err := arguments(c, 0, 0); err != nil {
				return err
			}
			return p.withRepo(c.Context, func(repo *store.Repository) error { return p.stats(c, repo) })
		},
	}
}

func (p *program) stats(c *cli.Context, repo *store.Repository) error {
	st, err := p.countStats(c, repo)
	if err != nil {
		return err
	}
	if p.json {
		return p.printJSON(st)
	}
	fmt.Fprintf(p.stdout, "Restore points  %d of %d VMs; as full copies they would take %s (%s with holes)\n", st.Points, len(st.VMs), size(st.UsedBytes), size(st.VirtualBytes))
	if x := st.Exact; x != nil {
		fmt.Fprintf(p.stdout, "Unique          %s (1 : %.2f by deduplication)\nNeeded          %s (1 : %.2f by compression)\nReclaimable     %s\n",
			size(x.UniqueBytes), ratio(st.UsedBytes, x.UniqueBytes), size(x.NeededBytes), ratio(x.UniqueBytes, x.NeededBytes), size(x.ReclaimableBytes))
		if x.Unread > 0 {
			fmt.Fprintf(p.stdout, "NOT COUNTED     %d parts that cannot be read; `lifeboat verify` names them\n", x.Unread)
		}
	}
	fmt.Fprintf(p.stdout, "Stored          %s in %d segments\nIndex           %s\nAll together    %s in %d objects",
		size(st.SegmentBytes), st.Segments, size(st.IndexBytes), size(st.TotalBytes), st.Objects)
	if st.Points == 0 {
		fmt.Fprintln(p.stdout)
		return nil
	}
	fmt.Fprintf(p.stdout, " (1 : %.2f)\n\n", ratio(st.UsedBytes, st.TotalBytes))
	if err := p.printVMStats(st); err != nil {
		return err
	}
	return p.printGrowth(st.Days)
}

func (p *program) countStats(c *cli.Context, repo *store.Repository) (*store.Stat, error) {
	if !c.Bool("exact") {
		return repo.Stat(c.Context)
	}
	show := newMeters(p.stderr)
	m := show.add("segments")
	st, err := repo.StatExact(c.Context, func(done, total int64) { m.set(done<<26, total<<26) }) // a segment is about 64 MiB
	if err != nil {
		show.abandon()
		return nil, err
	}
	show.wait()
	return st, nil
}

func ratio(a, b int64) float64 {
	if b == 0 {
		return 1
	}
	return float64(a) / float64(b)
}

func (p *program) printVMStats(st *store.Stat) error {
	header := "VM\tPOINTS\tOLDEST\tNEWEST\tSIZE\tUSED\tSTORED\tPER DAY"
	if st.Exact != nil {
		header += "\tOWN\tSHARED"
	}
	return p.table(header, func(line func(string, ...any)) {
		for _, v := range st.VMs {
			format := "%s\t%d\t%s\t%s\t%s\t%s\t%s\t%s"
			cells := []any{
				v.VM, v.Points, localDay(v.Oldest), localDay(v.Newest),
				size(v.VirtualBytes), size(v.UsedBytes), size(v.StoredBytes), size(v.GrowthPerDay),
			}
			if v.Exact != nil {
				format += "\t%s\t%s"
				cells = append(cells, size(v.Exact.OwnStored), size(v.Exact.SharedStored))
			}
			line(format, cells...)
		}
	})
}

func localDay(t time.Time) string { return t.Local().Format(time.DateOnly) }

// growthDays is how many days the table of growth shows; JSON has all.
const growthDays = 14

func (p *program) printGrowth(days []store.DayStat) error {
	if len(days) == 0 {
		return nil
	}
	fmt.Fprintln(p.stdout)
	return p.table("DAY\tPOINTS\tREAD\tNEW\tSTORED", func(line func(string, ...any)) {
		for _, d := range days[max(0, len(days)-growthDays):] {
			line("%s\t%d\t%s\t%s\t%s", d.Day, d.Points, size(d.ReadBytes), size(d.NewBytes), size(d.StoredBytes))
		}
	})
}
