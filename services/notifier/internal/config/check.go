package config

import (
	"cmp"
	"fmt"
	"io"
	"maps"
	"slices"
	"strings"
	"time"
	"unicode"
	"unicode/utf8"

	"github.com/wgherald/wgherald/services/notifier/internal/consume"
	"github.com/wgherald/wgherald/services/notifier/internal/deliver"
	"github.com/wgherald/wgherald/services/notifier/internal/render"
)

// Check reads a hooks file as Load does, with the files that it names. Its error is Problems: all of them.
func Check(path string) ([]Hook, []string, error) {
	l := newLoader()
	hooks := l.hooksFile("", path, map[string]string{})
	if len(l.problems) > 0 {
		return nil, l.warnings, l.problems
	}
	return hooks, l.warnings, nil
}

// width is that of Describe's lines, where the words allow it.
const width = 100

// Describe prints what each hook does, a paragraph for each. It shows scheme and host of a URL, names of headers and numbers of secrets, and nothing else of them.
func Describe(w io.Writer, hooks []Hook) error {
	var out strings.Builder
	for i, h := range hooks {
		if i > 0 {
			out.WriteByte('\n')
		}
		fmt.Fprintln(&out, h.Name)
		for _, row := range [][2]string{
			{"to", Redact(h.URL.Reveal())}, {"format", h.describeFormat()}, {"signed", h.describeSigned()}, {"with", h.describeWay()}, {"timeout", h.describeTime()},
			{"retry", h.describeRetry()}, {"limit", h.describeLimit()}, {"events", h.describeEvents()},
		} {
			line := fmt.Sprintf("  %-8s", row[0])
			for word := range strings.FieldsSeq(row[1]) {
				if utf8.RuneCountInString(line)+1+utf8.RuneCountInString(word) > width && line != indent {
					fmt.Fprintln(&out, line)
					line = indent
				}
				line += " " + printable(word)
			}
			fmt.Fprintln(&out, line)
		}
	}
	_, err := io.WriteString(w, out.String())
	return err
}

const indent = "          "

// printable keeps what a file says from looking like something else.
func printable(text string) string {
	return strings.Map(func(r rune) rune {
		if unicode.IsPrint(r) {
			return r
		}
		return '?'
	}, text)
}

func (h Hook) describeFormat() string {
	text := cmp.Or(h.Format, render.Names[0])
	if h.Template.Reveal() != "" {
		text = "template, " + h.ContentType
	}
	if len(h.Redact) > 0 {
		text += ", without " + strings.Join(h.Redact, " ")
	}
	return text
}

func (h Hook) describeSigned() string {
	switch n := len(h.Secrets); n {
	case 0:
		return "no"
	case 1:
		return "yes"
	default:
		return fmt.Sprintf("by %d secrets", n)
	}
}

func (h Hook) describeWay() string {
	var with []string
	if names := slices.Sorted(maps.Keys(h.Headers)); names != nil {
		with = append(with, "headers "+strings.Join(names, " "))
	}
	if h.CA != "" {
		with = append(with, "own authorities")
	}
	if h.Cert != "" {
		with = append(with, "client certificate")
	}
	if proxy := h.Proxy.Reveal(); proxy != "" {
		with = append(with, "proxy "+Redact(proxy))
	}
	if h.PublicOnly {
		with = append(with, "public addresses only")
	}
	return cmp.Or(strings.Join(with, ", "), "-")
}

func (h Hook) describeTime() string {
	return fmt.Sprintf("%s, to connect %s", span(h.Timeout), span(cmp.Or(h.ConnectTimeout, deliver.DefaultConnectTimeout)))
}

func (h Hook) describeRetry() string {
	r := h.Schedule()
	text := fmt.Sprintf("%s ×%g to %s ±%.3g%%, until %s", span(r.Initial), r.Factor, span(r.Max), 100*r.Jitter, span(r.GiveUp))
	if h.Other4xx {
		text += ", other 4xx too"
	}
	return text
}

func (h Hook) describeLimit() string {
	text := fmt.Sprintf("%d at a time", cmp.Or(h.Concurrency, deliver.DefaultConcurrency))
	if h.Policy.Rate > 0 {
		text += fmt.Sprintf(", one in %s", time.Duration(float64(time.Second)/h.Policy.Rate).Round(time.Microsecond))
	}
	if h.Policy.Order == consume.Unordered {
		text += ", in any order"
	}
	if h.Policy.Hold > 0 {
		text += fmt.Sprintf(", disconnects held back %s", span(h.Policy.Hold))
	}
	switch from := h.Policy.From; {
	case from.All:
		text += ", from the beginning"
	case from.Ago > 0:
		text += fmt.Sprintf(", from %s ago", span(from.Ago))
	}
	return text
}

func (h Hook) describeEvents() string {
	var lists []string
	for _, f := range []struct {
		name     string
		patterns []string
	}{
		{"types", h.Rules.Types}, {"nodes", h.Rules.Nodes}, {"interfaces", h.Rules.Interfaces},
		{"peers", h.Rules.Peers}, {"tags", h.Rules.Tags}, {"endpoints", h.Rules.Endpoints},
	} {
		if len(f.patterns) > 0 {
			lists = append(lists, f.name+" "+strings.Join(f.patterns, " "))
		}
	}
	return cmp.Or(strings.Join(lists, "; "), "all")
}
