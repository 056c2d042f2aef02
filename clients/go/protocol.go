package typha

import (
	"bytes"
	"encoding/binary"
	"errors"
	"fmt"
	"io"
	"math"
	"math/bits"
	"time"

	"github.com/klauspost/compress/zstd"
)

const (
	preface            = "\x00TYPHA\r\n"
	protocolVersion    = 1
	featureZstd        = "zstd"
	featureResume      = "resume"
	featureDigests     = "chunk-digests"
	featureDictionary  = "zstd-dictionary"
	maxChunkDigests    = 4096
	maxChunks          = 1 << 20
	maxFrameBytes      = 16 << 20
	maxDictionaryBytes = 64 << 10
	dictionaryMagic    = 0xec30a437
	maxKeyChars        = 4096
	maxNameChars       = 1024
	maxRevisionChars   = maxFrameBytes
	maxUpdates         = 1 << 20
	maxNames           = 64
	maxServers         = 16
	firstReadBytes     = 64 << 10
	defaultPing        = 10 * time.Second
	maxPingInterval    = 600 * time.Second
	incarnationBytes   = 16
	updateElementsMin  = 4
	compressedFlag     = 1
	retryAfterMaxMilli = uint64(1<<63-1) / uint64(time.Millisecond)
)

const (
	typeClientHello = iota + 1
	typeServerHello
	typeSnapshotBegin
	typeSnapshotChunk
	typeSnapshotEnd
	typeUpdates
	typeStatus
	typePing
	typePong
	typeGoodbye
	typeApplied
	typeSnapshotResume = 12
	typeDictionary     = 13
)

// A Status says how complete and current the data is.
type Status int

// The statuses. Waiting and Resync also mean that the server has lost its backend, and that the data may be old.
const (
	Waiting Status = iota
	Resync
	InSync
	CatchingUp
)

// String returns the status's name in the protocol.
func (s Status) String() string {
	if s < Waiting || s > CatchingUp {
		return fmt.Sprintf("status %d", int(s))
	}
	return [...]string{"waiting", "resync", "in-sync", "catching-up"}[s]
}

// A ProtocolError says how a server has broken the protocol.
type ProtocolError struct {
	Text string
}

func (e *ProtocolError) Error() string { return "the server breaks the protocol: " + e.Text }

func broken(format string, arguments ...any) error {
	return &ProtocolError{fmt.Sprintf(format, arguments...)}
}

// A GoodbyeError is a server's last word.
type GoodbyeError struct {
	// Reason is a code of section 7 of the protocol, or one that a newer server has added.
	Reason string
	// Text is an explanation.
	Text string
	// RetryAfter is how long the client should stay away from this server; 0 for no request.
	RetryAfter time.Duration
	// Servers are others that would accept the client. Follow and Mirror try one of them next.
	Servers []string
	// Refused tells whether it came in place of the server's hello.
	Refused bool
}

func (e *GoodbyeError) Error() string {
	verb := "the server ends the connection"
	if e.Refused {
		verb = "the server refuses the client"
	}
	if e.Text == "" {
		return fmt.Sprintf("%s: %s", verb, e.Reason)
	}
	return fmt.Sprintf("%s: %s: %s", verb, e.Reason, e.Text)
}

type update struct {
	key               string
	value             []byte // nil: absent
	revision          string
	v3ResourceVersion string
	ttl               time.Duration
}

type serverHello struct {
	version      uint64
	feed         string
	incarnation  string
	software     string
	connectionID uint64
	features     []string
	pingInterval time.Duration
	maxFrame     uint64
}

type snapshotBegin struct{ sequence, keys, chunks uint64 }

// A snapshotResume begins a snapshot of which the client has the chunks whose bits are set.
type snapshotResume struct {
	sequence, keys, chunks uint64
	kept                   []byte
}

func (r *snapshotResume) keeps(chunk uint64) bool { return r.kept[chunk>>3]&(1<<(chunk&7)) != 0 }

// A position is that of a map in the history of one incarnation of a server.
type position struct {
	incarnation string
	sequence    uint64
}

type snapshotChunk struct {
	index, digest uint64
	more          bool
	updates       []update
}

type snapshotEnd struct{ sequence, keys, digest uint64 }

type updates struct {
	previous, sequence uint64
	updates            []update
}

type statusMessage struct {
	sequence uint64
	status   Status
}

