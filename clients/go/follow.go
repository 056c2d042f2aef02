package typha

import (
	"bufio"
	"context"
	"crypto/tls"
	"errors"
	"fmt"
	"io"
	"math/rand/v2"
	"net"
	"slices"
	"sync"
	"time"
	"unicode/utf8"
)

const (
	software       = "typha-go-client"
	connectTimeout = 10 * time.Second
	helloTimeout   = 10 * time.Second
	writeTimeout   = 10 * time.Second
	silenceFactor  = 3
	readBytes      = 64 << 10
)

// Options say what to follow, and where.
type Options struct {
	// Addresses are the servers, HOST:PORT or HOST for port 5473. One is used at a time.
	Addresses []string
	// Feed is the feed's name.
	Feed string
	// Agent is the name of this program, for the server's log.
	Agent string
	// Node is the node that the program runs on, if any.
	Node string
	// TLS, if not nil, is what to connect with. ServerName defaults to the host of the address, MinVersion to TLS 1.2, and
	// ClientSessionCache to one of this call: a handshake that resumes a session costs a third.
	TLS *tls.Config
	// ReportsApplied tells the server what has been applied, if it supports that. [Follow] takes an event for applied
	// once the function returns; a [Mirror] is told by its method Applied.
	ReportsApplied bool
	// Subscription, if not nil, is the part of the feed that is wanted.
	Subscription *Subscription
}

func (o *Options) check() error {
	if len(o.Addresses) == 0 {
		return errors.New("typha: no address")
	}
	for _, address := range o.Addresses {
		if host, _, err := net.SplitHostPort(withPort(address)); err != nil || host == "" {
			return fmt.Errorf("typha: address %q is not HOST:PORT", address)
		}
	}
	for _, name := range []string{o.Feed, o.Agent, o.Node} {
		if utf8.RuneCountInString(name) > maxNameChars || !utf8.ValidString(name) {
			return errors.New("typha: a name is longer than 1,024 characters, or is not UTF-8")
		}
	}
	if o.Subscription != nil {
		return o.Subscription.check(o.Node)
	}
	return nil
}

// An Event is a Connected, a Batch, a StatusChanged or a Disconnected.
type Event interface{ event() }

// Connected says that a server has accepted the hello. Data follows as soon as the server has some.
type Connected struct {
	Address string
	// Software is the server's name and version.
	Software string
	// ConnectionID names the connection in the server's log.
	ConnectionID uint64
}

// Disconnected says that the connection has ended, or could not be made. The data so far stays valid, but may be old.
type Disconnected struct {
	Address string
	// Err says why. It may be a *GoodbyeError or a *ProtocolError.
	Err error
	// RetryIn is how long it takes until the next attempt.
	RetryIn time.Duration
}

// StatusChanged says how complete and current the data is, as of the batches so far. It comes again after each Connected.
type StatusChanged struct {
	Status   Status
	Sequence uint64
	// Keys and Digest describe the whole map; with a subscription that the server has not put in force, that of the feed.
	Keys   int
	Digest uint64
}

func (Connected) event()     {}
func (Disconnected) event()  {}
func (StatusChanged) event() {}
func (Batch) event()         {}

// Follow calls the function for each event of a feed, in order, until the context ends or the function returns an error,
// and returns that error. It reconnects for ever.
//
// It calls the function from its own goroutine, and answers the server's pings between two calls only: a function that
// takes longer than the server's pong timeout, usually 60 s, costs the connection. [Mirror] has no such limit.
func Follow(ctx context.Context, options Options, handle func(Event) error) error {
	var acknowledger *acknowledger
	if options.ReportsApplied {
		acknowledger = newAcknowledger()
		told := handle
		handle = func(event Event) error {
			err := told(event)
			if batch, ok := event.(Batch); ok && err == nil {
				acknowledger.applied(batch.Version)
			}
			return err
		}
	}
	return followAs(ctx, options, newDiffer(), acknowledger, handle)
}

