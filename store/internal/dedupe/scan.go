package dedupe

import "iter"

// All yields the entries of all runs, in no order, and an identity once for each
// run that has it. Of a run with damage it yields what comes before the damage.
// It reads the whole index; nothing may merge runs meanwhile.
func (x *Index) All() iter.Seq[Entry] {
	return func(yield func(Entry) bool) {
		for _, r := range *x.runs.Load() {
			if !r.whole() {
				continue
			}
			on := true
			mergeEntries([]*run{r}, func(e Entry, err error) bool {
				on = err != nil || yield(e)
				return on && err == nil
			})
			if !on {
				return
			}
		}
	}
}
