package sign_test

import (
	"fmt"
	"net/http"
	"strings"
	"testing"
	"time"

	standardwebhooks "github.com/standard-webhooks/standard-webhooks/libraries/go"

	"github.com/wgherald/wgherald/services/notifier/internal/sign"
)

// The vector that the official libraries publish.
const (
	vectorSecret    = "whsec_MfKQ9r8GKYqrTwjUPD8ILPZIo2LaLaSw"
	vectorID        = "msg_p5jXN8AQM9LWM0D4loKWxJek"
	vectorTime      = 1614265330
	vectorBody      = `{"test": 2432232314}`
	vectorSignature = "v1,g0hM9SsE+OTPJTGt/tmIKtSyZlE3uFJELVlNIOLJ1OE="
)

// otherSecret has 32 bytes.
const otherSecret = "whsec_AAECAwQFBgcICQoLDA0ODxAREhMUFRYXGBkaGxwdHh8="

func secret(t *testing.T, text string) sign.Secret {
	t.Helper()
	s, err := sign.ParseSecret(text)
	if err != nil {
		t.Fatal(err)
	}
	return s
}

func TestSignMatchesThePublishedVector(t *testing.T) {
	t.Parallel()
	have := sign.Sign(vectorID, time.Unix(vectorTime, 0), []byte(vectorBody), []sign.Secret{secret(t, vectorSecret)})
	if have != vectorSignature {
		t.Errorf("signature is %s, want %s", have, vectorSignature)
	}
}

func TestTheOfficialLibraryVerifiesWithAnyOneSecret(t *testing.T) {
	t.Parallel()
	now := time.Now()
	body := []byte(vectorBody)
	h := http.Header{}
	h.Set(sign.HeaderID, vectorID)
	h.Set(sign.HeaderTimestamp, sign.Timestamp(now))
	h.Set(sign.HeaderSignature, sign.Sign(vectorID, now, body, []sign.Secret{secret(t, vectorSecret), secret(t, otherSecret)}))

	for _, text := range []string{vectorSecret, otherSecret} {
		receiver, err := standardwebhooks.NewWebhook(text)
		if err != nil {
			t.Fatal(err)
		}
		if err := receiver.Verify(body, h); err != nil {
			t.Errorf("a receiver that holds one of the two secrets refuses: %v", err)
		}
		if err := receiver.Verify([]byte(`{"test": 2432232315}`), h); err == nil {
			t.Error("a receiver accepts a body that was changed")
		}
	}
	stranger, err := standardwebhooks.NewWebhook("whsec_" + strings.Repeat("A", 32))
	if err != nil {
		t.Fatal(err)
	}
	if err := stranger.Verify(body, h); err == nil {
		t.Error("a receiver that holds another secret accepts")
	}
}

func TestParseSecret(t *testing.T) {
	t.Parallel()
	for _, tt := range []struct {
		name, text, want string
	}{
		{"as published", vectorSecret, ""},
		{"with the line feed of a file", vectorSecret + "\n", ""},
		{"without prefix", strings.TrimPrefix(vectorSecret, "whsec_"), "does not start with whsec_"},
		{"empty", "", "does not start with whsec_"},
		{"no base64", "whsec_MfKQ9r8GKYqrTwjUPD8ILPZIo2LaLa*w", "no base64"},
		{"too short", "whsec_AAECAwQ=", "has 5 bytes, want 24 to 64"},
		{"too long", "whsec_" + strings.Repeat("AAAA", 22), "has 66 bytes, want 24 to 64"},
	} {
		t.Run(tt.name, func(t *testing.T) {
			t.Parallel()
			_, err := sign.ParseSecret(tt.text)
			switch {
			case tt.want == "" && err != nil:
				t.Errorf("refused: %v", err)
			case tt.want != "" && (err == nil || !strings.Contains(err.Error(), tt.want)):
				t.Errorf("error is %v, want one with %q", err, tt.want)
			case err != nil && len(tt.text) > 12 && strings.Contains(err.Error(), tt.text[6:12]):
				t.Errorf("the error repeats the secret: %v", err)
			}
		})
	}
}

func TestSecretNeverPrints(t *testing.T) {
	t.Parallel()
	s := secret(t, vectorSecret)
	wrapped := struct{ S []sign.Secret }{[]sign.Secret{s}}
	for _, verb := range []string{"%v", "%+v", "%#v", "%s", "%q", "%x", "%d"} {
		out := fmt.Sprintf(verb, wrapped)
		if !strings.Contains(out, "[redacted]") {
			t.Errorf("%s prints %s", verb, out)
		}
	}
}

func BenchmarkSign(b *testing.B) {
	key, err := sign.ParseSecret(otherSecret)
	if err != nil {
		b.Fatal(err)
	}
	body, secrets := make([]byte, 827), []sign.Secret{key}
	for b.Loop() {
		sign.Sign(vectorID, time.Unix(vectorTime, 0), body, secrets)
	}
}
