package upstream

import (
	"bytes"
	"encoding/json"
	"maps"
	"slices"
	"strings"
)

// Bounds of what is read of a body. The rest is not looked at.
const (
	// MaxBody is how much of a body is read, in bytes.
	MaxBody = 64 << 10
	// maxDepth is how deep it may be nested; what is deeper is left out.
	maxDepth = 32
)

// body is what was understood of an answer's body. All of it may be empty.
type body struct {
	tree    any // of map[string]any, []any, string, json.Number, bool, nil
	kind    string
	code    string
	message string
	text    string // all strings in it, or the body itself if it is not JSON
}

func parseBody(raw []byte) body {
	raw = raw[:min(len(raw), MaxBody)]
	tree, whole := parseTree(raw)
	b := body{tree: tree}
	if tree != nil {
		b.text = strings.Join(allStrings(tree), "\n")
	}
	if !whole {
		// Also what was cut off in the middle of a string.
		b.text += "\n" + string(raw)
	}
	object := errorObject(tree)
	b.kind, b.code = scalar(object["type"]), scalar(object["code"])
	b.message = firstText(object, "message", "error", "detail")
	if b.message == "" && tree == nil {
		b.message = string(raw)
	}
	return b
}

// errorObject finds the object that says what went wrong: {"error": {...}} as nearly everybody has it, also as the first
// of an array, or else the answer itself.
func errorObject(tree any) map[string]any {
	top := topObject(tree)
	if inner, ok := top["error"].(map[string]any); ok {
		return inner
	}
	return top
}

// topObject is the answer itself, or the first of an array.
func topObject(tree any) map[string]any {
	if list, ok := tree.([]any); ok && len(list) > 0 {
		tree = list[0]
	}
	top, _ := tree.(map[string]any)
	return top
}

// tellsOfError reports whether the body says that something went wrong, whatever it was.
func (b body) tellsOfError() bool {
	top := topObject(b.tree)
	_, object := top["error"].(map[string]any)
	return object || scalar(top["error"]) != "" || top["type"] == "error"
}

func firstText(object map[string]any, names ...string) string {
	for _, name := range names {
		if text, ok := object[name].(string); ok && text != "" {
			return text
		}
	}
	return ""
}

// scalar returns strings and numbers as text, and nothing for the rest.
func scalar(value any) string {
	switch v := value.(type) {
	case string:
		return v
	case json.Number:
		return v.String()
	default:
		return ""
	}
}

// lookup collects the strings and numbers at a path such as "error.details.reason". Arrays on the way are walked through.
func lookup(node any, path string) []string {
	if list, ok := node.([]any); ok {
		var out []string
		for _, item := range list {
			out = append(out, lookup(item, path)...)
		}
		return out
	}
	if path == "" {
		if text := scalar(node); text != "" {
			return []string{text}
		}
		return nil
	}
	object, ok := node.(map[string]any)
	if !ok {
		return nil
	}
	name, rest, _ := strings.Cut(path, ".")
	return lookup(object[name], rest)
}

// allStrings lists the strings in a tree, so that what a text is matched against does not depend on how JSON wrote it.
func allStrings(node any) []string {
	var out []string
	switch v := node.(type) {
	case string:
		out = append(out, v)
	case []any:
		for _, item := range v {
			out = append(out, allStrings(item)...)
		}
	case map[string]any:
		for _, name := range slices.Sorted(maps.Keys(v)) {
			out = append(out, allStrings(v[name])...)
		}
	}
	return out
}

// parseTree reads JSON as far as it goes: proxies cut bodies short. It returns nil if there is no object or array, and
// whether all of it was read.
func parseTree(raw []byte) (any, bool) {
	if start := bytes.TrimLeft(raw, " \t\r\n\ufeff"); len(start) == 0 || start[0] != '{' && start[0] != '[' {
		return nil, false
	}
	d := json.NewDecoder(bytes.NewReader(bytes.TrimPrefix(raw, []byte("\ufeff"))))
	d.UseNumber()
	return parseValue(d, 0)
}

// parseValue goes by tokens and not by json.Unmarshal, which has nothing to show for a body that breaks off.
func parseValue(d *json.Decoder, depth int) (any, bool) {
	token, err := d.Token()
	if err != nil {
		return nil, false
	}
	open, ok := token.(json.Delim)
	switch {
	case !ok:
		return token, true
	case depth == maxDepth:
		return nil, skip(d)
	case open == '[':
		return parseArray(d, depth+1)
	default:
		return parseObject(d, depth+1)
	}
}

func parseArray(d *json.Decoder, depth int) (any, bool) {
	list := []any{}
	for d.More() {
		value, whole := parseValue(d, depth)
		list = append(list, value)
		if !whole {
			return list, false
		}
	}
	_, err := d.Token()
	return list, err == nil
}

func parseObject(d *json.Decoder, depth int) (any, bool) {
	object := map[string]any{}
	for d.More() {
		name, err := d.Token()
		if err != nil {
			return object, false
		}
		value, whole := parseValue(d, depth)
		object[scalar(name)] = value
		if !whole {
			return object, false
		}
	}
	_, err := d.Token()
	return object, err == nil
}

// skip reads to the end of the array or object that was opened.
func skip(d *json.Decoder) bool {
	for open := 1; open > 0; {
		token, err := d.Token()
		if err != nil {
			return false
		}
		switch token {
		case json.Delim('['), json.Delim('{'):
			open++
		case json.Delim(']'), json.Delim('}'):
			open--
		}
	}
	return true
}
