package app

import (
	"context"
	"errors"
	"fmt"
	"log/slog"
	"reflect"
	"slices"
	"sync/atomic"
	"time"

	"github.com/nats-io/nats.go/jetstream"
	"golang.org/x/sync/errgroup"

	"github.com/wgherald/wgherald/pkg/events"
	"github.com/wgherald/wgherald/services/notifier/internal/admin"
	"github.com/wgherald/wgherald/services/notifier/internal/config"
	"github.com/wgherald/wgherald/services/notifier/internal/consume"
	"github.com/wgherald/wgherald/services/notifier/internal/replay"
	"github.com/wgherald/wgherald/services/notifier/internal/route"
	"github.com/wgherald/wgherald/services/notifier/internal/telemetry"
)

// hooksInterval is how often the files that hooks come from are looked at. What is found counts when it is the same at two looks, so that a file which is being
// written, or files which are changed one after the other, are read when that is over.
const hooksInterval = 2 * time.Second

// hooks are the hooks that are served. Its fields belong to the task that calls watch.
type hooks struct {
	source   config.Source
	files    config.Files // that the hooks were read from, or what was wrong last
	services map[string]*service

	js       jetstream.JetStream
	version  string
	verify   func([]byte, string) (*events.Event, error)
	metrics  *telemetry.Metrics
	observer consume.Observer
	log      *slog.Logger
}

// service is one hook as it is configured, from when that is taken until it is changed. Services of one name run one after the other.
type service struct {
	hook     config.Hook
	tasks    []*consume.Consumer // for its events, and for its replays; none for a hook that is not configured any more
	stop     context.CancelFunc
	ended    chan struct{} // closed when nothing of it runs
	disabled atomic.Bool   // the hook answered 410 Gone
}

// prepare returns the services that must begin to have the hooks served as configured: those of hooks that are new or not as they were, and of hooks that are left
// out. With enable they are also those of hooks that are disabled. An error leaves everything as it is.
func (h *hooks) prepare(configured []config.Hook, enable bool) ([]*service, error) {
	var next []*service
	var wrong []error
	for _, c := range configured {
		if s := h.services[c.Name]; s != nil && reflect.DeepEqual(s.hook, c) && !(enable && s.disabled.Load()) {
			continue
		}
		s := &service{hook: c, ended: make(chan struct{})}
		own, err := newConsumer(h.js, c, h.version, h.verify, h.observer, h.log)
		if err != nil {
			wrong = append(wrong, err)
			continue
		}
		again := own.Config
		again.Log = h.log // without the hook's name, which it adds
		replays, err := replay.New(again)
		wrong = append(wrong, err)
		s.tasks = []*consume.Consumer{own, replays}
		next = append(next, s)
	}
	for name, s := range h.services {
		if s.tasks != nil && !slices.ContainsFunc(configured, func(c config.Hook) bool { return c.Name == name }) {
			next = append(next, &service{hook: config.Hook{Name: name}, ended: make(chan struct{})})
		}
	}
	return next, errors.Join(wrong...)
}

// begin has services run in g. Each waits until the one that it follows has finished what it has in flight and handed back the rest.
func (h *hooks) begin(ctx context.Context, g *errgroup.Group, next []*service) {
	for _, s := range next {
		before := h.services[s.hook.Name]
		h.services[s.hook.Name] = s
		ctx, stop := context.WithCancel(ctx)
		s.stop = stop
		if before != nil {
			before.stop()
		}
		g.Go(func() error {
			defer close(s.ended)
			defer stop()
			if before != nil {
				<-before.ended
			}
			return h.serve(ctx, s)
		})
	}
}

// serve runs a service until ctx ends or the hook is gone.
func (h *hooks) serve(ctx context.Context, s *service) error {
	name := s.hook.Name
	if s.tasks == nil {
		h.metrics.Ended(name)
		leftovers(ctx, h.js, func(hook string) bool { return hook == name }, h.log)
		return nil
	}
	h.metrics.Serving(name)
	g, running := errgroup.WithContext(ctx)
	for _, t := range s.tasks {
		g.Go(func() error { return t.Run(running) })
	}
	err := g.Wait()
	h.metrics.Ended(name)
	if !errors.Is(err, consume.ErrHookGone) {
		return err
	}
	if ctx.Err() == nil { // else it was ended by a change, which enables it
		s.disabled.Store(true)
		h.metrics.Disabled(name)
		h.log.Error("hook is disabled: it answered 410 Gone; its events wait in the stream until its configuration is changed, or the notifier gets SIGHUP or is restarted",
			"hook", name)
	}
	return nil
}

