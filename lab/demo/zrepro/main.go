package main

import (
	"context"
	"fmt"
	"os"
	"time"

	"github.com/wgherald/wgherald/lab/internal/lab"
	"github.com/wgherald/wgherald/lab/internal/runner"
	"github.com/wgherald/wgherald/pkg/events"
)

func main() {
	ctx := context.Background()
	bins, err := runner.Build(ctx)
	if err != nil { panic(err) }
	l, err := lab.New(bins, lab.Options{Clients: 1, Log: os.Stdout, NotifierEnv: []string{"NOTIFIER_LOG_LEVEL=debug"}})
	if err != nil { panic(err) }
	defer l.Close()
	if err := l.Start(ctx); err != nil { panic(err) }
	up := true
	for i := range 14 {
		from, pub := l.Sink.Len(), l.Events.Len()
		up = !up
		t := events.InterfaceUp
		if !up { t = events.InterfaceDown }
		l.Hub.SetLink(up)
		m, _ := l.Published(ctx, pub, t, "wg0")
		d, err := l.Delivered(ctx, from, t, "wg0")
		if err != nil { panic(err) }
		fmt.Println(i, d.At.Format("15:04:05.000"), "delivered after", d.At.Sub(m.At), d.Attempt)
		time.Sleep(time.Until(d.At.Add(9980*time.Millisecond + time.Duration(i)*10*time.Millisecond)))
	}
}
