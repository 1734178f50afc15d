package main

import (
	"cmp"
	"context"
	"fmt"
	"slices"
	"strings"
	"sync"
	"time"

	"github.com/wgherald/wgherald/lab/internal/lab"
	"github.com/wgherald/wgherald/lab/internal/sink"
	"github.com/wgherald/wgherald/lab/internal/watch"
)

// view shows the story, and what comes of it, while it is told.
type view interface {
	// say tells what happens next.
	say(text string)
	// run shows what comes until ctx ends.
	run(ctx context.Context)
}

// changes has a value soon after one of the ledgers has grown, until ctx ends.
func changes(ctx context.Context, l *lab.Lab) <-chan struct{} {
	grown := make(chan struct{}, 1)
	follow := func(wait func(n int) error) {
		for n := 0; wait(n) == nil; n++ {
			select {
			case grown <- struct{}{}:
			default: // it is about to be looked at anyway
			}
		}
	}
	go follow(func(n int) error {
		_, err := l.Events.WaitFrom(ctx, n, func(watch.Message) bool { return true })
		return err
	})
	go follow(func(n int) error {
		_, err := l.Sink.WaitFrom(ctx, n, func(sink.Delivery) bool { return true })
		return err
	})
	return grown
}

// lines is a view that only appends.
type lines struct {
	t   *terminal
	lab *lab.Lab

	mu                   sync.Mutex
	rows                 []row
	published, delivered int             // how many were shown
	changed              map[string]bool // subjects, since the table was shown
}

func newLines(t *terminal, l *lab.Lab) *lines {
	return &lines{t: t, lab: l, rows: newRows(l), changed: map[string]bool{}}
}

func (v *lines) say(text string) {
	v.mu.Lock()
	defer v.mu.Unlock()
	v.catchUp()
	v.showPeers()
	v.t.printf("%s\n", v.t.paint(bold, text))
}

func (v *lines) run(ctx context.Context) {
	grown := changes(ctx, v.lab)
	for {
		select {
		case <-grown:
			v.mu.Lock()
			v.catchUp()
			v.mu.Unlock()
		case <-ctx.Done():
			v.mu.Lock()
			v.catchUp()
			v.showPeers()
			v.mu.Unlock()
			return
		}
	}
}

// catchUp shows what was not yet shown, in the order of arrival.
func (v *lines) catchUp() {
	type line struct {
		at   time.Time
		text string
	}
	var news []line
	for _, m := range v.lab.Events.All()[v.published:] {
		v.published++
		news = append(news, line{m.At, "  event   " + eventLine(v.t, m)})
		if m.Event == nil {
			continue
		}
		for i := range v.rows {
			v.rows[i].tell(m.Event)
		}
		if m.Event.Peer() != nil {
			v.changed[m.Event.Subject] = true
		}
	}
	for _, d := range v.lab.Sink.All()[v.delivered:] {
		v.delivered++
		news = append(news, line{d.At, "  webhook " + deliveryLine(v.t, d)})
	}
	slices.SortStableFunc(news, func(a, b line) int { return a.at.Compare(b.at) })
	for _, l := range news {
		v.t.printf("%s\n", l.text)
	}
}

// showPeers shows the table where a step of the story has changed most of it; less is told by the events.
func (v *lines) showPeers() {
	if len(v.changed) > len(v.rows)/2 {
		observe(v.lab, v.rows)
		v.t.printf("\n  %s\n", strings.Join(table(v.t, v.rows, time.Now()), "\n  "))
	}
	if v.published > 0 {
		v.t.printf("\n")
	}
	clear(v.changed)
}

// observe puts the device's counts into the rows. Without a device there are none.
func observe(l *lab.Lab, rows []row) {
	dev, err := l.Hub.Observe()
	for i := range rows {
		if err != nil {
			rows[i].count(nil)
			continue
		}
		rows[i].count(dev.Peers)
	}
}

// frameRate bounds how often the screen is drawn: the eye does not see more, and a burst of events costs one drawing.
const frameRate = 10

// screen is a view that draws the whole terminal anew.
type screen struct {
	t        *terminal
	lab      *lab.Lab
	commands []string // how to subscribe
	began    time.Time

	mu    sync.Mutex
	story []string
}

