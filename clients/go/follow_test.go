package typha

import (
	"context"
	"crypto/ecdsa"
	"crypto/elliptic"
	"crypto/rand"
	"crypto/tls"
	"crypto/x509"
	"errors"
	"io"
	"math/big"
	"net"
	"testing"
	"time"
)

// serve plays each script to one connection, in order, after the client's preface and hello.
func serve(t *testing.T, config *tls.Config, scripts ...func(net.Conn)) string {
	t.Helper()
	listener, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	if config != nil {
		listener = tls.NewListener(listener, config)
	}
	t.Cleanup(func() { listener.Close() })
	go func() {
		for _, script := range scripts {
			connection, err := listener.Accept()
			if err != nil {
				return
			}
			var start [12]byte
			if _, err := io.ReadFull(connection, start[:]); err == nil {
				length := int64(start[10])<<8 | int64(start[11])
				io.CopyN(io.Discard, connection, length)
				script(connection)
			}
			if half, ok := connection.(interface{ CloseWrite() error }); ok && half.CloseWrite() == nil {
				io.Copy(io.Discard, connection) // until the client closes (G3)
			}
			connection.Close()
		}
	}()
	return listener.Addr().String()
}

// session returns the server's bytes of the page's session, up to its first status or all of them.
func serversBytes(t *testing.T, whole bool) []byte {
	var data []byte
	steps := loadVectors(t).Session
	if !whole {
		steps = steps[:11]
	}
	for _, step := range steps {
		if step.From == "server" {
			data = append(data, fromHex(t, step.Bytes)...)
		}
	}
	return data
}

func withTimeout(t *testing.T) context.Context {
	ctx, cancel := context.WithTimeout(context.Background(), time.Minute)
	t.Cleanup(cancel)
	return ctx
}

func TestFollowAcrossConnections(t *testing.T) {
	good, whole := serversBytes(t, false), serversBytes(t, true)
	address := serve(t, nil,
		func(connection net.Conn) { connection.Write(good) },
		func(connection net.Conn) { connection.Write([]byte("HTTP/1.1 200 OK\r\n")) },
		func(connection net.Conn) { connection.Write(whole) },
		func(connection net.Conn) { connection.Write(good[:len(good)-1]) }, // without the whole status
	)
	done := errors.New("done")
	var changes, connected int
	var ends []error
	err := Follow(withTimeout(t), Options{Addresses: []string{address}, Feed: "workloads"}, func(event Event) error {
		switch event := event.(type) {
		case Connected:
			connected++
		case Batch:
			changes += len(event.Changes)
		case Disconnected:
			if ends = append(ends, event.Err); len(ends) == 4 {
				return done
			}
		}
		return nil
	})
	if !errors.Is(err, done) {
		t.Fatal(err)
	}
	// Two keys; nothing new on the second snapshot; pod changed, node gone, node back; the pod goes with the third one.
	if changes != 6 || connected != 3 {
		t.Errorf("%d changes, %d connections", changes, connected)
	}
	var bad *ProtocolError
	if !errors.As(ends[1], &bad) {
		t.Errorf("the second connection ended with %v", ends[1])
	}
	var said *GoodbyeError
	if !errors.As(ends[2], &said) || said.Refused {
		t.Errorf("the third connection ended with %v", ends[2])
	}
}

func TestTheContextEndsEverything(t *testing.T) {
	good := serversBytes(t, false)
	address := serve(t, nil, func(connection net.Conn) {
		connection.Write(good)
		io.Copy(io.Discard, connection)
	})
	ctx, cancel := context.WithCancel(withTimeout(t))
	err := Follow(ctx, Options{Addresses: []string{address}, Feed: "workloads"}, func(event Event) error {
		if _, ok := event.(StatusChanged); ok {
			cancel()
		}
		return nil
	})
	if !errors.Is(err, context.Canceled) {
		t.Error(err)
	}
}

func TestMirror(t *testing.T) {
	good := serversBytes(t, false)
	lost := make(chan struct{})
	address := serve(t, nil, func(connection net.Conn) {
		connection.Write(good)
		<-lost
		connection.Write(appendFrame(nil, []byte{0x93, typeStatus, 40, byte(Waiting)}))
		io.Copy(io.Discard, connection)
	})
	mirror := NewMirror(Options{Addresses: []string{address}, Feed: "workloads"})
	var passed int
	mirror.OnChange = func(changes []Change) { passed += len(changes) }
	ctx, cancel := context.WithCancel(withTimeout(t))
	ended := make(chan error)
	go func() { ended <- mirror.Run(ctx) }()
	if err := mirror.WaitInSync(ctx); err != nil {
		t.Fatal(err)
	}
	if entry, ok := mirror.Get("/core/v1/nodes//n1"); !ok || string(entry.Value) != "é" || entry.Revision != "102" {
		t.Errorf("%v, %v", entry, ok)
	}
	content := map[string][]byte{}
	for key, entry := range mirror.Entries() {
		content[key] = entry.Value
	}
	if mirror.Len() != 2 || StateDigest(content) != mirror.Digest() {
		t.Errorf("%d keys, digest %x", mirror.Len(), mirror.Digest())
	}
	close(lost)
	for mirror.InSync() {
		time.Sleep(time.Millisecond)
	}
	expired, cancelAtOnce := context.WithCancel(ctx)
	cancelAtOnce()
	for range 20 {
		if mirror.WaitInSync(expired) == nil {
			t.Fatal("in sync, although the server has lost its backend")
		}
	}
	if status, connected := mirror.Status(); status != Waiting || !connected || mirror.Len() != 2 {
		t.Errorf("%v, %v, %d keys", status, connected, mirror.Len())
	}
	if err := mirror.Run(ctx); err == nil {
		t.Error("a mirror runs twice")
	}
	cancel()
	if err := <-ended; !errors.Is(err, context.Canceled) {
		t.Error(err)
	}
	if passed != 2 {
		t.Errorf("%d changes were passed on", passed)
	}
}