// followAs is Follow for a client that may have a map.
func followAs(ctx context.Context, options Options, differ *differ, acknowledger *acknowledger, handle func(Event) error) error {
	if err := options.check(); err != nil {
		return err
	}
	if options.TLS != nil && options.TLS.ClientSessionCache == nil {
		options.TLS = options.TLS.Clone()
		options.TLS.ClientSessionCache = tls.NewLRUClientSessionCache(0)
	}
	one := follower{
		options: options, handle: handle, acknowledger: acknowledger,
		differ: differ, rotation: newRotation(options.Addresses),
	}
	if options.Subscription != nil {
		one.selecting = newSelecting(options.Subscription, options.Node)
		for key := range differ.known { // the caller begins with these
			one.selecting.passed[key] = true
		}
	}
	for {
		one.connectedAt = time.Time{}
		address := one.rotation.current()
		err := one.connect(ctx, address)
		if ctx.Err() != nil {
			return ctx.Err()
		}
		var wrong *ProtocolError
		one.differ.distrusted = one.differ.distrusted || errors.As(err, &wrong)
		var stop stopError
		if errors.As(err, &stop) {
			return stop.error
		}
		wait := one.planRetry(err)
		if err := handle(Disconnected{address, err, wait}); err != nil {
			return err
		}
		select {
		case <-ctx.Done():
			return ctx.Err()
		case <-time.After(wait):
		}
	}
}

// A stopError carries an error of the caller's function.
type stopError struct{ error }

type follower struct {
	options     Options
	handle      func(Event) error
	differ      *differ
	rotation    *rotation
	connectedAt time.Time
	// nil if nobody is told what has been applied
	acknowledger *acknowledger
	catchingUp   bool
	// nil without a subscription
	selecting *selecting
}

func (f *follower) planRetry(err error) time.Duration {
	now := time.Now()
	var lived, retryAfter time.Duration
	var servers []string
	if !f.connectedAt.IsZero() {
		lived = now.Sub(f.connectedAt)
	}
	var said *GoodbyeError
	if errors.As(err, &said) {
		retryAfter, servers = said.RetryAfter, said.Servers
	}
	return f.rotation.failed(now, lived, retryAfter, servers)
}

func (f *follower) tell(event Event) error {
	if err := f.handle(event); err != nil {
		return stopError{err}
	}
	return nil
}

// connect follows one connection to its end, which is always an error.
func (f *follower) connect(ctx context.Context, address string) error {
	connection, err := dial(ctx, withPort(address), f.tlsConfig())
	if err != nil {
		return fmt.Errorf("cannot connect: %w", err)
	}
	defer connection.Close()
	defer context.AfterFunc(ctx, func() { connection.Close() })()
	one := &session{connection: connection, deadline: time.Now().Add(helloTimeout)}
	one.frames = frameReader{from: bufio.NewReaderSize(one, readBytes), limit: maxFrameBytes}
	defer one.frames.close()
	at, digests := f.differ.resuming()
	one.asked, one.digests = at, digests != nil
	if err := one.write(clientHello(&f.options, at, digests)); err != nil {
		return err
	}
	hello, err := one.greet(f.options.Feed)
	if err != nil {
		return err
	}
	f.connectedAt = time.Now()
	f.differ.beginConnection(hello.incarnation)
	f.differ.isPlaceless = f.options.Subscription != nil && !one.isSelection
	if f.acknowledger != nil {
		f.acknowledger.beginConnection()
		f.catchingUp = false
		if slices.Contains(hello.features, featureApplied) {
			done, ended := make(chan struct{}), make(chan struct{})
			go func() {
				defer close(ended)
				f.acknowledger.tell(done, appliedPause, one.write)
			}()
			defer func() {
				close(done)
				connection.Close() // ends a write that waits
				<-ended
			}()
		}
	}
	if err := f.tell(Connected{address, hello.software, hello.connectionID}); err != nil {
		return err
	}
	for {
		message, err := one.next()
		if err != nil && one.unsent != nil {
			return fmt.Errorf("cannot answer a ping: %w", one.unsent)
		}
		if err != nil {
			return err
		}
		if err := f.take(one, message); err != nil {
			return err
		}
	}
}

// take acts on one message.
func (f *follower) take(one *session, message any) error {
	batch, err := f.differ.receive(message)
	if err != nil {
		return err
	}
	if batch != nil && f.selecting != nil {
		batch = f.selecting.selectFrom(batch)
	}
	f.notePosition(message, batch)
	if batch != nil {
		if err := f.tell(*batch); err != nil {
			return err
		}
	}
	switch message := message.(type) {
	case ping:
		// If it cannot be sent, what has arrived is read all the same: it may end with a goodbye.
		if one.unsent == nil {
			one.unsent = one.write(pong(one.sequence))
		}
	case goodbye:
		return &GoodbyeError{
			Reason: message.reason, Text: message.text, RetryAfter: message.retryAfter, Servers: message.servers,
		}
	case statusMessage:
		return f.tell(StatusChanged{message.status, message.sequence, len(f.differ.known), f.differ.total})
	}
	return nil
}

