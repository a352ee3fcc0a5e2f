package ctl

import (
	"context"
	"fmt"
	"io"
	"regexp"
	"slices"
	"strings"

	"github.com/spf13/cobra"

	rotatorv1 "github.com/rotatord/rotatord/proto/rotator/v1"
)

func (c *cli) keyCommand() *cobra.Command {
	return group("key", "Add, import, show, remove, restore, retry, enable and disable keys",
		c.keyAddCommand(), c.keyImportCommand(), c.keyListCommand(), c.keyGetCommand(), c.keyRemoveCommand(),
		c.keyRestoreCommand(), c.keyRetryCommand(), c.keyEnableCommand(), c.keyDisableCommand())
}

func (c *cli) keyAddCommand() *cobra.Command {
	var secretFile, slot string
	var backup bool
	var labels map[string]string
	cmd := &cobra.Command{
		Use:   "add POOL ID",
		Short: "Add an active key, or with --backup one to stock; the secret comes from standard input",
		Long: "Add an active key, or with --backup one to stock.\n\n" +
			"The secret is read from standard input or --secret-file, without one newline at its end. It is never taken\n" +
			"from the command line, where every process of the machine could read it.",
		Example: "  rotatorctl key add openhands k1 --secret-file k1.txt\n" +
			"  pass show openhands/k2 | rotatorctl key add openhands k2 --backup",
		Args: secretlessArgs,
		RunE: func(cmd *cobra.Command, args []string) error {
			if backup && slot != "" {
				return usagef("--slot is for active keys: a backup gets the slot of the key it replaces")
			}
			if err := c.guardSecret(); err != nil {
				return err
			}
			secret, err := c.readSecret(secretFile)
			if err != nil {
				return err
			}
			key := &rotatorv1.NewKey{Id: args[1], Secret: secret, Slot: slot, Labels: labels}
			answer, err := c.addKeys(cmd.Context(), &rotatorv1.AddKeysRequest{Pool: args[0], Home: homeOf(backup), Keys: []*rotatorv1.NewKey{key}})
			if err != nil {
				return err
			}
			return c.reportAdded(answer, args[0], homeOf(backup))
		},
		ValidArgsFunction: completeArgs(false, c.suggestPools),
	}
	cmd.Flags().StringVar(&secretFile, "secret-file", "", "read the secret from this `file` instead of standard input")
	cmd.Flags().StringVar(&slot, "slot", "", "slot of an active key (default: the key's id)")
	cmd.Flags().BoolVar(&backup, "backup", false, "add it to stock")
	cmd.Flags().StringToStringVarP(&labels, "label", "l", nil, "label `name=value`; may be repeated")
	cmd.Flags().Lookup("label").DefValue = "" // not "[]", which the help would show
	return cmd
}

func homeOf(backup bool) rotatorv1.KeyHome {
	if backup {
		return rotatorv1.KeyHome_KEY_HOME_BACKUP
	}
	return rotatorv1.KeyHome_KEY_HOME_ACTIVE
}

func secretlessArgs(cmd *cobra.Command, args []string) error {
	if len(args) > 2 {
		return usagef("key add takes POOL ID; a secret comes from standard input or --secret-file, never from the command line, " +
			"where other processes and the shell's history see it")
	}
	return exactly("POOL", "ID")(cmd, args)
}

// maxSecret is the contract's limit, in bytes.
const maxSecret = 4096

// readSecret reads the secret without one newline at its end. Its errors do not repeat what was given for the file:
// it may have been the secret.
func (c *cli) readSecret(file string) (string, error) {
	if file == "" {
		file = "-"
		c.hintAtTerminal()
	}
	in, done, err := c.openFile(file)
	if err != nil {
		return "", usagef("cannot open the file of --secret-file: %v", cause(err))
	}
	defer done()
	text, err := readBounded(in, "the secret", maxSecret+2)
	if err != nil {
		return "", err
	}
	secret := strings.TrimSuffix(strings.TrimSuffix(string(text), "\n"), "\r")
	if secret == "" {
		return "", usagef("the secret is empty; give it on standard input or with --secret-file")
	}
	return secret, nil
}

