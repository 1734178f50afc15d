// Package outbox keeps what the probe knows and what it has not yet told, in one file.
//
// A change of state and the event that tells of it are one bbolt transaction: bbolt writes the changed pages, calls fdatasync, writes the meta page
// and calls fdatasync again, so a crash at any instruction leaves both or neither. Events are numbered, encoded and stored inside that transaction;
// whatever is sent later, and sent again, are these stored bytes.
//
// It does not send (publish does) and does not decide what is worth an event (tracker does).
package outbox

import (
	"encoding/binary"
	"encoding/json"
	"errors"
	"fmt"
	"io/fs"
	"os"
	"path/filepath"
	"runtime/debug"
	"slices"
	"sync"
	"sync/atomic"
	"time"

	bolt "go.etcd.io/bbolt"
	bolterrors "go.etcd.io/bbolt/errors"

	"github.com/wgherald/wgherald/pkg/events"
	"github.com/wgherald/wgherald/services/probe/internal/tracker"
)

// FileName is the name of the file in the state directory.
const FileName = "probe.db"

// The buckets of the file.
var (
	bucketMeta       = []byte("meta")       // formatKey, epochKey, aliveKey
	bucketInterfaces = []byte("interfaces") // name → tracker.InterfaceState
	bucketPeers      = []byte("peers")      // interface, NUL, public key → tracker.PeerState
	bucketKeys       = []byte("keys")       // public key → tracker.KeyState
	bucketCounters   = []byte("counters")   // source → number of its last event
	bucketLast       = []byte("last")       // state key → lastEvent
	bucketQueue      = []byte("queue")      // number → encoded event, until the broker's ack
	bucketDirty      = []byte("dirty")      // state key → mark number and value, until the broker's ack

	formatKey = []byte("format")
	epochKey  = []byte("epoch")
	aliveKey  = []byte("alive")
)

// format is the version of the file's layout.
const format = 1

// lockTimeout is how long Open waits for another process to let go of the file.
const lockTimeout = time.Second

// Outbox is safe for concurrent use.
type Outbox struct {
	db    *bolt.DB
	epoch uint64
	depth atomic.Int64

	mu      sync.Mutex
	acked   []uint64          // to be taken out of the queue by the next transaction
	cleaned map[string]uint64 // dirty marks to be taken out by the next transaction
	changed chan struct{}
}

// Open opens the file in dir, or makes it: then now becomes the epoch of all sequences. The error names the path and tells what to do.
func Open(dir string, now time.Time) (*Outbox, error) {
	if err := os.MkdirAll(dir, 0o700); err != nil {
		return nil, fmt.Errorf("state directory %s: %w", dir, cause(err))
	}
	path := filepath.Join(dir, FileName)
	err := intact(path)
	var db *bolt.DB
	if err == nil {
		db, err = bolt.Open(path, 0o600, &bolt.Options{Timeout: lockTimeout, FreelistType: bolt.FreelistMapType, NoFreelistSync: true})
	}
	switch {
	case errors.Is(err, bolterrors.ErrTimeout):
		return nil, fmt.Errorf("state file %s %w: stop it, or give this one another directory", path, ErrInUse)
	case errors.Is(err, errDamaged):
		return nil, fmt.Errorf("state file %s %w: move it away; connects will be repeated as inferred", path, err)
	case err != nil:
		return nil, fmt.Errorf("state file %s: %w", path, cause(err))
	}
	o := &Outbox{db: db, cleaned: map[string]uint64{}, changed: make(chan struct{}, 1)}
	if err := db.Update(func(tx *bolt.Tx) error { return o.init(tx, now) }); err != nil {
		return nil, errors.Join(fmt.Errorf("state file %s: %w", path, err), db.Close())
	}
	return o, nil
}

// cause takes from an error the path, which ours name.
func cause(err error) error {
	if path := (*fs.PathError)(nil); errors.As(err, &path) {
		return path.Err
	}
	return err
}

// ErrInUse reports that another process has the file, which may be about to end.
var ErrInUse = errors.New("is in use by another probe")

// errDamaged reports a file that is not what bbolt wrote.
var errDamaged = errors.New("is damaged")

