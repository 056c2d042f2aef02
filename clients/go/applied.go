package typha

import (
	"sync"
	"time"
)

const (
	appliedPause   = time.Second // between two messages (rule P3)
	maxVersions    = 1024        // versions that are told apart; of a receiver that is further behind, some are rounded down
	featureApplied = "positions"
)

// An acknowledger keeps what a receiver has applied, and when to tell the server (rules P1 to P6). A receiver applies
// versions of its map; a server understands sequences of one connection. A version that is applied covers all sequences
// up to the next change, also those of a later connection.
type acknowledger struct {
	mutex           sync.Mutex
	version         uint64 // of the receiver's map
	appliedVersion  uint64
	covered         []coveredVersion // of this connection: those that are not applied, and the newest that is
	appliedSequence uint64
	wake            chan struct{} // holds one element if there is something to look at
}

type coveredVersion struct{ version, sequence uint64 }

func newAcknowledger() *acknowledger {
	return &acknowledger{wake: make(chan struct{}, 1)}
}

// beginConnection forgets the sequences of the last one.
func (a *acknowledger) beginConnection() {
	a.mutex.Lock()
	defer a.mutex.Unlock()
	a.covered, a.appliedSequence = nil, 0
}

// received notes that the map has reached a sequence, and returns its version.
func (a *acknowledger) received(sequence uint64, changed bool) uint64 {
	a.mutex.Lock()
	defer a.mutex.Unlock()
	if changed {
		a.version++
	}
	if last := len(a.covered) - 1; last >= 0 && a.covered[last].version == a.version {
		a.covered[last].sequence = max(a.covered[last].sequence, sequence)
	} else {
		a.covered = append(a.covered, coveredVersion{a.version, sequence})
	}
	if len(a.covered) > maxVersions {
		kept := a.covered[:0]
		for place, one := range a.covered {
			if place%2 == 0 || one.version == a.version {
				kept = append(kept, one)
			}
		}
		a.covered = kept
	}
	a.settle()
	return a.version
}

// applied notes that everything up to a version has taken effect. A version that there is not yet counts as the newest.
func (a *acknowledger) applied(version uint64) {
	a.mutex.Lock()
	defer a.mutex.Unlock()
	a.appliedVersion = max(a.appliedVersion, min(version, a.version))
	a.settle()
}

func (a *acknowledger) settle() {
	before, passed := a.appliedSequence, 0
	for _, one := range a.covered {
		if one.version > a.appliedVersion {
			break
		}
		a.appliedSequence = max(a.appliedSequence, one.sequence)
		if one.version < a.version { // else what follows without a change is applied, too
			passed++
		}
	}
	a.covered = a.covered[passed:]
	if a.appliedSequence > before {
		select {
		case a.wake <- struct{}{}:
		default:
		}
	}
}

func (a *acknowledger) sequence() uint64 {
	a.mutex.Lock()
	defer a.mutex.Unlock()
	return a.appliedSequence
}

// tell sends what is applied, at most once in each pause, until done is closed or a write fails.
func (a *acknowledger) tell(done <-chan struct{}, pause time.Duration, write func([]byte) error) {
	var sent uint64
	for {
		select {
		case <-done:
			return
		case <-a.wake:
		}
		sequence := a.sequence()
		if sequence <= sent {
			continue
		}
		if write(applied(sequence)) != nil {
			return // whoever reads the connection notices
		}
		sent = sequence
		select {
		case <-done:
			return
		case <-time.After(pause):
		}
	}
}
