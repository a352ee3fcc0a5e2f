package mongoexport

import (
	"bytes"
	"encoding/json"
	"fmt"
)

// raw is the text of one document, or the reason why there is none.
type raw struct {
	line    int
	text    []byte
	problem string
}

var byteOrderMark = []byte("\xef\xbb\xbf")

// split finds the documents: one a line, one array of them, or (as mongoexport --pretty prints them) one after another.
//
// In lines a broken document hides no other. In the other two it hides all that follow, and is said to.
func split(data []byte) []raw {
	data = bytes.TrimPrefix(data, byteOrderMark)
	trimmed := bytes.TrimLeft(data, " \t\r\n")
	first, _, _ := bytes.Cut(trimmed, []byte("\n"))
	switch {
	case len(trimmed) == 0:
		return nil
	case trimmed[0] == '[':
		return splitArray(data)
	case string(bytes.TrimSpace(first)) == "{":
		return splitStream(data)
	default:
		return splitLines(data)
	}
}

func splitLines(data []byte) []raw {
	var out []raw
	for i, line := range bytes.Split(data, []byte("\n")) {
		if line = bytes.TrimSpace(line); len(line) > 0 {
			out = append(out, raw{line: i + 1, text: line})
		}
	}
	return out
}

func splitArray(data []byte) []raw {
	dec := json.NewDecoder(bytes.NewReader(data))
	if _, err := dec.Token(); err != nil {
		return []raw{broken(data, dec)}
	}
	out, ok := values(data, dec)
	if !ok {
		return out
	}
	if _, err := dec.Token(); err != nil {
		return append(out, broken(data, dec))
	}
	if rest := bytes.TrimSpace(data[dec.InputOffset():]); len(rest) > 0 {
		at := lineOf(data, nextValue(data, dec.InputOffset()))
		return append(out, raw{line: at, problem: "there is text after the array's end; it was not read"})
	}
	return out
}

func splitStream(data []byte) []raw {
	dec := json.NewDecoder(bytes.NewReader(data))
	out, ok := values(data, dec)
	// The decoder takes a closing bracket that nothing has opened for the end.
	if rest := bytes.TrimSpace(data[dec.InputOffset():]); ok && len(rest) > 0 {
		out = append(out, broken(data, dec))
	}
	return out
}

// values reads values until there are no more, or (false) up to a broken one.
func values(data []byte, dec *json.Decoder) ([]raw, bool) {
	var out []raw
	line, counted := 1, int64(0)
	for dec.More() {
		start := nextValue(data, dec.InputOffset())
		line, counted = line+bytes.Count(data[counted:start], []byte("\n")), start
		var text json.RawMessage
		if err := dec.Decode(&text); err != nil {
			return append(out, broken(data, dec)), false
		}
		out = append(out, raw{line: line, text: text})
	}
	return out, true
}

// broken says where reading stopped. The decoder's own message is left out: it may quote what it read.
func broken(data []byte, dec *json.Decoder) raw {
	line := lineOf(data, nextValue(data, dec.InputOffset()))
	return raw{line: line, problem: fmt.Sprintf("not valid JSON from line %d on; nothing after it was read", line)}
}

// nextValue skips white space and commas.
func nextValue(data []byte, from int64) int64 {
	for int(from) < len(data) && bytes.IndexByte([]byte(" \t\r\n,"), data[from]) >= 0 {
		from++
	}
	return from
}

func lineOf(data []byte, offset int64) int {
	return 1 + bytes.Count(data[:min(int(offset), len(data))], []byte("\n"))
}