// watch has the hooks served as their files say, until ctx ends.
func (h *hooks) watch(ctx context.Context, g *errgroup.Group, reload <-chan struct{}) error {
	ticks := time.NewTicker(hooksInterval)
	defer ticks.Stop()
	last := h.files
	for {
		select {
		case <-ctx.Done():
			return nil
		case <-reload:
			if h.source.File == "" && h.source.SecretFile == "" {
				h.log.Info("hooks come from no file, so there is nothing to read again")
			}
			h.reload(ctx, g, true)
		case <-ticks.C:
			now := h.files.Again()
			settled := now.Equal(last)
			last = now
			if settled && !now.Equal(h.files) {
				h.reload(ctx, g, false)
			}
		}
	}
}

// reload reads the hooks again. Unless something is wrong, those that are not as they were are ended and begun; nothing of the others is touched.
func (h *hooks) reload(ctx context.Context, g *errgroup.Group, enable bool) {
	set, err := h.source.Read()
	h.files = set.Files
	var next []*service
	if err == nil {
		next, err = h.prepare(set.Hooks, enable)
	}
	h.metrics.Reloaded(err == nil)
	if err != nil {
		h.log.Error("hooks were read again and are wrong, they stay as they were before", "error", err)
		return
	}
	for _, w := range set.Warnings {
		h.log.Warn(w)
	}
	warnNone(set.Hooks, h.log)
	var added, changed, removed []string
	for _, s := range next {
		switch before := h.services[s.hook.Name]; {
		case s.tasks == nil:
			removed = append(removed, s.hook.Name)
		case before == nil || before.tasks == nil:
			added = append(added, s.hook.Name)
		default:
			changed = append(changed, s.hook.Name)
			if before.disabled.Load() {
				h.log.Info("hook is enabled again", "hook", s.hook.Name)
			}
		}
	}
	slices.Sort(removed)
	h.log.Info("hooks were read again", "hooks", len(set.Hooks), "added", added, "changed", changed, "removed", removed)
	h.begin(ctx, g, next)
}

func warnNone(hooks []config.Hook, log *slog.Logger) {
	if len(hooks) == 0 {
		log.Warn("no hook is configured (WEBHOOK_URL or NOTIFIER_HOOKS), so nothing is delivered")
	}
}

// ready waits until every hook has its place in the stream: from then on, no event passes a hook by. It returns false when ctx ends first.
func ready(ctx context.Context, services []*service) bool {
	for _, s := range services {
		select {
		case <-s.tasks[0].Ready():
		case <-s.ended: // it was changed before
		case <-ctx.Done():
			return false
		}
	}
	return true
}

// leftovers says which hooks are no longer configured and still have a place in a stream. Nothing is deleted: a hook may be missing by mistake.
func leftovers(ctx context.Context, js jetstream.JetStream, left func(hook string) bool, log *slog.Logger) {
	list, err := admin.FindLeftovers(ctx, js, nil)
	if err != nil && ctx.Err() == nil {
		log.Warn("consumers of hooks that are not configured are not looked for", "error", err)
	}
	for _, l := range list {
		if left(l.Hook) {
			log.Warn("hook is not configured and still has a consumer (notifier prune removes it)",
				"hook", l.Hook, "stream", l.Stream, "backlog", l.Backlog, "in_use", l.InUse)
		}
	}
}

// newConsumer returns the task of a hook.
func newConsumer(js jetstream.JetStream, h config.Hook, version string, verify func([]byte, string) (*events.Event, error),
	observer consume.Observer, log *slog.Logger) (*consume.Consumer, error) {
	filter, err := route.Compile(h.Rules)
	if err != nil {
		return nil, fmt.Errorf("hook %s: %w", h.Name, err)
	}
	format, err := h.Render()
	if err != nil {
		return nil, fmt.Errorf("hook %s: %w", h.Name, err)
	}
	return consume.New(consume.Config{
		JetStream: js,
		Hook: consume.Hook{
			Name:   h.Name,
			Target: h.Target(),
			Filter: filter,
			Format: format,
			Retry:  h.Schedule(), RetryRejected: h.Other4xx, Policy: h.Policy,
		},
		Version: version, Verify: verify, Observer: observer, Log: log,
	})
}