func newScreen(t *terminal, l *lab.Lab, commands []string) *screen {
	return &screen{t: t, lab: l, commands: commands, began: time.Now()}
}

func (v *screen) say(text string) {
	v.mu.Lock()
	defer v.mu.Unlock()
	v.story = append(v.story, text)
}

func (v *screen) run(ctx context.Context) {
	v.t.printf("%s", enterScreen)
	defer v.t.printf("%s", leaveScreen)
	grown := changes(ctx, v.lab)
	second := time.NewTicker(time.Second)
	defer second.Stop()
	frame := time.NewTicker(time.Second / frameRate)
	defer frame.Stop()
	for {
		v.draw()
		select {
		case <-frame.C:
		case <-ctx.Done():
			return
		}
		select {
		case <-grown:
		case <-second.C:
		case <-ctx.Done():
			return
		}
	}
}

func (v *screen) draw() {
	published, delivered := v.lab.Events.All(), v.lab.Sink.All()
	rows := newRows(v.lab)
	for _, m := range published {
		for i := range rows {
			if m.Event != nil {
				rows[i].tell(m.Event)
			}
		}
	}
	observe(v.lab, rows)
	v.mu.Lock()
	story := slices.Clone(v.story)
	v.mu.Unlock()

	width, height := v.t.size()
	var out strings.Builder
	out.WriteString(home)
	for i, line := range compose(v.t, frame{time.Since(v.began), table(v.t, rows, time.Now()), story, published, delivered, v.commands}, height) {
		if i > 0 {
			out.WriteString("\r\n")
		}
		out.WriteString(cut(line, width) + clearLine)
	}
	out.WriteString(clearBelow)
	v.t.printf("%s", out.String())
}

// frame is what is to be seen on a screen.
type frame struct {
	running   time.Duration
	peers     []string
	story     []string
	published []watch.Message
	delivered []sink.Delivery
	commands  []string
}

// storyLines is how much of the story stays in sight.
const storyLines = 3

// compose lays a frame out in height lines: events and deliveries share what the rest leaves.
func compose(t *terminal, f frame, height int) []string {
	title := func(text, more string) string { return t.paint(bold, text) + "  " + t.paint(dim, more) }
	lines := []string{
		title("wgherald demo", fmt.Sprintf("node %s, %s, running %v, Ctrl-C ends it and leaves nothing behind", lab.Node, lab.Interface, f.running.Truncate(time.Second))),
		"",
	}
	lines = append(lines, f.peers...)
	lines = append(lines, "")
	for i, text := range last(f.story, storyLines) {
		if i == min(len(f.story), storyLines)-1 {
			text = t.paint(cyan, "> "+text)
		} else {
			text = t.paint(dim, "  "+text)
		}
		lines = append(lines, text)
	}
	for range storyLines - len(f.story) {
		lines = append(lines, "")
	}
	foot := append([]string{"", t.paint(dim, "subscribe yourself, in another terminal:")}, f.commands...)

	const titles = 4 // two of them, a blank line before each
	rest := max(2, height-len(lines)-len(foot)-titles)
	lines = append(lines, "", title("EVENTS", fmt.Sprintf("%d on NATS, as any subscriber gets them", len(f.published))))
	lines = appendLast(lines, f.published, (rest+1)/2, func(m watch.Message) string { return eventLine(t, m) })
	lines = append(lines, "", title("DELIVERIES", fmt.Sprintf("%d to the webhook receiver; the time is since the probe knew", len(f.delivered))))
	lines = appendLast(lines, f.delivered, rest/2, func(d sink.Delivery) string { return deliveryLine(t, d) })
	lines = append(lines, foot...)
	return lines[:min(len(lines), cmp.Or(height, 1))]
}

// appendLast appends exactly n lines: the last entries, and blank ones where there are too few.
func appendLast[T any](lines []string, entries []T, n int, line func(T) string) []string {
	shown := last(entries, n)
	for _, e := range shown {
		lines = append(lines, line(e))
	}
	return append(lines, make([]string, n-len(shown))...)
}

// last is the last n entries, or all of them.
func last[T any](entries []T, n int) []T { return entries[max(0, len(entries)-n):] }
