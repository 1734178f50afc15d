package main

import (
	"context"
	"fmt"
	"os"
	"time"

	"github.com/wgherald/wgherald/lab/internal/lab"
	"github.com/wgherald/wgherald/lab/internal/runner"
)

func try(err error) {
	if err != nil {
		fmt.Println(err)
		os.Exit(1)
	}
}

func main() {
	ctx, cancel := context.WithTimeout(context.Background(), 120*time.Second)
	defer cancel()
	t := time.Now()
	bins, err := runner.Build(ctx)
	try(err)
	fmt.Println("build", time.Since(t))
	t = time.Now()
	l, err := lab.New(bins, lab.Options{Clients: 5, Log: os.Stdout})
	try(err)
	defer l.Close()
	fmt.Println("new", time.Since(t))
	t = time.Now()
	try(l.Start(ctx))
	fmt.Println("start", time.Since(t))
	for _, c := range l.Clients {
		try(c.Connect(ctx))
	}
	t = time.Now()
	try(l.Clients[1].Roam())
	try(l.Clients[1].Ping(ctx))
	_, err = l.Delivered(ctx, 0, "wg.peer.roamed", l.Clients[1].PublicKey().String())
	try(err)
	fmt.Println("roam", time.Since(t))
	t = time.Now()
	try(l.Remove(l.Clients[2]))
	_, err = l.Delivered(ctx, 0, "wg.peer.removed", l.Clients[2].PublicKey().String())
	try(err)
	fmt.Println("remove", time.Since(t))
	t = time.Now()
	try(l.Hub.SetLink(false))
	_, err = l.Delivered(ctx, 0, "wg.interface.down", "wg0")
	fmt.Println("down", time.Since(t), err)
	t = time.Now()
	try(l.Hub.SetLink(true))
	_, err = l.Delivered(ctx, l.Sink.Len(), "wg.interface.up", "wg0")
	fmt.Println("up", time.Since(t), err)
	for _, d := range l.Sink.All() {
		fmt.Println(d.At, d.Event.Type, d.Event.Subject, d.Event.Sequence, d.Status, d.Attempt, d.Err, d.Header, string(d.Body))
	}
}
