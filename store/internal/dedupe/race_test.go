//go:build race

package dedupe

// raceEnabled: the race detector takes several times the memory.
const raceEnabled = true
