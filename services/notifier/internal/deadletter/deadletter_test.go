package deadletter_test

import (
	"testing"
	"time"

	"github.com/nats-io/nats-server/v2/server"
	"github.com/nats-io/nats.go"
	"github.com/nats-io/nats.go/jetstream"

	"github.com/wgherald/wgherald/services/notifier/internal/deadletter"
)

func TestBuryTwiceStoresOneLetterAndEndsTheMessage(t *testing.T) {
	t.Parallel()
	srv, err := server.NewServer(&server.Options{
		Host: "127.0.0.1", Port: server.RANDOM_PORT, JetStream: true, StoreDir: t.TempDir(), NoSigs: true, NoLog: true,
	})
	if err != nil {
		t.Fatal(err)
	}
	srv.Start()
	t.Cleanup(func() { srv.Shutdown(); srv.WaitForShutdown() })
	if !srv.ReadyForConnections(30 * time.Second) {
		t.Fatal("the broker does not start")
	}
	nc, err := nats.Connect(srv.ClientURL())
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(nc.Close)
	js, err := jetstream.New(nc)
	if err != nil {
		t.Fatal(err)
	}
	if _, err := js.CreateStream(t.Context(), jetstream.StreamConfig{Name: "E", Subjects: []string{"e"}}); err != nil {
		t.Fatal(err)
	}
	cons, err := js.CreateConsumer(t.Context(), "E", jetstream.ConsumerConfig{Durable: "c", AckPolicy: jetstream.AckExplicitPolicy})
	if err != nil {
		t.Fatal(err)
	}
	if _, err := js.Publish(t.Context(), "e", []byte("body")); err != nil {
		t.Fatal(err)
	}
	msg, err := cons.Next()
	if err != nil {
		t.Fatal(err)
	}

	letter := deadletter.Letter{Class: deadletter.Undecodable, Reason: "two\r\nlines"}
	if err := deadletter.Bury(t.Context(), js, "h", msg, letter); err == nil {
		t.Fatal("buried without a stream for dead letters")
	}
	if info, err := cons.Info(t.Context()); err != nil || info.NumAckPending != 1 {
		t.Fatalf("the message of a letter that was not stored is ended: %+v %v", info, err)
	}
	dead, err := js.CreateStream(t.Context(), jetstream.StreamConfig{Name: deadletter.Stream, Subjects: []string{"wg.dead.*"}, Duplicates: time.Minute})
	if err != nil {
		t.Fatal(err)
	}
	for range 2 {
		if err := deadletter.Bury(t.Context(), js, "h", msg, letter); err != nil {
			t.Fatal(err)
		}
	}
	if info, err := cons.Info(t.Context()); err != nil || info.NumAckPending != 0 {
		t.Errorf("the message is not ended: %+v %v", info, err)
	}
	info, err := dead.Info(t.Context())
	if err != nil || info.State.Msgs != 1 {
		t.Fatalf("letters: %+v %v, want 1", info, err)
	}
	stored, err := dead.GetMsg(t.Context(), info.State.LastSeq)
	if err != nil {
		t.Fatal(err)
	}
	if have := stored.Header.Get(deadletter.HeaderReason); string(stored.Data) != "body" || have != "two  lines" {
		t.Errorf("letter %q with reason %q", stored.Data, have)
	}
}
