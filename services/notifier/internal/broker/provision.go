package broker

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"log/slog"
	"reflect"
	"strconv"
	"strings"
	"time"

	"github.com/nats-io/nats.go"
	"github.com/nats-io/nats.go/jetstream"

	"github.com/wgherald/wgherald/pkg/events"
)

// The streams of the notifier's account. Each has one subject per hook: its prefix and the hook's name.
const (
	StreamRetry   = "WG_RETRY"    // what an operator has delivered to one hook once more
	StreamDead    = "WG_DEAD"     // dead letters
	StreamAttempt = "WG_ATTEMPTS" // every attempt, best effort

	SubjectRetry   = "wg.retry."
	SubjectDead    = "wg.dead."
	SubjectAttempt = "wg.attempt."
)

const (
	day = 24 * time.Hour

	stateSubjects = "$KV." + events.StateBucket + "."

	// readerBytes bounds the readers' mirror of the events. Its place is reserved on the disk even where nobody reads.
	readerBytes = 256 << 20

	// deadBytes bounds the dead letters, to more than 100,000 of usual size: a hook that refuses everything must not fill the disk. The oldest go first.
	deadBytes = 256 << 20

	// maxMsgSize bounds a stored event, in bytes. The server counts the headers too.
	maxMsgSize = events.MaxSize + 4<<10

	// The prefixes of the account import that a mirror runs over, as nats.conf.tmpl has them.
	mirrorAPI     = "JS.WG.API"
	mirrorDeliver = "wgmirror"
)

// eventSubjects are those of WG_EVENTS.
var eventSubjects = []string{"wg.peer.*", "wg.interface.*", "wg.probe.*"}

// streamSpec is a stream as it must be. set writes the fields that matter over a configuration and leaves every other one, such as the number of
// replicas, as the operator has it.
type streamSpec struct {
	name string
	set  func(*jetstream.StreamConfig)
}

// truth is what the probes write: the streams of account WG.
func truth() []streamSpec {
	return []streamSpec{
		{events.StreamEvents, func(c *jetstream.StreamConfig) {
			eventLimits(c)
			c.Subjects = eventSubjects
			c.Duplicates = time.Hour
		}},
		{events.StreamState, func(c *jetstream.StreamConfig) {
			stateLimits(c)
			c.Subjects = []string{stateSubjects + ">"}
		}},
	}
}

// eventLimits are the limits of WG_EVENTS and of its mirror. No writer can delete, purge or roll up what is stored.
func eventLimits(c *jetstream.StreamConfig) {
	c.Retention, c.Storage, c.Discard = jetstream.LimitsPolicy, jetstream.FileStorage, jetstream.DiscardOld
	c.MaxAge, c.MaxBytes, c.MaxMsgSize = 7*day, 1<<30, maxMsgSize
	c.AllowDirect, c.DenyDelete, c.DenyPurge, c.AllowRollup = true, true, true, false
}

// stateLimits are the limits of KV_WG_PEERS and of its mirror. The bucket is made as a stream because one with a delete-marker TTL turns roll-ups on, and a
// roll-up header lets any writer empty it. A removed peer is a put with its own TTL.
func stateLimits(c *jetstream.StreamConfig) {
	c.Retention, c.Storage, c.Discard = jetstream.LimitsPolicy, jetstream.FileStorage, jetstream.DiscardNew
	c.MaxMsgsPerSubject, c.MaxMsgSize = 1, maxMsgSize
	c.AllowMsgTTL, c.SubjectDeleteMarkerTTL = true, 0
	c.AllowDirect, c.DenyPurge, c.AllowRollup = true, true, false
}

// hookStreams are the streams of account HOOKS. Without mirrors they stand beside the truth in one account.
func hookStreams(mirrors bool) []streamSpec {
	var specs []streamSpec
	if mirrors {
		specs = []streamSpec{
			{events.StreamEvents, func(c *jetstream.StreamConfig) { eventLimits(c); mirror(c) }},
			{events.StreamState, func(c *jetstream.StreamConfig) { stateLimits(c); mirror(c) }},
		}
	}
	return append(specs,
		// a work queue: what a hook has taken is gone, so that a consumer made again does not deliver it again
		own(StreamRetry, SubjectRetry, func(c *jetstream.StreamConfig) {
			c.Retention, c.MaxAge = jetstream.WorkQueuePolicy, 30*day
		}),
		// The operator reads these two by the API: a direct get would lend it the server's own rights, see the package comment.
		own(StreamDead, SubjectDead, func(c *jetstream.StreamConfig) { c.MaxAge, c.MaxBytes, c.AllowDirect = 30*day, deadBytes, false }),
		own(StreamAttempt, SubjectAttempt, func(c *jetstream.StreamConfig) { c.MaxAge, c.MaxBytes, c.AllowDirect = 7*day, 64<<20, false }),
	)
}

