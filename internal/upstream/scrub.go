package upstream

import (
	"html"
	"net/url"
	"regexp"
	"slices"
	"strconv"
	"strings"
	"unicode"
	"unicode/utf8"
)

const (
	redacted = "[redacted]"
	ellipsis = "..."
	// maxScrub is how much of a text is looked at, in bytes: what is kept is far shorter.
	maxScrub = 8 << 10
)

// Scrub makes foreign text fit to be kept and shown: one line of valid UTF-8 of at most limit bytes, without control
// characters, without the secrets given, and without what looks like a secret. JSON escapes are undone, so that a secret
// does not hide in them; a secret is also found in another case, escaped for a URL or for HTML, and broken over lines.
//
// What cannot be made safe, such as a text full of a secret of one letter, comes back as "[redacted]" or empty.
func Scrub(text string, limit int, secrets ...string) string {
	text, cut := bound(text, maxScrub, "")
	text = flatten(unescape(text))
	if cut {
		// The last word may be the first half of a secret.
		text = text[:strings.LastIndexByte(text, ' ')+1]
	}
	patterns := secretPatterns(secrets)
	for _, p := range patterns {
		text = p.ReplaceAllLiteralString(text, redacted)
	}
	text, _ = bound(redactShapes(text), limit, ellipsis)
	return refuse(text, secrets, patterns)
}

// refuse is the last look: whatever came before, no secret gets past it. It compares in its own simple way.
func refuse(text string, secrets []string, patterns []*regexp.Regexp) string {
	for _, candidate := range []string{text, redacted[:min(len(redacted), len(text))]} {
		found := slices.ContainsFunc(secrets, func(s string) bool { return s != "" && strings.Contains(candidate, s) }) ||
			slices.ContainsFunc(patterns, func(p *regexp.Regexp) bool { return p.MatchString(candidate) })
		if !found {
			return candidate
		}
	}
	return ""
}

// bound cuts a text to at most limit bytes, not within a rune, and says whether it did. The mark is part of the limit.
func bound(text string, limit int, mark string) (string, bool) {
	if len(text) <= limit {
		return text, false
	}
	end := max(0, limit-len(mark))
	for end > 0 && !utf8.RuneStart(text[end]) {
		end--
	}
	return text[:end] + mark[:min(len(mark), limit)], true
}

// unescape undoes JSON's escapes, however many times they were applied, in one pass: what yields a backslash is looked at
// again together with what follows it.
func unescape(text string) string {
	in := []byte(text)
	var out strings.Builder
	for i := 0; i < len(in); {
		if in[i] != '\\' || i+1 == len(in) {
			out.WriteByte(in[i])
			i++
			continue
		}
		r, size := escaped(in[i:])
		switch {
		case size == 0: // not an escape
			out.WriteByte('\\')
			i++
		case r == '\\':
			i += size - 1
			in[i] = '\\'
		default:
			out.WriteRune(r)
			i += size
		}
	}
	return out.String()
}

var shortEscapes = map[byte]rune{'"': '"', '\'': '\'', '/': '/', '\\': '\\', 'b': ' ', 'f': ' ', 'n': ' ', 'r': ' ', 't': ' '}

// escaped reads the escape that a text begins with. Halves of surrogate pairs become U+FFFD: keys have none.
func escaped(in []byte) (rune, int) {
	if r, ok := shortEscapes[in[1]]; ok {
		return r, 2
	}
	if in[1] != 'u' || len(in) < 6 {
		return 0, 0
	}
	n, err := strconv.ParseUint(string(in[2:6]), 16, 32)
	if err != nil {
		return 0, 0
	}
	return rune(n), 6
}

// terminal are sequences that move a cursor or change a colour. Letters that stayed of them would stick to what follows.
var terminal = regexp.MustCompile(`\x1b\[[0-9;?]*[ -/]*[@-~]`)

