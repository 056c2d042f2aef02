package typha

import (
	"bytes"
	"encoding/hex"
	"encoding/json"
	"os"
	"reflect"
	"strconv"
	"strings"
	"testing"
)

const vectorsFile = "../../docs/protocol-vectors.json"

type vectors struct {
	Preface    string
	Messages   []struct{ Name, Payload, Frame string }
	Zstd       struct{ Frame string }             `json:"zstd_frame"`
	Dictionary struct{ Dictionary, Frame string } `json:"dictionary_frame"`
	Digests    []struct {
		Map    map[string]struct{ Bin string }
		Digest string
	} `json:"state_digests"`
	Session  []struct{ From, Bytes string }
	Refused  []struct{ From, Bytes string }                      `json:"refused_session"`
	Position []struct{ From, Bytes string }                      `json:"session_resumed_by_position"`
	Chunks   []struct{ From, Bytes string }                      `json:"session_resumed_by_digests"`
	Rejected []struct{ Rule, Name, Needs, Before, Bytes string } `json:"rejected_by_clients"`
}

func loadVectors(t testing.TB) vectors {
	t.Helper()
	data, err := os.ReadFile(vectorsFile)
	if err != nil {
		t.Fatal(err)
	}
	var found vectors
	if err := json.Unmarshal(data, &found); err != nil {
		t.Fatal(err)
	}
	return found
}

func fromHex(t testing.TB, digits string) []byte {
	t.Helper()
	data, err := hex.DecodeString(digits)
	if err != nil {
		t.Fatal(err)
	}
	return data
}

// A memory session reads what a server sends from memory, as connect does.
type memorySession struct {
	session
	differ *differ
	events []Event
	pongs  []uint64
}

func readAll(data []byte, feed string) (*memorySession, error) {
	return readWith(newDiffer(), data, feed)
}

// readWith does the same for a client that has a map.
func readWith(d *differ, data []byte, feed string) (*memorySession, error) {
	one := &memorySession{differ: d}
	at, digests := d.resuming()
	one.asked, one.digests = at, digests != nil
	one.frames = frameReader{from: bytes.NewReader(data), limit: maxFrameBytes}
	defer one.frames.close()
	hello, err := one.greet(feed)
	if err != nil {
		return one, err
	}
	d.beginConnection(hello.incarnation)
	for {
		message, err := one.next()
		if err != nil {
			return one, err
		}
		batch, err := one.differ.receive(message)
		if err != nil {
			return one, err
		}
		if batch != nil {
			one.events = append(one.events, *batch)
		}
		switch message := message.(type) {
		case ping:
			one.pongs = append(one.pongs, one.sequence)
		case statusMessage:
			status := StatusChanged{message.status, message.sequence, len(one.differ.known), one.differ.total}
			one.events = append(one.events, status)
		case goodbye:
			return one, &GoodbyeError{Reason: message.reason, Text: message.text, RetryAfter: message.retryAfter}
		}
	}
}

func TestServersMessagesDecode(t *testing.T) {
	clients := map[byte]bool{typeClientHello: true, typePong: true, typeApplied: true}
	for _, vector := range loadVectors(t).Messages {
		payload := fromHex(t, vector.Payload)
		message, err := decodeMessage(payload)
		if refused := err != nil; refused != clients[payload[1]] {
			t.Errorf("%s: %v, %v", vector.Name, message, err)
		}
		for cut := range len(payload) {
			if _, err := decodeMessage(payload[:cut]); err == nil {
				t.Errorf("%s: accepted without its last %d bytes", vector.Name, len(payload)-cut)
			}
		}
	}
}

func TestClientsMessagesAreThoseOfThePage(t *testing.T) {
	found := map[string][]byte{}
	for _, vector := range loadVectors(t).Messages {
		found[vector.Name] = fromHex(t, vector.Frame)
	}
	if !bytes.Equal(applied(42), found["applied"]) {
		t.Errorf("applied: %x", applied(42))
	}
	if !bytes.Equal(pong(42), found["pong"]) {
		t.Errorf("pong: %x", pong(42))
	}
	at := &position{strings.Repeat("i", incarnationBytes), 1 << 40}
	for _, digests := range [][]uint64{nil, {1}, make([]uint64, maxChunkDigests)} {
		for _, at := range []*position{nil, at} {
			hello := clientHello(&Options{Feed: "workloads", Agent: "my-agent", Node: "n1"}, at, digests)
			if !bytes.HasPrefix(hello, []byte(preface)) {
				t.Errorf("no preface: %x", hello)
			}
			d := &decoder{data: hello[len(preface)+5:]}
			d.skip(1)
			if d.err != nil || len(d.data) != 0 {
				t.Errorf("the hello is not one msgpack value: %x", hello)
			}
		}
	}
}

