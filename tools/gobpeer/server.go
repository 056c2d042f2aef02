package main

import (
	"encoding/gob"
	"errors"
	"flag"
	"fmt"
	"io"
	"net"
	"time"

	"github.com/golang/snappy"
)

// runServer serves `-keys` keys in the way of the original: the snapshot in one compressed stream, a second restart,
// then a status, a ping, changes and deletes in another. Clients without compression get everything as it is.
func runServer(arguments []string) error {
	flags := flag.NewFlagSet("server", flag.ContinueOnError)
	keys := flags.Int("keys", 250, "number of keys in the snapshot")
	perMessage := flags.Int("per-message", 100, "keys in a message")
	clients := flags.Int("clients", 1, "end after so many clients")
	if err := flags.Parse(arguments); err != nil {
		return err
	}
	listener, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		return err
	}
	defer listener.Close()
	say(map[string]any{"address": listener.Addr().String()})
	for range *clients {
		connection, err := listener.Accept()
		if err != nil {
			return err
		}
		session := &session{connection: connection, decoder: gob.NewDecoder(connection)}
		if err := session.serve(*keys, *perMessage); err != nil {
			say(map[string]any{"error": err.Error()})
		}
		connection.Close()
	}
	return nil
}

type session struct {
	connection net.Conn
	decoder    *gob.Decoder
	encoder    *gob.Encoder
	flush      func() error
}

func (s *session) startStream(compressed bool) {
	s.encoder, s.flush = gob.NewEncoder(s.connection), func() error { return nil }
	if compressed {
		writer := snappy.NewBufferedWriter(s.connection)
		s.encoder, s.flush = gob.NewEncoder(writer), writer.Flush
	}
}

func (s *session) send(message any) error {
	if err := s.encoder.Encode(envelope{Message: message}); err != nil {
		return err
	}
	return s.flush()
}

func (s *session) receive() (any, error) {
	var received envelope
	if err := s.decoder.Decode(&received); err != nil {
		return nil, err
	}
	say(described(received.Message))
	return received.Message, nil
}

// restart tells the client to restart its decoder, waits for the ack, and starts a new stream.
func (s *session) restart(why string) error {
	if err := s.send(decoderRestart{Message: why, CompressionAlgorithm: "snappy"}); err != nil {
		return err
	}
	message, err := s.receive()
	if err != nil {
		return err
	}
	if _, ok := message.(ack); !ok {
		return fmt.Errorf("a %T instead of an ACK", message)
	}
	s.startStream(true)
	return nil
}

func (s *session) serve(keys, perMessage int) error {
	s.startStream(false)
	message, err := s.receive()
	if err != nil {
		return err
	}
	hello, ok := message.(clientHello)
	if !ok {
		return fmt.Errorf("a %T instead of a hello", message)
	}
	if err := s.send(serverHello{"v0", hello.SyncerType, true, 1}); err != nil {
		return err
	}
	compressed := hello.SupportsDecoderRestart && len(hello.SupportedCompressionAlgorithms) > 0
	if compressed {
		if err := s.restart("enable compression"); err != nil {
			return err
		}
	}
	for first := 0; first < keys; first += perMessage {
		batch := keyValues{}
		for number := first; number < min(first+perMessage, keys); number++ {
			batch.KVs = append(batch.KVs, scripted(number, 1, 1))
		}
		if err := s.send(batch); err != nil {
			return err
		}
	}
	if compressed {
		if err := s.restart("end of snapshot"); err != nil {
			return err
		}
	}
	gone := scripted(0, 3, 3)
	gone.Value = nil
	script := []any{
		syncStatus{1}, syncStatus{2}, ping{time.Unix(1_700_000_000, 123).In(time.FixedZone("", 5*3600+1800))},
		keyValues{[]update{scripted(1, 2, 2), gone}}, syncStatus{1},
	}
	for _, message := range script {
		if err := s.send(message); err != nil {
			return err
		}
	}
	for {
		if _, err := s.receive(); err != nil {
			if errors.Is(err, io.EOF) {
				return nil
			}
			return err
		}
	}
}

// scripted is key `number` in its `version`.
func scripted(number, version int, updateType uint8) update {
	return update{
		Key:               fmt.Sprintf("/calico/v1/config/key-%05d", number),
		Value:             fmt.Appendf(nil, "value %d of %d", version, number),
		Revision:          fmt.Sprint(1000*version + number),
		V3ResourceVersion: fmt.Sprint(number),
		TTL:               time.Duration(number) * time.Second,
		UpdateType:        updateType,
	}
}