func TestAGoodbyeIsReadAlthoughPongsCannotBeSent(t *testing.T) {
	whole := serversBytes(t, true)
	closed := make(chan struct{})
	address := serve(t, nil, func(connection net.Conn) {
		connection.Write(whole)
		connection.(*net.TCPConn).SetLinger(0) // resets
		connection.Close()
		close(closed)
	})
	done := errors.New("done")
	var end error
	Follow(withTimeout(t), Options{Addresses: []string{address}, Feed: "workloads"}, func(event Event) error {
		switch event := event.(type) {
		case Connected:
			<-closed
		case Disconnected:
			end = event.Err
			return done
		}
		return nil
	})
	var said *GoodbyeError
	if !errors.As(end, &said) || said.RetryAfter != 1500*time.Millisecond {
		t.Error(end)
	}
}

func TestSilenceIsNoticed(t *testing.T) {
	hello := []byte(preface)
	payload := append([]byte{0x92, typeServerHello, 0x84}, appendCount(appendText(nil, "version"), 1)...)
	payload = appendText(appendText(payload, "feed"), "f")
	payload = append(append(appendText(payload, "incarnation"), 0xc4, 16), make([]byte, 16)...)
	payload = append(appendText(payload, "ping_interval_ms"), 0xcc, 200)
	hello = appendFrame(hello, payload)
	address := serve(t, nil, func(connection net.Conn) {
		connection.Write(hello)
		io.Copy(io.Discard, connection)
	})
	done := errors.New("done")
	var end error
	err := Follow(withTimeout(t), Options{Addresses: []string{address}, Feed: "f"}, func(event Event) error {
		if event, ok := event.(Disconnected); ok {
			end = event.Err
			return done
		}
		return nil
	})
	if !errors.Is(err, done) || end == nil || end.Error() != "nothing, not even a ping, for 600ms" {
		t.Errorf("%v, %v", err, end)
	}
}

func TestTLS(t *testing.T) {
	key, err := ecdsa.GenerateKey(elliptic.P256(), rand.Reader)
	if err != nil {
		t.Fatal(err)
	}
	template := &x509.Certificate{
		SerialNumber: big.NewInt(1), IsCA: true, BasicConstraintsValid: true, NotAfter: time.Now().Add(time.Hour),
		DNSNames: []string{"typha"}, KeyUsage: x509.KeyUsageDigitalSignature | x509.KeyUsageCertSign,
	}
	der, err := x509.CreateCertificate(rand.Reader, template, template, key.Public(), key)
	if err != nil {
		t.Fatal(err)
	}
	parsed, err := x509.ParseCertificate(der)
	if err != nil {
		t.Fatal(err)
	}
	pool := x509.NewCertPool()
	pool.AddCert(parsed)
	pair := tls.Certificate{Certificate: [][]byte{der}, PrivateKey: key}
	good := serversBytes(t, false)
	hold := func(connection net.Conn) {
		connection.Write(good)
		io.Copy(io.Discard, connection)
	}
	server := &tls.Config{Certificates: []tls.Certificate{pair}, ClientAuth: tls.RequireAndVerifyClientCert, ClientCAs: pool}
	resumed := make(chan bool, 2)
	greet := func(connection net.Conn) {
		connection.Write(good)
		resumed <- connection.(*tls.Conn).ConnectionState().DidResume
	}
	address := serve(t, server, greet, func(connection net.Conn) {
		greet(connection)
		io.Copy(io.Discard, connection)
	})
	client := &tls.Config{RootCAs: pool, ServerName: "typha", Certificates: []tls.Certificate{pair}}
	mirror := NewMirror(Options{Addresses: []string{address}, Feed: "workloads", TLS: client})
	ctx, cancel := context.WithCancel(withTimeout(t))
	defer cancel()
	go mirror.Run(ctx)
	if err := mirror.WaitInSync(ctx); err != nil {
		t.Fatal(err, mirror.LastDisconnect())
	}
	if <-resumed || !<-resumed {
		t.Error("the second connection has not resumed the first one's session")
	}
	if client.ClientSessionCache != nil {
		t.Error("the caller's configuration has changed")
	}
	// The server's name is checked.
	done := errors.New("done")
	var end error
	wrong := &tls.Config{RootCAs: pool, Certificates: []tls.Certificate{pair}}
	address = serve(t, server, hold)
	Follow(ctx, Options{Addresses: []string{address}, Feed: "workloads", TLS: wrong}, func(event Event) error {
		if event, ok := event.(Disconnected); ok {
			end = event.Err
			return done
		}
		return nil
	})
	var mismatch *tls.CertificateVerificationError
	if !errors.As(end, &mismatch) {
		t.Errorf("a wrong name: %v", end)
	}
}
