package app

import (
	"github.com/wgherald/wgherald/services/notifier/internal/consume"
	"github.com/wgherald/wgherald/services/notifier/internal/deadletter"
)

// observers tells each of several.
type observers []consume.Observer

func (all observers) Attempted(a consume.Attempt) {
	for _, o := range all {
		o.Attempted(a)
	}
}

func (all observers) Buried(hook string, class deadletter.Class) {
	for _, o := range all {
		o.Buried(hook, class)
	}
}

func (all observers) Loaded(hook string, load consume.Load) {
	for _, o := range all {
		o.Loaded(hook, load)
	}
}

func (all observers) Withheld(hook string, events int) {
	for _, o := range all {
		o.Withheld(hook, events)
	}
}

func (all observers) Lost(hook string, events uint64) {
	for _, o := range all {
		o.Lost(hook, events)
	}
}