// readerStreams are the streams of account READERS.
func readerStreams() []streamSpec {
	return []streamSpec{
		{events.StreamEvents, func(c *jetstream.StreamConfig) { eventLimits(c); mirror(c); c.MaxBytes = readerBytes }},
		{events.StreamState, func(c *jetstream.StreamConfig) { stateLimits(c); mirror(c) }},
	}
}

func mirror(c *jetstream.StreamConfig) {
	c.Subjects = nil
	c.Mirror = &jetstream.StreamSource{
		Name:     c.Name,
		External: &jetstream.ExternalStream{APIPrefix: mirrorAPI, DeliverPrefix: mirrorDeliver},
	}
}

func own(name, prefix string, limits func(*jetstream.StreamConfig)) streamSpec {
	return streamSpec{name, func(c *jetstream.StreamConfig) {
		c.Retention, c.Storage, c.AllowDirect = jetstream.LimitsPolicy, jetstream.FileStorage, true
		c.Subjects = []string{prefix + "*"}
		limits(c)
	}}
}

func names(specs []streamSpec) []string {
	var list []string
	for _, s := range specs {
		list = append(list, s.name)
	}
	return list
}

// Action is what Provision did to a stream, or would do.
type Action string

const (
	Created   Action = "created"
	Updated   Action = "updated"
	Unchanged Action = "unchanged"
)

// Change is what Provision did to one stream, or would do.
type Change struct {
	Account string // "WG", "HOOKS" or "READERS"
	Stream  string
	Action  Action
	Fields  []string // of an update, each "name: from → to"
}

// Provisioners are connections, each logged in as the provisioner of one account.
type Provisioners struct {
	WG      *nats.Conn
	Hooks   *nats.Conn // nil where the broker has a single account: everything is made there and nothing is mirrored
	Readers *nats.Conn // nil leaves the readers' account alone
}

// Provision makes the streams of all accounts as they must be and returns what it changed, which is nothing the second time. With dryRun it changes nothing, and
// returns what it would do to each stream.
//
// On an error what was done before it is returned too.
func Provision(ctx context.Context, p Provisioners, dryRun bool, log *slog.Logger) ([]Change, error) {
	type account struct {
		name  string
		nc    *nats.Conn
		specs []streamSpec
	}
	accounts := []account{{"WG", p.WG, truth()}, {"HOOKS", p.Hooks, hookStreams(true)}, {"READERS", p.Readers, readerStreams()}}
	if p.Hooks == nil {
		accounts = []account{{"WG", p.WG, append(truth(), hookStreams(false)...)}}
	}
	var changes []Change
	for _, a := range accounts {
		if a.nc == nil {
			continue
		}
		version := a.nc.ConnectedServerVersion()
		if err := CheckVersion(version); err != nil {
			return changes, err
		}
		js, err := jetstream.New(a.nc)
		if err != nil {
			return changes, fmt.Errorf("provision account %s: %w", a.name, err)
		}
		for _, s := range a.specs {
			c, err := s.ensure(ctx, js, version, dryRun)
			if err != nil {
				return changes, fmt.Errorf("provision stream %s in account %s: %w", s.name, a.name, err)
			}
			c.Account = a.name
			if c.Action != Unchanged || dryRun {
				changes = append(changes, c)
			}
			if c.Action != Unchanged && !dryRun {
				log.Info("stream provisioned", "account", c.Account, "stream", c.Stream, "action", string(c.Action))
			}
		}
	}
	return changes, nil
}

// mirrorPoll is how long AwaitMirrors waits between two looks.
const mirrorPoll = 20 * time.Millisecond

// AwaitMirrors returns once every mirror that Provision makes is in touch with its stream. Until then it has nothing to deliver, and a broker whose configuration is read again
// meanwhile loses the answer that the mirror waits for, which costs it more than half a minute.
//
// The error when ctx ends first names the mirror, what the broker says of it, and the remedy.
func AwaitMirrors(ctx context.Context, p Provisioners) error {
	for _, a := range []struct {
		name  string
		nc    *nats.Conn
		specs []streamSpec
	}{{"HOOKS", p.Hooks, hookStreams(true)}, {"READERS", p.Readers, readerStreams()}} {
		if a.nc == nil {
			continue
		}
		js, err := jetstream.New(a.nc)
		if err != nil {
			return fmt.Errorf("mirrors of account %s: %w", a.name, err)
		}
		for _, s := range a.specs {
			if err := s.await(ctx, js); err != nil {
				return fmt.Errorf("mirror %s in account %s does not run yet: %w: the broker may still have an older configuration than `notifier keys` wrote last: "+
					"restart it, then run this again", s.name, a.name, err)
			}
		}
	}
	return nil
}

