// Command direct runs agents that list and watch the API server for themselves, as Felix does without Typha.
//
// Each agent has one connection with HTTP/2, and on it lists and then watches all kinds: from the API server's cache
// (resourceVersion=0), with bookmarks, built-in kinds in protobuf, as client-go does. It decodes nothing of an event but
// the time of the write, so that it costs less than the API server.
//
// The plan comes as one JSON line on standard input. Twice a second it prints its totals as one JSON line. It ends when
// standard input ends.
package main

import (
	"bufio"
	"bytes"
	"context"
	"crypto/tls"
	"crypto/x509"
	"encoding/binary"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"math/bits"
	"math/rand/v2"
	"net/http"
	"os"
	"strconv"
	"strings"
	"sync"
	"sync/atomic"
	"time"

	"google.golang.org/protobuf/encoding/protowire"
)

const (
	reportInterval  = 500 * time.Millisecond
	retryBase       = time.Second
	retryMax        = 30 * time.Second
	eventBytesMax   = 64 << 20
	listHeadBytes   = 4096
	subBits         = 5
	maxMicroseconds = 1<<40 - 1
	protobufMagic   = "k8s\x00"
)

type kind struct {
	Path     string `json:"path"`
	Protobuf bool   `json:"protobuf"`
}

type plan struct {
	Server       string `json:"server"`
	Authority    string `json:"authority"`
	Token        string `json:"token"`
	Agents       int    `json:"agents"`
	Kinds        []kind `json:"kinds"`
	WrittenAtKey string `json:"written_at_key"`
}

// totals are the sums of all agents. Buckets are those of loadtest/swarm/histogram.py.
type totals struct {
	Watching  int64      `json:"watching"` // agents that watch all kinds
	Watches   int64      `json:"watches"`
	Lists     int64      `json:"lists"`
	Events    int64      `json:"events"`  // without bookmarks
	Refused   int64      `json:"refused"` // answers with 429
	Ended     int64      `json:"ended"`   // watches that ended
	Failures  int64      `json:"failures"`
	LastError string     `json:"last_error"`
	Latency   [][2]int64 `json:"latency"`
}

type crowd struct {
	plan                                                       plan
	marker                                                     []byte
	watching, watches, lists, events, refused, ended, failures atomic.Int64
	lastError                                                  atomic.Value
	buckets                                                    [(40 - subBits + 1) << subBits]atomic.Int64
}

func main() {
	input := bufio.NewReader(os.Stdin)
	line, err := input.ReadBytes('\n')
	if err != nil {
		fail(fmt.Errorf("no plan on standard input: %w", err))
	}
	all := &crowd{}
	all.lastError.Store("")
	if err := json.Unmarshal(line, &all.plan); err != nil {
		fail(fmt.Errorf("plan: %w", err))
	}
	all.marker = []byte(all.plan.WrittenAtKey)
	authority, err := os.ReadFile(all.plan.Authority)
	if err != nil {
		fail(err)
	}
	pool := x509.NewCertPool()
	if !pool.AppendCertsFromPEM(authority) {
		fail(fmt.Errorf("%s: no certificate", all.plan.Authority))
	}
	ctx, cancel := context.WithCancel(context.Background())
	var running sync.WaitGroup
	for range all.plan.Agents {
		running.Go(func() { all.agent(ctx, pool) })
	}
	go func() {
		_, _ = io.Copy(io.Discard, input)
		cancel()
	}()
	ticker := time.NewTicker(reportInterval)
	defer ticker.Stop()
	encoder := json.NewEncoder(os.Stdout)
	for ctx.Err() == nil {
		if err := encoder.Encode(all.totals()); err != nil {
			cancel()
		}
		select {
		case <-ticker.C:
		case <-ctx.Done():
		}
	}
	running.Wait()
}

func fail(err error) {
	fmt.Fprintln(os.Stderr, "direct:", err)
	os.Exit(1)
}

func (all *crowd) totals() totals {
	found := totals{
		Watching: all.watching.Load(), Watches: all.watches.Load(), Lists: all.lists.Load(), Events: all.events.Load(),
		Refused: all.refused.Load(), Ended: all.ended.Load(), Failures: all.failures.Load(),
		LastError: all.lastError.Load().(string), Latency: [][2]int64{},
	}
	for number := range all.buckets {
		if count := all.buckets[number].Load(); count > 0 {
			found.Latency = append(found.Latency, [2]int64{int64(number), count})
		}
	}
	return found
}