// intact reads the whole file before bbolt opens it for writing. There, a broken page is a panic in a goroutine of bbolt's own; here, it is an error.
func intact(path string) (err error) {
	switch info, err := os.Stat(path); {
	case errors.Is(err, fs.ErrNotExist):
		return nil
	case err != nil:
		return err
	case !info.Mode().IsRegular():
		return errors.New("it is no regular file")
	case info.Size() == 0:
		return nil // whoever was about to make it was killed
	}
	db, err := bolt.Open(path, 0o600, &bolt.Options{Timeout: lockTimeout, ReadOnly: true})
	if cause := (*fs.PathError)(nil); errors.Is(err, bolterrors.ErrTimeout) || errors.As(err, &cause) {
		return err
	}
	if err != nil {
		return fmt.Errorf("%w (%w)", errDamaged, err)
	}
	defer func() { err = errors.Join(err, db.Close()) }()
	defer func() {
		if broken := recover(); broken != nil {
			err = fmt.Errorf("%w (%v)", errDamaged, broken)
		}
	}()
	defer debug.SetPanicOnFault(debug.SetPanicOnFault(true)) // the file may be shorter than its pages say, and it is read through memory
	return db.View(func(tx *bolt.Tx) error {
		return tx.ForEach(func(_ []byte, b *bolt.Bucket) error {
			return b.ForEach(func(k, v []byte) error {
				if len(v) > 0 {
					_ = v[len(v)-1]
				}
				return nil
			})
		})
	})
}

// init makes the buckets and reads the epoch.
func (o *Outbox) init(tx *bolt.Tx, now time.Time) error {
	for _, name := range [][]byte{bucketMeta, bucketInterfaces, bucketPeers, bucketKeys, bucketCounters, bucketLast, bucketQueue, bucketDirty} {
		if _, err := tx.CreateBucketIfNotExists(name); err != nil {
			return err
		}
	}
	meta := tx.Bucket(bucketMeta)
	stored := meta.Get(epochKey)
	o.depth.Store(int64(tx.Bucket(bucketQueue).Stats().KeyN))
	if stored == nil {
		o.epoch = uint64(now.UnixMilli())
		return errors.Join(meta.Put(formatKey, number(format)), meta.Put(epochKey, number(o.epoch)))
	}
	var f uint64
	if v := meta.Get(formatKey); len(v) == numberSize {
		f = binary.BigEndian.Uint64(v)
	}
	if f != format {
		return fmt.Errorf("it has format %d and this probe reads %d: use the probe that wrote it, or move it away", f, format)
	}
	o.epoch = binary.BigEndian.Uint64(stored)
	return nil
}

// Close closes the file. What was acked and not yet taken out is sent once more by the next run, and dropped by the broker as a duplicate.
func (o *Outbox) Close() error { return o.db.Close() }

// Changed receives a value after a commit that left something to send.
func (o *Outbox) Changed() <-chan struct{} { return o.changed }

// Saved is what an earlier run left.
type Saved struct {
	Interfaces []tracker.InterfaceState
	Peers      []tracker.PeerState
	Keys       []tracker.KeyState
	Alive      tracker.Now // when the earlier run last stored anything; zero on the first start
}

// Load reads what an earlier run left.
func (o *Outbox) Load() (Saved, error) {
	var s Saved
	err := o.db.View(func(tx *bolt.Tx) error {
		if b := tx.Bucket(bucketMeta).Get(aliveKey); len(b) >= numberSize {
			s.Alive.Wall = time.UnixMilli(int64(binary.BigEndian.Uint64(b))).UTC()
			if len(b) == 2*numberSize {
				s.Alive.Boot = time.Duration(binary.BigEndian.Uint64(b[numberSize:]))
			}
		}
		return errors.Join(
			tx.Bucket(bucketInterfaces).ForEach(func(k, v []byte) error { return appendJSON(&s.Interfaces, k, v) }),
			tx.Bucket(bucketPeers).ForEach(func(k, v []byte) error { return appendJSON(&s.Peers, k, v) }),
			tx.Bucket(bucketKeys).ForEach(func(k, v []byte) error { return appendJSON(&s.Keys, k, v) }),
		)
	})
	if err != nil {
		return Saved{}, fmt.Errorf("state file %s: %w", o.db.Path(), err)
	}
	return s, nil
}

func appendJSON[T any](list *[]T, key, value []byte) error {
	var v T
	if err := json.Unmarshal(value, &v); err != nil {
		return fmt.Errorf("entry %q: %w", key, err)
	}
	*list = append(*list, v)
	return nil
}

