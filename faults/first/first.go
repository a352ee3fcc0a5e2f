// Package first says which rotations of a replica under test have their campaign made before their commit, as all have it
// that meet another replica. The service does so only when it must, and then the lock is seldom there to be tested.
package first

import "sync/atomic"

// Always has all campaigns made first.
func Always() bool { return true }

// EveryOther has every other campaign made first, so that there are rotations of both kinds.
func EveryOther() func() bool {
	var asked atomic.Int64
	return func() bool { return asked.Add(1)%2 == 0 }
}
