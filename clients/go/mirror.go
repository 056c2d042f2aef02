package typha

import (
	"context"
	"errors"
	"maps"
	"sync"
	"time"
)

// An Entry is the value of a key, and its versions.
type Entry struct {
	Value             []byte
	Revision          string
	V3ResourceVersion string
}

// A Mirror is a copy of a feed. All methods may be called from any goroutine. Values must not be changed.
type Mirror struct {
	// OnChange, if set before Run, is called after each batch with the changes that were applied. It must not block,
	// and must not call Run.
	OnChange func([]Change)
	// StateFile, if set before Run, is the path of a file in which the mirror keeps its map, and with which it begins:
	// with the first change that comes a minute or more after the last time, and at the end of Run. It holds everything
	// that the feed says, and only its owner may read it.
	StateFile string

	options      Options
	acknowledger *acknowledger

	mutex          sync.RWMutex
	entries        map[string]Entry
	digest         uint64
	version        uint64
	status         Status
	connected      bool
	lastDisconnect error
	inSync         chan struct{} // closed while the mirror is in sync
	running        bool
	restored       bool
	stateFileError error

	// Of the goroutine of Run.
	differ  *differ
	saved   position
	savedAt time.Time
}

const saveInterval = time.Minute

// NewMirror returns a mirror that is empty until Run.
func NewMirror(options Options) *Mirror {
	mirror := &Mirror{options: options, entries: map[string]Entry{}, inSync: make(chan struct{})}
	if options.ReportsApplied {
		mirror.acknowledger = newAcknowledger()
	}
	return mirror
}

// Run keeps the mirror current until the context ends, and returns the context's error. It may be called once.
func (m *Mirror) Run(ctx context.Context) error {
	m.mutex.Lock()
	started := m.running
	m.running = true
	m.mutex.Unlock()
	if started {
		return errors.New("typha: a mirror can run only once")
	}
	m.differ = newDiffer()
	m.restore()
	defer m.save()
	return followAs(ctx, m.options, m.differ, m.acknowledger, m.take)
}

// content is what the map is a copy of.
func (m *Mirror) content() string {
	return m.options.Subscription.content(m.options.Feed, m.options.Node)
}

// Restored tells whether the mirror began with the map in its file. The map may be old until the mirror is in sync.
func (m *Mirror) Restored() bool {
	m.mutex.RLock()
	defer m.mutex.RUnlock()
	return m.restored
}

// StateFileError returns why the file could not be read, or last could not be written; nil if it could.
func (m *Mirror) StateFileError() error {
	m.mutex.RLock()
	defer m.mutex.RUnlock()
	return m.stateFileError
}

func (m *Mirror) restore() {
	m.savedAt = time.Now()
	if m.StateFile == "" {
		return
	}
	state, err := readState(m.StateFile, m.content())
	m.mutex.Lock()
	m.stateFileError = err
	if state != nil {
		m.differ.restore(state)
		m.entries, m.digest, m.restored = state.entries, m.differ.total, true
	}
	m.mutex.Unlock()
	if state != nil && m.OnChange != nil {
		changes := make([]Change, 0, len(state.entries))
		for key, entry := range state.entries {
			changes = append(changes, Change{key, entry.Value, entry.Revision, entry.V3ResourceVersion, true})
		}
		m.OnChange(changes)
	}
}

// save writes the file, if there is one and the map is another one than in it. Only Run's goroutine changes the map.
func (m *Mirror) save() {
	d := m.differ
	if m.StateFile == "" || d.chunks == 0 || d.distrusted || d.position != nil && *d.position == m.saved {
		return
	}
	err := writeState(m.StateFile, m.content(), savedState{d.position, d.chunks, m.entries})
	m.savedAt = time.Now()
	if err == nil && d.position != nil {
		m.saved = *d.position
	}
	m.mutex.Lock()
	m.stateFileError = err
	m.mutex.Unlock()
}

// Get returns the entry of a key.
func (m *Mirror) Get(key string) (Entry, bool) {
	m.mutex.RLock()
	defer m.mutex.RUnlock()
	entry, exists := m.entries[key]
	return entry, exists
}

// Len returns the number of keys.
func (m *Mirror) Len() int {
	m.mutex.RLock()
	defer m.mutex.RUnlock()
	return len(m.entries)
}

// Entries returns a copy of the map, of one moment.
func (m *Mirror) Entries() map[string]Entry {
	m.mutex.RLock()
	defer m.mutex.RUnlock()
	return maps.Clone(m.entries)
}

// Version returns how many times the map has changed, if Options.ReportsApplied is set. Read it before the map: what is
// read after it is of this version or a later one.
func (m *Mirror) Version() uint64 {
	m.mutex.RLock()
	defer m.mutex.RUnlock()
	return m.version
}

// Applied tells the server that a version of the map has taken effect. What follows without a change counts as applied,
// also on later connections. It sends at most one message a second. Without Options.ReportsApplied it does nothing.
func (m *Mirror) Applied(version uint64) {
	if m.acknowledger != nil {
		m.acknowledger.applied(version)
	}
}

// Digest returns the state digest of the map, as of the last status.
func (m *Mirror) Digest() uint64 {
	m.mutex.RLock()
	defer m.mutex.RUnlock()
	return m.digest
}

// Status returns the last status, and whether the mirror is connected. Without a connection the status may be old.
func (m *Mirror) Status() (status Status, connected bool) {
	m.mutex.RLock()
	defer m.mutex.RUnlock()
	return m.status, m.connected
}

// LastDisconnect returns why the last connection ended or could not be made; nil if there was none.
func (m *Mirror) LastDisconnect() error {
	m.mutex.RLock()
	defer m.mutex.RUnlock()
	return m.lastDisconnect
}

// InSync tells whether the mirror is connected, and the server says that the data is complete and current.
func (m *Mirror) InSync() bool {
	status, connected := m.Status()
	return connected && status == InSync
}

// WaitInSync returns when the mirror is in sync, or with the context's error.
func (m *Mirror) WaitInSync(ctx context.Context) error {
	m.mutex.RLock()
	inSync := m.inSync
	m.mutex.RUnlock()
	select {
	case <-inSync:
		return nil
	case <-ctx.Done():
		return ctx.Err()
	}
}

func (m *Mirror) take(event Event) error {
	m.mutex.Lock()
	var changes []Change
	switch event := event.(type) {
	case Connected:
		m.connected = true
	case Disconnected:
		m.connected, m.lastDisconnect = false, event.Err
		m.setInSync(false)
	case StatusChanged:
		m.status, m.digest = event.Status, event.Digest
		m.setInSync(event.Status == InSync)
	case Batch:
		changes, m.version = event.Changes, event.Version
		for _, change := range changes {
			if change.Value == nil {
				delete(m.entries, change.Key)
			} else {
				m.entries[change.Key] = Entry{change.Value, change.Revision, change.V3ResourceVersion}
			}
		}
	}
	m.mutex.Unlock()
	if len(changes) > 0 && m.OnChange != nil {
		m.OnChange(changes)
	}
	if time.Since(m.savedAt) >= saveInterval {
		m.save()
	}
	return nil
}

func (m *Mirror) setInSync(inSync bool) {
	select {
	case <-m.inSync: // is in sync
		if !inSync {
			m.inSync = make(chan struct{})
		}
	default:
		if inSync {
			close(m.inSync)
		}
	}
}
