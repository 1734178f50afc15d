package main

import (
	"bufio"
	"context"
	"crypto/ecdsa"
	"crypto/elliptic"
	"crypto/rand"
	"crypto/tls"
	"crypto/x509"
	"crypto/x509/pkix"
	"encoding/base64"
	"encoding/json"
	"encoding/pem"
	"errors"
	"fmt"
	"io"
	"math/big"
	"net"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"syscall"
	"testing"
	"time"

	"github.com/google/go-cmp/cmp"
	"github.com/nats-io/nats.go"
	"github.com/nats-io/nats.go/jetstream"
	"github.com/nats-io/nkeys"

	"github.com/wgherald/wgherald/pkg/events"
)

// broker is a notifier with its own broker, on a port of loopback.
type broker struct{ addr, state string }

func startBroker(t *testing.T) broker {
	t.Helper()
	bin := filepath.Join(t.TempDir(), "notifier")
	build := exec.CommandContext(t.Context(), "go", "build", "-o", bin, ".")
	build.Dir = filepath.Join("..", "..", "..", "services", "notifier")
	if out, err := build.CombinedOutput(); err != nil {
		t.Fatalf("%v\n%s", err, out)
	}
	free, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	free.Close()
	b := broker{free.Addr().String(), filepath.Join(t.TempDir(), "state")}
	var log page
	c := exec.Command(bin)
	c.Env = []string{"NOTIFIER_STATE=" + b.state, "NOTIFIER_LISTEN=" + b.addr, "NOTIFIER_ALLOW_ROOT=true"}
	c.Stderr = &log
	if err := c.Start(); err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() {
		c.Process.Signal(syscall.SIGTERM)
		if err := c.Wait(); err != nil {
			t.Error(err, log.All())
		}
	})
	ctx, cancel := context.WithTimeout(t.Context(), 60*time.Second)
	defer cancel()
	log.wait(t, ctx, "notifier is ready")
	return b
}

func (b broker) nkey(identity string) string {
	return filepath.Join(b.state, "identities", identity+".nk")
}

func (b broker) args(more ...string) []string {
	return append([]string{"-url", "nats://" + b.addr, "-nkey", b.nkey("reader"), "-keyring", filepath.Join(b.state, "keyring")}, more...)
}

// endpoint is that of event n.
func endpoint(n uint64) string { return fmt.Sprintf("203.0.113.7:%d", n) }

func (b broker) connect(t *testing.T, identity string) *nats.Conn {
	t.Helper()
	login, err := nats.NkeyOptionFromSeed(b.nkey(identity))
	if err != nil {
		t.Fatal(err)
	}
	nc, err := nats.Connect("nats://"+b.addr, login, nats.CustomInboxPrefix("_INBOX_"+identity))
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(nc.Close)
	return nc
}

// publish does what the probe does.
func (b broker) publish(t *testing.T, n uint64) {
	t.Helper()
	seed, err := os.ReadFile(b.nkey("probe"))
	if err != nil {
		t.Fatal(err)
	}
	key, err := nkeys.ParseDecoratedNKey(seed)
	if err != nil {
		t.Fatal(err)
	}
	m := nats.NewMsg("wg.peer.connected")
	e := connected(n)
	e.Peer().Endpoint = endpoint(n)
	m.Data = encode(t, e)
	signature, err := key.Sign(m.Data)
	if err != nil {
		t.Fatal(err)
	}
	m.Header.Set(events.HeaderSignature, base64.StdEncoding.EncodeToString(signature))
	ack, err := b.connect(t, "probe").RequestMsg(m, 10*time.Second)
	if err != nil || !strings.Contains(string(ack.Data), `"seq"`) {
		t.Fatalf("%s, %v", ack.Data, err)
	}
}

// follow runs the program until it has printed as many lines as wanted, and returns them.
func follow(t *testing.T, args []string, lines int) []string {
	t.Helper()
	ctx, cancel := context.WithTimeout(t.Context(), 30*time.Second)
	defer cancel()
	var out, problems page
	subscribed, unsubscribe := context.WithCancel(ctx)
	ended := make(chan error, 1)
	go func() { ended <- run(subscribed, args, &out, &problems) }()
	for n := range lines {
		if _, err := out.WaitFrom(ctx, n, func(string) bool { return true }); err != nil {
			t.Errorf("prints %q, and says %q: %v", out.All(), problems.All(), err)
			break
		}
	}
	unsubscribe()
	if err := <-ended; err != nil {
		t.Fatal(err)
	}
	return out.All()
}

