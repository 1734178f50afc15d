package admin

import (
	"context"
	"errors"
	"fmt"
	"log/slog"
	"os"
	"path/filepath"

	"github.com/nats-io/nats.go"
	"github.com/nats-io/nats.go/jetstream"

	"github.com/wgherald/wgherald/services/notifier/internal/broker"
	"github.com/wgherald/wgherald/services/notifier/internal/config"
)

// Connect logs in to the broker that cfg names, as broker.Operator or broker.Notifier. The embedded one is that of a notifier that runs on this machine.
// keyFile is the nkey seed to use; when it is empty, it is the one in the state directory of an embedded broker, or the login of cfg. The errors say what
// to do.
func Connect(ctx context.Context, cfg config.Config, role, keyFile string, log *slog.Logger) (jetstream.JetStream, error) {
	o := broker.ConnectOptions{
		URL: cfg.NATS.URL.Reveal(), Name: "wgherald-" + role, Role: role, Once: true,
		NkeyFile: keyFile, CAFile: cfg.NATS.CAFile, CertFile: cfg.NATS.CertFile, KeyFile: cfg.NATS.KeyFile,
	}
	away := "is the broker of NATS_URL up, and reached from here?"
	switch {
	case cfg.NATS.Embedded():
		o.URL = "nats://" + cfg.Listen
		away = "is the notifier running? Without NATS_URL the broker is part of it, at NOTIFIER_LISTEN=" + cfg.Listen
		if keyFile == "" {
			o.NkeyFile = broker.IdentityFile(filepath.Join(cfg.State, "identities"), role)
		}
	case keyFile == "":
		o.NkeyFile, o.CredsFile = cfg.NATS.NkeyFile, cfg.NATS.CredsFile
	}
	if o.NkeyFile != "" {
		if err := readable(o.NkeyFile); err != nil {
			return nil, fmt.Errorf("the %s's key file %s: %w: run this as the notifier's user on its machine with its NOTIFIER_STATE, "+
				"or name the file that `notifier keys` wrote (%[1]s/%[1]s.nk)", role, o.NkeyFile, err)
		}
	}
	nc, err := broker.Connect(ctx, o, log)
	switch {
	case errors.Is(err, nats.ErrAuthorization), errors.Is(err, nats.ErrAuthExpired):
		return nil, fmt.Errorf("the broker refuses this login: it must be the %s's, whose key file `notifier keys` wrote (%[1]s/%[1]s.nk)", role)
	case err != nil:
		return nil, fmt.Errorf("%w: %s", err, away)
	}
	js, err := jetstream.New(nc)
	if err != nil {
		nc.Close()
		return nil, err
	}
	return js, nil
}

func readable(path string) error {
	f, err := os.Open(path)
	if pe, ok := errors.AsType[*os.PathError](err); ok {
		return pe.Err
	}
	if err != nil {
		return err
	}
	return f.Close()
}

// Open returns a stream, or an error that says what to do.
func Open(ctx context.Context, js jetstream.JetStream, name string) (jetstream.Stream, error) {
	stream, err := js.Stream(ctx, name)
	switch {
	case errors.Is(err, jetstream.ErrStreamNotFound):
		return nil, fmt.Errorf("the broker has no stream %s: run notifier provision", name)
	case errors.Is(err, context.DeadlineExceeded), errors.Is(err, nats.ErrTimeout):
		return nil, fmt.Errorf("the broker does not answer about stream %s: this login may lack the permission (-key names the operator's key file), or JetStream is off", name)
	case err != nil:
		return nil, fmt.Errorf("stream %s: %w", name, err)
	}
	return stream, nil
}
