package typha

import (
	"testing"
	"time"
)

func limits(r *rotation) *time.Duration {
	var asked time.Duration
	r.random = func(limit time.Duration) time.Duration {
		asked = limit
		return 0
	}
	return &asked
}

func TestBackOffDoublesAndStartsOverAfterAHealthyConnection(t *testing.T) {
	r := newRotation([]string{"a:1"})
	asked := limits(r)
	now := time.Now()
	want := 100 * time.Millisecond
	for range 12 {
		if r.failed(now, 9*time.Second, 0, nil); *asked != min(want, 30*time.Second) {
			t.Fatalf("limit %v instead of %v", *asked, want)
		}
		want *= 2
	}
	if r.failed(now, 10*time.Second, 0, nil); *asked != 100*time.Millisecond {
		t.Errorf("limit %v after a healthy connection", *asked)
	}
}

func TestAnotherServerComesFirst(t *testing.T) {
	r := newRotation([]string{"a:1", "b:1", "c:1"})
	limits(r)
	now := time.Now()
	seen := map[string]bool{}
	for range 3 {
		seen[r.current()] = true
		r.failed(now, 0, 0, nil)
	}
	if len(seen) != 3 {
		t.Errorf("only %v were tried", seen)
	}
}

func TestAServerIsLeftAloneForAsLongAsItAsks(t *testing.T) {
	r := newRotation([]string{"a:1", "b:1"})
	limits(r)
	now := time.Now()
	first := r.current()
	if wait := r.failed(now, 0, 20*time.Second, nil); wait != 0 || r.current() == first {
		t.Errorf("%v until %s", wait, r.current())
	}
	if wait := r.failed(now, 0, time.Hour, nil); wait != 20*time.Second || r.current() != first {
		t.Errorf("%v until %s", wait, r.current())
	}
	if wait := r.failed(now, 0, time.Hour, nil); wait != 300*time.Second {
		t.Errorf("an hour counts as %v", wait)
	}
}

func TestAddresses(t *testing.T) {
	for address, want := range map[string]string{
		"typha": "typha:5473", "typha:1": "typha:1", "::1": "[::1]:5473", "[::1]": "[::1]:5473", "[::1]:7": "[::1]:7",
	} {
		if found := withPort(address); found != want {
			t.Errorf("%s: %s", address, found)
		}
	}
	if err := (&Options{Addresses: []string{"a:1", ":5"}}).check(); err == nil {
		t.Error("an address without a host is accepted")
	}
	if err := (&Options{}).check(); err == nil {
		t.Error("no address is accepted")
	}
}

func TestARedirectIsTriedOnce(t *testing.T) {
	now := time.Now()
	r := newRotation([]string{"a:1", "b:1"})
	first := r.current()
	if wait := r.failed(now, 0, time.Hour, []string{"", "[x", first, "c:1"}); wait > 100*time.Millisecond {
		t.Errorf("waits %v", wait)
	}
	if r.current() != "c:1" || r.trusted != first {
		t.Errorf("at %s, trusts %s", r.current(), r.trusted)
	}
	r.failed(now, 0, 0, nil)
	second := r.current()
	if second == first || second == "c:1" || r.trusted != second {
		t.Errorf("at %s, trusts %s", second, r.trusted)
	}
	for range 20 {
		r.failed(now, 0, 0, []string{"d:port", ":5473", "d:0", "d:65536", "e:2"})
		if r.current() != "e:2" {
			t.Fatalf("at %s instead of the one address that can be read", r.current())
		}
		r.failed(now, 0, 0, nil)
	}
	r.failed(now, 0, 0, []string{"e:2"})
	if r.current() != "e:2" {
		t.Errorf("at %s instead of the address that was named", r.current())
	}
}
