package config

import (
	"fmt"
	"strings"
)

// Problem is one thing that is wrong in the configuration, in words that show no secret.
type Problem struct {
	File  string // the hooks file; empty for an environment variable
	Line  int    // in File, from 1; 0 for the file as a whole
	Hook  string // name, or #n for the nth hook of a file where it has no valid name
	Field string // key in the file, or name of the variable
	Text  string
}

func (p Problem) String() string {
	var parts []string
	if p.File != "" {
		where := p.File
		if p.Line > 0 {
			where = fmt.Sprintf("%s:%d", p.File, p.Line)
		}
		parts = append(parts, where)
	}
	if p.Hook != "" {
		parts = append(parts, "hook "+p.Hook)
	}
	if p.Field != "" {
		parts = append(parts, p.Field)
	}
	return strings.Join(append(parts, p.Text), ": ")
}

// Problems is everything that is wrong, as an error with a line for each.
type Problems []Problem

func (p Problems) Error() string {
	lines := make([]string, len(p))
	for i, one := range p {
		lines[i] = one.String()
	}
	return strings.Join(lines, "\n")
}

// Suggest returns the known word that a misspelt one may stand for, or "".
func Suggest(word string, known []string) string { return suggest(word, known) }

// suggest returns the known word that is at most two typing errors from word, or "".
func suggest(word string, known []string) string {
	best, distance := "", 3
	for _, k := range known {
		if d := editDistance(word, k); d < distance && d < len(k) {
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