type ping struct{}

// A dictionary is one of zstd, for the frames that follow and name its number.
type dictionary struct {
	number uint64
	data   []byte
}

type goodbye struct {
	reason, text string
	retryAfter   time.Duration
	servers      []string
}

func appendFrame(to []byte, payload []byte) []byte {
	to = binary.BigEndian.AppendUint32(to, uint32(len(payload)+1))
	return append(append(to, 0), payload...)
}

// clientHello is the preface and the hello, with what the client has of the feed.
func clientHello(options *Options, at *position, digests []uint64) []byte {
	members := [][2]string{{"feed", options.Feed}, {"agent", options.Agent}, {"software", software}, {"node", options.Node}}
	count := byte(0x86)
	if at != nil {
		count++
	}
	if digests != nil {
		count++
	}
	if options.Subscription != nil {
		count++
	}
	payload := []byte{0x92, typeClientHello, count}
	payload = append(appendText(payload, "versions"), 0x91, protocolVersion)
	features := []string{featureZstd, featureDictionary, featureResume, featureDigests}
	if options.ReportsApplied {
		features = append(features, featureApplied)
	}
	if options.Subscription != nil {
		features = append(features, featureSubscriptions)
	}
	payload = append(appendText(payload, "features"), 0x90|byte(len(features)))
	for _, feature := range features {
		payload = appendText(payload, feature)
	}
	for _, member := range members {
		payload = appendText(appendText(payload, member[0]), member[1])
	}
	if options.Subscription != nil {
		payload = options.Subscription.appendTo(payload)
	}
	if at != nil {
		payload = append(appendText(payload, "resume"), 0x92, 0xc4, incarnationBytes)
		payload = appendCount(append(payload, at.incarnation...), at.sequence)
	}
	if digests != nil {
		payload = append(appendText(payload, "chunk_digests"), 0xdc)
		payload = binary.BigEndian.AppendUint16(payload, uint16(len(digests)))
		for _, digest := range digests {
			payload = appendCount(payload, digest)
		}
	}
	return appendFrame([]byte(preface), payload)
}

func pong(sequence uint64) []byte {
	return appendFrame(nil, appendCount([]byte{0x92, typePong}, sequence))
}

func applied(sequence uint64) []byte {
	return appendFrame(nil, appendCount([]byte{0x92, typeApplied}, sequence))
}

// A frameReader reads frames of limited size.
type frameReader struct {
	from  io.Reader
	limit uint64
	zstd  bool
	body  bytes.Buffer
	inner *zstd.Decoder

	// Of the newest dictionary; 0 and nil without one.
	number         uint32
	withDictionary *zstd.Decoder
}

func newDecoder(options ...zstd.DOption) (*zstd.Decoder, error) {
	options = append(options, zstd.WithDecoderConcurrency(1), zstd.WithDecoderMaxMemory(maxFrameBytes))
	return zstd.NewReader(nil, options...)
}

// use takes a dictionary, which replaces the one before (rules Z2 and Z3).
func (r *frameReader) use(one dictionary) error {
	if len(one.data) > maxDictionaryBytes {
		return broken("a dictionary has %d bytes, and the limit is %d", len(one.data), maxDictionaryBytes)
	}
	if one.number == 0 || one.number > math.MaxUint32 {
		return broken("a dictionary has number %d", one.number)
	}
	if len(one.data) < 8 || binary.LittleEndian.Uint32(one.data) != dictionaryMagic {
		return broken("what the server has sent is no dictionary")
	}
	if inside := binary.LittleEndian.Uint32(one.data[4:]); uint64(inside) != one.number {
		return broken("dictionary %d has the number %d inside", one.number, inside)
	}
	made, err := newDecoder(zstd.WithDecoderDicts(one.data))
	if err != nil {
		return broken("a dictionary is broken: %v", err)
	}
	if r.withDictionary != nil {
		r.withDictionary.Close()
	}
	r.number, r.withDictionary = uint32(one.number), made
	return nil
}