func (c *cli) hintAtTerminal() {
	if c.terminal {
		fmt.Fprintln(c.sys.Err, "Reading the secret from the terminal, which shows it: end with Enter and Ctrl-D. Better: --secret-file, or a pipe.")
	}
}

// reportAdded prints the answer for a single key.
func (c *cli) reportAdded(answer *rotatorv1.AddKeysResponse, pool string, wanted rotatorv1.KeyHome) error {
	if len(answer.GetResults()) != 1 {
		return failf(exitFailed, "the server answered for %s instead of 1", count(len(answer.GetResults()), "key"))
	}
	result := answer.GetResults()[0]
	if err := c.print(answer, func(w io.Writer) { row(w, addedLine(result, pool)) }); err != nil {
		return err
	}
	switch result.GetResult() {
	case rotatorv1.AddResult_ADD_RESULT_ADDED:
		return nil
	case rotatorv1.AddResult_ADD_RESULT_SAME:
		c.noteOtherHome(result, pool, wanted)
		return nil
	case rotatorv1.AddResult_ADD_RESULT_UNKNOWN:
		return &adviceError{failf(exitUnavailable, "it is not known whether the key was added"), "run the command again: if it was added, it says so"}
	default:
		return &adviceError{failf(refusalExit(result.GetRefusal()), "the key was refused: %s", refusalText(result)), c.fill(refusalAdvice[result.GetRefusal()])}
	}
}

func addedLine(result *rotatorv1.AddedKey, pool string) string {
	id := pool + "/" + result.GetId()
	switch result.GetResult() {
	case rotatorv1.AddResult_ADD_RESULT_ADDED:
		return fmt.Sprintf("key %s is %s, at revision %d", id, home(result.GetHome()), result.GetRevision())
	case rotatorv1.AddResult_ADD_RESULT_SAME:
		return fmt.Sprintf("key %s was there with the same secret (%s); nothing was changed", id, home(result.GetHome()))
	default:
		return fmt.Sprintf("key %s was not added", id)
	}
}

func (c *cli) noteOtherHome(result *rotatorv1.AddedKey, pool string, wanted rotatorv1.KeyHome) {
	if result.GetHome() == wanted {
		return
	}
	fmt.Fprintf(c.sys.Err, "note: you asked for %s and the key is %s; see `rotatorctl key get %s %s`\n",
		home(wanted), home(result.GetHome()), pool, result.GetId())
}

func refusalExit(r rotatorv1.KeyRefusal) exit {
	switch r {
	case rotatorv1.KeyRefusal_KEY_REFUSAL_INVALID:
		return exitUsage
	case rotatorv1.KeyRefusal_KEY_REFUSAL_NOT_APPLIED:
		return exitUnavailable
	default:
		return exitRefused
	}
}

var refusalAdvice = map[rotatorv1.KeyRefusal]string{
	rotatorv1.KeyRefusal_KEY_REFUSAL_INVALID:      "correct it and add it again",
	rotatorv1.KeyRefusal_KEY_REFUSAL_ID_TAKEN:     "choose another id, or remove the key that has it",
	rotatorv1.KeyRefusal_KEY_REFUSAL_SECRET_TAKEN: "the pool has this credential already; see the key with `rotatorctl key list POOL`",
	rotatorv1.KeyRefusal_KEY_REFUSAL_SLOT_TAKEN:   "choose another --slot, or add it with --backup",
	rotatorv1.KeyRefusal_KEY_REFUSAL_NOT_APPLIED:  "run the command again",
}

// inRequest is how the service names a key's field, and sameAs how it names the id of another one. Where a key is in the
// request says nothing to the caller.
var (
	inRequest = regexp.MustCompile(`\bkeys\[\d+\]\.`)
	sameAs    = regexp.MustCompile(`\bthe same as keys\[\d+\]\.id\b`)
)

func refusalText(result *rotatorv1.AddedKey) string {
	text := sameAs.ReplaceAllString(oneLine(result.GetMessage()), "that of an earlier key")
	text = inRequest.ReplaceAllString(text, "")
	if text == "" {
		text = refusal(result.GetRefusal())
	}
	if other := result.GetOtherKeyId(); other != "" && !strings.Contains(text, other) {
		text += " (key " + other + " has the same secret)"
	}
	return text
}

