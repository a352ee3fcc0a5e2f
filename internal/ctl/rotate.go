package ctl

import (
	"fmt"
	"io"
	"strings"

	"github.com/google/uuid"
	"github.com/spf13/cobra"

	rotatorv1 "github.com/rotatord/rotatord/proto/rotator/v1"
)

var triggers = map[string]rotatorv1.Trigger{
	"operator":      rotatorv1.Trigger_TRIGGER_OPERATOR,
	"provider":      rotatorv1.Trigger_TRIGGER_PROVIDER,
	"pool":          rotatorv1.Trigger_TRIGGER_POOL,
	"spend-checker": rotatorv1.Trigger_TRIGGER_SPEND_CHECKER,
	"proxy":         rotatorv1.Trigger_TRIGGER_PROXY,
}

var triggerNames = []string{"operator", "provider", "pool", "spend-checker", "proxy"}

func (c *cli) rotateCommand() *cobra.Command {
	var by string
	var show bool
	request := &rotatorv1.RotateKeyRequest{}
	cmd := &cobra.Command{
		Use:   "rotate POOL KEY",
		Short: "Replace a key by one of the pool's backups, once, however many ask",
		Long: "Replace a key by one of the pool's backups, once, however many ask.\n\n" +
			"If the answer does not come, the same request is sent again until --timeout: with the same request id it gets\n" +
			"the true outcome and never rotates twice. Without a backup in stock the rotation is recorded, made as soon as\n" +
			"there is one, and the exit code is 0.\n\n" +
			"At the pool's bound on rotations the key cools down instead, and the exit code is 5. That is so when an upstream\n" +
			"refuses everybody; if the keys are surely bad, --override-bound rotates all the same.",
		Args: exactly("POOL", "KEY"),
		RunE: func(cmd *cobra.Command, args []string) error {
			t, ok := triggers[by]
			if !ok {
				return usagef("--trigger is %q; it can be %s", by, strings.Join(triggerNames, ", "))
			}
			if request.GetOverrideBound() && t != rotatorv1.Trigger_TRIGGER_OPERATOR {
				return usagef("--override-bound is for operators: leave out --trigger %s", by)
			}
			if err := c.checkShowSecret(show); err != nil {
				return err
			}
			request.Pool, request.KeyId, request.Trigger, request.IncludeSecret = args[0], args[1], t, show
			if request.RequestId == "" {
				// Ours and not the server's, so that a repeat is recognised.
				request.RequestId = uuid.NewString()
			}
			answer, err := askAgain(cmd.Context(), c, c.rotations, rotatorv1.RotationServiceClient.RotateKey, request)
			if err != nil {
				return adviseRepeat(err, request)
			}
			c.noteRotation(request, answer)
			c.noteSecret(show, answer.GetKey())
			return c.print(answer, func(w io.Writer) { c.describeOutcome(w, request, answer) })
		},
		ValidArgsFunction: completeArgs(false, c.suggestPools, c.suggestKeys(rotatorv1.KeyHome_KEY_HOME_ACTIVE)),
	}
	flags := cmd.Flags()
	flags.Int64Var(&request.Generation, "generation", 0, "the life of the key that failed, `N` (default: the one active now)")
	flags.StringVar(&by, "trigger", "operator", "who asks: `"+strings.Join(triggerNames, "|")+"`")
	flags.StringVar(&request.Source, "source", "", "names the asking party more closely, such as openhands")
	flags.StringVar(&request.Reason, "reason", "", "why, for the record; no secrets")
	flags.StringVar(&request.RequestId, "request-id", "", "`id` that makes a repeat recognisable (default: a new one)")
	flags.StringVar(&request.ProxyId, "proxy", "", "the `proxy` that asks")
	flags.BoolVar(&request.OverrideBound, "override-bound", false, "rotate although the pool's bound on rotations is reached; for operators")
	flags.BoolVar(&show, "show-secret", false, "show the secret of the current key; needs -o json or -o yaml")
	completeFlag(cmd, "trigger", triggerNames...)
	return cmd
}

// adviseRepeat tells how to send this very request again: the record then says the same, if it is made only now. Only
// what is not known needs that.
func adviseRepeat(err error, q *rotatorv1.RotateKeyRequest) error {
	switch reason := reasonOf(err); {
	case exitCode(err) != exitUnavailable, reason == rotatorv1.ErrorReason_ERROR_REASON_STORAGE_FULL,
		reason == rotatorv1.ErrorReason_ERROR_REASON_ROTATION_BOUND:
		return err
	}
	command := fmt.Sprintf("rotatorctl rotate %s %s --request-id %s", quoted(q.GetPool()), quoted(q.GetKeyId()), quoted(q.GetRequestId()))
	if q.GetOverrideBound() {
		command += " --override-bound"
	}
	if q.GetGeneration() != 0 {
		command += fmt.Sprintf(" --generation %d", q.GetGeneration())
	}
	if name := trigger(q.GetTrigger()); name != "operator" {
		command += " --trigger " + name
	}
	for _, flag := range []struct{ name, value string }{
		{"source", q.GetSource()}, {"reason", q.GetReason()}, {"proxy", q.GetProxyId()},
	} {
		if flag.value != "" {
			command += fmt.Sprintf(" --%s %s", flag.name, quoted(flag.value))
		}
	}
	return again(err, "ask again for the same request, which never rotates twice: "+command)
}

// quoted makes text safe to paste into a shell.
func quoted(text string) string {
	if plainWord.MatchString(text) {
		return text
	}
	return "'" + strings.ReplaceAll(oneLine(text), "'", `'\''`) + "'"
}

func (c *cli) noteRotation(q *rotatorv1.RotateKeyRequest, a *rotatorv1.RotateKeyResponse) {
	if a.GetOutcome() == rotatorv1.Outcome_OUTCOME_PENDING {
		fmt.Fprintf(c.sys.Err, "note: pool %s has no backup, or its bound on rotations is reached; the rotation is made as soon as both allow it, and `rotatorctl key add %s ID --backup` adds a backup\n",
			q.GetPool(), q.GetPool())
	}
}

// noteSecret tells of a secret that was to be shown and did not come.
func (c *cli) noteSecret(show bool, key *rotatorv1.Key) {
	if show && key != nil && key.GetSecret() == "" {
		fmt.Fprintf(c.sys.Err, "note: this replica cannot open the secret of key %s; give every replica the same keyset file, then run `rotatorctl doctor`\n", oneLine(key.GetId()))
	}
}

func (c *cli) describeOutcome(w io.Writer, q *rotatorv1.RotateKeyRequest, a *rotatorv1.RotateKeyResponse) {
	field(w, "Outcome:", outcome(a.GetOutcome()))
	field(w, "Request:", q.GetRequestId())
	if r := a.GetRotation(); r != nil {
		c.describeRotation(w, r)
	}
	if k := a.GetKey(); k != nil {
		field(w, keyTitle(a), fmt.Sprintf("%s in slot %s, generation %d, %s, %s", k.GetId(), k.GetSlot(), k.GetGeneration(), c.status(k), k.GetPreview()))
	}
}

func keyTitle(a *rotatorv1.RotateKeyResponse) string {
	if a.GetOutcome() == rotatorv1.Outcome_OUTCOME_PENDING {
		return "Usable meanwhile:"
	}
	return "Key now:"
}
