package ctl

import (
	"context"
	"errors"
	"fmt"
	"io"
	"strings"
	"sync/atomic"
	"time"

	"github.com/spf13/cobra"

	"github.com/rotatord/rotatord/internal/cloudevent"
	rotatorv1 "github.com/rotatord/rotatord/proto/rotator/v1"
)

const eventsHelp = `Show the audit events of a pool, or of all pools, in the order in which they happened.

With -o json each event is one line, a CloudEvent. An event that comes twice, which happens only when two runs overlap,
has the same id. A stream that breaks off is resumed at the last event that was shown, also when its connection is dead,
which is noticed within 20 seconds. With --follow it is an error only if the server says nothing within --timeout at first.`

func (c *cli) eventsCommand() *cobra.Command {
	var since string
	var revision int64
	var follow bool
	cmd := &cobra.Command{
		Use:   "events [POOL]",
		Short: "Show audit events, and follow them",
		Long:  eventsHelp,
		Args:  atMostPool,
		RunE: func(cmd *cobra.Command, args []string) error {
			from, err := c.sinceTime(since)
			if err != nil {
				return err
			}
			if c.output == "yaml" {
				return usagef("events come one a line: use -o json, or none for a table")
			}
			s := &eventShow{
				cli: c, since: from, request: &rotatorv1.WatchEventsRequest{FromRevision: revision, Once: !follow},
				silence: failf(exitUnavailable, "nothing came from %s within %s", c.server, c.timeout),
			}
			if len(args) > 0 {
				s.request.Pool = args[0]
			}
			return s.run(cmd.Context())
		},
		ValidArgsFunction: completeArgs(false, c.suggestPools),
	}
	flags := cmd.Flags()
	flags.StringVar(&since, "since", "", "only events since this `TIME`: 2026-01-25T10:00:00Z, or how long ago, such as 90m")
	flags.Int64Var(&revision, "from-revision", 0, "only events of this etcd revision, `N`, and later ones")
	flags.BoolVarP(&follow, "follow", "f", false, "go on with the events to come")
	cmd.MarkFlagsMutuallyExclusive("since", "from-revision")
	return cmd
}

func atMostPool(cmd *cobra.Command, args []string) error {
	if len(args) <= 1 {
		return nil
	}
	return usagef("%s takes one POOL or none and was given %s; run %s --help", cmd.CommandPath(), count(len(args), "argument"), cmd.CommandPath())
}

// sinceTime reads a time, or how long ago it was.
func (c *cli) sinceTime(text string) (time.Time, error) {
	if text == "" {
		return time.Time{}, nil
	}
	if t, err := time.Parse(time.RFC3339, text); err == nil {
		return t, nil
	}
	d, err := time.ParseDuration(text)
	if err != nil || d < 0 {
		return time.Time{}, usagef("--since is %q; it must be a time such as 2026-01-25T10:00:00Z, or how long ago, such as 90m", text)
	}
	return c.sys.Now().Add(-d), nil
}

// eventShow shows one stream of events, however often it has to be resumed.
type eventShow struct {
	*cli
	since   time.Time
	request *rotatorv1.WatchEventsRequest // where it goes on
	headed  bool
	silence error // what ends a stream that brings nothing for --timeout
}

// run goes on until the stream ends by itself. One that only shows what is on record gives up when it gets nothing for
// --timeout; one that follows does so only before its first message.
func (s *eventShow) run(ctx context.Context) error {
	pause := firstPause
	for good := s.sys.Now(); ; {
		got, err := s.stream(ctx)
		if got {
			good, pause = s.sys.Now(), firstPause
		}
		switch {
		case errors.Is(err, io.EOF):
			s.head()
			return nil
		case ctx.Err() != nil && !s.request.GetOnce():
			return nil // that is how following ends
		case !s.worthResuming(err), s.request.GetOnce() && s.sys.Now().Sub(good) > s.timeout, !s.headed && s.sys.Now().Sub(good) > s.timeout:
			return err
		}
		if pause == notePause {
			fmt.Fprintf(s.sys.Err, "note: %s; resuming\n", s.describe(err))
		}
		if !sleep(ctx, max(pause, retryDelay(err))) && s.request.GetOnce() {
			return err
		}
		pause = min(2*pause, maxPause)
	}
}

