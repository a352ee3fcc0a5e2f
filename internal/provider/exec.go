package provider

import (
	"bytes"
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"os"
	"os/exec"
	"slices"
	"strings"

	"github.com/rotatord/rotatord/internal/pool"
	"github.com/rotatord/rotatord/internal/upstream"
)

// Exec runs a command for each call. The command reads one JSON object from its standard input and writes one to its
// standard output:
//
//	{"version":1,"op":"mint","pool":"p","key_id":"m261126-k7q2x9da4m","alias":"rotatord-p-m261126-k7q2x9da4m","intent":"0193..."}
//	{"result":"ok","secret":"..."}
//
// op is mint, find, verify or revoke; secret is the key's, where it is known. A key that was added and not minted has an
// alias too, which names nothing at the upstream, so the secret goes before it. The results are: ok (done; of find: there is
// such a key; of verify: it works), missing (of find: there is surely none), refused (of verify: the upstream surely does
// not take it) and nothing_done (of mint and revoke: surely nothing has changed). Everything else, an exit code that is not
// 0 too, means that the outcome is not known, and the command is asked to find it. message says why, for people.
//
// The command has the time of its context, and then it is killed with all that it started in its process group. It gets a
// few variables of the environment and no others; what it writes to its standard error is dropped.
type Exec struct {
	Command []string
}

type execRequest struct {
	Version int    `json:"version"`
	Op      string `json:"op"`
	Pool    string `json:"pool"`
	KeyID   string `json:"key_id"`
	Alias   string `json:"alias"`
	Intent  string `json:"intent,omitempty"`
	Secret  string `json:"secret,omitempty"`
}

type execAnswer struct {
	Result  string `json:"result"`
	Secret  string `json:"secret"`
	Message string `json:"message"`
}

const (
	resultOK          = "ok"
	resultMissing     = "missing"
	resultRefused     = "refused"
	resultNothingDone = "nothing_done"
)

// Choose implements pool.Provider: the command chooses.
func (*Exec) Choose() pool.Secret { return pool.Secret{} }

// Mint implements pool.Provider.
func (e *Exec) Mint(ctx context.Context, k pool.ProviderKey) (pool.Secret, error) {
	a, err := e.ask(ctx, "mint", k)
	if err == nil && a.Secret == "" {
		err = errors.New("the command minted a key and did not say its secret")
	}
	return pool.NewSecret(a.Secret), err
}

// Find implements pool.Provider.
func (e *Exec) Find(ctx context.Context, k pool.ProviderKey) (bool, pool.Secret, error) {
	a, err := e.ask(ctx, "find", k, resultMissing)
	return err == nil && a.Result == resultOK, pool.NewSecret(a.Secret), err
}

// Verify implements pool.Provider.
func (e *Exec) Verify(ctx context.Context, k pool.ProviderKey) error {
	a, err := e.ask(ctx, "verify", k, resultRefused)
	if err == nil && a.Result == resultRefused {
		return dead(a.Message)
	}
	return err
}

// Revoke implements pool.Provider. A key that the command does not find is revoked.
func (e *Exec) Revoke(ctx context.Context, k pool.ProviderKey) error {
	_, err := e.ask(ctx, "revoke", k, resultMissing)
	return err
}

// ask runs the command. Its answer is one of ok and the results in more; any other is an error.
func (e *Exec) ask(ctx context.Context, op string, k pool.ProviderKey, more ...string) (a execAnswer, err error) {
	in, err := json.Marshal(execRequest{1, op, k.Pool, k.ID, k.Alias, k.Intent, k.Secret.Reveal()})
	if err != nil {
		return a, nothingDone(err)
	}
	out, err := e.run(ctx, in)
	if err != nil {
		return a, fmt.Errorf("%s: %w", op, err)
	}
	if json.Unmarshal(out, &a) != nil {
		return execAnswer{}, fmt.Errorf("%s: the command's answer is no JSON object as it should be", op)
	}
	a.Message = upstream.Scrub(a.Message, upstream.MaxReason, k.Secret.Reveal(), a.Secret)
	switch {
	case a.Result == resultOK || slices.Contains(more, a.Result):
		return a, nil
	case a.Result == resultNothingDone:
		return execAnswer{}, nothingDone(fmt.Errorf("%s: %s", op, a.Message))
	}
	return execAnswer{}, fmt.Errorf("%s: %s", op, told(a.Message))
}

func told(message string) string {
	if message == "" {
		return "the command did not say what became of it"
	}
	return message
}

// maxOutput bounds what is read of a command's answer.
const maxOutput = 64 << 10

// passed are the variables of the environment that a command gets.
var passed = []string{
	"PATH", "HOME", "TMPDIR", "LANG", "TZ", "HTTPS_PROXY", "HTTP_PROXY", "NO_PROXY", "https_proxy", "http_proxy", "no_proxy", "SSL_CERT_FILE", "SSL_CERT_DIR",
}

// run runs the command to its end or to the end of ctx. An error that is not ErrNothingDone leaves open what it has done.
func (e *Exec) run(ctx context.Context, in []byte) ([]byte, error) {
	if err := ctx.Err(); err != nil {
		return nil, nothingDone(err)
	}
	cmd := exec.CommandContext(ctx, e.Command[0], e.Command[1:]...)
	out := &bounded{}
	cmd.Stdin, cmd.Stdout, cmd.WaitDelay = bytes.NewReader(in), out, killAfter
	cmd.Env = []string{} // nil would pass on everything
	for _, name := range passed {
		if value, given := os.LookupEnv(name); given {
			cmd.Env = append(cmd.Env, name+"="+value)
		}
	}
	ownGroup(cmd)
	if err := cmd.Start(); err != nil {
		return nil, nothingDone(fmt.Errorf("the command cannot be started: %w", err))
	}
	err := cmd.Wait()
	killGroup(cmd) // what the command has left behind
	var exit *exec.ExitError
	switch {
	case ctx.Err() != nil:
		return nil, fmt.Errorf("the command was killed, because it did not end in time: %w", ctx.Err())
	case errors.As(err, &exit):
		return nil, fmt.Errorf("the command ended with %s", exit.ProcessState)
	case err != nil:
		return nil, fmt.Errorf("running the command: %w", err)
	case out.cut:
		return nil, fmt.Errorf("the command's answer has more than %d bytes", maxOutput)
	}
	return out.Bytes(), nil
}

// bounded keeps the first maxOutput bytes and takes the others without keeping them.
type bounded struct {
	bytes.Buffer
	cut bool
}

// Write implements io.Writer.
func (b *bounded) Write(p []byte) (int, error) {
	room := maxOutput - b.Len()
	if room < len(p) {
		b.cut = true
		_, _ = b.Buffer.Write(p[:room])
		return len(p), nil
	}
	return b.Buffer.Write(p)
}

// ParseCommand takes a command apart at white space. There is no shell: what needs one is put into a script.
func ParseCommand(text string) (name string, command []string, err error) {
	name, rest, found := strings.Cut(text, "=")
	command = strings.Fields(rest)
	switch {
	case !found, len(command) == 0:
		return "", nil, errors.New("must be NAME=COMMAND")
	case pool.CheckName(name) != "":
		return "", nil, fmt.Errorf("the name %s", pool.CheckName(name))
	}
	return name, command, nil
}