// flatten makes one line of a text: white space and control characters become single spaces. Characters that take no room,
// such as the zero-width space, go, so that nothing hides between them.
func flatten(text string) string {
	text = strings.Map(func(r rune) rune {
		switch {
		case unicode.Is(unicode.Cf, r):
			return -1
		case unicode.IsControl(r) || unicode.IsSpace(r):
			return ' '
		default:
			return r
		}
	}, terminal.ReplaceAllLiteralString(strings.ToValidUTF8(text, "\uFFFD"), " "))
	return strings.Join(strings.Fields(text), " ")
}

// secretPatterns finds each secret, in any case, as it is and as URLs and HTML have it.
func secretPatterns(secrets []string) []*regexp.Regexp {
	var out []*regexp.Regexp
	for _, secret := range secrets {
		var forms []string
		for _, form := range []string{secret, unescape(secret), url.QueryEscape(secret), url.PathEscape(secret), html.EscapeString(secret)} {
			form = strings.ReplaceAll(flatten(form), " ", "")
			if form == "" || slices.Contains(forms, form) {
				continue
			}
			forms = append(forms, form)
			for _, part := range parts(form) {
				out = append(out, spaced(part))
			}
		}
	}
	return out
}

// partBytes is how much of a long secret one pattern is for.
const partBytes = 256

// parts are the whole of a secret and, if it is long, its pieces: not all of it may have been repeated, or read.
func parts(secret string) []string {
	out := []string{secret}
	for len(secret) >= 2*partBytes {
		part, _ := bound(secret, partBytes, "")
		out, secret = append(out, part), secret[len(part):]
	}
	if len(out) > 1 {
		out = append(out, secret)
	}
	return out
}

// spaced finds a secret also where it was broken over lines or has backslashes in it.
func spaced(secret string) *regexp.Regexp {
	var p strings.Builder
	p.WriteString("(?i)")
	for i, r := range []rune(secret) {
		if i > 0 {
			p.WriteString(`[\s\\]*`)
		}
		p.WriteString(regexp.QuoteMeta(string(r)))
	}
	return regexp.MustCompile(p.String())
}

// shapes are what secrets look like. The first group, if there is one, stays.
var shapes = []*regexp.Regexp{
	regexp.MustCompile(`(?i)\b(bearer +|authorization["']? *: *["']?(?:(?:basic|bearer) +)?)[^\s"',;<>]+`),
	regexp.MustCompile(`(?i)((?:key|token|secret|password|sig|signature)["']? *= *["']?)[^\s"'&,;<>]+`),
	regexp.MustCompile(`(?i)((?:api[ _-]?key(?: provided)?|x-[a-z-]*key|secret|password)["']? *: *["']?)[^\s"'&,;<>]+`),
	regexp.MustCompile(`(?i)((?:^|[^a-z0-9]))[sfpr]k[-_][a-z0-9_.*-]{4,}`),
	regexp.MustCompile(`()AIza[0-9A-Za-z_-]{8,}`),
	regexp.MustCompile(`(?i)(\b)[0-9a-f]{8}(?:-[0-9a-f]{4}){3}-[0-9a-f]{12}\b`),
}

// runs are long words in the alphabets of base64 and hexadecimal.
var runs = []*regexp.Regexp{
	regexp.MustCompile(`[A-Za-z0-9+/=_-]{32,}`),
	regexp.MustCompile(`[A-Za-z0-9+/=_]{20,}`),
}

func redactShapes(text string) string {
	for _, shape := range shapes {
		text = shape.ReplaceAllString(text, "${1}"+redacted)
	}
	text = runs[0].ReplaceAllStringFunc(text, redactIf(func(run string) bool {
		return has(run, unicode.IsDigit) && has(run, unicode.IsUpper) && has(run, unicode.IsLower)
	}))
	return runs[1].ReplaceAllStringFunc(text, redactIf(func(run string) bool {
		return len(run) >= 40 || has(run, unicode.IsDigit) && has(run, unicode.IsLetter)
	}))
}

func redactIf(random func(string) bool) func(string) string {
	return func(run string) string {
		if random(run) {
			return redacted
		}
		return run
	}
}

func has(text string, class func(rune) bool) bool { return strings.IndexFunc(text, class) >= 0 }
