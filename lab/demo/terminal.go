package main

import (
	"fmt"
	"os"
	"strings"
	"unicode/utf8"

	"golang.org/x/sys/unix"
)

// The colours in use (ECMA-48, SGR).
const (
	bold   = "1"
	dim    = "2"
	red    = "31"
	green  = "32"
	yellow = "33"
	cyan   = "36"
)

// What a terminal is told to do (ECMA-48 and xterm's alternate screen).
const (
	enterScreen = "\x1b[?1049h\x1b[?25l" // the other screen, no cursor
	leaveScreen = "\x1b[?25h\x1b[?1049l"
	home        = "\x1b[H"
	clearLine   = "\x1b[K"
	clearBelow  = "\x1b[J"
)

// terminal is where the demo writes: a terminal, or a file or pipe that merely gets lines.
type terminal struct {
	out     *os.File
	colour  bool
	redraws bool // it can be written to at any place
}

func openTerminal(out *os.File, getenv func(string) string) *terminal {
	_, err := unix.IoctlGetTermios(int(out.Fd()), unix.TCGETS)
	able := err == nil && getenv("TERM") != "" && getenv("TERM") != "dumb"
	return &terminal{out: out, colour: able && getenv("NO_COLOR") == "", redraws: able} // https://no-color.org
}

// size returns columns and rows.
func (t *terminal) size() (int, int) {
	ws, err := unix.IoctlGetWinsize(int(t.out.Fd()), unix.TIOCGWINSZ)
	if err != nil || ws.Col == 0 || ws.Row == 0 {
		return 80, 24
	}
	return int(ws.Col), int(ws.Row)
}

// printf writes. That nobody reads any more is found out by the next signal, not here.
func (t *terminal) printf(format string, args ...any) { fmt.Fprintf(t.out, format, args...) }

// paint colours s, where there are colours.
func (t *terminal) paint(colour, s string) string {
	if !t.colour || s == "" {
		return s
	}
	return "\x1b[" + colour + "m" + s + "\x1b[0m"
}

// cut shortens a line to width columns. Colours take no room, and are ended.
func cut(line string, width int) string {
	var b strings.Builder
	used, coloured := 0, false
	for len(line) > 0 {
		if strings.HasPrefix(line, "\x1b[") {
			end := strings.IndexByte(line, 'm') + 1
			if end == 0 {
				break
			}
			b.WriteString(line[:end])
			coloured = line[:end] != "\x1b[0m"
			line = line[end:]
			continue
		}
		if used == width {
			break
		}
		_, n := utf8.DecodeRuneInString(line)
		b.WriteString(line[:n])
		line = line[n:]
		used++
	}
	if coloured {
		b.WriteString("\x1b[0m")
	}
	return b.String()
}

// pad fills s up with spaces to width columns.
func pad(s string, width int) string {
	return s + strings.Repeat(" ", max(0, width-utf8.RuneCountInString(s)))
}
