package wgstate

import (
	"errors"
	"fmt"
	"path"
	"strings"
)

// Filter chooses interfaces by name. The zero Filter takes all.
type Filter struct {
	include, exclude []string
}

// ParseGlobs reads comma-separated patterns in the syntax of path.Match, such as "wg*,!wg-test*". A name is taken when a pattern matches
// it, or there is no pattern but excluding ones, and no pattern after a "!" matches it; the order does not matter. The error names every
// pattern that is malformed.
func ParseGlobs(s string) (Filter, error) {
	var f Filter
	var errs []error
	for item := range strings.SplitSeq(s, ",") {
		item = strings.TrimSpace(item)
		if item == "" {
			continue
		}
		pattern, excluding := strings.CutPrefix(item, "!")
		if _, err := path.Match(pattern, ""); err != nil || pattern == "" {
			errs = append(errs, fmt.Errorf("interface pattern %q is malformed: want a name with * ? [a-z], or ! and such a name", item))
			continue
		}
		if excluding {
			f.exclude = append(f.exclude, pattern)
		} else {
			f.include = append(f.include, pattern)
		}
	}
	if err := errors.Join(errs...); err != nil {
		return Filter{}, err
	}
	return f, nil
}

// Match reports whether the interface called name is taken.
func (f Filter) Match(name string) bool {
	return (len(f.include) == 0 || matchAny(f.include, name)) && !matchAny(f.exclude, name)
}

func matchAny(patterns []string, name string) bool {
	for _, p := range patterns {
		if ok, _ := path.Match(p, name); ok { // ParseGlobs has refused malformed ones
			return true
		}
	}
	return false
}