// clientOfTheSession has the map that the client of the first session has before it resumes.
func clientOfTheSession(sequence uint64, content map[string]string) *differ {
	d := newDiffer()
	for key, value := range content {
		d.known[key] = known{pairDigest(key, []byte(value)), "1"}
		d.total += d.known[key].digest
	}
	d.chunks = 2
	d.position = &position{"\x00\x01\x02\x03\x04\x05\x06\x07\x08\x09\x0a\x0b\x0c\x0d\x0e\x0f", sequence}
	return d
}

const (
	pod     = "/core/v1/pods/default/web-1"
	node    = "/core/v1/nodes//n1"
	newPod  = `{"kind":"Pod","x":1}`
	oldPod  = `{"kind":"Pod"}`
	oldNode = "é"
)

func TestTheResumedSessions(t *testing.T) {
	found := loadVectors(t)
	for _, one := range []struct {
		steps         []struct{ From, Bytes string }
		sequence      uint64
		before, after map[string]string
		reached       uint64
	}{
		{found.Position, 40, map[string]string{pod: oldPod, node: oldNode}, map[string]string{pod: newPod}, 42},
		{found.Chunks, 42, map[string]string{pod: newPod}, map[string]string{pod: newPod, node: oldNode}, 9},
	} {
		var data, said []byte
		for _, step := range one.steps {
			if step.From == "server" {
				data = append(data, fromHex(t, step.Bytes)...)
			} else {
				said = append(said, fromHex(t, step.Bytes)...)
			}
		}
		d := clientOfTheSession(one.sequence, one.before)
		at, digests := d.resuming()
		for _, digest := range digests {
			if !bytes.Contains(said, appendCount(nil, digest)) {
				t.Errorf("digest %x is not in the hello of the page", digest)
			}
		}
		if at == nil || at.sequence != one.sequence {
			t.Errorf("position %v", at)
		}
		read, err := readWith(d, data, "workloads")
		if _, ok := err.(*ProtocolError); ok {
			t.Errorf("the session ends with %v", err)
		}
		after := map[string][]byte{}
		for key, value := range one.after {
			after[key] = []byte(value)
		}
		if d.total != StateDigest(after) || len(d.known) != len(after) {
			t.Errorf("digest %x of %d keys", d.total, len(d.known))
		}
		if read.sequence != one.reached || d.position.sequence != one.reached {
			t.Errorf("the client has reached %d", read.sequence)
		}
	}
}

func TestDigests(t *testing.T) {
	for _, vector := range loadVectors(t).Digests {
		content := map[string][]byte{}
		for key, value := range vector.Map {
			content[key] = fromHex(t, value.Bin)
		}
		if found := strconv.FormatUint(StateDigest(content), 16); found != vector.Digest && "0" != found {
			t.Errorf("%v: %s instead of %s", vector.Map, found, vector.Digest)
		}
	}
}

func TestTheSessionOfThePage(t *testing.T) {
	var data []byte
	for _, step := range loadVectors(t).Session {
		if step.From == "server" {
			data = append(data, fromHex(t, step.Bytes)...)
		}
	}
	one, err := readAll(data, "workloads")
	said, ok := err.(*GoodbyeError)
	if !ok || said.Reason != "shutting-down" || said.RetryAfter.Milliseconds() != 1500 {
		t.Errorf("the session ends with %v", err)
	}
	if !reflect.DeepEqual(one.pongs, []uint64{0, 42}) {
		t.Errorf("pongs %v", one.pongs)
	}
	var statuses []string
	for _, event := range one.events {
		if status, ok := event.(StatusChanged); ok {
			statuses = append(statuses, status.Status.String())
		}
	}
	if !reflect.DeepEqual(statuses, []string{"in-sync", "catching-up", "in-sync", "in-sync"}) {
		t.Errorf("statuses %v", statuses)
	}
	if one.differ.total != StateDigest(map[string][]byte{"/core/v1/nodes//n1": []byte("é")}) {
		t.Errorf("digest %x", one.differ.total)
	}
}