// await returns once the stream is no mirror, or one that has heard from its origin.
func (s streamSpec) await(ctx context.Context, js jetstream.JetStream) error {
	for {
		stream, err := js.Stream(ctx, s.name)
		if err == nil {
			m := stream.CachedInfo().Mirror
			if m == nil || m.Active >= 0 && m.Error == nil {
				return nil
			}
			if m.Error != nil {
				err = m.Error
			}
		}
		select {
		case <-time.After(mirrorPoll):
		case <-ctx.Done():
			if err == nil || errors.Is(err, context.DeadlineExceeded) {
				return context.Cause(ctx)
			}
			return fmt.Errorf("%w: %w", context.Cause(ctx), err)
		}
	}
}

// ensure makes the stream, or changes the one there is where it differs.
func (s streamSpec) ensure(ctx context.Context, js jetstream.JetStream, version string, dryRun bool) (Change, error) {
	stream, err := js.Stream(ctx, s.name)
	if errors.Is(err, jetstream.ErrStreamNotFound) {
		cfg := jetstream.StreamConfig{Name: s.name}
		s.set(&cfg)
		if s.name == StreamAttempt && !olderThan(version, 2, 12) {
			// Only at birth: the server refuses to change it, older ones do not have it, and a replicated stream may not.
			cfg.PersistMode = jetstream.AsyncPersistMode
		}
		if dryRun {
			return Change{Stream: s.name, Action: Created}, nil
		}
		_, err = js.CreateStream(ctx, cfg)
		return Change{Stream: s.name, Action: Created}, explain(err)
	}
	if err != nil {
		return Change{}, explain(err)
	}
	have := stream.CachedInfo().Config
	want := have
	s.set(&want)
	fields := differences(have, want)
	if len(fields) == 0 {
		return Change{Stream: s.name, Action: Unchanged}, nil
	}
	if !dryRun {
		_, err = js.UpdateStream(ctx, want)
	}
	return Change{Stream: s.name, Action: Updated, Fields: fields}, explain(err)
}

// differences names the fields in which two configurations differ.
func differences(have, want jetstream.StreamConfig) (fields []string) {
	h, w := reflect.ValueOf(have), reflect.ValueOf(want)
	for i := range h.NumField() {
		if from, to := h.Field(i).Interface(), w.Field(i).Interface(); !reflect.DeepEqual(from, to) {
			fields = append(fields, fmt.Sprintf("%s: %s → %s", h.Type().Field(i).Name, display(from), display(to)))
		}
	}
	return fields
}

// display is how a field of a configuration is told.
func display(v any) string {
	if s, ok := v.(fmt.Stringer); ok && reflect.ValueOf(v).Kind() != reflect.Pointer {
		return s.String()
	}
	text, err := json.Marshal(v)
	if err != nil {
		return fmt.Sprint(v)
	}
	return string(text)
}

// explain adds to a server's refusal what to do about it.
func explain(err error) error {
	api, isAPI := errors.AsType[*jetstream.APIError](err)
	switch {
	case isAPI && api.ErrorCode == errStorageExceeded:
		return fmt.Errorf("%w: the streams reserve 2.6 GiB, and the broker has three quarters of what is free on its disk when it starts: 3.4 GiB must be free there; make room, and start the broker again", err)
	case errors.Is(err, jetstream.ErrJetStreamNotEnabled), errors.Is(err, jetstream.ErrJetStreamNotEnabledForAccount):
		return fmt.Errorf("%w: switch JetStream on for this account in the broker's configuration (`notifier keys` writes one)", err)
	case errors.Is(err, nats.ErrNoResponders):
		return fmt.Errorf("%w: JetStream is off: switch it on in the broker's configuration (`notifier keys` writes one)", err)
	case errors.Is(err, context.DeadlineExceeded), errors.Is(err, nats.ErrTimeout):
		return fmt.Errorf("%w: no answer: JetStream may be off, or this identity may lack the permission, which the broker's log shows", err)
	}
	return err
}

// errStorageExceeded is the server's "insufficient storage resources available" (JSStorageResourcesExceededErr).
const errStorageExceeded jetstream.ErrorCode = 10047

// ErrTooOld is what CheckVersion finds.
var ErrTooOld = errors.New("2.11 or newer is needed: upgrade it")

// CheckVersion refuses a broker older than 2.11: it lacks per-message TTLs, priority groups and more that is relied on.
func CheckVersion(version string) error {
	if version == "" {
		return errors.New("not connected to a broker")
	}
	if olderThan(version, 2, 11) {
		return fmt.Errorf("the broker is nats-server %s: %w", version, ErrTooOld)
	}
	return nil
}

// olderThan compares the version's first two numbers. What is no number counts as zero, so an unreadable version is old.
func olderThan(version string, major, minor int) bool {
	first, rest, _ := strings.Cut(strings.TrimPrefix(version, "v"), ".")
	second, _, _ := strings.Cut(rest, ".")
	a, _ := strconv.Atoi(first)
	b, _ := strconv.Atoi(second)
	return a < major || a == major && b < minor
}
