package typha

import (
	"crypto/sha256"
	"encoding/binary"
	"errors"
	"fmt"
	"io"
	"math/bits"
	"os"
	"path/filepath"
	"syscall"
)

const (
	stateMagic    = "typha mirror 1\r\n"
	maxStateBytes = 1 << 30
	stateElements = 4
	entryElements = 5
)

// A savedState is the map of a mirror in a file, with what the next hello says of it. The format is that of the client
// in Python: the magic, the SHA-256 of the rest, and as msgpack
// [feed, [incarnation, sequence] or nil, chunks, [[key, value, revision, v3 resource version, ttl]]].
type savedState struct {
	at      *position
	chunks  uint64
	entries map[string]Entry
}

// writeState replaces the file as a whole: it is written beside the old one, and then takes its place.
func writeState(path, feed string, state savedState) error {
	content := appendText([]byte{0x90 | stateElements}, feed)
	if state.at == nil {
		content = append(content, 0xc0)
	} else {
		content = append(append(content, 0x92, 0xc4, incarnationBytes), state.at.incarnation...)
		content = appendCount(content, state.at.sequence)
	}
	content = binary.BigEndian.AppendUint32(append(appendCount(content, state.chunks), 0xdd), uint32(len(state.entries)))
	for key, entry := range state.entries {
		content = appendText(append(content, 0x90|entryElements), key)
		content = binary.BigEndian.AppendUint32(append(content, 0xc6), uint32(len(entry.Value)))
		content = append(content, entry.Value...)
		for _, version := range []string{entry.Revision, entry.V3ResourceVersion} {
			if len(version) > 1<<16-1 {
				version = ""
			}
			content = appendText(content, version)
		}
		content = append(content, 0) // no ttl
	}
	if len(content) > maxStateBytes-len(stateMagic)-sha256.Size {
		return fmt.Errorf("typha: %s would have %d bytes", path, len(content))
	}
	digest := sha256.Sum256(content)
	beside := path + ".new"
	flags := os.O_WRONLY | os.O_CREATE | os.O_TRUNC | syscall.O_NOFOLLOW
	file, err := os.OpenFile(beside, flags, 0o600)
	if err != nil {
		return err
	}
	for _, part := range [][]byte{[]byte(stateMagic), digest[:], content} {
		if _, err = file.Write(part); err != nil {
			break
		}
	}
	if err == nil {
		err = file.Sync()
	}
	if err = errors.Join(err, file.Close()); err != nil {
		return err
	}
	if err := os.Rename(beside, path); err != nil {
		return err
	}
	folder, err := os.Open(filepath.Dir(path))
	if err != nil {
		return err
	}
	return errors.Join(folder.Sync(), folder.Close())
}

// readState returns the map in the file; nil if there is no file.
func readState(path, feed string) (*savedState, error) {
	file, err := os.OpenFile(path, os.O_RDONLY|syscall.O_NONBLOCK, 0)
	if errors.Is(err, os.ErrNotExist) {
		return nil, nil
	}
	if err != nil {
		return nil, err
	}
	defer file.Close()
	data, err := io.ReadAll(io.LimitReader(file, maxStateBytes+1))
	if err != nil {
		return nil, err
	}
	begin := len(stateMagic) + sha256.Size
	if len(data) > maxStateBytes || len(data) < begin || string(data[:len(stateMagic)]) != stateMagic {
		return nil, fmt.Errorf("typha: %s is no file of a mirror, or of another version, or too large", path)
	}
	if sha256.Sum256(data[begin:]) != [sha256.Size]byte(data[len(stateMagic):begin]) {
		return nil, fmt.Errorf("typha: %s does not have its digest", path)
	}
	state, found, err := decodeState(data[begin:])
	if err != nil {
		return nil, fmt.Errorf("typha: %s: %w", path, err)
	}
	if found != feed {
		return nil, fmt.Errorf("typha: %s has feed %q instead of %q", path, found, feed)
	}
	return state, nil
}

func decodeState(content []byte) (*savedState, string, error) {
	d := &decoder{data: content}
	state := &savedState{entries: map[string]Entry{}}
	d.exactly(stateElements)
	feed := d.text(maxNameChars)
	if !d.isNil() {
		d.exactly(2)
		state.at = &position{string(d.bytes()), d.count()}
		if len(state.at.incarnation) != incarnationBytes {
			d.fail(errKind)
		}
	}
	if state.chunks = d.count(); state.chunks == 0 || bits.Len64(state.chunks) > bits.Len64(maxChunks) {
		d.fail(errLimit)
	}
	for count := d.array(); count > 0 && d.err == nil; count-- {
		d.exactly(entryElements)
		key, value := d.text(maxKeyChars), d.bytes()
		revision, v3ResourceVersion := d.text(maxRevisionChars), d.text(maxRevisionChars)
		d.signed()
		state.entries[key] = Entry{value, revision, v3ResourceVersion}
	}
	if d.err == nil && len(d.data) > 0 {
		d.fail(errKind)
	}
	return state, feed, d.err
}

// exactly reads the length of an array of so many elements.
func (d *decoder) exactly(count uint64) {
	if d.array() != count {
		d.fail(errKind)
	}
}

// restore begins with a map that an earlier process had.
func (d *differ) restore(state *savedState) {
	for key, entry := range state.entries {
		one := known{pairDigest(key, entry.Value), entry.Revision}
		d.known[key] = one
		d.total += one.digest
	}
	d.position, d.chunks = state.at, state.chunks
}
