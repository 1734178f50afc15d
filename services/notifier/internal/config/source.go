package config

import (
	"crypto/sha256"
	"maps"
)

// Source says where hooks come from, so that they can be read again while the notifier runs. The variables themselves cannot change by then.
type Source struct {
	File       string // the hooks file; empty is none
	URL        Secret // of the hook named DefaultHook; empty is none
	Secret     Secret // signs its requests, and so does the one in SecretFile: one of them at most is set
	SecretFile string
}

// HookSet is what was read from a Source.
type HookSet struct {
	Hooks    []Hook
	Warnings []string // about what works and is probably not meant; they show no secret
	Files    Files    // that it was read from
}

// Read reads the hooks with all the files that they name. Its error is Problems: all of them. Files is complete even then.
func (s Source) Read() (HookSet, error) {
	l := newLoader()
	hooks := l.hooks(s)
	set := HookSet{Hooks: hooks, Warnings: l.warnings, Files: l.files}
	if len(l.problems) > 0 {
		set.Hooks = nil
		return set, l.problems
	}
	return set, nil
}

// Files are the states of files, by path: what they hold, or that they cannot be read. Only contents count: time stamps have grains, and a link, or a directory on
// the way, may lead elsewhere without any of its own.
type Files map[string][sha256.Size]byte

// Again returns the states of the same files now.
func (f Files) Again() Files {
	now := Files{}
	for path := range f {
		_, _ = now.add(path) // an error is a state
	}
	return now
}

// Equal reports whether both are the same files in the same states.
func (f Files) Equal(o Files) bool { return maps.Equal(f, o) }

// add reads a file and notes its state.
func (f Files) add(path string) (file, error) {
	content, err := readFile(path)
	switch {
	case err != nil:
		f[path] = sha256.Sum256([]byte("no file: " + err.Error()))
	case content.once:
		delete(f, path)
	default:
		f[path] = sha256.Sum256(content.text)
	}
	return content, err
}
