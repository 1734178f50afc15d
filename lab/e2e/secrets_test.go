package e2e

import (
	"context"
	"encoding/base64"
	"encoding/hex"
	"errors"
	"fmt"
	"io"
	"net"
	"net/http"
	"os"
	"path/filepath"
	"strings"
	"testing"
	"time"

	"golang.zx2c4.com/wireguard/wgctrl/wgtypes"

	"github.com/wgherald/wgherald/lab/internal/lab"
	"github.com/wgherald/wgherald/lab/internal/netns"
	"github.com/wgherald/wgherald/lab/internal/runner"
	"github.com/wgherald/wgherald/lab/internal/sink"
	"github.com/wgherald/wgherald/pkg/events"
)

// unprivileged is the user that the notifier runs as.
const unprivileged = 65534

// TestNoSecretIsTold tells a story with every failure that there is, at the most talkative log level, and then looks for each secret in everything that leaves
// the services: logs, metrics, events, states and dead letters.
func TestNoSecretIsTold(t *testing.T) {
	t.Parallel()
	hooksFile := filepath.Join(netns.Dir, "hooks.yaml")
	s := begin(t, patience, lab.Options{
		Clients:     3,
		ProbeEnv:    []string{"PROBE_LOG_LEVEL=debug"},
		NotifierEnv: []string{"NOTIFIER_LOG_LEVEL=debug", "NOTIFIER_HOOKS=" + hooksFile},
	})
	alice, bob, carol := s.Clients[0], s.Clients[1], s.Clients[2]
	secrets := map[string]string{}
	secret := func(what string) string {
		// Letters alone, so that it looks the same wherever it is escaped.
		text := "marked" + strings.NewReplacer(" ", "", "'", "", ",", "").Replace(what) + "secret"
		secrets[what] = text
		return text
	}

	receiver := rudeReceiver(s)
	hooks := "hooks:\n"
	for name, address := range map[string]string{
		"refused":   "http://127.0.0.1:9/",
		"nohost":    "https://no-such-host.invalid/",
		"nottls":    "https://" + receiver + "/",
		"blocked":   "http://169.254.169.254/",
		"echo":      "http://" + receiver + "/echo/",
		"redirect":  "http://" + receiver + "/redirect/",
		"broken":    "http://" + receiver + "/broken/",
		"hang":      "http://" + receiver + "/hang/",
		"malformed": "http://" + receiver + "/malformed/",
	} {
		key := base64.StdEncoding.EncodeToString([]byte(secret("key of hook "+name) + "and what makes it long enough"))
		secrets["key of hook "+name+" in base64"] = key
		hooks += fmt.Sprintf("  - name: %s\n    url: %q\n    secret: whsec_%s\n    timeout: 1s\n    headers: {Authorization: Bearer %s}\n",
			name, address+secret("path of hook "+name)+"?token="+secret("query of hook "+name), key, secret("header of hook "+name))
	}
	s.must(s.NS.Do(func() error {
		return errors.Join(os.WriteFile(hooksFile, []byte(hooks), 0o600), os.Chown(hooksFile, unprivileged, unprivileged))
	}))

	presharedKey := func(what string, k wgtypes.Key) {
		secrets[what], secrets[what+" in hex"] = strings.TrimRight(k.String(), "="), hex.EncodeToString(k[:])
	}
	s.must(setPresharedKey(alice), s.Configure(alice), s.Start(s.ctx))
	presharedKey("first preshared key", alice.PresharedKey)
	s.Sink.Inject(sink.Fault{Match: about(bob), Times: 1, Status: http.StatusNotFound})
	s.connect(alice)
	s.must(bob.Connect(s.ctx))
	s.awaitRequest("bob connected", about(bob))
	s.must(setPresharedKey(alice), s.Configure(alice), alice.Down(), s.Remove(bob))
	s.expect(events.PeerRoamed, alice.PublicKey().String(), func() error { return alice.Connect(s.ctx) })
	presharedKey("second preshared key", alice.PresharedKey)
	s.must(setPresharedKey(carol)) // and the hub does not know it
	presharedKey("preshared key that the hub does not know", carol.PresharedKey)
	impatient, cancel := context.WithTimeout(s.ctx, 500*time.Millisecond)
	defer cancel()
	if err := carol.Connect(impatient); err == nil {
		t.Error("a session without the preshared key")
	}
	var early string
	s.eventually(func() (err error) {
		if early, err = s.scrape(notifierMetrics); err != nil {
			return err
		}
		for _, class := range []string{"ok", "rejected", "refused", "dns", "tls", "blocked", "unavailable", "redirected", "timeout", "network"} {
			if !strings.Contains(early, `wgherald_notifier_attempts_total{class="`+class+`"`) {
				return fmt.Errorf("no attempt went as %s", class)
			}
		}
		return nil
	})
	s.must(s.StopNotifier())
	s.must(s.DeleteHub(), s.StopProbe(), s.CreateHub(alice, bob), s.StartNotifier(s.ctx), s.StartProbe())
	s.await(0, events.ProbeStopped, lab.Node)
	s.misconfigure(secret)

	said := map[string]string{"log": s.log.String(), "first metrics of the notifier": early}
	for what, address := range map[string]string{"metrics of the probe": probeMetrics, "metrics of the notifier": notifierMetrics} {
		text, err := s.scrape(address)
		s.must(err)
		said[what] = text
	}
	for i, m := range s.stored() {
		said[fmt.Sprintf("event %d", i+1)] = fmt.Sprint(m.Headers(), string(m.Data()))
	}
	for name, stream := range map[string]string{"dead letter": "WG_DEAD", "state": events.StreamState} {
		identity := "operator"
		if name == "state" {
			identity = "reader"
		}
		found, err := s.jetStream(identity).Stream(s.ctx, stream)
		s.must(err)
		for seq := found.CachedInfo().State.FirstSeq; seq <= found.CachedInfo().State.LastSeq; seq++ {
			m, err := found.GetMsg(s.ctx, seq)
			if err != nil {
				continue // replaced by a newer state
			}
			said[fmt.Sprintf("%s %d", name, seq)] = fmt.Sprint(m.Header, string(m.Data))
		}
	}

	theirs, err := s.Secrets()
	s.must(err)
	for what, text := range theirs {
		secrets[what] = text
	}
	for what, text := range secrets {
		if len(text) < 16 {
			t.Errorf("%s is %q, which proves nothing", what, text)
		}
		for where, all := range said {
			if strings.Contains(all, text) {
				t.Errorf("%s is in: %s", what, where)
			}
		}
	}
	// Looking for something that is there finds it.
	for where, text := range map[string]string{"log": "public_key=U", "event 1": events.HeaderSignature, "dead letter 1": "Wg-Dead-Reason", "metrics of the probe": "wgherald_probe_events_total"} {
		if !strings.Contains(said[where], text) {
			t.Errorf("%s does not have %s: %s", where, text, said[where])
		}
	}
}