var keyStates = map[string]*rotatorv1.ListKeysRequest{
	"":        {},
	"active":  {Home: rotatorv1.KeyHome_KEY_HOME_ACTIVE},
	"backup":  {Home: rotatorv1.KeyHome_KEY_HOME_BACKUP},
	"retired": {Home: rotatorv1.KeyHome_KEY_HOME_RETIRED},
	"pending": {PendingOnly: true},

	"preparing": {Home: rotatorv1.KeyHome_KEY_HOME_PREPARING},
	"failed":    {Home: rotatorv1.KeyHome_KEY_HOME_PREPARING},
	"orphaned":  {Home: rotatorv1.KeyHome_KEY_HOME_RETIRED},
}

// keyStateNames are the states in the order of a key's life.
var keyStateNames = []string{"preparing", "failed", "backup", "active", "pending", "retired", "orphaned"}

// statePhase is the phase that a state means among the keys of its home; the service lists by home.
var statePhase = map[string]rotatorv1.KeyPhase{
	"failed":   rotatorv1.KeyPhase_KEY_PHASE_FAILED,
	"orphaned": rotatorv1.KeyPhase_KEY_PHASE_ORPHANED,
}

// inState keeps the keys that are in a state.
func inState(keys []*rotatorv1.Key, state string) []*rotatorv1.Key {
	phase, narrower := statePhase[state]
	if !narrower {
		return keys
	}
	return slices.DeleteFunc(keys, func(k *rotatorv1.Key) bool { return k.GetPhase() != phase })
}

func (c *cli) keyListCommand() *cobra.Command {
	var state string
	cmd := &cobra.Command{
		Use:   "list POOL",
		Short: "List a pool's keys, without their secrets",
		Args:  exactly("POOL"),
		RunE: func(cmd *cobra.Command, args []string) error {
			filter, ok := keyStates[state]
			if !ok {
				last := len(keyStateNames) - 1
				return usagef("--state is %q; it can be %s or %s", state, strings.Join(keyStateNames[:last], ", "), keyStateNames[last])
			}
			answer, err := c.listKeys(cmd.Context(), args[0], filter.GetHome(), filter.GetPendingOnly())
			if err != nil {
				return err
			}
			answer.Keys = inState(answer.GetKeys(), state)
			return c.print(answer, func(w io.Writer) { c.keyTable(w, answer.GetKeys()) })
		},
		ValidArgsFunction: completeArgs(false, c.suggestPools),
	}
	cmd.Flags().StringVar(&state, "state", "", "only keys that are `"+strings.Join(keyStateNames, "|")+"`")
	completeFlag(cmd, "state", keyStateNames...)
	return cmd
}

func (c *cli) listKeys(ctx context.Context, pool string, home rotatorv1.KeyHome, pending bool) (*rotatorv1.ListKeysResponse, error) {
	return c.listKeysSince(ctx, 0, pool, home, pending)
}

func (c *cli) listKeysSince(ctx context.Context, since int64, pool string, home rotatorv1.KeyHome, pending bool) (*rotatorv1.ListKeysResponse, error) {
	keys, revision, err := allPages(since, func(token string, minRevision int64) (page[*rotatorv1.Key], error) {
		request := &rotatorv1.ListKeysRequest{Pool: pool, Home: home, PendingOnly: pending, PageSize: pageSize, PageToken: token, MinRevision: minRevision}
		a, err := ask(ctx, c, c.admin, rotatorv1.AdminServiceClient.ListKeys, request)
		return page[*rotatorv1.Key]{a.GetKeys(), a.GetNextPageToken(), a.GetRevision()}, err
	})
	return &rotatorv1.ListKeysResponse{Keys: keys, Revision: revision}, err
}

func (c *cli) keyTable(w io.Writer, keys []*rotatorv1.Key) {
	row(w, "HOME", "ID", "SLOT", "STATE", "GENERATION", "PREVIEW", "SPEND", "AGE", "REPLACES", "REPLACED BY")
	for _, k := range keys {
		row(w, home(k.GetHome()), k.GetId(), k.GetSlot(), c.state(k), number(k.GetGeneration()), k.GetPreview(),
			spend(k), c.age(k.GetAddedAt()), k.GetReplaces(), k.GetReplacedBy())
	}
}

