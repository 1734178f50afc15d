// Command receive is an example to copy from: a webhook receiver that takes what is signed with its secret and new, and nothing else.
//
//	WEBHOOK_SECRET=whsec_… go run ./lab/examples/receive -listen 127.0.0.1:8080
package main

import (
	"errors"
	"flag"
	"fmt"
	"io"
	"net/http"
	"os"
	"time"

	standardwebhooks "github.com/standard-webhooks/standard-webhooks/libraries/go"

	"github.com/wgherald/wgherald/pkg/events"
)

func main() {
	listen := flag.String("listen", "127.0.0.1:8080", "where to listen")
	flag.Parse()
	h, err := receiver(os.Getenv("WEBHOOK_SECRET"), os.Stdout)
	if err == nil {
		fmt.Printf("receiving at http://%s/hook\n", *listen)
		server := http.Server{Addr: *listen, Handler: h, ReadTimeout: 10 * time.Second}
		err = server.ListenAndServe()
	}
	fmt.Fprintln(os.Stderr, "receive:", err)
	os.Exit(1)
}

// receiver prints a line for each request to w. What it answers decides: 2xx is taken, 4xx never comes again, 5xx is tried again later.
func receiver(secret string, w io.Writer) (http.Handler, error) {
	hook, err := standardwebhooks.NewWebhook(secret)
	if secret == "" || err != nil {
		return nil, errors.New("WEBHOOK_SECRET: want whsec_ and base64, as the notifier has it")
	}
	mux := http.NewServeMux()
	mux.HandleFunc("POST /hook", func(answer http.ResponseWriter, r *http.Request) {
		body, err := io.ReadAll(http.MaxBytesReader(answer, r.Body, events.MaxSize))
		if err == nil {
			err = hook.Verify(body, r.Header) // the very bytes that came, and a time that is not 5 minutes off
		}
		e := new(events.Event)
		if err == nil {
			e, err = events.Decode(body)
		}
		if err != nil {
			fmt.Fprintln(w, "refused:", err)
			http.Error(answer, "no signed event", http.StatusBadRequest)
			return
		}
		// The same event may come twice: what must happen once is remembered under this id, before the answer.
		fmt.Fprintf(w, "%s  %s  %s  signature ok  %s\n", e.Time.Local().Format(time.DateTime), e.ID, e.Type, e.Subject)
		answer.WriteHeader(http.StatusNoContent)
	})
	return mux, nil
}