// rudeReceiver is a receiver that answers in every wrong way and repeats what it was sent, and returns its address.
func rudeReceiver(s *story) string {
	s.t.Helper()
	var listener net.Listener
	s.must(s.NS.Do(func() (err error) {
		listener, err = net.Listen("tcp", "127.0.0.1:0")
		return err
	}))
	mux := http.NewServeMux()
	mux.HandleFunc("/echo/", func(w http.ResponseWriter, r *http.Request) {
		w.WriteHeader(http.StatusInternalServerError)
		fmt.Fprintln(w, r.URL, r.URL.Path, r.URL.RawQuery, r.Header)
	})
	mux.HandleFunc("/redirect/", func(w http.ResponseWriter, r *http.Request) {
		http.Redirect(w, r, "http://127.0.0.1:9/"+r.URL.String(), http.StatusFound)
	})
	mux.HandleFunc("/broken/", func(http.ResponseWriter, *http.Request) { panic(http.ErrAbortHandler) })
	mux.HandleFunc("/hang/", func(w http.ResponseWriter, r *http.Request) {
		io.Copy(io.Discard, r.Body)
		<-r.Context().Done()
	})
	mux.HandleFunc("/malformed/", func(w http.ResponseWriter, r *http.Request) {
		conn, _, err := http.NewResponseController(w).Hijack()
		if err != nil {
			return
		}
		defer conn.Close()
		fmt.Fprintf(conn, "HTTP/1.1 999%s %s\r\n\r\n", r.URL, r.Header.Get("Authorization"))
	})
	server := &http.Server{Handler: mux}
	go server.Serve(listener)
	s.t.Cleanup(func() { server.Close() })
	return listener.Addr().String()
}

// misconfigure starts both services with values that are wrong and secret.
func (s *story) misconfigure(secret func(string) string) {
	s.t.Helper()
	wrong := map[string][]string{
		"probe": {
			"PROBE_STATE=/dev/null/state", "PROBE_NODE=a b", "PROBE_INTERFACES=[", "PROBE_ENDPOINT=some", "PROBE_METRICS=0.0.0.0:1",
			"PROBE_NAME=" + secret("value of a misspelt variable"),
			"NATS_URL=nats://probe:" + secret("password of the probe") + "@[::1",
			"NATS_CREDS_FILE=/no/such/file",
		},
		"notifier": {
			"NOTIFIER_STATE=/dev/null/state", "NOTIFIER_LISTEN=0.0.0.0:1",
			"NATS_URL=nats://notifier:" + secret("password of the notifier") + "@[::1",
			"WEBHOOK_URL=http://[" + secret("URL that is none"), "WEBHOOK_SECRET=whsec_!" + secret("secret that is none"),
		},
	}
	for name, env := range wrong {
		p, err := runner.Start(runner.Spec{Name: name, NS: s.NS, Path: runner.Binary(name), Env: env, User: unprivileged, Log: &s.log})
		s.must(err)
		err = p.Wait(s.ctx)
		if err == nil || !strings.Contains(err.Error(), "exit status 2") {
			s.t.Errorf("%s with a wrong configuration: %v, want exit status 2", name, err)
		}
		for _, entry := range env {
			variable, _, _ := strings.Cut(entry, "=")
			if strings.HasSuffix(variable, "_STATE") || variable == "NATS_CREDS_FILE" {
				continue // opened later
			}
			if !strings.Contains(p.Output(), variable) {
				s.t.Errorf("%s does not say that %s is wrong:\n%s", name, variable, p.Output())
			}
		}
	}
}

// TestUnwritableState has each service stop at once, naming the path and the reason.
func TestUnwritableState(t *testing.T) {
	t.Parallel()
	s := begin(t, patience, lab.Options{})
	const state = "/dev/null/state"
	for name, variable := range map[string]string{"probe": "PROBE_STATE", "notifier": "NOTIFIER_STATE"} {
		p, err := runner.Start(runner.Spec{Name: name, NS: s.NS, Path: runner.Binary(name), Env: []string{variable + "=" + state, "NOTIFIER_ALLOW_ROOT=true"}, Log: &s.log})
		s.must(err)
		t.Cleanup(p.Kill)
		if err := p.Wait(s.ctx); err == nil || !strings.Contains(err.Error(), "exit status 2") {
			t.Errorf("%s: %v, want exit status 2: no start again heals it", name, err)
		}
		for _, text := range []string{state, "not a directory"} {
			if !strings.Contains(p.Output(), text) {
				t.Errorf("%s does not say %q:\n%s", name, text, p.Output())
			}
		}
	}
}