// TestBroker asks a real broker.
func TestBroker(t *testing.T) {
	t.Parallel()
	b := startBroker(t)
	t.Run("durable", func(t *testing.T) { testDurable(t, b) })
	t.Run("wrong key", func(t *testing.T) { testWrongKey(t, b) })
	t.Run("TLS", func(t *testing.T) { testTLS(t, b) })
}

// testDurable stops the program and starts it again.
func testDurable(t *testing.T, b broker) {
	shows := func(args []string, want ...string) {
		t.Helper()
		got := follow(t, args, len(want))
		for i := range got {
			_, got[i], _ = strings.Cut(got[i], " from ") // the endpoint, by which these events differ
		}
		if diff := cmp.Diff(want, got); diff != "" {
			t.Error(diff)
		}
	}
	b.publish(t, 1)
	b.publish(t, 2)
	shows(b.args("-durable", "mine"), endpoint(1), endpoint(2)) // what was there before it
	b.publish(t, 3)
	shows(b.args("-durable", "mine"), endpoint(3)) // what came while it was away, and nothing twice
	shows(b.args("-durable", "other"), endpoint(1), endpoint(2), endpoint(3))

	ctx, cancel := context.WithTimeout(t.Context(), 30*time.Second)
	defer cancel()
	var out, problems page
	ended := make(chan error, 1)
	go func() { ended <- run(ctx, b.args("-durable", "gone"), &out, &problems) }()
	out.wait(t, ctx, endpoint(3))
	js, err := jetstream.New(b.connect(t, "reader"))
	if err != nil {
		t.Fatal(err)
	}
	if err := js.DeleteConsumer(ctx, events.StreamEvents, "gone"); err != nil {
		t.Fatal(err)
	}
	if err := <-ended; !errors.Is(err, jetstream.ErrConsumerDeleted) {
		t.Errorf("ends with %v after its consumer was deleted", err)
	}
}

// testWrongKey logs in with the keys that lie beside the reader's.
func testWrongKey(t *testing.T, b broker) {
	tests := map[string]struct{ nkey, want string }{
		"the probe's":    {b.nkey("probe"), "this is no reader's key"},
		"the operator's": {b.nkey("operator"), "this is no reader's key"},
		"none":           {"", "the broker wants a key"},
	}
	for name, tt := range tests {
		for mode, args := range map[string][]string{"live": nil, "durable": {"-durable", "mine"}} {
			t.Run(name+", "+mode, func(t *testing.T) {
				t.Parallel()
				var out, problems page
				err := run(t.Context(), b.args(append(args, "-nkey", tt.nkey)...), &out, &problems)
				if err == nil || !strings.Contains(err.Error(), tt.want) {
					t.Errorf("error %v, want %q", err, tt.want)
				}
				if problems.Len() > 0 {
					t.Errorf("before that it says %q", problems.All())
				}
			})
		}
	}
}

// testTLS has something before the broker that wants a certificate, and shows one itself.
func testTLS(t *testing.T, b broker) {
	ca, server, file := newPKI(t)
	b.addr = terminate(t, b.addr, &tls.Config{Certificates: []tls.Certificate{server}, ClientCAs: ca, ClientAuth: tls.RequireAndVerifyClientCert})
	ctx, cancel := context.WithTimeout(t.Context(), 30*time.Second)
	defer cancel()
	var out, problems page
	subscribed, unsubscribe := context.WithCancel(ctx)
	ended := make(chan error, 1)
	go func() {
		ended <- run(subscribed, b.args("-ca", file("ca.crt"), "-cert", file("client.crt"), "-key", file("client.key")), &out, &problems)
	}()
	problems.wait(t, ctx, "subscribed to wg.peer.*")
	unsubscribe()
	if err := <-ended; err != nil {
		t.Error(err)
	}
	for name, tt := range map[string]struct {
		args []string
		want string
	}{
		"no CA":                      {nil, "with -ca"},
		"no certificate":             {[]string{"-ca", file("ca.crt")}, "with -cert and -key"},
		"another name":               {[]string{"-ca", file("ca.crt"), "-url", strings.Replace("nats://"+b.addr, "127.0.0.1", "localhost", 1)}, "localhost"},
		"a certificate without key":  {[]string{"-cert", file("client.crt")}, "-cert and -key go together"},
		"a key without certificate":  {[]string{"-key", file("client.key")}, "-cert and -key go together"},
		"a CA that is not there":     {[]string{"-ca", "/nonexistent"}, "/nonexistent"},
		"a client that is not there": {[]string{"-cert", "/nonexistent", "-key", "/nonexistent"}, "/nonexistent"},
	} {
		t.Run(name, func(t *testing.T) {
			var out, problems page
			if err := run(t.Context(), b.args(tt.args...), &out, &problems); err == nil || !strings.Contains(err.Error(), tt.want) {
				t.Errorf("error %v, want %q", err, tt.want)
			}
		})
	}
}

