package main

import (
	"crypto/tls"
	"crypto/x509"
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

// Compared as texts: releases have two digits after the first point.
const (
	newestRelease             = "v3.33.0"
	firstWithModernPolicyKeys = "v3.32"
)

// runClient follows a server as the original's client does: restarts, acks and pongs at once, and each message within
// the read timeout. With -release it says what an agent of an earlier release says.
func runClient(arguments []string) error {
	if len(arguments) < 2 {
		return errors.New("usage: gobpeer client ADDRESS SYNCER [flags]")
	}
	flags := flag.NewFlagSet("client", flag.ContinueOnError)
	noRestart := flags.Bool("no-restart", false, "do not support a restart of the decoder")
	noSnappy := flags.Bool("no-snappy", false, "offer no compression")
	release := flags.String("release", newestRelease, "be an agent of this release, of 3.20 or later")
	printMap := flags.Bool("map", false, "print the map at the end instead of every message")
	count := flags.Int("messages", 0, "end after so many messages; 0: never")
	untilInSync := flags.Bool("until-in-sync", false, "end when in sync")
	duration := flags.Duration("duration", 0, "end after this time; 0: never")
	readTimeout := flags.Duration("read-timeout", 30*time.Second, "for each message")
	secured := &secured{}
	flags.StringVar(&secured.certificate, "cert", "", "the client's certificate, PEM; with -key and -ca: speak TLS")
	flags.StringVar(&secured.key, "key", "", "its key, PEM")
	flags.StringVar(&secured.authority, "ca", "", "who signs servers' certificates, PEM")
	flags.StringVar(&secured.serverName, "server-name", "", "the name in the server's certificate; empty: the address's")
	flags.StringVar(&secured.version, "tls", "", "1.2 or 1.3, and no other version; empty: what both have")
	if err := flags.Parse(arguments[2:]); err != nil {
		return err
	}
	connection, err := secured.dial(arguments[0])
	if err != nil {
		return err
	}
	defer connection.Close()
	follower := &follower{connection: connection, syncer: arguments[1], printMap: *printMap, content: map[string]update{}}
	follower.decoder = gob.NewDecoder(connection)
	follower.encoder = gob.NewEncoder(connection)
	hello := clientHello{Hostname: "gobpeer-host", Info: "gobpeer", Version: *release, SyncerType: arguments[1],
		SupportsDecoderRestart: !*noRestart, SupportsModernPolicyKeys: *release >= firstWithModernPolicyKeys, ClientConnID: 1}
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

type secured struct {
	certificate, key, authority, serverName, version string
}

// dial connects, through TLS if there is an authority to check the server by.
func (s *secured) dial(address string) (net.Conn, error) {
	dialer := &net.Dialer{Timeout: 10 * time.Second}
	if s.authority == "" {
		return dialer.Dial("tcp", address)
	}
	authority, err := os.ReadFile(s.authority)
	if err != nil {
		return nil, err
	}
	config := &tls.Config{RootCAs: x509.NewCertPool(), ServerName: s.serverName, MinVersion: tls.VersionTLS12}
	switch s.version {
	case "":
	case "1.2":
		config.MaxVersion = tls.VersionTLS12
	case "1.3":
		config.MinVersion = tls.VersionTLS13
	default:
		return nil, fmt.Errorf("no TLS version %q", s.version)
	}
	if !config.RootCAs.AppendCertsFromPEM(authority) {
		return nil, fmt.Errorf("no certificate in %s", s.authority)
	}
	if s.certificate != "" {
		certificate, err := tls.LoadX509KeyPair(s.certificate, s.key)
		if err != nil {
			return nil, err
		}
		config.Certificates = []tls.Certificate{certificate}
	}
	return tls.DialWithDialer(dialer, "tcp", address, config)
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
