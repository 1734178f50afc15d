// Package names knows what people call their peers: WireGuard itself knows only keys.
//
// It reads two kinds of files, told apart line by line, so that one may be made of both:
//
//	KwfWM3PFygTCMD9DF5DNMCIG9VljSQmV9lbS4tqeDjg= alice laptop #staff #berlin
//
// is a line of our own: a public key, a name, tags. And wg-quick files, with the comments in which common tools keep a peer's name:
//
//	# friendly_name = alice      prometheus_wireguard_exporter, inside or above [Peer]
//	# Name = alice               wg-quick files of many hands, inside or above [Peer]
//	### Client alice             wireguard-install (angristan), above [Peer]
//	# BEGIN_PEER alice           wireguard-install (Nyr), above [Peer]
//	### begin alice ###          PiVPN, above [Peer]
//	# Client: alice (id)         wg-easy, above [Peer]
//
// wg-quick files hold private keys. Of their settings only PublicKey is looked at, nothing else is kept, and no error repeats text of a file.
//
// It does not watch its files: Reader.Changed is cheap enough for the owner to ask every few seconds.
package names

import (
	"fmt"
	"slices"
	"strings"
	"unicode"
	"unicode/utf8"

	"github.com/wgherald/wgherald/pkg/events"
)

// What a name may be. It is put into log lines, terminals and chat messages, so anything else is cleaned away, not refused: bytes that
// are no UTF-8 become U+FFFD, white space of any kind becomes one space, what does not print (control characters, marks that turn the
// direction of text) is dropped, and what is too long is cut at a character.
const (
	maxNameBytes = 128
	maxTagBytes  = 64
	maxTags      = 16
)

// maxErrors bounds what one file reports: something that is no text at all would make thousands.
const maxErrors = 20

// Name is what a peer is called.
type Name struct {
	Name string
	Tags []string // in the order of the file, each once, without their #; only our own lines have any
}

// Book maps public keys to names.
type Book map[events.Key]Name

// Parse reads the text of one file; path is for the errors. A line that is wrong is an error of its own and does not spoil the others. Of
// two names for one key in a file the first counts, and the second is an error.
func Parse(path string, text []byte) (Book, []error) {
	p := parser{path: path, book: make(Book)}
	for line := range strings.Lines(strings.TrimPrefix(string(text), "\ufeff")) {
		p.number++
		p.line(strings.TrimSpace(line))
	}
	p.endComments(nothing)
	p.endSection()
	if p.unreported > 0 {
		p.errs = append(p.errs, fmt.Errorf("%s: %d more lines are wrong", path, p.unreported))
	}
	return p.book, p.errs
}

// parser goes through a file line by line. Lines are comments, section headers, settings, lines of our own, or blank.
//
// A name in a comment belongs to the section in which the comment stands or to the one that follows, and what comes next decides: above a
// setting it is this section's, above a header the next one's. Above a blank line it is this section's when it follows the settings without
// a gap, and the next one's otherwise.
type parser struct {
	path       string
	number     int // of the line, from 1
	book       Book
	errs       []error
	unreported int

	inSection  bool   // below any [header]
	inPeer     bool   // below [Peer]
	headerLine int    // line of that header
	gap        bool   // the last line that is no comment was blank
	key        string // text of PublicKey, empty before it was seen
	keyLine    int
	name       string // of this section
	next       string // of the next section

	comment commentName // in the comments that directly precede this line
}

// commentName is a name found in a comment.
type commentName struct {
	name  string
	above bool // in a form that only stands above its section
	gap   bool // a blank line precedes
}

// follower is what comes after comments.
type follower int

const (
	nothing follower = iota // a blank line or the end of the file
	header
	setting
)

func (p *parser) line(line string) {
	if line == "" {
		p.endComments(nothing)
		p.gap = true
		return
	}
	if strings.HasPrefix(line, "#") {
		p.commentLine(line)
		return
	}
	if first, rest := cutField(line); len(first) == keyChars {
		if key, err := events.ParseKey(first); err == nil {
			p.endComments(nothing)
			p.ownLine(key, rest)
			p.gap = false
			return
		}
	}

	line, _, _ = strings.Cut(line, "#")
	line = strings.TrimSpace(line)
	switch {
	case strings.HasPrefix(line, "["):
		p.endComments(header)
		p.endSection()
		p.inSection, p.inPeer, p.headerLine = true, strings.EqualFold(line, "[Peer]"), p.number
		if p.inPeer {
			p.name = p.next
		}
		p.next = ""
	case !p.inSection:
		p.endComments(nothing)
		p.fail(p.number, "starts with neither a public key nor a [section]: want \"publickey name #tag\", or a # before a comment")
	default:
		p.endComments(setting)
		if name, value, ok := strings.Cut(line, "="); p.inPeer && ok && strings.EqualFold(strings.TrimSpace(name), "PublicKey") {
			p.key, p.keyLine = strings.TrimSpace(value), p.number
		}
	}
	p.gap = false
}