// agent follows all kinds until the context ends.
func (all *crowd) agent(ctx context.Context, pool *x509.CertPool) {
	transport := &http.Transport{
		TLSClientConfig:   &tls.Config{RootCAs: pool, MinVersion: tls.VersionTLS12},
		ForceAttemptHTTP2: true,
	}
	defer transport.CloseIdleConnections()
	client := &http.Client{Transport: transport}
	var watched atomic.Int64 // kinds
	var following sync.WaitGroup
	for _, one := range all.plan.Kinds {
		following.Go(func() {
			delay := retryBase
			for ctx.Err() == nil {
				wait, err := all.follow(ctx, client, one, &watched)
				switch {
				case ctx.Err() != nil:
					return
				case wait > 0:
					delay = wait
				case err != nil:
					all.failures.Add(1)
					all.lastError.Store(fmt.Sprintf("%s: %v", one.Path, err))
					delay = min(2*delay, retryMax)
				default:
					delay = retryBase
				}
				select {
				case <-time.After(delay + time.Duration(rand.Int64N(int64(delay)))):
				case <-ctx.Done():
				}
			}
		})
	}
	following.Wait()
}

// follow lists a kind and watches it until the watch ends. A positive wait means that the API server asked for it.
func (all *crowd) follow(ctx context.Context, client *http.Client, one kind, watched *atomic.Int64) (time.Duration, error) {
	version, wait, err := all.list(ctx, client, one)
	if err != nil || wait > 0 {
		return wait, err
	}
	query := "?watch=true&allowWatchBookmarks=true&resourceVersion=" + version
	answer, wait, err := all.get(ctx, client, one.Path+query, one.accept(true))
	if err != nil || wait > 0 {
		return wait, err
	}
	defer answer.Body.Close()
	all.watches.Add(1)
	if watched.Add(1) == int64(len(all.plan.Kinds)) {
		all.watching.Add(1)
	}
	defer func() {
		all.ended.Add(1)
		all.watches.Add(-1)
		if watched.Add(-1) == int64(len(all.plan.Kinds))-1 {
			all.watching.Add(-1)
		}
	}()
	if one.Protobuf {
		return 0, all.readFrames(answer.Body)
	}
	return 0, all.readLines(answer.Body)
}

func (one kind) accept(isWatch bool) string {
	switch {
	case !one.Protobuf:
		return "application/json"
	case isWatch:
		return "application/vnd.kubernetes.protobuf;stream=watch"
	}
	return "application/vnd.kubernetes.protobuf"
}

func (all *crowd) get(ctx context.Context, client *http.Client, path, accept string) (*http.Response, time.Duration, error) {
	request, err := http.NewRequestWithContext(ctx, http.MethodGet, all.plan.Server+path, nil)
	if err != nil {
		return nil, 0, err
	}
	request.Header.Set("Accept", accept)
	request.Header.Set("Authorization", "Bearer "+all.plan.Token)
	answer, err := client.Do(request)
	if err != nil {
		return nil, 0, err
	}
	if answer.StatusCode == http.StatusOK {
		return answer, 0, nil
	}
	_, _ = io.CopyN(io.Discard, answer.Body, listHeadBytes)
	answer.Body.Close()
	if answer.StatusCode != http.StatusTooManyRequests {
		return nil, 0, errors.New(answer.Status)
	}
	all.refused.Add(1)
	seconds, err := strconv.Atoi(strings.TrimSpace(answer.Header.Get("Retry-After")))
	if err != nil || seconds < 1 {
		seconds = 1
	}
	return nil, min(time.Duration(seconds)*time.Second, retryMax), nil
}

