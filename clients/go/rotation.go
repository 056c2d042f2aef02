package typha

import (
	"math/rand/v2"
	"net"
	"slices"
	"strconv"
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
	redirect  string                            // the server that another one has named for the next attempt
	trusted   string                            // the own address whose name a certificate must have
	random    func(time.Duration) time.Duration // from 0 to the argument
}

func newRotation(addresses []string) *rotation {
	r := &rotation{
		addresses: slices.Clone(addresses),
		notBefore: map[string]time.Time{},
		random:    func(limit time.Duration) time.Duration { return rand.N(limit + 1) },
	}
	rand.Shuffle(len(r.addresses), func(i, j int) { r.addresses[i], r.addresses[j] = r.addresses[j], r.addresses[i] })
	r.trusted = r.addresses[0]
	return r
}

func (r *rotation) current() string {
	if r.redirect != "" {
		return r.redirect
	}
	return r.addresses[0]
}

// failed notes the end of a connection or attempt, chooses the next address, and returns how long to wait for it. The
// next attempt takes one of the servers that this one has named (rule G7).
func (r *rotation) failed(now time.Time, lived, retryAfter time.Duration, servers []string) time.Duration {
	if lived >= healthyFor {
		r.failures = 0
	}
	limit := min(backoffMin<<min(r.failures, doublingsUntil), backoffMax)
	r.failures++
	address := r.current()
	r.redirect = ""
	if own := slices.Index(r.addresses, address); own >= 0 {
		r.notBefore[address] = now.Add(min(retryAfter, retryAfterMax))
		r.addresses = append(slices.Delete(r.addresses, own, own+1), address)
	}
	named := slices.DeleteFunc(slices.Clone(servers), func(other string) bool {
		host, port, err := net.SplitHostPort(other)
		number, unread := strconv.ParseUint(port, 10, 16)
		return other == address || err != nil || host == "" || unread != nil || number == 0
	})
	if len(named) > 0 {
		r.redirect = named[rand.N(len(named))]
		return r.random(limit)
	}
	chosen := 0
	for index, other := range r.addresses {
		if r.wait(other, now) < r.wait(r.addresses[chosen], now) {
			chosen = index
		}
	}
	address = r.addresses[chosen]
	r.addresses = slices.Insert(slices.Delete(r.addresses, chosen, chosen+1), 0, address)
	r.trusted = address
	return r.wait(address, now) + r.random(limit)
}

func (r *rotation) wait(address string, now time.Time) time.Duration {
	return max(r.notBefore[address].Sub(now), 0)
}
