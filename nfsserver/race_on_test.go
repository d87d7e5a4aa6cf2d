//go:build race

package nfsserver

// raceEnabled: the race detector makes sync.Pool forget at random.
const raceEnabled = true