// next returns the payload of the next frame, which is valid until the next call.
func (r *frameReader) next() ([]byte, error) {
	var header [4]byte
	if _, err := io.ReadFull(r.from, header[:]); err != nil {
		return nil, err
	}
	length := uint64(binary.BigEndian.Uint32(header[:]))
	if length == 0 || length > r.limit {
		return nil, broken("a frame has length %d, and the limit is %d", length, r.limit)
	}
	r.body.Reset()
	if r.body.Cap() > firstReadBytes && r.body.Cap() > 4*int(length) {
		r.body = bytes.Buffer{} // a large frame is rare, and its room is given back
	}
	// The room grows with what arrives, and not with what is announced.
	if _, err := io.CopyN(&r.body, r.from, int64(length)); err != nil {
		if errors.Is(err, io.EOF) {
			err = io.ErrUnexpectedEOF
		}
		return nil, err
	}
	flags, payload := r.body.Bytes()[0], r.body.Bytes()[1:]
	switch {
	case flags == 0:
		return payload, nil
	case flags == compressedFlag && r.zstd:
		return r.decompress(payload)
	}
	return nil, broken("a frame has flags 0x%02x", flags)
}

func (r *frameReader) decompress(payload []byte) ([]byte, error) {
	var header zstd.Header
	if err := header.Decode(payload); err != nil {
		return nil, broken("a compressed frame is broken: %v", err)
	}
	if header.DictionaryID != 0 && header.DictionaryID != r.number {
		return nil, broken("a compressed frame needs dictionary %d, and the newest is %d", header.DictionaryID, r.number)
	}
	if header.Skippable || !header.HasFCS {
		return nil, broken("a compressed frame does not state its content size")
	}
	if header.FrameContentSize > r.limit {
		return nil, broken("a compressed frame has %d bytes of content, and the limit is %d", header.FrameContentSize, r.limit)
	}
	if end := zstdFrameEnd(payload, header); end != len(payload) {
		return nil, broken("a compressed frame is not one whole zstd frame")
	}
	if r.inner == nil {
		made, err := newDecoder()
		if err != nil {
			return nil, err
		}
		r.inner = made
	}
	inner := r.inner
	if header.DictionaryID != 0 {
		inner = r.withDictionary
	}
	content, err := inner.DecodeAll(payload, make([]byte, 0, min(header.FrameContentSize, 64*uint64(len(payload)))))
	if err != nil {
		return nil, broken("a compressed frame is broken: %v", err)
	}
	if uint64(len(content)) != header.FrameContentSize {
		return nil, broken("a compressed frame states a wrong content size")
	}
	return content, nil
}

// zstdFrameEnd returns where the first zstd frame ends by its own block headers; -1 if it does not end.
func zstdFrameEnd(data []byte, header zstd.Header) int {
	const blockHeaderBytes, rle = 3, 1
	position := header.HeaderSize
	for last := false; !last; {
		if len(data)-position < blockHeaderBytes {
			return -1
		}
		block := int(data[position]) | int(data[position+1])<<8 | int(data[position+2])<<16
		last = block&1 == 1
		size := block >> 3
		if block>>1&3 == rle {
			size = 1
		}
		if position += blockHeaderBytes + size; position > len(data) {
			return -1
		}
	}
	if header.HasCheckSum {
		position += 4
	}
	return position
}

func (r *frameReader) close() {
	for _, one := range []*zstd.Decoder{r.inner, r.withDictionary} {
		if one != nil {
			one.Close()
		}
	}
}

// decodeMessage decodes a payload from a server.
func decodeMessage(payload []byte) (any, error) {
	d := &decoder{data: payload}
	fields := d.array()
	if fields == 0 {
		d.fail(errKind)
	}
	kind := d.count()
	message, used := decodeFields(d, kind, fields-1)
	if d.err == nil && used > fields-1 {
		d.fail(errEnds)
	}
	if d.err == nil {
		d.skip(fields - 1 - used)
	}
	if d.err != nil {
		return nil, broken("message %d is not valid: %v", kind, d.err)
	}
	if len(d.data) != 0 {
		return nil, broken("%d bytes follow message %d", len(d.data), kind)
	}
	return message, nil
}

