package main

import (
	"encoding/gob"
	"errors"
	"flag"
	"fmt"
	"io"
	"net"
	"os"
	"time"

	"github.com/golang/snappy"
)

// runClient follows a server as the original's client does: restarts, acks and pongs at once, and each message within
// the read timeout. With -old it leaves out what clients of earlier versions did not know.
func runClient(arguments []string) error {
	if len(arguments) < 2 {
		return errors.New("usage: gobpeer client ADDRESS SYNCER [flags]")
	}
	flags := flag.NewFlagSet("client", flag.ContinueOnError)
	noRestart := flags.Bool("no-restart", false, "do not support a restart of the decoder")
	noSnappy := flags.Bool("no-snappy", false, "offer no compression")
	old := flags.Bool("old", false, "do not know modern policy keys")
	printMap := flags.Bool("map", false, "print the map at the end instead of every message")
	count := flags.Int("messages", 0, "end after so many messages; 0: never")
	untilInSync := flags.Bool("until-in-sync", false, "end when in sync")
	duration := flags.Duration("duration", 0, "end after this time; 0: never")
	readTimeout := flags.Duration("read-timeout", 30*time.Second, "for each message")
	if err := flags.Parse(arguments[2:]); err != nil {
		return err
	}
	connection, err := net.DialTimeout("tcp", arguments[0], 10*time.Second)
	if err != nil {
		return err
	}
	defer connection.Close()
	follower := &follower{connection: connection, syncer: arguments[1], printMap: *printMap, content: map[string]update{}}
	follower.decoder = gob.NewDecoder(connection)
	follower.encoder = gob.NewEncoder(connection)
	hello := clientHello{Hostname: "gobpeer-host", Info: "gobpeer", Version: "v0", SyncerType: arguments[1],
		SupportsDecoderRestart: !*noRestart, SupportsModernPolicyKeys: !*old, ClientConnID: 1}
	if !*noSnappy {
		hello.SupportedCompressionAlgorithms = []string{"snappy"}
	}
	if err := follower.send(hello); err != nil {
		return err
	}
	var deadline time.Time
	if *duration > 0 {
		deadline = time.Now().Add(*duration)
	}
	for received := 0; *count == 0 || received < *count; received++ {
		limit := time.Now().Add(*readTimeout)
		if !deadline.IsZero() && deadline.Before(limit) {
			limit = deadline
		}
		connection.SetReadDeadline(limit)
		inSync, err := follower.step()
		if !deadline.IsZero() && errors.Is(err, os.ErrDeadlineExceeded) && !time.Now().Before(deadline) {
			break
		}
		if err != nil {
			return err
		}
		if inSync && *untilInSync {
			break
		}
	}
	if *printMap {
		for _, u := range follower.content {
			say(map[string]any{"key": u.Key, "value": u.Value, "revision": u.Revision,
				"v3ResourceVersion": u.V3ResourceVersion, "ttl": u.TTL.Nanoseconds(), "type": u.UpdateType})
		}
	}
	return nil
}

type follower struct {
	connection net.Conn
	syncer     string
	printMap   bool
	encoder    *gob.Encoder
	decoder    *gob.Decoder
	content    map[string]update
	greeted    bool
}

func (f *follower) send(message any) error {
	return f.encoder.Encode(envelope{Message: message})
}

// step reads one message and answers it.
func (f *follower) step() (inSync bool, err error) {
	var received envelope
	if err := f.decoder.Decode(&received); err != nil {
		if errors.Is(err, io.EOF) {
			return false, errors.New("the server closed the connection")
		}
		return false, err
	}
	if !f.printMap {
		say(described(received.Message))
	}
	if !f.greeted {
		hello, ok := received.Message.(serverHello)
		if !ok {
			return false, fmt.Errorf("first message is a %T", received.Message)
		}
		if hello.SyncerType != f.syncer && (f.syncer != "" || hello.SyncerType != "felix") {
			return false, fmt.Errorf("syncer type %q", hello.SyncerType)
		}
		if !hello.SupportsNodeResourceUpdates {
			return false, errors.New("no node resources")
		}
		f.greeted = true
		return false, nil
	}
	switch message := received.Message.(type) {
	case serverHello:
		return false, errors.New("a second hello")
	case decoderRestart:
		if message.CompressionAlgorithm == "snappy" {
			f.decoder = gob.NewDecoder(snappy.NewReader(f.connection))
		} else {
			f.decoder = gob.NewDecoder(f.connection)
		}
		return false, f.send(ack{})
	case ping:
		return false, f.send(pong{PingTimestamp: message.Timestamp})
	case syncStatus:
		return message.SyncStatus == 2, nil
	case keyValues:
		for _, u := range message.KVs {
			if u.Value == nil {
				delete(f.content, u.Key)
			} else {
				f.content[u.Key] = u
			}
		}
	}
	return false, nil
}
