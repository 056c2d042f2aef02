package typha

import (
	"bytes"
	"errors"
	"fmt"
	"slices"
	"testing"
)

func TestTheHelloWithASubscription(t *testing.T) {
	wanted := Subscription{
		Kinds: []string{"core/v1/pods", "core/v1/services"}, Namespaces: []string{"", "default"},
		Prefixes: []string{"/core/v1/"}, OwnNode: true,
	}
	hello := clientHello(&Options{Feed: "f", Agent: "a", Node: "n1", Subscription: &wanted}, nil, nil)
	d := &decoder{data: hello[len(preface)+5:]}
	d.skip(1)
	if d.err != nil || len(d.data) != 0 {
		t.Errorf("the hello is not one msgpack value: %x", hello)
	}
	for _, text := range []string{"subscriptions", "subscription", "kinds", "namespaces", "prefixes", "own_node"} {
		if !bytes.Contains(hello, appendText(nil, text)) {
			t.Errorf("the hello lacks %s", text)
		}
	}
}

func TestWrongSubscriptions(t *testing.T) {
	many := make([]string, maxSubscriptionTexts+1)
	for _, wrong := range []Subscription{
		{OwnNode: true}, {Kinds: []string{}}, {Prefixes: many}, {Namespaces: []string{string(make([]byte, 1025))}},
		{Namespaces: []string{"\xff"}},
	} {
		options := Options{Addresses: []string{"localhost"}, Feed: "f", Agent: "a", Subscription: &wrong}
		if err := options.check(); err == nil {
			t.Errorf("accepted %+v", wrong)
		}
	}
	right := Options{Addresses: []string{"localhost"}, Node: "n1", Subscription: &Subscription{OwnNode: true}}
	if err := right.check(); err != nil {
		t.Error(err)
	}
}

func TestWhatASubscriptionSelects(t *testing.T) {
	const pod, value = "/core/v1/pods/default/web-1", `{"spec":{"nodeName":"n1"}}`
	for _, one := range []struct {
		wanted     Subscription
		key, value string
		selected   bool
	}{
		{Subscription{}, pod, value, true},
		{Subscription{Kinds: []string{"core/v1/pods"}}, pod, value, true},
		{Subscription{Kinds: []string{"core/v1/pod"}}, pod, value, false},
		{Subscription{Namespaces: []string{"default"}}, pod, value, true},
		{Subscription{Namespaces: []string{""}}, pod, value, false},
		{Subscription{Namespaces: []string{""}}, "/core/v1/nodes//n1", "{}", true},
		{Subscription{Namespaces: []string{"default"}}, "/calico/default", "{}", false},
		{Subscription{Namespaces: []string{"default"}}, pod + "/more", value, false},
		{Subscription{Prefixes: []string{"/none/", "/core/v1/p"}}, pod, value, true},
		{Subscription{Prefixes: []string{"/none/"}}, pod, value, false},
		{Subscription{Kinds: []string{"core/v1/pods"}, Namespaces: []string{"other"}}, pod, value, false},
		{Subscription{OwnNode: true}, pod, value, true},
		{Subscription{OwnNode: true}, pod, `{"spec":{"nodeName":"n2"}}`, false},
		{Subscription{OwnNode: true}, pod, `{"spec":{}}`, false},
		{Subscription{OwnNode: true}, pod, `{"spec":{"nodeName":"n1","node":7}}`, false},
		{Subscription{OwnNode: true}, pod, `{"Spec":{"NODENAME":"n1"}}`, false},
		{Subscription{OwnNode: true}, pod, `no object`, false},
		{Subscription{OwnNode: true}, "/core/v1/services/default/web", "{}", true},
		{Subscription{OwnNode: true}, "/core/v1/nodes//n2", "{}", false},
		{Subscription{OwnNode: true}, "/storage.k8s.io/v1/csinodes//n1", "{}", true},
		{Subscription{OwnNode: true}, "/coordination.k8s.io/v1/leases/kube-node-lease/n2", "{}", false},
		{Subscription{OwnNode: true}, "/coordination.k8s.io/v1/leases/default/n2", "{}", true},
		{Subscription{OwnNode: true}, "/projectcalico.org/v3/hostendpoints//h", `{"spec":{"node":"n2"}}`, false},
		{Subscription{OwnNode: true}, "/crd.projectcalico.org/v1/hostendpoints//h", `{"spec":{"node":"n1"}}`, true},
		{Subscription{OwnNode: true}, "/projectcalico.org/v3/ippools//p", `{"spec":{"node":"n2"}}`, true},
		{Subscription{OwnNode: true}, "/calico/v1/host/n2/bird_ip", "", false},
		{Subscription{OwnNode: true}, "/calico/ipam/v2/host/n1/ipv4", "", true},
		{Subscription{OwnNode: true}, "/calico/resources/v3/projectcalico.org/nodes/n2", "", false},
		{
			Subscription{OwnNode: true}, "/calico/resources/v3/projectcalico.org/caliconodestatuses/s",
			`{"spec":{"node":"n1"}}`, true,
		},
		{Subscription{OwnNode: true}, "/calico/v1/Ready", "", true},
	} {
		if found := one.wanted.selects(one.key, []byte(one.value), "n1"); found != one.selected {
			t.Errorf("%+v selects %s %s: %v", one.wanted, one.key, one.value, found)
		}
	}
}

