package typha

import (
	"bytes"
	"errors"
	"io"
	"net"
	"testing"
	"time"
)

func TestVersionsAndSequences(t *testing.T) {
	one := newAcknowledger()
	if version := one.received(5, true); version != 1 || one.sequence() != 0 {
		t.Fatalf("version %d, applied %d", version, one.sequence())
	}
	one.received(6, false)
	one.received(9, true)
	one.received(10, true)
	one.applied(1)
	if one.sequence() != 6 {
		t.Errorf("applied %d instead of 6", one.sequence())
	}
	one.applied(99) // the newest that there is
	one.received(12, false)
	if one.sequence() != 12 {
		t.Errorf("applied %d instead of 12", one.sequence())
	}
	one.received(13, true)
	if one.sequence() != 12 {
		t.Errorf("applied %d, which nobody has applied", one.sequence())
	}
	one.applied(4)
	one.beginConnection()
	if one.sequence() != 0 {
		t.Errorf("applied %d on a new connection", one.sequence())
	}
	one.received(7, false) // the same map
	if one.sequence() != 7 {
		t.Errorf("applied %d instead of 7", one.sequence())
	}
}

func TestASlowReceiverIsRoundedDown(t *testing.T) {
	one := newAcknowledger()
	for sequence := uint64(1); sequence <= 5000; sequence++ {
		one.received(sequence, true)
	}
	if len(one.covered) > maxVersions+1 {
		t.Errorf("%d versions are kept", len(one.covered))
	}
	for _, version := range []uint64{1000, 2500, 5000} {
		one.applied(version)
		if found := one.sequence(); found > version || found < version-256 {
			t.Errorf("applied %d instead of %d", found, version)
		}
	}
	if one.sequence() != 5000 {
		t.Errorf("applied %d instead of 5000", one.sequence())
	}
}

func TestTellsTheNewestOnceInAPause(t *testing.T) {
	one := newAcknowledger()
	done, written := make(chan struct{}), make(chan []byte)
	go one.tell(done, 50*time.Millisecond, func(data []byte) error {
		written <- data
		return nil
	})
	one.received(1, true)
	one.applied(1)
	if data := <-written; !bytes.Equal(data, applied(1)) {
		t.Errorf("% x", data)
	}
	for sequence := uint64(2); sequence <= 20; sequence++ {
		one.applied(one.received(sequence, true))
	}
	if data := <-written; !bytes.Equal(data, applied(20)) {
		t.Errorf("% x", data)
	}
	close(done)
}

// sayHello is a server's preface and hello, with the feature in force or not.
func sayHello(inForce bool) []byte {
	payload := append([]byte{0x92, typeServerHello, 0x84}, appendCount(appendText(nil, "version"), 1)...)
	payload = appendText(appendText(payload, "feed"), "f")
	payload = append(append(appendText(payload, "incarnation"), 0xc4, 16), make([]byte, 16)...)
	payload = appendText(payload, "features")
	if inForce {
		payload = appendText(append(payload, 0x91), featureApplied)
	} else {
		payload = append(payload, 0x90)
	}
	return appendFrame([]byte(preface), payload)
}

// aMap is a snapshot of one key, without its status.
func aMap(sequence byte) []byte {
	digest := StateDigest(map[string][]byte{"/k": {1}})
	data := appendFrame(nil, []byte{0x94, typeSnapshotBegin, sequence, 1, 1})
	chunk := appendCount([]byte{0x95, typeSnapshotChunk, 0}, digest)
	chunk = append(chunk, 0xc2, 0x91, 0x94, 0xa2, '/', 'k', 0xc4, 1, 1, 0xa1, '1', 1)
	data = appendFrame(data, chunk)
	return appendFrame(data, appendCount([]byte{0x94, typeSnapshotEnd, sequence, 1}, digest))
}

func aStatus(sequence byte) []byte {
	return appendFrame(nil, []byte{0x93, typeStatus, sequence, byte(InSync)})
}

func read(t *testing.T, from net.Conn, wanted []byte) {
	t.Helper()
	found := make([]byte, len(wanted))
	if _, err := io.ReadFull(from, found); err != nil || !bytes.Equal(found, wanted) {
		t.Errorf("% x (%v) instead of % x", found, err, wanted)
	}
}

func TestReportsWhatIsApplied(t *testing.T) {
	options := Options{Feed: "f", ReportsApplied: true}
	applies, read40 := make(chan struct{}), make(chan struct{})
	options.Addresses = []string{serve(t, nil,
		func(connection net.Conn) {
			connection.Write(append(append(sayHello(true), aMap(40)...), aStatus(40)...))
			ping := appendFrame(nil, []byte{0x91, typePing})
			connection.Write(ping)
			read(t, connection, pong(40)) // nothing has been applied
			close(applies)
			read(t, connection, applied(40))
			close(read40)
		},
		func(connection net.Conn) {
			connection.Write(append(append(sayHello(false), aMap(5)...), aStatus(5)...))
			connection.Write(appendFrame(nil, []byte{0x91, typePing}))
			read(t, connection, pong(5))
		},
		func(connection net.Conn) {
			connection.Write(append(append(sayHello(true), aMap(7)...), aStatus(7)...))
			read(t, connection, applied(7)) // the map is the same
			connection.Write(appendFrame(nil, append([]byte{0x94, typeGoodbye, 0xa3, 'e', 'n', 'd', 0xa0}, 0)))
		},
	)}
	mirror := NewMirror(options)
	ctx := withTimeout(t)
	go mirror.Run(ctx)
	<-applies
	for mirror.Version() == 0 {
		time.Sleep(time.Millisecond)
	}
	mirror.Applied(mirror.Version())
	<-read40
	for {
		var said *GoodbyeError
		if errors.As(mirror.LastDisconnect(), &said) && said.Reason == "end" {
			return
		}
		if ctx.Err() != nil {
			t.Fatal(mirror.LastDisconnect())
		}
		time.Sleep(time.Millisecond)
	}
}

func TestFollowTakesAnEventForAppliedOnceTheFunctionReturns(t *testing.T) {
	ctx, returned := withTimeout(t), make(chan struct{})
	options := Options{Feed: "f", ReportsApplied: true}
	done := errors.New("done")
	options.Addresses = []string{serve(t, nil, func(connection net.Conn) {
		connection.Write(append(append(sayHello(true), aMap(40)...), aStatus(40)...))
		connection.SetReadDeadline(time.Now().Add(50 * time.Millisecond))
		if count, _ := connection.Read(make([]byte, 1)); count > 0 {
			t.Error("something is applied before the function has returned")
		}
		connection.SetReadDeadline(time.Time{})
		close(returned)
		read(t, connection, applied(40))
	})}
	err := Follow(ctx, options, func(event Event) error {
		switch event.(type) {
		case Batch:
			<-returned
		case Disconnected:
			return done
		}
		return nil
	})
	if !errors.Is(err, done) {
		t.Error(err)
	}
}
