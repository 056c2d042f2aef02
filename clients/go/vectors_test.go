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
	Preface  string
	Messages []struct{ Name, Payload, Frame string }
	Zstd     struct{ Frame string } `json:"zstd_frame"`
	Digests  []struct {
		Map    map[string]struct{ Bin string }
		Digest string
	} `json:"state_digests"`
	Session  []struct{ From, Bytes string }
	Refused  []struct{ From, Bytes string }                      `json:"refused_session"`
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
	one := &memorySession{differ: newDiffer()}
	one.frames = frameReader{from: bytes.NewReader(data), limit: maxFrameBytes}
	defer one.frames.close()
	if _, err := one.greet(feed); err != nil {
		return one, err
	}
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
	hello := clientHello(&Options{Feed: "workloads", Agent: "my-agent", Node: "n1"})
	if !bytes.HasPrefix(hello, []byte(preface)) {
		t.Errorf("no preface: %x", hello)
	}
	d := &decoder{data: hello[len(preface)+5:]}
	d.skip(1)
	if d.err != nil || len(d.data) != 0 {
		t.Errorf("the hello is not one msgpack value: %x", hello)
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
	f.Fuzz(func(t *testing.T, data []byte) {
		one, err := readAll(data, "workloads")
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