// errSecretInTable is returned before anything is asked for.
var errSecretInTable = usagef("--show-secret needs -o json or -o yaml: a table never holds a secret")

// checkShowSecret says whether a secret may come back.
func (c *cli) checkShowSecret(show bool) error {
	switch {
	case !show:
		return nil
	case c.output == "table":
		return errSecretInTable
	default:
		return c.guardSecret()
	}
}

func (c *cli) keyGetCommand() *cobra.Command {
	var show bool
	cmd := &cobra.Command{
		Use:   "get POOL ID",
		Short: "Show a key, whatever its home",
		Args:  exactly("POOL", "ID"),
		RunE: func(cmd *cobra.Command, args []string) error {
			if err := c.checkShowSecret(show); err != nil {
				return err
			}
			request := &rotatorv1.GetKeyRequest{Pool: args[0], KeyId: args[1], IncludeSecret: show}
			answer, err := ask(cmd.Context(), c, c.admin, rotatorv1.AdminServiceClient.GetKey, request)
			if err != nil {
				return err
			}
			return c.print(answer, func(w io.Writer) { c.describeKey(w, answer.GetKey()) })
		},
		ValidArgsFunction: completeArgs(false, c.suggestPools, c.suggestKeys(0)),
	}
	cmd.Flags().BoolVar(&show, "show-secret", false, "show the secret; needs -o json or -o yaml")
	return cmd
}

func (c *cli) describeKey(w io.Writer, k *rotatorv1.Key) {
	field(w, "Key:", k.GetPool()+"/"+k.GetId())
	field(w, "Home:", home(k.GetHome()))
	field(w, "Slot:", k.GetSlot())
	field(w, "Status:", c.status(k))
	field(w, "Status since:", at(k.GetStatusSince()))
	field(w, "Status reason:", k.GetStatusReason())
	field(w, "Phase:", phase(k.GetPhase()))
	field(w, "Problem:", k.GetProblem())
	field(w, "Next try:", at(k.GetNextTryAt()))
	field(w, "Generation:", number(k.GetGeneration()))
	field(w, "Preview:", k.GetPreview())
	field(w, "Fingerprint:", k.GetFingerprint())
	field(w, "Labels:", labels(k.GetLabels()))
	field(w, "Spend:", dollars(k.SpendUsd))
	field(w, "Budget:", dollars(k.BudgetUsd))
	field(w, "Spend read:", at(k.GetSpendAt()))
	field(w, "Replaces:", k.GetReplaces())
	field(w, "Replaced by:", k.GetReplacedBy())
	field(w, "Added:", at(k.GetAddedAt()))
	field(w, "Retired:", at(k.GetRetiredAt()))
	field(w, "Revision:", number(k.GetRevision()))
}

func (c *cli) keyRemoveCommand() *cobra.Command {
	var unbind bool
	cmd := &cobra.Command{
		Use:   "remove POOL ID",
		Short: "Delete a key from any home; an active key takes its slot with it",
		Args:  exactly("POOL", "ID"),
		RunE: func(cmd *cobra.Command, args []string) error {
			request := &rotatorv1.RemoveKeyRequest{Pool: args[0], KeyId: args[1], Unbind: unbind}
			answer, err := ask(cmd.Context(), c, c.admin, rotatorv1.AdminServiceClient.RemoveKey, request)
			if err != nil {
				return err
			}
			return c.print(answer, func(w io.Writer) {
				row(w, fmt.Sprintf("key %s/%s is gone, at revision %d; %s changed", args[0], args[1], answer.GetRevision(),
					count(int(answer.GetUnbound()), "binding")))
			})
		},
		ValidArgsFunction: completeArgs(false, c.suggestPools, c.suggestKeys(0)),
	}
	cmd.Flags().BoolVar(&unbind, "unbind", false, "take its slot out of the bindings that name it")
	return cmd
}