// lastEvent is the place of the last event about a peer.
type lastEvent struct {
	Sequence events.Sequence `json:"sequence"`
	ID       string          `json:"id"`
	Type     events.Type     `json:"type"`
}

// Depth returns how many events are stored, those acked since the last transaction among them.
func (o *Outbox) Depth() int { return int(o.depth.Load()) }

// Commit stores a batch: it numbers and encodes its facts, and stores them with the states in one transaction that is on disk when Commit returns.
// now is remembered as the last time that the probe is known to have watched. After an error nothing of the batch is stored.
func (o *Outbox) Commit(b tracker.Batch, now tracker.Now) error {
	err := o.update(func(tx *bolt.Tx) error {
		last := map[string]lastEvent{}
		for _, f := range b.Facts {
			e, err := o.enqueue(tx, f)
			if err != nil {
				return err
			}
			last[e.PartitionKey] = lastEvent{e.Sequence, e.ID, e.Type}
		}
		for _, s := range b.Interfaces {
			if err := putJSON(tx.Bucket(bucketInterfaces), []byte(s.Name), s); err != nil {
				return err
			}
		}
		for _, p := range b.Peers {
			if err := putJSON(tx.Bucket(bucketPeers), peerKey(p.Interface, p.PublicKey), p); err != nil {
				return err
			}
		}
		for _, k := range b.Keys {
			if err := putJSON(tx.Bucket(bucketKeys), k.Key[:], k); err != nil {
				return err
			}
		}
		for _, k := range b.Forgotten {
			if err := tx.Bucket(bucketKeys).Delete(k[:]); err != nil {
				return err
			}
		}
		for _, s := range b.Announce {
			if err := announce(tx, s, last); err != nil {
				return err
			}
		}
		for _, name := range b.Gone {
			if err := tx.Bucket(bucketInterfaces).Delete([]byte(name)); err != nil {
				return err
			}
		}
		for _, w := range b.Withdrawn {
			if err := mark(tx, events.StateKey(b.Node, w.Interface, w.Key), nil); err != nil {
				return err
			}
		}
		for _, r := range b.Removed {
			key := events.StateKey(b.Node, r.Interface, r.Key)
			err := errors.Join(tx.Bucket(bucketPeers).Delete(peerKey(r.Interface, r.Key)), mark(tx, key, nil), tx.Bucket(bucketLast).Delete([]byte(key)))
			if err != nil {
				return err
			}
		}
		return tx.Bucket(bucketMeta).Put(aliveKey, append(number(uint64(now.Wall.UnixMilli())), number(uint64(now.Boot))...))
	})
	if err != nil {
		return err
	}
	o.depth.Add(int64(len(b.Facts)))
	if len(b.Facts)+len(b.Announce)+len(b.Withdrawn)+len(b.Removed) > 0 {
		select {
		case o.changed <- struct{}{}:
		default: // a value that says the same waits there
		}
	}
	return nil
}

// enqueue gives a fact its place and stores the event.
func (o *Outbox) enqueue(tx *bolt.Tx, f tracker.Fact) (*events.Event, error) {
	counters := tx.Bucket(bucketCounters)
	source := []byte(events.SourceOf(f.Data))
	var n uint64
	if v := counters.Get(source); v != nil {
		n = binary.BigEndian.Uint64(v)
	}
	n++
	e := events.New(f.Data, f.Time, events.Sequence{Epoch: o.epoch, N: n})
	body, err := e.Encode()
	if err != nil {
		return nil, err
	}
	queue := tx.Bucket(bucketQueue)
	id, err := queue.NextSequence()
	if err != nil {
		return nil, err
	}
	return e, errors.Join(counters.Put(source, number(n)), queue.Put(number(id), body))
}

// announce marks the state of a peer as to be sent.
func announce(tx *bolt.Tx, s events.State, fresh map[string]lastEvent) error {
	key := events.StateKey(s.Node, s.Interface, s.Peer.PublicKey)
	bucket := tx.Bucket(bucketLast)
	last, ok := fresh[key]
	if ok {
		if err := putJSON(bucket, []byte(key), last); err != nil {
			return err
		}
	} else if v := bucket.Get([]byte(key)); v != nil {
		if err := json.Unmarshal(v, &last); err != nil {
			return fmt.Errorf("last event of %s: %w", key, err)
		}
	}
	s.Sequence, s.EventID, s.EventType = last.Sequence, last.ID, last.Type
	value, err := s.Encode()
	if err != nil {
		return err
	}
	return mark(tx, key, value)
}