// worthResuming says whether another stream may bring what this one did not. Nobody knows what is wrong with one that is
// silent, so it is asked again, but only if one was not: there is somebody who answers.
func (s *eventShow) worthResuming(err error) bool {
	return worthRepeating(err) || errors.Is(err, s.silence) && s.headed && !s.request.GetOnce()
}

// stream shows what one call brings, and reports whether it brought anything.
func (s *eventShow) stream(ctx context.Context) (got bool, err error) {
	client, err := s.rotations()
	if err != nil {
		return false, err
	}
	ctx, cancel := context.WithCancel(ctx)
	defer cancel()
	var expired atomic.Bool
	late := time.AfterFunc(s.timeout, func() { expired.Store(true); cancel() })
	defer late.Stop()
	stream, err := client.WatchEvents(ctx, s.request)
	if err != nil {
		return false, err
	}
	for {
		answer, err := stream.Recv()
		switch {
		case err != nil && expired.Load():
			return got, s.silence
		case err != nil:
			return got, err
		}
		late.Stop()
		got = true
		if err := s.show(answer.GetEvents()); err != nil {
			return got, err
		}
		if s.request.GetOnce() {
			late.Reset(s.timeout)
		}
	}
}

func (s *eventShow) show(events []*rotatorv1.Event) error {
	s.head()
	for _, e := range events {
		if !e.GetTime().AsTime().Before(s.since) || e.GetTime() == nil {
			if err := s.showOne(e); err != nil {
				return err
			}
		}
		s.request.FromRevision, s.request.AfterId = e.GetRevision(), e.GetId()
	}
	return nil
}

func (s *eventShow) showOne(e *rotatorv1.Event) error {
	if s.output == "json" {
		line, err := cloudevent.Line(e)
		if err != nil {
			return err
		}
		_, err = s.sys.Out.Write(line)
		return err
	}
	kind := strings.TrimSuffix(strings.TrimPrefix(e.GetType(), "dev.rotatord."), ".v1")
	return s.line(at(e.GetTime()), number(e.GetRevision()), e.GetPool(), kind, e.GetSubject(), whoAsked(e), whatHappened(e))
}

// head writes the table's head, once.
func (s *eventShow) head() {
	if !s.headed && s.output == "table" {
		_ = s.line("TIME", "REVISION", "POOL", "EVENT", "SUBJECT", "BY", "DETAILS")
	}
	s.headed = true
}

// line writes one line of a table whose later lines are not known yet.
func (s *eventShow) line(cells ...string) error {
	for i, cell := range cells {
		cells[i] = oneLine(cell)
	}
	text := fmt.Sprintf("%-20s  %-8s  %-12s  %-18s  %-20s  %-24s  %s", cells[0], cells[1], cells[2], cells[3], cells[4], cells[5], cells[6])
	_, err := fmt.Fprintln(s.sys.Out, strings.TrimRight(text, " "))
	return err
}

func whoAsked(e *rotatorv1.Event) string {
	who := trigger(e.GetTrigger())
	if e.GetTriggerSource() != "" {
		who = strings.TrimSpace(who + " " + e.GetTriggerSource())
	}
	if who == "" {
		return e.GetSource()
	}
	return who + " at " + strings.TrimPrefix(e.GetSource(), "rotatord/")
}

func whatHappened(e *rotatorv1.Event) string {
	var parts []string
	add := func(name, value string) {
		if value != "" {
			parts = append(parts, name+value)
		}
	}
	add("new key ", e.GetNewKeyId())
	add("slot ", e.GetSlot())
	add("", home(e.GetHome()))
	add("", keyStatus(e.GetStatus()))
	add("until ", at(e.GetStatusUntil()))
	add("rule ", e.GetRule())
	add("", e.GetReason())
	return strings.Join(parts, ", ")
}