// notePosition notes that the map has moved on, except with what belongs to a snapshot that is not the map yet.
func (f *follower) notePosition(message any, batch *Batch) {
	if f.acknowledger == nil || f.differ.snapshot != nil {
		return
	}
	var sequence uint64
	switch message := message.(type) {
	case updates:
		sequence = message.sequence
	case statusMessage:
		sequence, f.catchingUp = message.sequence, message.status == CatchingUp
	default:
		return
	}
	if f.catchingUp {
		sequence = 0 // none is reached: keys may lack changes until the next status (rule P2)
	}
	version := f.acknowledger.received(sequence, batch != nil && len(batch.Changes) > 0)
	if batch != nil {
		batch.Version = version
	}
}

// tlsConfig is what to connect with. The certificate must have the name of an own address, wherever that has sent us.
func (f *follower) tlsConfig() *tls.Config {
	if f.options.TLS == nil || f.options.TLS.ServerName != "" {
		return f.options.TLS
	}
	host, _, err := net.SplitHostPort(withPort(f.rotation.trusted))
	if err != nil {
		return f.options.TLS
	}
	config := f.options.TLS.Clone()
	config.ServerName = host
	return config
}

// dial resolves the name anew, and tries its addresses in random order, within ten seconds in all.
func dial(ctx context.Context, address string, config *tls.Config) (net.Conn, error) {
	ctx, cancel := context.WithTimeout(ctx, connectTimeout)
	defer cancel()
	host, port, err := net.SplitHostPort(address)
	if err != nil {
		return nil, err
	}
	hosts, err := net.DefaultResolver.LookupHost(ctx, host)
	if err != nil {
		return nil, err
	}
	rand.Shuffle(len(hosts), func(i, j int) { hosts[i], hosts[j] = hosts[j], hosts[i] })
	share := connectTimeout / time.Duration(max(len(hosts), 1))
	for _, one := range hosts {
		var connection net.Conn
		if connection, err = dialOne(ctx, net.JoinHostPort(one, port), host, config, share); err == nil {
			return connection, nil
		}
	}
	return nil, err
}

func dialOne(ctx context.Context, address, name string, config *tls.Config, limit time.Duration) (net.Conn, error) {
	ctx, cancel := context.WithTimeout(ctx, limit)
	defer cancel()
	connection, err := new(net.Dialer).DialContext(ctx, "tcp", address)
	if err != nil || config == nil {
		return connection, err
	}
	config = config.Clone()
	if config.ServerName == "" {
		config.ServerName = name
	}
	config.MinVersion = max(config.MinVersion, tls.VersionTLS12)
	secured := tls.Client(connection, config)
	if err := secured.HandshakeContext(ctx); err != nil {
		connection.Close()
		return nil, err
	}
	return secured, nil
}

// A session is one connection: its frames, its place in the order of messages, and its deadlines.
type session struct {
	connection net.Conn
	frames     frameReader
	deadline   time.Time     // of the server's hello
	silence    time.Duration // after the hello: how long nothing may arrive
	state      string
	sequence   uint64
	unsent     error // why a pong could not be sent
	writing    sync.Mutex

	dictionaries bool // the server may send some
	isSelection  bool // a subscription is in force: what lies between two sequences is not for this client

	asked     *position // what the hello says of the map
	digests   bool      // it says the digests of its chunks, too
	continues bool      // while the state is resuming: the server may go on from the position,
	keeps     bool      // or leave out chunks
}

const (
	ready      = "ready"
	resuming   = "resuming" // ready, and the map is as in the hello
	inSnapshot = "snapshot"
	following  = "following"
)

// Read reads from the connection, with the deadline of the moment.
func (s *session) Read(buffer []byte) (int, error) {
	deadline := s.deadline
	if s.silence > 0 {
		deadline = time.Now().Add(s.silence)
	}
	if err := s.connection.SetReadDeadline(deadline); err != nil {
		return 0, err
	}
	return s.connection.Read(buffer)
}

// write may be called from any goroutine.
func (s *session) write(data []byte) error {
	s.writing.Lock()
	defer s.writing.Unlock()
	if err := s.connection.SetWriteDeadline(time.Now().Add(writeTimeout)); err != nil {
		return err
	}
	_, err := s.connection.Write(data)
	return err
}

