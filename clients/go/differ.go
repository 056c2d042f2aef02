package typha

// A Change is the change of one key.
type Change struct {
	Key string
	// Value is nil if the key is gone; an empty value is not nil.
	Value []byte
	// Revision is the backend's version of the object.
	Revision string
	// V3ResourceVersion is used by Calico's feeds.
	V3ResourceVersion string
	// New tells whether the key did not exist before.
	New bool
}

// A Batch is a group of changes that belong together. After each batch, the map is one that a server had, except
// between a status CatchingUp and the next status: there each key has its newest value, but not all of one moment.
type Batch struct {
	// Changes are real differences, in order. They contain no value that the receiver has.
	Changes []Change
	// FromSnapshot tells that Changes are the differences between the known map and a complete new one.
	FromSnapshot bool
	// Version counts the changes of the map, if Options.ReportsApplied is set.
	Version uint64
}

type known struct {
	digest   uint64
	revision string
}

// A differ turns the messages of successive connections into real changes, and verifies snapshots. It keeps a digest
// and the revision of each key, but no values. What it knows of the map goes into the next hello (rules R1 and R2).
type differ struct {
	known    map[string]known
	total    uint64
	snapshot *snapshot

	incarnation string    // of the connection's server
	position    *position // of the map; nil while the map is a mixture of several moments
	chunks      uint64    // of the last snapshot; 0 before there is a map
	isPlaceless bool      // this connection's map has no position: it is the whole feed's, and a part was asked for (S8)
	distrusted  bool      // something was wrong: say nothing of the map until a whole snapshot has come (R8)
}

// There is a digest for this many keys, unless the server's chunks are smaller.
const keysPerDigest = 128

// resuming returns what the next hello says of the map.
func (d *differ) resuming() (*position, []uint64) {
	if d.chunks == 0 || d.distrusted {
		return nil, nil
	}
	count := uint64(1)
	for count < max(d.chunks, uint64(len(d.known)/keysPerDigest)) && count < maxChunkDigests {
		count *= 2
	}
	digests := make([]uint64, count)
	for key, one := range d.known {
		digests[chunkOf(key, count)] += one.digest
	}
	return d.position, digests
}

// reached notes that the map is that of a sequence.
func (d *differ) reached(sequence uint64) {
	if d.position = nil; !d.isPlaceless {
		d.position = &position{d.incarnation, sequence}
	}
}

// A snapshot is received apart from the live map, and replaces it at the next status (rule O6).
type snapshot struct {
	begin   snapshotBegin
	resume  *snapshotResume // nil for a whole snapshot
	known   map[string]known
	total   uint64
	changed map[string]Change
	ended   bool

	next        uint64 // lowest index that the next chunk may have
	open        bool   // inside a chunk
	chunk       uint64 // its index
	chunkDigest uint64
}

func newDiffer() *differ { return &differ{known: map[string]known{}} }

// beginConnection forgets a snapshot that was not taken over (rule O9).
func (d *differ) beginConnection(incarnation string) { d.snapshot, d.incarnation = nil, incarnation }

// keep begins a snapshot with the keys of the kept chunks (rule R7).
func (d *differ) keep(message snapshotResume) *snapshot {
	begin := snapshotBegin{message.sequence, message.keys, message.chunks}
	made := &snapshot{begin: begin, resume: &message, known: map[string]known{}, changed: map[string]Change{}}
	for key, one := range d.known {
		if message.keeps(chunkOf(key, message.chunks)) {
			made.known[key] = one
			made.total += one.digest
		}
	}
	return made
}

// receive takes a message of the connection. It returns a batch if the map changes; after an error it has not changed.
func (d *differ) receive(message any) (*Batch, error) {
	switch message := message.(type) {
	case snapshotBegin:
		d.snapshot = &snapshot{begin: message, known: map[string]known{}, changed: map[string]Change{}}
	case snapshotResume:
		d.snapshot = d.keep(message)
	case snapshotChunk:
		return nil, d.receiveChunk(message)
	case snapshotEnd:
		if err := d.snapshot.verify(message); err != nil {
			return nil, err
		}
		d.snapshot.ended = true
	case updates:
		if d.snapshot != nil {
			d.receiveLate(message.updates)
			return nil, nil
		}
		if d.position != nil {
			d.reached(message.sequence)
		}
		return d.receiveUpdates(message.updates), nil
	case statusMessage:
		switch {
		case message.status != CatchingUp:
			d.reached(message.sequence)
			if d.snapshot != nil {
				return d.takeOver(), nil
			}
		case d.snapshot == nil:
			d.position = nil // some keys may be newer than the sequence says
		}
	}
	return nil, nil
}

