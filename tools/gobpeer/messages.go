package main

import (
	"encoding/gob"
	"time"
)

// The messages of Typha's protocol, with the field names and kinds that are on the wire, in the order in which the
// original declares them. Only the names under which they are registered matter to a peer.

type envelope struct {
	Message any
}

type clientHello struct {
	Hostname                       string
	Info                           string
	Version                        string
	SyncerType                     string
	SupportsDecoderRestart         bool
	SupportedCompressionAlgorithms []string
	SupportsModernPolicyKeys       bool
	ClientConnID                   uint64
}

type serverHello struct {
	Version                     string
	SyncerType                  string
	SupportsNodeResourceUpdates bool
	ServerConnID                uint64
}

type decoderRestart struct {
	Message              string
	CompressionAlgorithm string
}

type ack struct{}

type syncStatus struct {
	SyncStatus uint8
}

type ping struct {
	Timestamp time.Time
}

type pong struct {
	PingTimestamp time.Time
	PongTimestamp time.Time
}

type update struct {
	Key               string
	Value             []byte
	Revision          any
	V3ResourceVersion string
	TTL               time.Duration
	UpdateType        uint8
}

type keyValues struct {
	KVs []update
}

func init() {
	const prefix = "github.com/projectcalico/typha/pkg/syncproto."
	gob.RegisterName(prefix+"MsgClientHello", clientHello{})
	gob.RegisterName(prefix+"MsgServerHello", serverHello{})
	gob.RegisterName(prefix+"MsgDecoderRestart", decoderRestart{})
	gob.RegisterName(prefix+"MsgACK", ack{})
	gob.RegisterName(prefix+"MsgSyncStatus", syncStatus{})
	gob.RegisterName(prefix+"MsgPing", ping{})
	gob.RegisterName(prefix+"MsgPong", pong{})
	gob.RegisterName(prefix+"MsgKVs", keyValues{})
}

// described gives a message as what is printed of it: one JSON object on a line.
func described(message any) map[string]any {
	switch m := message.(type) {
	case nil:
		return map[string]any{"msg": "nil"}
	case clientHello:
		return map[string]any{"msg": "ClientHello", "hostname": m.Hostname, "info": m.Info, "version": m.Version,
			"syncerType": m.SyncerType, "restart": m.SupportsDecoderRestart, "modernPolicyKeys": m.SupportsModernPolicyKeys,
			"algorithms": append([]string{}, m.SupportedCompressionAlgorithms...), "connID": m.ClientConnID}
	case serverHello:
		return map[string]any{"msg": "ServerHello", "version": m.Version, "syncerType": m.SyncerType,
			"nodeResources": m.SupportsNodeResourceUpdates, "connID": m.ServerConnID}
	case decoderRestart:
		return map[string]any{"msg": "DecoderRestart", "message": m.Message, "algorithm": m.CompressionAlgorithm}
	case ack:
		return map[string]any{"msg": "ACK"}
	case syncStatus:
		return map[string]any{"msg": "SyncStatus", "status": m.SyncStatus}
	case ping:
		return map[string]any{"msg": "Ping", "unixNano": m.Timestamp.UnixNano()}
	case pong:
		return map[string]any{"msg": "Pong", "pingUnixNano": m.PingTimestamp.UnixNano()}
	case keyValues:
		updates := []map[string]any{}
		for _, u := range m.KVs {
			updates = append(updates, map[string]any{"key": u.Key, "value": u.Value, "revision": u.Revision,
				"v3ResourceVersion": u.V3ResourceVersion, "ttl": u.TTL.Nanoseconds(), "type": u.UpdateType})
		}
		return map[string]any{"msg": "KVs", "updates": updates}
	default:
		return map[string]any{"msg": "other", "value": m}
	}
}