func TestTheRefusedSession(t *testing.T) {
	var data []byte
	for _, step := range loadVectors(t).Refused {
		if step.From == "server" {
			data = append(data, fromHex(t, step.Bytes)...)
		}
	}
	_, err := readAll(data, "workload")
	if said, ok := err.(*GoodbyeError); !ok || !said.Refused || said.Reason != "unknown-feed" {
		t.Errorf("the session ends with %v", err)
	}
}

func TestWhatAClientMustReject(t *testing.T) {
	cases := loadVectors(t).Rejected
	if len(cases) < 40 {
		t.Fatalf("only %d cases", len(cases))
	}
	for _, vector := range cases {
		data := append(fromHex(t, vector.Before), fromHex(t, vector.Bytes)...)
		_, err := readAll(data, "workloads")
		if _, ok := err.(*ProtocolError); !ok {
			t.Errorf("%s %s: %v", vector.Rule, vector.Name, err)
		}
	}
}

func FuzzServer(f *testing.F) {
	found := loadVectors(f)
	for _, vector := range found.Rejected {
		f.Add(append(fromHex(f, vector.Before), fromHex(f, vector.Bytes)...))
	}
	var session []byte
	for _, step := range found.Session {
		if step.From == "server" {
			session = append(session, fromHex(f, step.Bytes)...)
		}
	}
	f.Add(session)
	for _, steps := range [][]struct{ From, Bytes string }{found.Position, found.Chunks} {
		var resumed []byte
		for _, step := range steps {
			if step.From == "server" {
				resumed = append(resumed, fromHex(f, step.Bytes)...)
			}
		}
		f.Add(resumed)
	}
	f.Fuzz(func(t *testing.T, data []byte) {
		for _, d := range []*differ{newDiffer(), clientOfTheSession(40, map[string]string{pod: oldPod, node: oldNode})} {
			one, err := readWith(d, data, "workloads")
			if err == nil {
				t.Fatal("a stream that never ends")
			}
			var total uint64
			for _, known := range one.differ.known {
				total += known.digest
			}
			if total != one.differ.total {
				t.Fatal("the digest is not that of the map")
			}
		}
	})
}

func FuzzMessage(f *testing.F) {
	for _, vector := range loadVectors(f).Messages {
		f.Add(fromHex(f, vector.Payload))
	}
	f.Fuzz(func(t *testing.T, payload []byte) {
		message, err := decodeMessage(payload)
		if (err == nil) == (message == nil) {
			t.Fatalf("%v, %v", message, err)
		}
	})
}

func TestTheAnnouncedLimitIsThatOfTheContent(t *testing.T) {
	one := frameReader{limit: 65_536, zstd: true}
	defer one.close()
	// One block that repeats a byte 70,000 times.
	_, err := one.decompress(fromHex(t, "28b52ffda070110100838b0808"))
	if err == nil || !strings.Contains(err.Error(), "the limit is 65536") {
		t.Error(err)
	}
	one.limit = 70_000
	if content, err := one.decompress(fromHex(t, "28b52ffda070110100838b0808")); len(content) != 70_000 {
		t.Error(len(content), err)
	}
}

func TestAFrameWithADictionary(t *testing.T) {
	found := loadVectors(t).Dictionary
	data, frame := fromHex(t, found.Dictionary), fromHex(t, found.Frame)
	one := frameReader{from: bytes.NewReader(frame), limit: 65_536, zstd: true}
	defer one.close()
	if _, err := one.next(); err == nil {
		t.Error("a frame is read without its dictionary")
	}
	for range 2 { // the second replaces the first
		if err := one.use(dictionary{7, data}); err != nil {
			t.Fatal(err)
		}
	}
	one.from = bytes.NewReader(frame)
	payload, err := one.next()
	if err != nil {
		t.Fatal(err)
	}
	message, err := decodeMessage(payload)
	if delta, ok := message.(updates); !ok || delta.previous != 40 || delta.sequence != 42 || len(delta.updates) != 2 {
		t.Errorf("%v, %v", message, err)
	}
	for _, wrong := range []dictionary{
		{8, data}, {0, data}, {1<<32 + 7, data}, {7, nil}, {7, data[:8]}, {7, data[:100]}, {7, make([]byte, 256)},
		{7, append(bytes.Clone(data), make([]byte, maxDictionaryBytes)...)},
	} {
		if err := one.use(wrong); err == nil {
			t.Errorf("accepted dictionary %d of %d bytes", wrong.number, len(wrong.data))
		}
	}
}