// list reads a whole list and returns its version.
func (all *crowd) list(ctx context.Context, client *http.Client, one kind) (string, time.Duration, error) {
	answer, wait, err := all.get(ctx, client, one.Path+"?resourceVersion=0", one.accept(false))
	if err != nil || wait > 0 {
		return "", wait, err
	}
	defer answer.Body.Close()
	version := ""
	if one.Protobuf {
		version, err = versionOfProtobuf(answer.Body)
	} else {
		version, err = versionOfJSON(answer.Body)
	}
	if err == nil {
		_, err = io.Copy(io.Discard, answer.Body)
	}
	if err == nil && version == "" {
		err = errors.New("a list without a version")
	}
	all.lists.Add(1)
	return version, 0, err
}

func versionOfJSON(body io.Reader) (string, error) {
	var list struct {
		Metadata struct {
			ResourceVersion string `json:"resourceVersion"`
		} `json:"metadata"`
	}
	err := json.NewDecoder(body).Decode(&list)
	return list.Metadata.ResourceVersion, err
}

// versionOfProtobuf finds the version at the head of a list: magic, Unknown.raw (2), ListMeta (1), resourceVersion (2).
func versionOfProtobuf(body io.Reader) (string, error) {
	head := make([]byte, listHeadBytes)
	count, err := io.ReadFull(body, head)
	if err != nil && !errors.Is(err, io.ErrUnexpectedEOF) {
		return "", err
	}
	rest, found := bytes.CutPrefix(head[:count], []byte(protobufMagic))
	if !found {
		return "", errors.New("a list that is not protobuf")
	}
	for _, field := range []protowire.Number{2, 1, 2} {
		if rest, err = inside(rest, field); err != nil {
			return "", err
		}
	}
	return string(rest), nil
}

// inside returns the content of the first bytes field with this number, as far as it is there.
func inside(message []byte, wanted protowire.Number) ([]byte, error) {
	for len(message) > 0 {
		number, form, size := protowire.ConsumeTag(message)
		if size < 0 {
			return nil, protowire.ParseError(size)
		}
		message = message[size:]
		if number == wanted && form == protowire.BytesType {
			length, size := protowire.ConsumeVarint(message)
			if size < 0 {
				return nil, protowire.ParseError(size)
			}
			content := message[size:]
			return content[:min(uint64(len(content)), length)], nil
		}
		size = protowire.ConsumeFieldValue(number, form, message)
		if size < 0 {
			return nil, protowire.ParseError(size)
		}
		message = message[size:]
	}
	return nil, fmt.Errorf("no field %d", wanted)
}

func (all *crowd) readFrames(body io.Reader) error {
	var prefix [4]byte
	var frame []byte
	for {
		if _, err := io.ReadFull(body, prefix[:]); err != nil {
			return ended(err)
		}
		length := int(binary.BigEndian.Uint32(prefix[:]))
		if length > eventBytesMax {
			return fmt.Errorf("an event of %d bytes", length)
		}
		if cap(frame) < length {
			frame = make([]byte, length)
		}
		frame = frame[:length]
		if _, err := io.ReadFull(body, frame); err != nil {
			return ended(err)
		}
		all.count(frame)
	}
}

func (all *crowd) readLines(body io.Reader) error {
	lines := bufio.NewScanner(body)
	lines.Buffer(make([]byte, 0, listHeadBytes), eventBytesMax)
	for lines.Scan() {
		all.count(lines.Bytes())
	}
	return ended(lines.Err())
}

// ended is nil if the API server has ended a watch as it does from time to time.
func ended(err error) error {
	if errors.Is(err, io.EOF) {
		return nil
	}
	return err
}

func (all *crowd) count(event []byte) {
	if bytes.Contains(event[:min(len(event), 32)], []byte("BOOKMARK")) {
		return
	}
	now := time.Now().UnixNano()
	all.events.Add(1)
	start := bytes.Index(event, all.marker)
	if start < 0 {
		return
	}
	value := int64(0)
	digits := 0
	for _, one := range event[start+len(all.marker):] {
		if one >= '0' && one <= '9' {
			value = 10*value + int64(one-'0')
			digits++
		} else if digits > 0 || one == '{' {
			break
		}
	}
	if digits == 19 { // nanoseconds of this century; nothing else
		all.buckets[bucketOf((now-value)/1000)].Add(1)
	}
}

func bucketOf(microseconds int64) int {
	value := min(max(microseconds, 0), maxMicroseconds)
	shift := max(0, bits.Len64(uint64(value))-subBits-1)
	return shift<<subBits + int(value>>shift)
}