func (d *differ) receiveUpdates(received []update) *Batch {
	var changes []Change
	for _, one := range received {
		before, exists := d.known[one.key]
		if one.value == nil {
			if exists {
				delete(d.known, one.key)
				d.total -= before.digest
				changes = append(changes, changeOf(one, false))
			}
			continue
		}
		now := known{pairDigest(one.key, one.value), one.revision}
		d.known[one.key] = now
		d.total += now.digest - before.digest
		if !exists || before.digest != now.digest {
			changes = append(changes, changeOf(one, !exists))
		}
	}
	if changes == nil {
		return nil
	}
	return &Batch{Changes: changes}
}

func changeOf(one update, isNew bool) Change {
	return Change{one.key, one.value, one.revision, one.v3ResourceVersion, isNew}
}

func (d *differ) receiveChunk(chunk snapshotChunk) error {
	s := d.snapshot
	switch {
	case s.open && chunk.index != s.chunk:
		return broken("chunk %d comes inside chunk %d", chunk.index, s.chunk)
	case !s.open && (chunk.index < s.next || chunk.index >= s.begin.chunks):
		return broken("chunk %d is out of order in a snapshot of %d chunks", chunk.index, s.begin.chunks)
	case !s.open && s.resume != nil && s.resume.keeps(chunk.index):
		return broken("chunk %d was to be kept", chunk.index)
	case !s.open:
		s.chunk, s.next, s.chunkDigest = chunk.index, chunk.index+1, 0
	}
	s.open = chunk.more
	for _, one := range chunk.updates {
		if one.value == nil {
			return broken("a snapshot has a nil value")
		}
		if _, exists := s.known[one.key]; exists {
			return broken("a snapshot has a key twice")
		}
		s.chunkDigest += s.put(one, d.known)
	}
	if uint64(len(s.known)) > s.begin.keys {
		return broken("a snapshot has more than its %d keys", s.begin.keys)
	}
	if !s.open && s.chunkDigest != chunk.digest {
		return broken("chunk %d does not have its digest", chunk.index)
	}
	return nil
}

// put sets a key, and returns the digest of key and value.
func (s *snapshot) put(one update, live map[string]known) uint64 {
	s.discard(one.key)
	now := known{pairDigest(one.key, one.value), one.revision}
	s.known[one.key] = now
	s.total += now.digest
	before, exists := live[one.key]
	if !exists || before.digest != now.digest {
		s.changed[one.key] = changeOf(one, !exists)
	}
	return now.digest
}

func (s *snapshot) discard(key string) {
	if before, exists := s.known[key]; exists {
		delete(s.known, key)
		s.total -= before.digest
	}
	delete(s.changed, key)
}

func (s *snapshot) verify(end snapshotEnd) error {
	switch {
	case end.sequence != s.begin.sequence:
		return broken("a snapshot at %d ends with sequence %d", s.begin.sequence, end.sequence)
	case s.open:
		return broken("a snapshot ends inside chunk %d", s.chunk)
	case uint64(len(s.known)) != s.begin.keys || s.begin.keys != end.keys:
		return broken("a snapshot of %d keys ends with %d, and says %d", s.begin.keys, len(s.known), end.keys)
	case s.total != end.digest:
		return broken("a snapshot does not have its digest")
	}
	return nil
}

// receiveLate applies updates to a complete snapshot that has not replaced the live map yet.
func (d *differ) receiveLate(received []update) {
	for _, one := range received {
		if one.value == nil {
			d.snapshot.discard(one.key)
		} else {
			d.snapshot.put(one, d.known)
		}
	}
}

// takeOver replaces the live map by the snapshot, and returns the difference.
func (d *differ) takeOver() *Batch {
	s := d.snapshot
	batch := &Batch{FromSnapshot: true}
	for key, before := range d.known {
		if _, exists := s.known[key]; !exists {
			batch.Changes = append(batch.Changes, Change{Key: key, Revision: before.revision})
		}
	}
	for _, change := range s.changed {
		batch.Changes = append(batch.Changes, change)
	}
	d.known, d.total, d.snapshot = s.known, s.total, nil
	d.chunks, d.distrusted = max(1, s.begin.chunks), false
	return batch
}
