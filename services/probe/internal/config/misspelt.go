package config

import (
	"fmt"
	"reflect"
	"regexp"
	"slices"
	"strings"
)

// kubernetes is the form of the variables that Kubernetes sets for a service, here for one whose name begins with probe or nats.
var kubernetes = regexp.MustCompile(`_(SERVICE_HOST|SERVICE_PORT(_.+)?|PORT|PORT_[0-9]+_(TCP|UDP|SCTP)(_(PROTO|PORT|ADDR))?)$`)

// misspelt names variables with our prefix that mean nothing: what they were to change stays as it is, and nobody would notice. NATS_ is a word that others
// use as well; of these only what is one or two letters from one of ours is refused.
func misspelt(environ []string) []error {
	var known []string
	for field := range reflect.TypeFor[environment]().Fields() {
		known = append(known, field.Tag.Get("envconfig"))
	}
	var problems []error
	for _, entry := range environ {
		name, _, _ := strings.Cut(entry, "=")
		ours := strings.HasPrefix(name, "PROBE_")
		if !ours && !strings.HasPrefix(name, "NATS_") || slices.Contains(known, name) || kubernetes.MatchString(name) {
			continue
		}
		switch s := suggest(name, known); {
		case s != "":
			problems = append(problems, fmt.Errorf("%s: there is no such variable: did you mean %s?", name, s))
		case ours:
			all := slices.DeleteFunc(slices.Sorted(slices.Values(known)), func(k string) bool { return !strings.HasPrefix(k, "PROBE_") })
			problems = append(problems, fmt.Errorf("%s: there is no such variable: there are %s", name, strings.Join(all, ", ")))
		}
	}
	return problems
}

// suggest returns the known word that is nearest to one that is not known, or nothing where none is within two letters.
func suggest(word string, known []string) string {
	best, distance := "", 3
	for _, k := range known {
		if d := editDistance(word, k); d < distance {
			best, distance = k, d
		}
	}
	return best
}

// editDistance counts insertions, deletions and replacements of bytes (Levenshtein).
func editDistance(a, b string) int {
	row := make([]int, len(b)+1)
	for j := range row {
		row[j] = j
	}
	for i := range len(a) {
		diagonal := row[0]
		row[0] = i + 1
		for j := range len(b) {
			cost := diagonal
			if a[i] != b[j] {
				cost++
			}
			diagonal = row[j+1]
			row[j+1] = min(cost, row[j+1]+1, row[j]+1)
		}
	}
	return row[len(b)]
}