// mark stores a value under a new number, in place of an older one. A nil value means that the key is to be deleted.
func mark(tx *bolt.Tx, key string, value []byte) error {
	bucket := tx.Bucket(bucketDirty)
	n, err := bucket.NextSequence()
	if err != nil {
		return err
	}
	return bucket.Put([]byte(key), append(number(n), value...))
}

// update runs a transaction that also takes out what was acked.
func (o *Outbox) update(do func(*bolt.Tx) error) error {
	o.mu.Lock()
	acked, cleaned := o.acked, o.cleaned
	o.acked, o.cleaned = nil, map[string]uint64{}
	o.mu.Unlock()

	err := o.db.Update(func(tx *bolt.Tx) error {
		queue, dirty := tx.Bucket(bucketQueue), tx.Bucket(bucketDirty)
		for _, id := range acked {
			if err := queue.Delete(number(id)); err != nil {
				return err
			}
		}
		for key, n := range cleaned {
			if v := dirty.Get([]byte(key)); v == nil || binary.BigEndian.Uint64(v) != n {
				continue // a newer value waits
			}
			if err := dirty.Delete([]byte(key)); err != nil {
				return err
			}
		}
		return do(tx)
	})
	if err != nil {
		return fmt.Errorf("state file %s: %w", o.db.Path(), err)
	}
	o.depth.Add(-int64(len(acked)))
	return nil
}

// Record is a stored event.
type Record struct {
	Number uint64
	Body   []byte
}

// Queued returns stored events in order, after the one with the given number, at most limit of them.
func (o *Outbox) Queued(after uint64, limit int) ([]Record, error) {
	var records []Record
	err := o.db.View(func(tx *bolt.Tx) error {
		c := tx.Bucket(bucketQueue).Cursor()
		for k, v := c.Seek(number(after + 1)); k != nil && len(records) < limit; k, v = c.Next() {
			records = append(records, Record{Number: binary.BigEndian.Uint64(k), Body: slices.Clone(v)})
		}
		return nil
	})
	return records, err
}

// Ack notes that the broker has an event. The next transaction takes it out; until then, a crash makes the next run send it again.
func (o *Outbox) Ack(n uint64) {
	o.mu.Lock()
	defer o.mu.Unlock()
	o.acked = append(o.acked, n)
}

// Mark is a state that latecomers do not find yet.
type Mark struct {
	Key    string // events.StateKey
	Number uint64 // grows with each new value of any key
	Value  []byte // nil when the peer is no longer configured
}

// Dirty returns up to limit marks in no particular order, those cleaned since the last transaction among them.
func (o *Outbox) Dirty(limit int) ([]Mark, error) {
	var marks []Mark
	err := o.db.View(func(tx *bolt.Tx) error {
		c := tx.Bucket(bucketDirty).Cursor()
		for k, v := c.First(); k != nil && len(marks) < limit; k, v = c.Next() {
			m := Mark{Key: string(k), Number: binary.BigEndian.Uint64(v)}
			if len(v) > numberSize {
				m.Value = slices.Clone(v[numberSize:])
			}
			marks = append(marks, m)
		}
		return nil
	})
	return marks, err
}

// Clean notes that the broker has the value of a mark.
func (o *Outbox) Clean(m Mark) {
	o.mu.Lock()
	defer o.mu.Unlock()
	o.cleaned[m.Key] = m.Number
}

// Unflushed reports whether Flush has anything to do.
func (o *Outbox) Unflushed() bool {
	o.mu.Lock()
	defer o.mu.Unlock()
	return len(o.acked)+len(o.cleaned) > 0
}

// Flush takes out what was acked and cleaned, if anything was.
func (o *Outbox) Flush() error {
	if !o.Unflushed() {
		return nil
	}
	return o.update(func(*bolt.Tx) error { return nil })
}

func putJSON(b *bolt.Bucket, key []byte, v any) error {
	value, err := json.Marshal(v)
	if err != nil {
		return err
	}
	return b.Put(key, value)
}

const numberSize = 8

// number encodes n so that numbers sort as bytes.
func number(n uint64) []byte { return binary.BigEndian.AppendUint64(make([]byte, 0, numberSize), n) }

func peerKey(iface string, key events.Key) []byte {
	return append(append([]byte(iface), 0), key[:]...)
}
