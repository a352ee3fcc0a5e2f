package ctl

import (
	"context"
	"encoding/json"
	"fmt"
	"io"
	"net/http"
	"net/textproto"
	"regexp"
	"slices"
	"strings"
	"time"

	"github.com/spf13/cobra"

	"github.com/rotatord/rotatord/internal/upstream"
)

const classifyHelp = `Say what an upstream's answer means for the key it was given to, and which rule says so. Nothing is done and no server
is asked. The body is read from standard input; an empty one is fine (</dev/null).

The verdict is rotate (the key is dead or has nothing left to spend), cool-down (it is good again at the time shown) or
ignore (not the key's fault, or nobody knows). The exit code is 0 whatever the verdict.

UPSTREAM is the kind of upstream: %s.
What is not one of the others is generic. All rules are in docs/triggers.md.

The body is shown without what looks like a secret. This command does not know the key, so look before you pass it on.`

const classifyExample = `  rotatorctl classify litellm --status 429 < body.json
  rotatorctl classify openai --status 429 --header Retry-After=20 -o json < body.json
  rotatorctl classify generic --status 401 < /dev/null`

// reported are the flags of classify and report that say what an upstream answered.
type reported struct {
	status  int
	headers []string
}

func (c *cli) classifyCommand() *cobra.Command {
	var r reported
	cmd := &cobra.Command{
		Use:     "classify UPSTREAM --status CODE < BODY",
		Short:   "Explain what an upstream's answer means for a key, without doing anything",
		Long:    fmt.Sprintf(classifyHelp, strings.Join(upstreamNames(), ", ")),
		Example: classifyExample,
		Args:    exactly("UPSTREAM"),
		RunE: func(_ *cobra.Command, args []string) error {
			kind, response, err := c.readResponse(args[0], r)
			if err != nil {
				return err
			}
			return c.printVerdict(kind, upstream.Classify(kind, response, c.sys.Now()))
		},
		ValidArgsFunction: completeArgs(false, func(context.Context, []string) ([]string, error) { return upstreamNames(), nil }),
	}
	r.flags(cmd)
	return cmd
}

func (r *reported) flags(cmd *cobra.Command) {
	flags := cmd.Flags()
	flags.IntVar(&r.status, "status", 0, "HTTP status `code` of the answer, 100 to 599; required")
	flags.StringArrayVar(&r.headers, "header", nil, "a header of the answer, `name=value`, such as Retry-After=30; repeat it for more")
	if err := cmd.MarkFlagRequired("status"); err != nil {
		panic(err)
	}
	completeFlag(cmd, "header", "Retry-After=", "Retry-After-Ms=")
	completeFlag(cmd, "status", "400", "401", "402", "403", "429")
}

func upstreamNames() []string {
	var out []string
	for _, k := range upstream.Kinds() {
		out = append(out, string(k))
	}
	return out
}

// maxClassified is the largest body we read, in bytes. Of what is larger than upstream.MaxBody only a part is looked at.
const maxClassified = 1 << 20

func (c *cli) readResponse(name string, r reported) (upstream.Kind, upstream.Response, error) {
	kind := upstream.Kind(name)
	if !slices.Contains(upstream.Kinds(), kind) {
		return "", upstream.Response{}, usagef("UPSTREAM is none that there are rules for; it can be %s", strings.Join(upstreamNames(), ", "))
	}
	response, err := c.readReported(r)
	return kind, response, err
}

// readReported takes an answer from the flags and from standard input.
func (c *cli) readReported(r reported) (upstream.Response, error) {
	if r.status < 100 || r.status > 599 {
		return upstream.Response{}, usagef("--status is %d; it must be an HTTP status, 100 to 599", r.status)
	}
	header, err := parseHeaders(r.headers)
	if err != nil {
		return upstream.Response{}, err
	}
	if c.terminal {
		fmt.Fprintln(c.sys.Err, "Reading the answer's body from the terminal: end with Ctrl-D.")
	}
	body, err := c.readFile("-", maxClassified)
	return upstream.Response{Status: r.status, Header: header, Body: body}, err
}

// headerName is a token of RFC 9110.
var headerName = regexp.MustCompile("^[A-Za-z0-9!#$%&'*+.^_`|~-]+$")

// parseHeaders does not repeat what it does not understand: somebody may have pasted a key.
func parseHeaders(given []string) (http.Header, error) {
	header := http.Header{}
	for i, text := range given {
		name, value, ok := strings.Cut(text, "=")
		if !ok || !headerName.MatchString(name) {
			return nil, usagef("--header number %d is not name=value, such as Retry-After=30", i+1)
		}
		header.Add(textproto.CanonicalMIMEHeaderKey(name), value)
	}
	return header, nil
}

// explained is a verdict as JSON. Its words are those of the API.
type explained struct {
	Upstream  string `json:"upstream"`
	Verdict   string `json:"verdict"`
	Until     string `json:"until,omitempty"`
	UntilFrom string `json:"untilFrom,omitempty"`
	Rule      string `json:"rule"`
	Scope     string `json:"scope,omitempty"`
	KeyStatus string `json:"keyStatus,omitempty"`
	Confirm   bool   `json:"confirm,omitempty"`
	Own       bool   `json:"own,omitempty"`
	Reason    string `json:"reason"`
	Why       string `json:"why"`
}

func explainVerdict(kind upstream.Kind, v upstream.Verdict) explained {
	e := explained{
		Upstream: string(kind), Verdict: "VERDICT_" + strings.ToUpper(v.Action.String()), UntilFrom: v.UntilFrom, Rule: v.Rule,
		Scope: string(v.Scope), Confirm: v.Confirm, Own: v.Own, Reason: v.Reason, Why: v.Why,
	}
	if !v.Until.IsZero() {
		e.Until = v.Until.UTC().Format(time.RFC3339Nano)
	}
	if v.Status != "" {
		e.KeyStatus = "KEY_STATUS_" + strings.ToUpper(string(v.Status))
	}
	return e
}

func (c *cli) printVerdict(kind upstream.Kind, v upstream.Verdict) error {
	if c.output == "table" {
		return c.printTable(func(w io.Writer) { describeVerdict(w, v) })
	}
	text, err := json.Marshal(explainVerdict(kind, v))
	if err != nil {
		return fmt.Errorf("encoding the verdict: %w", err)
	}
	return c.printJSON(text)
}

// words writes a name for people: rate_limited becomes "rate-limited".
func words(name string) string { return strings.ReplaceAll(name, "_", "-") }

func describeVerdict(w io.Writer, v upstream.Verdict) {
	field(w, "Verdict:", words(v.Action.String()))
	if !v.Until.IsZero() {
		field(w, "Until:", fmt.Sprintf("%s (%s)", v.Until.UTC().Format(time.RFC3339), v.UntilFrom))
	}
	field(w, "Rule:", v.Rule)
	field(w, "Scope:", words(string(v.Scope)))
	field(w, "Key status:", words(string(v.Status)))
	if v.Confirm {
		field(w, "Confirm:", "the key may be good for cheaper requests; a pool with confirm_reports asks the upstream about it first")
	}
	if v.Own {
		field(w, "Incident:", "a report of this does not count for one: what is used up is the key's own")
	}
	field(w, "Reason:", v.Reason)
	field(w, "Why:", v.Why)
}
