package ctl

import (
	"bufio"
	"bytes"
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"maps"
	"regexp"
	"slices"
	"strings"
	"time"
	"unicode/utf8"

	"github.com/spf13/cobra"

	rotatorv1 "github.com/rotatord/rotatord/proto/rotator/v1"
)

func (c *cli) keyImportCommand() *cobra.Command {
	var backup bool
	cmd := &cobra.Command{
		Use:   "import POOL FILE",
		Short: "Add many keys from JSON lines {\"id\",\"secret\",\"labels\"}; - is standard input",
		Long: "Add many keys from a file with one JSON object a line:\n\n" +
			"  {\"id\": \"k1\", \"secret\": \"...\", \"labels\": {\"account\": \"a\"}}\n\n" +
			"labels may be left out. It can be run again: keys that are there with the same secret are counted and left\n" +
			"alone. Every refusal is named with its line, and makes the exit code 1; the other keys are added. Where the file\n" +
			"cannot be read further, the keys before that are added, and the exit code is 2.",
		Args: exactly("POOL", "FILE"),
		RunE: func(cmd *cobra.Command, args []string) error {
			if err := c.guardSecret(); err != nil {
				return err
			}
			in, done, err := c.openFile(args[1])
			if err != nil {
				return usagef("%v", err)
			}
			defer done()
			return c.importKeys(cmd.Context(), args[0], homeOf(backup), in)
		},
		ValidArgsFunction: func(cmd *cobra.Command, args []string, word string) ([]string, cobra.ShellCompDirective) {
			if len(args) == 1 {
				return nil, cobra.ShellCompDirectiveDefault
			}
			return completeArgs(false, c.suggestPools)(cmd, args, word)
		},
	}
	cmd.Flags().BoolVar(&backup, "backup", false, "add them to stock")
	return cmd
}

// keyImport is one run of `key import`.
type keyImport struct {
	c     *cli
	pool  string
	home  rotatorv1.KeyHome
	tally tally
	// all is the answer as if it had been one call, with the lines that were no keys.
	all rotatorv1.AddKeysResponse
	// waiting and lines are the keys read and not yet sent, and where they stood.
	waiting  []*rotatorv1.NewKey
	lines    []int
	progress time.Time // when it was last told
}

func (c *cli) importKeys(ctx context.Context, pool string, home rotatorv1.KeyHome, in io.Reader) error {
	run := &keyImport{c: c, pool: pool, home: home, progress: c.sys.Now()}
	err := run.readAll(ctx, in)
	// What was done before an error is told too. A failed first call has nothing to tell.
	if err == nil || len(run.all.GetResults()) > 0 {
		if printErr := run.print(); err == nil {
			err = printErr
		}
	}
	if err != nil {
		return run.explainStop(err)
	}
	return run.verdict()
}

// maxLine is the longest line we read: a key with all its labels, escaped, is well below.
const maxLine = 1 << 20

func (r *keyImport) readAll(ctx context.Context, in io.Reader) error {
	scanner := bufio.NewScanner(in)
	scanner.Buffer(nil, maxLine)
	n := 0
	for scanner.Scan() {
		n++
		if err := r.readLine(ctx, n, bytes.TrimSpace(scanner.Bytes())); err != nil {
			return err
		}
	}
	if err := r.flush(ctx); err != nil { // also what was read before reading failed
		return err
	}
	return unreadable(n, scanner.Err())
}

// unreadable says why the keys could not be read to their end, after n lines; nil if they were.
func unreadable(n int, err error) error {
	switch {
	case errors.Is(err, bufio.ErrTooLong):
		return usagef("line %d is longer than %d bytes: it and what follows it are left out", n+1, maxLine)
	case err != nil:
		return readError(fmt.Sprintf("the keys after line %d", n), err)
	}
	return nil
}

func (r *keyImport) readLine(ctx context.Context, n int, text []byte) error {
	if n == 1 {
		text = bytes.TrimPrefix(text, []byte("\xef\xbb\xbf"))
	}
	if len(text) == 0 {
		return nil
	}
	key, problem := parseKeyLine(text)
	if problem != "" {
		r.take(n, &rotatorv1.AddedKey{Id: key.GetId(), Result: rotatorv1.AddResult_ADD_RESULT_REFUSED,
			Refusal: rotatorv1.KeyRefusal_KEY_REFUSAL_INVALID, Message: linePrefix(n) + problem})
		return nil
	}
	r.waiting, r.lines = append(r.waiting, key), append(r.lines, n)
	if len(r.waiting) >= batchKeys {
		return r.flush(ctx)
	}
	return nil
}

