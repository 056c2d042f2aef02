package typha

import (
	"math/rand/v2"
	"net"
	"slices"
	"strings"
	"time"
)

const (
	defaultPort    = "5473"
	backoffMin     = 100 * time.Millisecond
	backoffMax     = 30 * time.Second
	healthyFor     = 10 * time.Second
	retryAfterMax  = 300 * time.Second
	doublingsUntil = 9 // 0.1 s doubled this often is above 30 s
)

// withPort adds the default port to an address without one.
func withPort(address string) string {
	if _, _, err := net.SplitHostPort(address); err == nil {
		return address
	}
	return net.JoinHostPort(strings.Trim(address, "[]"), defaultPort)
}

// A rotation decides which server comes next, and when (rules B1 to B4).
type rotation struct {
	addresses []string // the current one first; the least recently tried comes next
	notBefore map[string]time.Time
	failures  int
	random    func(time.Duration) time.Duration // from 0 to the argument
}

func newRotation(addresses []string) *rotation {
	r := &rotation{
		addresses: slices.Clone(addresses),
		notBefore: map[string]time.Time{},
		random:    func(limit time.Duration) time.Duration { return rand.N(limit + 1) },
	}
	rand.Shuffle(len(r.addresses), func(i, j int) { r.addresses[i], r.addresses[j] = r.addresses[j], r.addresses[i] })
	return r
}

func (r *rotation) current() string { return r.addresses[0] }

// failed notes the end of a connection or attempt, chooses the next address, and returns how long to wait for it.
func (r *rotation) failed(now time.Time, lived, retryAfter time.Duration) time.Duration {
	if lived >= healthyFor {
		r.failures = 0
	}
	limit := min(backoffMin<<min(r.failures, doublingsUntil), backoffMax)
	r.failures++
	address := r.addresses[0]
	r.notBefore[address] = now.Add(min(retryAfter, retryAfterMax))
	r.addresses = append(r.addresses[1:], address)
	chosen := 0
	for index, other := range r.addresses {
		if r.wait(other, now) < r.wait(r.addresses[chosen], now) {
			chosen = index
		}
	}
	address = r.addresses[chosen]
	r.addresses = slices.Insert(slices.Delete(r.addresses, chosen, chosen+1), 0, address)
	return r.wait(address, now) + r.random(limit)
}

func (r *rotation) wait(address string, now time.Time) time.Duration {
	return max(r.notBefore[address].Sub(now), 0)
}