// newPKI makes a CA, what the broker shows, and files for the client.
func newPKI(t *testing.T) (*x509.CertPool, tls.Certificate, func(name string) string) {
	t.Helper()
	dir := t.TempDir()
	file := func(name string) string { return filepath.Join(dir, name) }
	var ca *x509.Certificate
	var caKey *ecdsa.PrivateKey
	issue := func(name string, usage x509.ExtKeyUsage) {
		key, err := ecdsa.GenerateKey(elliptic.P256(), rand.Reader)
		if err != nil {
			t.Fatal(err)
		}
		c := &x509.Certificate{
			SerialNumber: big.NewInt(time.Now().UnixNano()), Subject: pkix.Name{CommonName: name}, NotBefore: time.Now().Add(-time.Hour), NotAfter: time.Now().Add(time.Hour),
			ExtKeyUsage: []x509.ExtKeyUsage{usage}, IPAddresses: []net.IP{net.IPv4(127, 0, 0, 1)},
		}
		if ca == nil {
			c.IsCA, c.BasicConstraintsValid, c.KeyUsage, c.ExtKeyUsage = true, true, x509.KeyUsageCertSign, nil
			ca, caKey = c, key
		}
		der, err := x509.CreateCertificate(rand.Reader, c, ca, &key.PublicKey, caKey)
		if err != nil {
			t.Fatal(err)
		}
		if ca == c {
			if ca, err = x509.ParseCertificate(der); err != nil {
				t.Fatal(err)
			}
		}
		text, err := x509.MarshalPKCS8PrivateKey(key)
		if err != nil {
			t.Fatal(err)
		}
		for suffix, block := range map[string]*pem.Block{".crt": {Type: "CERTIFICATE", Bytes: der}, ".key": {Type: "PRIVATE KEY", Bytes: text}} {
			if err := os.WriteFile(file(name+suffix), pem.EncodeToMemory(block), 0o600); err != nil {
				t.Fatal(err)
			}
		}
	}
	issue("ca", 0)
	issue("server", x509.ExtKeyUsageServerAuth)
	issue("client", x509.ExtKeyUsageClientAuth)
	server, err := tls.LoadX509KeyPair(file("server.crt"), file("server.key"))
	if err != nil {
		t.Fatal(err)
	}
	pool := x509.NewCertPool()
	pool.AddCert(ca)
	return pool, server, file
}

// terminate serves a broker that speaks no TLS as one that does: it says so in the broker's greeting (INFO), after which the client begins its handshake.
func terminate(t *testing.T, plain string, config *tls.Config) string {
	t.Helper()
	l, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { l.Close() })
	serve := func(client net.Conn) error {
		defer client.Close()
		server, err := net.Dial("tcp", plain)
		if err != nil {
			return err
		}
		defer server.Close()
		from := bufio.NewReader(server)
		greeting, err := from.ReadString('\n')
		if err != nil {
			return err
		}
		var info map[string]any
		if err := json.Unmarshal([]byte(strings.TrimPrefix(greeting, "INFO ")), &info); err != nil {
			return err
		}
		info["tls_required"], info["tls_verify"] = true, true
		text, err := json.Marshal(info)
		if err != nil {
			return err
		}
		fmt.Fprintf(client, "INFO %s\r\n", text)
		secure := tls.Server(client, config)
		go func() {
			io.Copy(server, secure)
			server.Close()
		}()
		_, err = io.Copy(secure, from)
		return err
	}
	go func() {
		for {
			client, err := l.Accept()
			if err != nil {
				return
			}
			go serve(client)
		}
	}()
	return l.Addr().String()
}
