package events

import (
	"bytes"
	"encoding/json"
	"fmt"
)

// maxKeys bounds the keys of one object: each is compared with those before it.
const maxKeys = 256

// checkKeys returns an error that names a key which an object of a valid JSON text has twice, in the same or another case: package json takes keys in any
// case and the last of them, others take them as they are, or the first.
func checkKeys(text []byte) error {
	var roomForKeys [48][]byte // more than an event of the catalogue has
	var roomForOpen [16]int
	keys := roomForKeys[:0] // of all objects that are open
	open := roomForOpen[:0] // where the keys of each open object or array begin
	for i := 0; i < len(text); i++ {
		switch text[i] {
		case '{', '[':
			open = append(open, len(keys))
		case '}', ']':
			last := len(open) - 1
			keys, open = keys[:open[last]], open[:last]
		case '"':
			begin, escaped := i, false
			for i++; text[i] != '"'; i++ {
				if text[i] == '\\' {
					escaped = true
					i++
				}
			}
			if !beforeColon(text[i+1:]) {
				continue
			}
			key := text[begin+1 : i]
			if escaped {
				var plain string
				if err := json.Unmarshal(text[begin:i+1], &plain); err != nil {
					return err // cannot be: the text is valid
				}
				key = []byte(plain)
			}
			others := keys[open[len(open)-1]:]
			if len(others) == maxKeys {
				return fmt.Errorf("an object has more than %d keys", maxKeys)
			}
			for _, other := range others {
				if bytes.EqualFold(key, other) { // as package json compares
					return fmt.Errorf("key %.40q is given twice", key)
				}
			}
			keys = append(keys, key)
		}
	}
	return nil
}

// beforeColon reports whether a colon is next: what stands before it is a key.
func beforeColon(rest []byte) bool {
	for _, c := range rest {
		switch c {
		case ' ', '\t', '\r', '\n':
		default:
			return c == ':'
		}
	}
	return false
}