// decodeFields decodes the fields of a message, and returns how many there must be at least.
func decodeFields(d *decoder, kind, fields uint64) (any, uint64) {
	needed := map[uint64]uint64{
		typeServerHello: 1, typeSnapshotBegin: 3, typeSnapshotChunk: 4, typeSnapshotEnd: 3,
		typeUpdates: 3, typeStatus: 2, typePing: 0, typeGoodbye: 3, typeSnapshotResume: 4,
		typeDictionary: 2,
	}
	count, known := needed[kind]
	if d.err != nil || !known || fields < count {
		d.fail(errKind)
		return nil, 0
	}
	var message any
	switch kind {
	case typeServerHello:
		message = decodeServerHello(d)
	case typeSnapshotBegin:
		message = snapshotBegin{d.count(), d.count(), d.count()}
	case typeSnapshotResume:
		one := snapshotResume{d.count(), d.count(), d.count(), d.bytes()}
		if bits.OnesCount64(one.chunks) != 1 || one.chunks > maxChunks || uint64(len(one.kept)) != (one.chunks+7)/8 {
			d.fail(errKind)
		}
		message = one
	case typeSnapshotChunk:
		message = snapshotChunk{d.count(), d.count(), d.boolean(), decodeUpdates(d)}
	case typeSnapshotEnd:
		message = snapshotEnd{d.count(), d.count(), d.count()}
	case typeUpdates:
		message = updates{d.count(), d.count(), decodeUpdates(d)}
	case typeStatus:
		message = statusMessage{d.count(), Status(min(d.count(), uint64(CatchingUp)+1))}
		if message.(statusMessage).status > CatchingUp {
			d.fail(errKind)
		}
	case typePing:
		message = ping{}
	case typeDictionary:
		message = dictionary{d.count(), d.bytes()}
	case typeGoodbye:
		reason, text := d.text(maxNameChars), d.text(maxNameChars)
		milliseconds := min(d.count(), retryAfterMaxMilli)
		said := goodbye{reason, text, time.Duration(milliseconds) * time.Millisecond, nil}
		if fields > count {
			count++
			if !d.isNil() {
				said.servers = decodeNames(d, maxServers)
			}
		}
		message = said
	}
	return message, count
}

func decodeUpdates(d *decoder) []update {
	count := d.array()
	if count > maxUpdates {
		d.fail(errLimit)
	}
	var found []update
	for ; count > 0 && d.err == nil; count-- {
		elements := d.array()
		if elements < updateElementsMin {
			d.fail(errKind)
			break
		}
		var one update
		one.key = d.text(maxKeyChars)
		if !d.isNil() {
			one.value = d.bytes()
		}
		one.revision = d.text(maxRevisionChars)
		d.signed() // the update type says nothing that the value does not
		elements -= updateElementsMin
		if elements > 0 {
			one.v3ResourceVersion = d.text(maxRevisionChars)
			elements--
		}
		if elements > 0 {
			one.ttl = time.Duration(d.signed())
			elements--
		}
		d.skip(elements)
		found = append(found, one)
	}
	return found
}

func decodeServerHello(d *decoder) serverHello {
	hello := serverHello{pingInterval: defaultPing, maxFrame: maxFrameBytes}
	var seen uint64
	for members := d.object(); members > 0 && d.err == nil; members-- {
		name := d.text(maxRevisionChars)
		required := map[string]uint64{"version": 1, "feed": 2, "incarnation": 4}[name]
		if required == 0 && d.isNil() {
			continue
		}
		seen |= required
		switch name {
		case "version":
			hello.version = d.count()
		case "feed":
			hello.feed = d.text(maxNameChars)
		case "incarnation":
			if hello.incarnation = string(d.bytes()); len(hello.incarnation) != incarnationBytes {
				d.fail(errKind)
			}
		case "features":
			hello.features = decodeNames(d, maxNames)
		case "not_supported":
			decodeNames(d, maxNames)
		case "software":
			hello.software = d.text(maxNameChars)
		case "connection_id":
			hello.connectionID = d.count()
		case "ping_interval_ms":
			if interval := d.count(); interval != 0 {
				hello.pingInterval = time.Duration(min(interval, uint64(maxPingInterval/time.Millisecond))) * time.Millisecond
			}
		case "max_frame_bytes":
			if limit := d.count(); limit != 0 {
				hello.maxFrame = min(limit, maxFrameBytes)
			}
		default:
			d.skip(1)
		}
	}
	if bits.OnesCount64(seen) != 3 {
		d.fail(errors.New("a member is missing"))
	}
	return hello
}

func decodeNames(d *decoder, limit uint64) []string {
	count := d.array()
	if count > limit {
		d.fail(errLimit)
	}
	var names []string
	for ; count > 0 && d.err == nil; count-- {
		names = append(names, d.text(maxNameChars))
	}
	return names
}
