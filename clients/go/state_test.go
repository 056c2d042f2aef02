package typha

import (
	"bytes"
	"context"
	"errors"
	"os"
	"path/filepath"
	"reflect"
	"strings"
	"testing"
	"time"
)

// What the client in Python writes.
const ofPython = "7479706861206d6972726f7220310d0a8e26200b4cdd430929b872bdee8347e3f113e3031458eaeffc7dcd55153489d194a4706f647392c410000102030405060708090a0b0c0d0e0fcd012c049295a22f61c40131a137a00095a22f62c400a138a139ce3b9aca00"

var stateOfPython = savedState{
	at:      &position{"\x00\x01\x02\x03\x04\x05\x06\x07\x08\x09\x0a\x0b\x0c\x0d\x0e\x0f", 300},
	chunks:  4,
	entries: map[string]Entry{"/a": {[]byte("1"), "7", ""}, "/b": {[]byte{}, "8", "9"}},
}

func TestAFileIsReadAsItWasWritten(t *testing.T) {
	path := filepath.Join(t.TempDir(), "map")
	if state, err := readState(path, "pods"); state != nil || err != nil {
		t.Errorf("without a file: %v, %v", state, err)
	}
	if err := os.WriteFile(path, fromHex(t, ofPython), 0o600); err != nil {
		t.Fatal(err)
	}
	for range 2 {
		state, err := readState(path, "pods")
		if err != nil || !reflect.DeepEqual(*state, stateOfPython) {
			t.Fatalf("%v, %v", state, err)
		}
		if err := writeState(path, "pods", *state); err != nil {
			t.Fatal(err)
		}
	}
	if err := writeState(path, "pods", savedState{chunks: 1, entries: map[string]Entry{}}); err != nil {
		t.Fatal(err)
	}
	if state, err := readState(path, "pods"); err != nil || state.at != nil || len(state.entries) != 0 {
		t.Errorf("an empty map: %v, %v", state, err)
	}
	if _, err := readState(path, "nodes"); err == nil || !strings.Contains(err.Error(), `feed "pods"`) {
		t.Errorf("another feed: %v", err)
	}
}

func TestEveryDamageOfAFileIsFound(t *testing.T) {
	path := filepath.Join(t.TempDir(), "map")
	whole := fromHex(t, ofPython)
	for index := range whole {
		damaged := bytes.Clone(whole)
		damaged[index] ^= 1
		for _, data := range [][]byte{damaged, whole[:index]} {
			if err := os.WriteFile(path, data, 0o600); err != nil {
				t.Fatal(err)
			}
			if state, err := readState(path, "pods"); err == nil {
				t.Fatalf("byte %d: %v", index, state)
			}
		}
	}
}

func TestAMirrorBeginsWithItsFile(t *testing.T) {
	path := filepath.Join(t.TempDir(), "map")
	if err := os.WriteFile(path, fromHex(t, ofPython), 0o600); err != nil {
		t.Fatal(err)
	}
	ctx, cancel := context.WithTimeout(context.Background(), 50*time.Millisecond)
	defer cancel()
	mirror := NewMirror(Options{Addresses: []string{"127.0.0.1:1"}, Feed: "pods", Agent: "test"})
	mirror.StateFile = path
	var seen []Change
	mirror.OnChange = func(changes []Change) { seen = append(seen, changes...) }
	if err := mirror.Run(ctx); !errors.Is(err, context.DeadlineExceeded) {
		t.Errorf("it ends with %v", err)
	}
	content := map[string][]byte{"/a": []byte("1"), "/b": {}}
	if !mirror.Restored() || mirror.InSync() || mirror.Len() != 2 || mirror.Digest() != StateDigest(content) {
		t.Errorf("%v %v %d", mirror.Restored(), mirror.InSync(), mirror.Len())
	}
	if len(seen) != 2 || mirror.StateFileError() != nil {
		t.Errorf("%v %v", seen, mirror.StateFileError())
	}
}

func TestAFileThatIsBrokenIsToldOf(t *testing.T) {
	path := filepath.Join(t.TempDir(), "map")
	if err := os.WriteFile(path, []byte("nonsense"), 0o600); err != nil {
		t.Fatal(err)
	}
	ctx, cancel := context.WithTimeout(context.Background(), 20*time.Millisecond)
	defer cancel()
	mirror := NewMirror(Options{Addresses: []string{"127.0.0.1:1"}, Feed: "pods", Agent: "test"})
	mirror.StateFile = path
	_ = mirror.Run(ctx)
	if mirror.Restored() || mirror.Len() != 0 || mirror.StateFileError() == nil {
		t.Errorf("%v %d %v", mirror.Restored(), mirror.Len(), mirror.StateFileError())
	}
	if data, _ := os.ReadFile(path); string(data) != "nonsense" {
		t.Error("a mirror without a map has replaced the file")
	}
}
