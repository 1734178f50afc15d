package config

import (
	"bytes"
	"errors"
	"fmt"
	"io"
	"io/fs"
	"net/url"
	"os"
	"regexp"
	"strings"

	"github.com/wgherald/wgherald/services/notifier/internal/sign"
)

// maxFile bounds what is read from one file, in bytes. A hundred hooks need half of it; the YAML parser's time grows with the square of the keys in one mapping.
const maxFile = 128 << 10

// file is what one file holds.
type file struct {
	text []byte
	open bool // readable by every user of the machine
	once bool // a pipe or the like: reading it again yields something else, or waits
}

// readFile returns errors that name the path and what to do.
func readFile(path string) (file, error) {
	f, err := os.Open(path)
	if err != nil {
		return file{}, fileError(path, err)
	}
	defer f.Close()
	info, err := f.Stat()
	if err != nil {
		return file{}, fileError(path, err)
	}
	text, err := io.ReadAll(io.LimitReader(f, maxFile+1))
	if err != nil {
		return file{}, fileError(path, err)
	}
	if len(text) > maxFile {
		return file{}, fmt.Errorf("file %s is larger than %d bytes", path, maxFile)
	}
	text = bytes.TrimPrefix(text, []byte("\ufeff")) // editors of Windows put it there
	return file{text: text, open: info.Mode().Perm()&0o004 != 0, once: !info.Mode().IsRegular()}, nil
}

const notContent = "want the path of a file, not what is in it"

// seed is the form of an nkey's.
var seed = regexp.MustCompile(`^S[A-Z2-7]{57}$`)

// isContent reports whether what should be a path is what should be in the file, which may be a secret.
func isContent(path string) bool {
	return strings.ContainsAny(path, "\n{") || strings.Contains(path, "://") || strings.Contains(path, "-----") || strings.HasPrefix(path, "whsec_") ||
		seed.MatchString(path)
}

func fileError(path string, err error) error {
	if pe, ok := errors.AsType[*fs.PathError](err); ok {
		err = pe.Err
	}
	return fmt.Errorf("file %s cannot be read: %w", path, err)
}

// parseSecret adds to the package's error what to do.
func parseSecret(text string) (sign.Secret, error) {
	s, err := sign.ParseSecret(text)
	if err != nil {
		return s, fmt.Errorf(`%w: make one with: echo "whsec_$(openssl rand -base64 32)"`, err)
	}
	return s, nil
}

// checkURL returns an error that shows nothing of the URL.
func checkURL(text string) error {
	u, err := url.Parse(text)
	switch {
	case err != nil:
		return errors.New("not a URL")
	case u.Scheme != "http" && u.Scheme != "https":
		return errors.New("want an http:// or https:// URL")
	case u.Hostname() == "":
		return errors.New("the URL has no host")
	case u.Port() != "" && !isPort(u.Port()):
		return errors.New("the URL's port is not between 0 and 65535")
	case u.Fragment != "":
		return errors.New("the URL has a fragment (#), which is never sent")
	}
	return nil
}