// greet reads the server's preface and hello, and checks them.
func (s *session) greet(feed string) (serverHello, error) {
	for index := range len(preface) {
		var one [1]byte
		if _, err := io.ReadFull(s.frames.from, one[:]); err != nil {
			return serverHello{}, err
		}
		if one[0] != preface[index] {
			return serverHello{}, broken("it does not begin with the preface")
		}
	}
	message, err := s.receive()
	if err != nil {
		return serverHello{}, err
	}
	switch message := message.(type) {
	case goodbye:
		said := &GoodbyeError{
			Reason: message.reason, Text: message.text, RetryAfter: message.retryAfter, Servers: message.servers, Refused: true,
		}
		return serverHello{}, said
	case serverHello:
		if message.version != protocolVersion {
			return serverHello{}, broken("it chose version %d, which was not offered", message.version)
		}
		if message.feed != feed {
			return serverHello{}, broken("it serves feed %q instead of %q", message.feed, feed)
		}
		s.state, s.silence = ready, silenceFactor*message.pingInterval
		s.frames.limit, s.frames.zstd = message.maxFrame, slices.Contains(message.features, featureZstd)
		s.dictionaries = slices.Contains(message.features, featureDictionary)
		s.isSelection = slices.Contains(message.features, featureSubscriptions)
		s.resume(message)
		return message, nil
	}
	return serverHello{}, broken("%T is not allowed before the hello", message)
}

// resume decides what the server may do with the client's map (rules R4 and R6).
func (s *session) resume(hello serverHello) {
	s.keeps = s.digests && slices.Contains(hello.features, featureDigests)
	if s.asked != nil && slices.Contains(hello.features, featureResume) && s.asked.incarnation == hello.incarnation {
		s.continues, s.sequence = true, s.asked.sequence
	}
	if s.keeps || s.continues {
		s.state = resuming
	}
}

// follows tells whether updates and statuses may come.
func (s *session) follows() bool { return s.state == following || s.state == resuming && s.continues }

// isContinuedBy tells whether what begins at a sequence may come next (rules O11 and S4).
func (s *session) isContinuedBy(sequence uint64) bool {
	return sequence == s.sequence || s.isSelection && sequence > s.sequence
}

func (s *session) receive() (any, error) {
	payload, err := s.frames.next()
	if err != nil {
		var late net.Error
		switch {
		case errors.As(err, &late) && late.Timeout() && s.silence == 0:
			return nil, fmt.Errorf("no hello within %v", helloTimeout)
		case errors.As(err, &late) && late.Timeout():
			return nil, fmt.Errorf("nothing, not even a ping, for %v", s.silence)
		case errors.Is(err, io.EOF):
			return nil, errors.New("the server closed the connection without a goodbye")
		}
		return nil, err
	}
	return decodeMessage(payload)
}

// next reads the next message, which is allowed in the session's state and continues its sequence.
func (s *session) next() (any, error) {
	message, err := s.receive()
	if err != nil {
		return nil, err
	}
	state := s.state
	switch message := message.(type) {
	case ping, goodbye:
		return message, nil
	case dictionary:
		if state == inSnapshot {
			break
		}
		if !s.dictionaries {
			return nil, broken("a dictionary that was not agreed on")
		}
		return message, s.frames.use(message)
	case snapshotBegin:
		if state == inSnapshot {
			break
		}
		s.state = inSnapshot
		return message, nil
	case snapshotResume:
		if state != resuming || !s.keeps {
			break
		}
		s.state = inSnapshot
		return message, nil
	case snapshotChunk:
		if state == inSnapshot {
			return message, nil
		}
	case snapshotEnd:
		if state != inSnapshot {
			break
		}
		s.state, s.sequence = following, message.sequence
		return message, nil
	case updates:
		if !s.follows() {
			break
		}
		if !s.isContinuedBy(message.previous) || message.sequence < message.previous {
			return nil, broken("updates from %d to %d do not continue %d", message.previous, message.sequence, s.sequence)
		}
		s.state, s.sequence = following, message.sequence
		return message, nil
	case statusMessage:
		if !s.follows() {
			break
		}
		if !s.isContinuedBy(message.sequence) && (message.status != CatchingUp || message.sequence > s.sequence) {
			return nil, broken("a status at %d does not continue %d", message.sequence, s.sequence)
		}
		s.sequence = message.sequence
		return message, nil
	}
	return nil, broken("%T is not allowed in state %s", message, state)
}
