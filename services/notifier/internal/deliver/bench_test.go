package deliver

import (
	"io"
	"net/http"
	"net/http/httptest"
	"testing"

	"github.com/wgherald/wgherald/services/notifier/internal/render"
	"github.com/wgherald/wgherald/services/notifier/internal/sign"
)

// BenchmarkSend is what one attempt costs both ends, signed, on a connection that is there.
func BenchmarkSend(b *testing.B) {
	srv := httptest.NewServer(http.HandlerFunc(func(_ http.ResponseWriter, r *http.Request) { _, _ = io.Copy(io.Discard, r.Body) }))
	b.Cleanup(srv.Close)
	secret, err := sign.ParseSecret(secretText)
	if err != nil {
		b.Fatal(err)
	}
	s := sender(b, Target{URL: srv.URL, Secrets: []sign.Secret{secret}})
	r := render.Request{Body: make([]byte, 800), Header: request.Header}
	b.ReportAllocs()
	for b.Loop() {
		if res := s.Send(b.Context(), "e1", r); res.Class != OK {
			b.Fatal(res)
		}
	}
}
