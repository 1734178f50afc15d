package render

import (
	"bytes"
	"encoding/json"
	"errors"
	"fmt"
	"maps"
	"slices"
	"strings"

	"github.com/wgherald/wgherald/pkg/events"
)

// fields are what can be left out of events, and how, in their data as JSON. What is left is an event of the same type that package events reads. The
// public key cannot: subject and partition key are made of it.
var fields = map[string]func(data map[string]any){
	"endpoint": func(data map[string]any) {
		drop(data, "endpoint")
		drop1(data, "from")
		drop1(data, "to")
	},
	"name": func(data map[string]any) { drop(data, "name") },
	"tags": func(data map[string]any) { drop(data, "tags") },
	"allowed_ips": func(data map[string]any) {
		changes, _ := data["changes"].(map[string]any)
		_, changed := changes["allowedIPs"]
		drop(data, "allowedIPs")
		drop(data, "moreAllowedIPs")
		if changed { // that they did is no secret
			changes["allowedIPs"] = map[string]any{"from": []any{}, "to": []any{}}
		}
	},
}

// Fields returns the names that Redact knows.
func Fields() []string { return slices.Sorted(maps.Keys(fields)) }

// drop1 deletes a key of a mapping, in any case, as package json reads it.
func drop1(m map[string]any, key string) {
	maps.DeleteFunc(m, func(k string, _ any) bool { return strings.EqualFold(k, key) })
}

// drop deletes a key wherever it is: a newer probe may have it in other places.
func drop(v any, key string) {
	switch v := v.(type) {
	case map[string]any:
		drop1(v, key)
		for _, inner := range v {
			drop(inner, key)
		}
	case []any:
		for _, inner := range v {
			drop(inner, key)
		}
	}
}

// Redact returns a format that sees events without some fields. What it is given as raw is then no longer what the probe signed.
func Redact(f Format, names []string) (Format, error) {
	var redact []func(map[string]any)
	for _, name := range names {
		r, ok := fields[name]
		if !ok {
			return nil, fmt.Errorf("%.40q is none of what can be left out: %v", name, Fields())
		}
		redact = append(redact, r)
	}
	if redact == nil {
		return f, nil
	}
	return func(_ *events.Event, raw []byte) (Request, error) {
		dec := json.NewDecoder(bytes.NewReader(raw))
		dec.UseNumber()
		var tree map[string]any
		if err := dec.Decode(&tree); err != nil {
			return Request{}, fmt.Errorf("event is no JSON object: %v", err)
		}
		data, ok := tree["data"].(map[string]any)
		if !ok {
			return Request{}, errors.New("event has no data")
		}
		for _, r := range redact {
			r(data)
		}
		without, err := marshal(tree)
		if err != nil {
			return Request{}, err
		}
		e, err := events.Decode(without)
		if err != nil {
			return Request{}, fmt.Errorf("event without %v: %v", names, err)
		}
		return f(e, without)
	}, nil
}