func (c *cli) keyRestoreCommand() *cobra.Command {
	return &cobra.Command{
		Use:   "restore POOL ID",
		Short: "Put a retired key back into stock",
		Args:  exactly("POOL", "ID"),
		RunE: func(cmd *cobra.Command, args []string) error {
			request := &rotatorv1.RestoreKeyRequest{Pool: args[0], KeyId: args[1]}
			answer, err := ask(cmd.Context(), c, c.admin, rotatorv1.AdminServiceClient.RestoreKey, request)
			if err != nil {
				return err
			}
			return c.print(answer, func(w io.Writer) { c.keyIsNow(w, args, answer.GetKey(), answer.GetRevision()) })
		},
		ValidArgsFunction: completeArgs(false, c.suggestPools, c.suggestKeys(rotatorv1.KeyHome_KEY_HOME_RETIRED)),
	}
}

func (c *cli) keyRetryCommand() *cobra.Command {
	return &cobra.Command{
		Use:   "retry POOL ID",
		Short: "Try again what was given up: preparing a failed key, or revoking an orphaned one",
		Long: "Try again what was given up: preparing a key that failed, or revoking a retired key that is orphaned.\n\n" +
			"What became of the last try is found out first: nothing is minted or revoked twice.\n\n" +
			"For a key that is orphaned because the upstream of its pool was changed this says that it may be asked about at the\n" +
			"upstream that the pool has now.",
		Args: exactly("POOL", "ID"),
		RunE: func(cmd *cobra.Command, args []string) error {
			request := &rotatorv1.RetryKeyRequest{Pool: args[0], KeyId: args[1]}
			answer, err := ask(cmd.Context(), c, c.admin, rotatorv1.AdminServiceClient.RetryKey, request)
			if err != nil {
				return err
			}
			return c.print(answer, func(w io.Writer) { c.keyIsNow(w, args, answer.GetKey(), answer.GetRevision()) })
		},
		ValidArgsFunction: completeArgs(false, c.suggestPools, c.suggestKeys(0)),
	}
}

func (c *cli) keyIsNow(w io.Writer, args []string, key *rotatorv1.Key, revision int64) {
	state := strings.TrimSpace(home(key.GetHome()) + " " + c.status(key))
	row(w, fmt.Sprintf("key %s/%s is %s, at revision %d", args[0], args[1], state, revision))
}

func (c *cli) keyEnableCommand() *cobra.Command {
	var reason string
	cmd := &cobra.Command{
		Use:   "enable POOL ID",
		Short: "Put an active key back into service whatever its status",
		Args:  exactly("POOL", "ID"),
		RunE: func(cmd *cobra.Command, args []string) error {
			request := &rotatorv1.EnableKeyRequest{Pool: args[0], KeyId: args[1], Reason: reason}
			answer, err := ask(cmd.Context(), c, c.admin, rotatorv1.AdminServiceClient.EnableKey, request)
			if err != nil {
				return err
			}
			return c.print(answer, func(w io.Writer) { c.keyIsNow(w, args, answer.GetKey(), answer.GetRevision()) })
		},
		ValidArgsFunction: completeArgs(false, c.suggestPools, c.suggestKeys(rotatorv1.KeyHome_KEY_HOME_ACTIVE)),
	}
	cmd.Flags().StringVar(&reason, "reason", "", "why, for the audit event; no secrets")
	return cmd
}

func (c *cli) keyDisableCommand() *cobra.Command {
	var reason string
	cmd := &cobra.Command{
		Use:   "disable POOL ID",
		Short: "Take an active key out of service without replacing it",
		Args:  exactly("POOL", "ID"),
		RunE: func(cmd *cobra.Command, args []string) error {
			request := &rotatorv1.DisableKeyRequest{Pool: args[0], KeyId: args[1], Reason: reason}
			answer, err := ask(cmd.Context(), c, c.admin, rotatorv1.AdminServiceClient.DisableKey, request)
			if err != nil {
				return err
			}
			return c.print(answer, func(w io.Writer) { c.keyIsNow(w, args, answer.GetKey(), answer.GetRevision()) })
		},
		ValidArgsFunction: completeArgs(false, c.suggestPools, c.suggestKeys(rotatorv1.KeyHome_KEY_HOME_ACTIVE)),
	}
	cmd.Flags().StringVar(&reason, "reason", "", "why, for the audit event; no secrets")
	return cmd
}