func TestSelectingFromTheWholeFeed(t *testing.T) {
	one := newSelecting(&Subscription{OwnNode: true}, "n1")
	const key = "/core/v1/pods/default/web-1"
	here, there := []byte(`{"spec":{"nodeName":"n1"}}`), []byte(`{"spec":{"nodeName":"n2"}}`)
	var said []string
	for _, value := range [][]byte{there, here, here, there, nil, here, nil} {
		batch := one.selectFrom(&Batch{Changes: []Change{{Key: key, Value: value}}})
		if batch == nil {
			said = append(said, "-")
			continue
		}
		change := batch.Changes[0]
		said = append(said, fmt.Sprintf("%v %v", change.Value != nil, change.New))
	}
	wanted := []string{"-", "true true", "true false", "false false", "-", "true true", "false false"}
	if !slices.Equal(said, wanted) {
		t.Errorf("%v instead of %v", said, wanted)
	}
	if batch := one.selectFrom(&Batch{FromSnapshot: true}); batch == nil || !batch.FromSnapshot {
		t.Error("the end of a snapshot is not passed on")
	}
}

func TestSequencesSkipOnlyWithASubscriptionInForce(t *testing.T) {
	for _, isSelection := range []bool{false, true} {
		one := session{state: following, sequence: 40, isSelection: isSelection}
		for _, sequence := range []uint64{39, 40, 41} {
			if found := one.isContinuedBy(sequence); found != (sequence == 40 || isSelection && sequence > 40) {
				t.Errorf("%v: %d continues 40: %v", isSelection, sequence, found)
			}
		}
	}
}

func TestThePositionOfAWholeFeedIsNotTold(t *testing.T) {
	d := newDiffer()
	d.beginConnection("incarnation 16 b")
	d.isPlaceless = true
	for _, message := range []any{
		snapshotBegin{7, 0, 1}, snapshotChunk{}, snapshotEnd{7, 0, 0}, statusMessage{7, InSync}, updates{7, 8, nil},
	} {
		if _, err := d.receive(message); err != nil {
			t.Fatal(err)
		}
	}
	if at, digests := d.resuming(); at != nil || digests == nil {
		t.Error(at, digests, errors.New("the position of another map"))
	}
}

func TestTheFileOfAPartNamesIt(t *testing.T) {
	var whole *Subscription
	part := &Subscription{Kinds: []string{"b", "a", "b"}, OwnNode: true}
	if found := whole.content("f", "n"); found != "f" {
		t.Error(found)
	}
	if found := part.content("f", "n"); found != "f kinds=a,b own_node n" {
		t.Error(found)
	}
}