// flush sends what waits.
func (r *keyImport) flush(ctx context.Context) error {
	for _, batch := range batches(r.waiting) {
		answer, err := r.c.addKeys(ctx, &rotatorv1.AddKeysRequest{Pool: r.pool, Home: r.home, Keys: batch})
		if err != nil {
			return err
		}
		for i, result := range answer.GetResults() {
			r.take(r.lines[i], result)
		}
		r.lines = r.lines[len(batch):]
		r.all.Revision = max(r.all.GetRevision(), answer.GetRevision())
		r.tellProgress()
	}
	r.waiting, r.lines = nil, nil
	return nil
}

// take counts a result, and names it if it is a refusal.
func (r *keyImport) take(line int, result *rotatorv1.AddedKey) {
	r.tally.count(result)
	r.all.Results = append(r.all.Results, result)
	switch result.GetResult() {
	case rotatorv1.AddResult_ADD_RESULT_ADDED, rotatorv1.AddResult_ADD_RESULT_SAME:
		return
	case rotatorv1.AddResult_ADD_RESULT_UNKNOWN:
		fmt.Fprintf(r.c.sys.Err, "line %d: key %s: not known whether it was added\n", line, oneLine(result.GetId()))
	default:
		text := strings.TrimPrefix(refusalText(result), linePrefix(line))
		fmt.Fprintf(r.c.sys.Err, "%s%srefused: %s\n", linePrefix(line), named(result.GetId()), text)
	}
}

func linePrefix(n int) string { return fmt.Sprintf("line %d: ", n) }

// named is how a line speaks of its key, if it could be read.
func named(id string) string {
	if id == "" {
		return ""
	}
	return "key " + oneLine(id) + ": "
}

func (r *keyImport) tellProgress() {
	if now := r.c.sys.Now(); now.Sub(r.progress) >= progressEvery {
		r.progress = now
		fmt.Fprintf(r.c.sys.Err, "%s so far: %s\n", count(len(r.all.GetResults()), "key"), r.counts())
	}
}

func (r *keyImport) counts() string {
	text := fmt.Sprintf("%d new, %d same, %d refused", r.tally.New, r.tally.Same, r.tally.Refused)
	if r.tally.Unknown > 0 {
		text += fmt.Sprintf(", %d not known", r.tally.Unknown)
	}
	return text
}

func (r *keyImport) print() error {
	return r.c.print(&r.all, func(w io.Writer) {
		row(w, fmt.Sprintf("%s into pool %s as %s: %s", count(len(r.all.GetResults()), "key"), r.pool, home(r.home), r.counts()))
	})
}

func (r *keyImport) explainStop(err error) error {
	if statusCode := exitCode(err); statusCode != exitUnavailable {
		return err
	}
	return again(err, "run the same command again: what was added is counted as same")
}

func (r *keyImport) verdict() error {
	switch {
	case r.tally.Refused > 0:
		return failf(exitFailed, "%s refused, named above", count(r.tally.Refused, "key")+were(r.tally.Refused))
	case r.tally.Unknown > 0:
		return &adviceError{failf(exitUnavailable, "it is not known of %s whether it was added", count(r.tally.Unknown, "key")),
			"run the same command again: what was added is counted as same"}
	default:
		return nil
	}
}

func were(n int) string {
	if n == 1 {
		return " was"
	}
	return " were"
}

// parseKeyLine reads one key. Its problems never quote the line, which holds the secret.
func parseKeyLine(text []byte) (*rotatorv1.NewKey, string) {
	key := &rotatorv1.NewKey{}
	if !utf8.Valid(text) {
		return key, "not valid UTF-8"
	}
	var fields map[string]json.RawMessage
	if json.Unmarshal(text, &fields) != nil || fields == nil {
		return key, "not a JSON object"
	}
	for _, name := range slices.Sorted(maps.Keys(fields)) {
		var target any
		var kind string
		switch name {
		case "id":
			target, kind = &key.Id, "a string"
		case "secret":
			target, kind = &key.Secret, "a string"
		case "labels":
			target, kind = &key.Labels, "an object with strings"
		default:
			return key, unknownField(name) + " (known: id, secret, labels)"
		}
		if json.Unmarshal(fields[name], target) != nil {
			return key, name + " is not " + kind
		}
	}
	return key, missing(key)
}

// A field's name is shown only if it looks like one: it could be a secret in the wrong place.
var plainName = regexp.MustCompile(`^[A-Za-z_][A-Za-z0-9_]{0,31}$`)

func unknownField(name string) string {
	if !plainName.MatchString(name) {
		return "an unknown field"
	}
	return "unknown field " + name
}

func missing(key *rotatorv1.NewKey) string {
	switch {
	case key.GetId() == "":
		return "id is missing"
	case key.GetSecret() == "":
		return "secret is missing"
	default:
		return ""
	}
}
