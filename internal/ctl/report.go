package ctl

import (
	"fmt"
	"io"

	"github.com/google/uuid"
	"github.com/spf13/cobra"

	"github.com/rotatord/rotatord/internal/upstream"
	rotatorv1 "github.com/rotatord/rotatord/proto/rotator/v1"
)

const reportHelp = `Report by hand what an upstream answered to a request with a key, as gateways do: the pool's kind of upstream decides what
that means, and it is done. The key is rotated, it cools down, or nothing happens. The answer's body is read from standard
input; an empty one is fine (</dev/null). Of a long one the first 64 KiB are sent.

Give --generation, as rotatorctl key get shows it: a late report then never touches a later life of the key. A status of 2xx
without an error in the body says that the key works, and may end an incident. To only see what an answer means, use
rotatorctl classify.

Upstreams may repeat the key in their answer, so a body is sent to another machine only with --insecure.`

const reportExample = `  rotatorctl report openhands k1 --status 429 < body.json
  rotatorctl report openhands k1 --status 429 --header Retry-After=20 --proxy gateway-1 < /dev/null`

func (c *cli) reportCommand() *cobra.Command {
	var r reported
	var show bool
	request := &rotatorv1.ReportFailureRequest{}
	cmd := &cobra.Command{
		Use:     "report POOL KEY --status CODE < BODY",
		Short:   "Report an upstream's answer by hand, and have done what it means for the key",
		Long:    reportHelp,
		Example: reportExample,
		Args:    exactly("POOL", "KEY"),
		RunE: func(cmd *cobra.Command, args []string) error {
			if err := c.checkShowSecret(show); err != nil {
				return err
			}
			request.Pool, request.KeyId, request.IncludeSecret = args[0], args[1], show
			if request.RequestId == "" {
				request.RequestId = uuid.NewString() // ours, so that a repeat is recognised
			}
			if err := c.readAnswer(request, r); err != nil {
				return err
			}
			if err := c.guardBody(request.GetBody()); err != nil {
				return err
			}
			answer, err := askAgain(cmd.Context(), c, c.rotations, rotatorv1.RotationServiceClient.ReportFailure, request)
			if err != nil {
				return err
			}
			c.noteSecret(show, answer.GetKey())
			return c.print(answer, func(w io.Writer) { c.describeReport(w, answer) })
		},
		ValidArgsFunction: completeArgs(false, c.suggestPools, c.suggestKeys(rotatorv1.KeyHome_KEY_HOME_ACTIVE)),
	}
	flags := cmd.Flags()
	r.flags(cmd)
	flags.Int64Var(&request.Generation, "generation", 0, "the life of the key that was used, `N` (default: the one active now)")
	flags.StringVar(&request.ProxyId, "proxy", "", "the `proxy` that reports")
	flags.StringVar(&request.Source, "source", "rotatorctl", "names the reporting party more closely")
	flags.StringVar(&request.RequestId, "request-id", "", "`id` that makes a repeat recognisable (default: a new one)")
	flags.BoolVar(&show, "show-secret", false, "show the secret of the current key; needs -o json or -o yaml")
	return cmd
}

// readAnswer completes a report with the upstream's answer.
func (c *cli) readAnswer(request *rotatorv1.ReportFailureRequest, r reported) error {
	response, err := c.readReported(r)
	if err != nil {
		return err
	}
	request.HttpStatus, request.Body = int32(response.Status), response.Body[:min(len(response.Body), upstream.MaxBody)]
	request.Headers = make(map[string]string, len(response.Header))
	for name, values := range response.Header {
		request.Headers[name] = values[0]
	}
	return nil
}

// guardBody guards what an upstream said like a secret: it may have repeated the key.
func (c *cli) guardBody(body []byte) error {
	if len(body) == 0 {
		return nil
	}
	if err := c.guardSecret(); err != nil {
		return fmt.Errorf("the upstream's answer may hold the key: %w", err)
	}
	return nil
}

func (c *cli) describeReport(w io.Writer, a *rotatorv1.ReportFailureResponse) {
	field(w, "Verdict:", word(a.GetVerdict(), "VERDICT_"))
	field(w, "Rule:", a.GetRule())
	field(w, "Matched rule:", a.GetMatchedRule())
	field(w, "Reason:", a.GetReason())
	field(w, "What happened:", happened(a))
	if r := a.GetRotation(); r != nil {
		field(w, "Rotation:", fmt.Sprintf("%s to %s in slot %s, %s", r.GetOldKeyId(), r.GetNewKeyId(), r.GetSlot(), at(r.GetCommittedAt())))
	}
	next := "none is usable now"
	if k := a.GetKey(); k != nil {
		next = fmt.Sprintf("%s in slot %s, generation %d, %s, %s", k.GetId(), k.GetSlot(), k.GetGeneration(), c.status(k), k.GetPreview())
	}
	field(w, "Next key:", next)
}

// overruled says what the rules mean that are not about an upstream's answer.
var overruled = map[string]string{
	"late":              "nothing: that life of the key is over",
	"disabled":          "nothing: an operator has disabled the key",
	"exhausted":         "nothing: the key is out of service already",
	"pending":           "nothing: the key's rotation waits for stock",
	"probe-alive":       "nothing: the upstream says that the key is good, and it is out of service for other reasons",
	"probe-unreachable": "nothing: the upstream could not be asked whether the key is good",
}

// happened says it in words.
func happened(a *rotatorv1.ReportFailureResponse) string {
	switch a.GetVerdict() {
	case rotatorv1.Verdict_VERDICT_ROTATE:
		return outcome(a.GetOutcome())
	case rotatorv1.Verdict_VERDICT_COOL_DOWN:
		return "the key rests until " + at(a.GetUntil())
	}
	if a.GetIncident() {
		return "nothing: the pool is in an incident, its upstream itself is taken to be at fault; `rotatorctl pool end-incident` ends it"
	}
	if text := overruled[a.GetRule()]; text != "" {
		return text
	}
	return "nothing"
}
