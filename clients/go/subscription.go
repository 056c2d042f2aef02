package typha

import (
	"encoding/json"
	"errors"
	"slices"
	"strings"
	"unicode/utf8"
)

const (
	featureSubscriptions = "subscriptions"
	maxSubscriptionTexts = 64
	resourceKeyParts     = 6 // of the key of a Kubernetes resource, split at its slashes; the first part is empty
)

// A Subscription is the part of a feed that a client wants: the keys that match all of its members. A list that is nil
// is no restriction. Where the server does not select, the client does, and the caller sees the same.
type Subscription struct {
	// Kinds are as at the beginning of a key of a Kubernetes resource: "core/v1/pods".
	Kinds []string
	// Namespaces are those of Kubernetes resources. The empty text stands for resources without a namespace.
	Namespaces []string
	// Prefixes are those of keys.
	Prefixes []string
	// OwnNode selects, of the keys that belong to a node, only those of Options.Node.
	OwnNode bool
}

func (s *Subscription) lists() [3]struct {
	name  string
	texts []string
} {
	return [3]struct {
		name  string
		texts []string
	}{{"kinds", s.Kinds}, {"namespaces", s.Namespaces}, {"prefixes", s.Prefixes}}
}

func (s *Subscription) check(node string) error {
	if s.OwnNode && node == "" {
		return errors.New("typha: OwnNode needs the name of the node")
	}
	for _, list := range s.lists() {
		if list.texts != nil && (len(list.texts) == 0 || len(list.texts) > maxSubscriptionTexts) {
			return errors.New("typha: a list of a subscription is empty, or has more than 64 texts")
		}
		for _, text := range list.texts {
			if utf8.RuneCountInString(text) > maxNameChars || !utf8.ValidString(text) {
				return errors.New("typha: a text of a subscription is longer than 1,024 characters, or is not UTF-8")
			}
		}
	}
	return nil
}

// appendTo adds the member of the hello.
func (s *Subscription) appendTo(payload []byte) []byte {
	count := byte(0)
	for _, list := range s.lists() {
		if list.texts != nil {
			count++
		}
	}
	if s.OwnNode {
		count++
	}
	payload = append(appendText(payload, "subscription"), 0x80|count)
	for _, list := range s.lists() {
		if list.texts == nil {
			continue
		}
		payload = append(appendText(payload, list.name), 0xdc, 0, byte(len(list.texts)))
		for _, text := range list.texts {
			payload = appendText(payload, text)
		}
	}
	if s.OwnNode {
		payload = append(appendText(payload, "own_node"), 0xc3)
	}
	return payload
}

// content names a part of a feed, as in the files of the client in Python.
func (s *Subscription) content(feed, node string) string {
	if s == nil {
		return feed
	}
	var words []string
	for _, list := range s.lists() {
		if list.texts != nil {
			texts := slices.Clone(list.texts)
			slices.Sort(texts)
			words = append(words, list.name+"="+strings.Join(slices.Compact(texts), ","))
		}
	}
	if s.OwnNode {
		words = append(words, "own_node")
	}
	return feed + " " + strings.Join(words, " ") + " " + node
}

// selects tells whether a key with a value is selected, for a client on a node.
func (s *Subscription) selects(key string, value []byte, node string) bool {
	begins := func(prefix string) bool { return strings.HasPrefix(key, prefix) }
	if s.Kinds != nil && !slices.ContainsFunc(s.Kinds, func(kind string) bool { return begins("/" + kind + "/") }) {
		return false
	}
	if s.Prefixes != nil && !slices.ContainsFunc(s.Prefixes, begins) {
		return false
	}
	if s.Namespaces != nil {
		parts := strings.SplitN(key, "/", resourceKeyParts+1)
		if len(parts) != resourceKeyParts || !slices.Contains(s.Namespaces, parts[4]) {
			return false
		}
	}
	if s.OwnNode {
		if owner, owned := nodeOf(key, value); owned && owner != node {
			return false
		}
	}
	return true
}

// nodeOf returns the node that a key belongs to, by the table of section 4, and whether it belongs to one. The empty
// name is that of a node which is not known: a pod that is not scheduled yet.
func nodeOf(key string, value []byte) (string, bool) {
	const calicoNodes = "/calico/resources/v3/projectcalico.org/nodes/"
	if strings.HasPrefix(key, "/calico/") {
		for _, prefix := range []string{"/calico/v1/host/", "/calico/ipam/v2/host/"} {
			if rest, found := strings.CutPrefix(key, prefix); found {
				name, _, _ := strings.Cut(rest, "/")
				return name, true
			}
		}
		if name, found := strings.CutPrefix(key, calicoNodes); found {
			return name, true
		}
		if strings.HasPrefix(key, "/calico/resources/v3/projectcalico.org/caliconodestatuses/") {
			return nodeInSpec(value, "node"), true
		}
		return "", false
	}
	parts := strings.SplitN(key, "/", resourceKeyParts+1)
	if len(parts) != resourceKeyParts {
		return "", false
	}
	switch group, resource := parts[1], parts[3]; {
	case group == "core" && resource == "nodes", group == "storage.k8s.io" && resource == "csinodes":
		return parts[5], true
	case group == "coordination.k8s.io" && resource == "leases":
		return parts[5], parts[4] == "kube-node-lease"
	case group == "core" && resource == "pods":
		return nodeInSpec(value, "nodeName"), true
	case group == "crd.projectcalico.org", group == "projectcalico.org":
		switch resource {
		case "blockaffinities", "caliconodestatuses", "hostendpoints", "workloadendpoints":
			return nodeInSpec(value, "node"), true
		}
	}
	return "", false
}

// nodeInSpec returns a field of the object's spec; empty if it is missing, or the value is no such object. The names of
// fields count exactly, as for a server; a struct would take others for them.
func nodeInSpec(value []byte, field string) string {
	var object, spec map[string]json.RawMessage
	if json.Unmarshal(value, &object) != nil || json.Unmarshal(object["spec"], &spec) != nil {
		return ""
	}
	var names [2]string
	for index, name := range []string{"nodeName", "node"} {
		if found, exists := spec[name]; exists && (json.Unmarshal(found, &names[index]) != nil || found[0] != '"') {
			return ""
		}
	}
	if field == "nodeName" {
		return names[0]
	}
	return names[1]
}

// A selecting passes on the selected part of each batch of a feed.
type selecting struct {
	subscription *Subscription
	node         string
	passed       map[string]bool // the keys that the caller has
}

func newSelecting(subscription *Subscription, node string) *selecting {
	return &selecting{subscription, node, map[string]bool{}}
}

// selectFrom returns what of a batch is selected; nil if nothing is. A key that is selected no longer is a deletion.
func (s *selecting) selectFrom(batch *Batch) *Batch {
	selected := &Batch{FromSnapshot: batch.FromSnapshot, Version: batch.Version}
	for _, change := range batch.Changes {
		had := s.passed[change.Key]
		switch {
		case change.Value != nil && s.subscription.selects(change.Key, change.Value, s.node):
			s.passed[change.Key] = true
			change.New = !had
		case had:
			delete(s.passed, change.Key)
			change = Change{Key: change.Key, Revision: change.Revision}
		default:
			continue
		}
		selected.Changes = append(selected.Changes, change)
	}
	if selected.Changes == nil && !selected.FromSnapshot {
		return nil
	}
	return selected
}
