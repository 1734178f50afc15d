package main

import (
	"fmt"
	"io"
	"math"
	"slices"
	"strings"
	"text/tabwriter"
	"time"
)

// table prints rows under a title, in columns; cells are separated by tabs.
func table(w io.Writer, title string, rows ...string) {
	fmt.Fprintf(w, "%s\n", title)
	t := tabwriter.NewWriter(w, 0, 0, 3, ' ', 0)
	for _, r := range rows {
		fmt.Fprintf(t, "  %s\n", r)
	}
	t.Flush() // to a buffer or a terminal: who reads it sees what is missing
	fmt.Fprintln(w)
}

// cells joins the cells of a row.
func cells(values ...any) string {
	texts := make([]string, len(values))
	for i, v := range values {
		texts[i] = fmt.Sprint(v)
	}
	return strings.Join(texts, "\t")
}

// met tells whether an aim was reached.
func met(ok bool) string {
	if ok {
		return "met"
	}
	return "missed"
}

// quantile returns the value that the share q of the sorted values does not exceed (nearest rank). There must be a value.
func quantile[T any](sorted []T, q float64) T {
	return sorted[max(0, int(math.Ceil(q*float64(len(sorted))))-1)]
}

func median(values []float64) float64 {
	sorted := slices.Sorted(slices.Values(values))
	n := len(sorted)
	return (sorted[(n-1)/2] + sorted[n/2]) / 2
}

func ms(d time.Duration) string { return fmt.Sprintf("%.1f", float64(d)/float64(time.Millisecond)) }