// keyChars is the length of a key in base64.
const keyChars = 44

// cutField returns the first field of line and what follows it.
func cutField(line string) (first, rest string) {
	if i := strings.IndexFunc(line, unicode.IsSpace); i >= 0 {
		return line[:i], line[i:]
	}
	return line, ""
}

// commentLine remembers a name. A peer that is commented out takes the name above it along.
func (p *parser) commentLine(line string) {
	if text := strings.TrimLeft(line, "# \t"); strings.HasPrefix(text, "[") {
		p.comment, p.next = commentName{}, ""
		return
	}
	name, above := nameInComment(line)
	if name = clean(name, maxNameBytes); name == "" {
		return
	}
	if p.comment.name == "" {
		p.comment.gap = p.gap
	}
	p.comment.name, p.comment.above = name, above
}

// endComments gives the name in the comments before this line to the section it belongs to.
func (p *parser) endComments(f follower) {
	c := p.comment
	p.comment = commentName{}
	switch {
	case c.name == "":
	case f == setting && p.inPeer, f == nothing && p.inPeer && !c.above && !c.gap:
		p.name = c.name
	case f == setting:
		// It says what an [Interface] is called.
	default:
		p.next = c.name
	}
}

// endSection puts the peer of this section into the book.
func (p *parser) endSection() {
	switch {
	case !p.inPeer || p.name == "":
	case p.key == "":
		p.fail(p.headerLine, "this [Peer] has a name and no PublicKey")
	default:
		key, err := events.ParseKey(p.key)
		if err != nil {
			p.fail(p.keyLine, "PublicKey is not 44 characters of base64 that encode 32 bytes")
		} else {
			p.add(p.keyLine, key, Name{Name: p.name})
		}
	}
	p.inPeer, p.key, p.name = false, "", ""
}

// ownLine reads what follows the key on a line of our own.
func (p *parser) ownLine(key events.Key, rest string) {
	var words []string
	var n Name
	for _, field := range strings.Fields(rest) {
		text, isTag := strings.CutPrefix(field, "#")
		switch {
		case isTag:
			if tag := clean(text, maxTagBytes); tag != "" && !slices.Contains(n.Tags, tag) {
				n.Tags = append(n.Tags, tag)
			}
		case len(n.Tags) > 0:
			p.fail(p.number, "a word after the tags lacks its #: want \"publickey name #tag #tag\"")
			return
		default:
			words = append(words, field)
		}
	}
	n.Name = clean(strings.Join(words, " "), maxNameBytes)
	switch {
	case n.Name == "":
		p.fail(p.number, "the key has no name: want \"publickey name #tag #tag\"")
	case len(n.Tags) > maxTags:
		p.fail(p.number, fmt.Sprintf("%d tags are too many, at most %d are kept", len(n.Tags), maxTags))
		n.Tags = n.Tags[:maxTags]
		fallthrough
	default:
		p.add(p.number, key, n)
	}
}

func (p *parser) add(line int, key events.Key, n Name) {
	if _, ok := p.book[key]; ok {
		p.fail(line, "this key has a name already, remove one of them")
		return
	}
	p.book[key] = n
}

func (p *parser) fail(line int, what string) {
	if len(p.errs) == maxErrors {
		p.unreported++
		return
	}
	p.errs = append(p.errs, fmt.Errorf("%s:%d: %s", p.path, line, what))
}

// nameInComment returns the name in a comment line, and whether its form only stands above a [Peer]; "" when there is none.
func nameInComment(line string) (name string, above bool) {
	if name, ok := strings.CutPrefix(line, "### Client "); ok {
		return name, true
	}
	if name, ok := strings.CutPrefix(line, "# BEGIN_PEER "); ok {
		return name, true
	}
	if name, ok := strings.CutPrefix(line, "### begin "); ok {
		return strings.TrimSuffix(name, " ###"), true
	}
	if name, ok := strings.CutPrefix(line, "# Client: "); ok {
		if i := strings.LastIndex(name, " ("); i >= 0 && strings.HasSuffix(name, ")") {
			name = name[:i]
		}
		return name, true
	}
	field, value, ok := strings.Cut(strings.TrimLeft(line, "#"), "=")
	field = strings.TrimSpace(field)
	if ok && (strings.EqualFold(field, "friendly_name") || strings.EqualFold(field, "Name")) {
		return value, false
	}
	return "", false
}

// clean makes a name of s, of at most limit bytes; see maxNameBytes.
func clean(s string, limit int) string {
	s = strings.Map(func(r rune) rune {
		switch {
		case unicode.IsSpace(r):
			return ' '
		case unicode.IsPrint(r):
			return r
		}
		return -1
	}, strings.ToValidUTF8(s, string(utf8.RuneError)))
	s = strings.Join(strings.Fields(s), " ")
	for len(s) > limit {
		_, size := utf8.DecodeLastRuneInString(s)
		s = s[:len(s)-size]
	}
	return strings.TrimSpace(s)
}
