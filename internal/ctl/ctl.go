// Package ctl is the operator's command line, rotatorctl.
//
// It promises that every call has a deadline (--timeout), but for a stream that was asked to go on; that JSON is the API's own protobuf JSON, the same bytes for
// the same answer; that lists are complete, however many pages they took; that an error says what to do next and is
// told apart by the exit code; and that a secret is never read from an argument, never part of a table, a log line or
// an error, and never sent or asked for over an unencrypted connection to another machine unless --insecure says so.
//
// It does not encrypt connections yet, keeps no state and no configuration file, and does not promise that what tables
// look like stays: tools read -o json.
package ctl

import (
	"context"
	"fmt"
	"io"
	"net"
	"regexp"
	"slices"
	"strconv"
	"strings"
	"time"

	"github.com/spf13/cobra"
	"google.golang.org/grpc"
)

// System is what a run touches of the outside world. All fields are required.
type System struct {
	In       io.Reader
	Out, Err io.Writer
	Getenv   func(string) string
	Now      func() time.Time
}

// Run runs one command line (without the program's name) and returns the exit code. It does not exit, and reads no
// flags, environment or files but through its arguments and what they name.
func Run(ctx context.Context, args []string, sys System) int {
	c := &cli{sys: sys, terminal: isTerminal(sys.In)}
	c.sys.In = interruptible{ctx, sys.In}
	defer c.close()
	root := c.rootCommand()
	// Without this cobra would fall back to os.Args for an empty command line.
	root.SetArgs(slices.Concat([]string{}, args))
	root.SetIn(sys.In)
	root.SetOut(sys.Out)
	root.SetErr(sys.Err)
	err := root.ExecuteContext(ctx)
	if err != nil {
		_, _ = io.WriteString(sys.Err, c.explain(err))
	}
	return int(exitCode(err))
}

// cli holds the global flags of one run and its connection.
type cli struct {
	sys      System
	terminal bool // sys.In is one
	server   string
	output   string
	timeout  time.Duration
	insecure bool

	pool, key string // those of the command line, for hints; empty if it names none

	conn *grpc.ClientConn // made on first use
}

const rootHelp = `rotatorctl looks after pools of upstream keys that rotatord keeps.

Exit codes:
  0  done, or all is well
  1  finished with refusals or findings, or another error
  2  wrong usage: arguments, flags, files or fields
  3  not found: pool, key, rotation or binding
  4  refused: the state of the pool or key does not allow it, it exists already, or the right is missing
  5  not available now, or not known in time: safe to run again

Environment:
  ROTATORCTL_SERVER  default of --server`

func (c *cli) rootCommand() *cobra.Command {
	root := group("rotatorctl", "Operate rotatord's pools, keys, bindings and rotations",
		c.poolCommand(), c.keyCommand(), c.rotateCommand(), c.reportCommand(), c.bindingCommand(), c.rotationCommand(), c.eventsCommand(),
		c.replicaCommand(), c.importCommand(), c.classifyCommand(), c.doctorCommand(), c.versionCommand())
	root.Long = rootHelp
	root.SilenceErrors = true
	root.SilenceUsage = true
	root.SetFlagErrorFunc(flagError)
	root.PersistentPreRunE = func(cmd *cobra.Command, args []string) error {
		c.noteNames(cmd, args)
		return c.checkGlobals()
	}
	c.globalFlags(root)
	return root
}

func (c *cli) globalFlags(root *cobra.Command) {
	server := c.sys.Getenv("ROTATORCTL_SERVER")
	if server == "" {
		server = "127.0.0.1:7070"
	}
	flags := root.PersistentFlags()
	flags.StringVar(&c.server, "server", server, "where rotatord serves gRPC, `host:port` (environment: ROTATORCTL_SERVER)")
	flags.StringVarP(&c.output, "output", "o", "table", "`format` of the answer: table, json or yaml")
	flags.DurationVar(&c.timeout, "timeout", 10*time.Second, "deadline of one call, repeats included")
	flags.BoolVar(&c.insecure, "insecure", false, "send and show secrets over an unencrypted connection to another machine")
	completeFlag(root, "output", outputFormats...)
}

func (c *cli) checkGlobals() error {
	if !slices.Contains(outputFormats, c.output) {
		return usagef("--output is %q; it can be %s", c.output, strings.Join(outputFormats, ", "))
	}
	if c.timeout <= 0 {
		return usagef("--timeout is %s; it must be more than 0", c.timeout)
	}
	return checkServer(c.server)
}

// checkServer finds what gRPC would take for another port or a name to look up. Targets with a scheme are gRPC's own.
func checkServer(server string) error {
	if strings.HasPrefix(server, "unix:") || strings.HasPrefix(server, "dns:") || strings.Contains(server, ":///") {
		return nil
	}
	host, port, err := net.SplitHostPort(server)
	if number, portErr := strconv.ParseUint(port, 10, 16); err != nil || portErr != nil || host == "" || number == 0 {
		return usagef("--server is %q; it must be host:port, such as 127.0.0.1:7070", server)
	}
	return nil
}

// noteNames keeps the pool and key that a command is about. Its usage line says where they are.
func (c *cli) noteNames(cmd *cobra.Command, args []string) {
	for i, word := range strings.Fields(cmd.Use)[1:] {
		switch {
		case i >= len(args):
			return
		case i == 0 && (word == "POOL" || word == "NAME"):
			c.pool = args[i]
		case i == 1 && (word == "ID" || word == "KEY"):
			c.key = args[i]
		}
	}
}

// placeholder stands in a hint of ours for what the command is about.
var placeholder = regexp.MustCompile(`\b(POOL|KEY)\b`)

// fill puts the command's pool and key into a hint, so that it can be pasted. It is for our own texts: what an operator or
// the server has said may hold these words too, and stays as it is.
func (c *cli) fill(hint string) string {
	names := map[string]string{"POOL": c.pool, "KEY": c.key}
	return placeholder.ReplaceAllStringFunc(hint, func(word string) string {
		if name := names[word]; name != "" {
			return quoted(name)
		}
		return word
	})
}

// group is a command that only has subcommands. Cobra would answer an unknown one with help and exit code 0.
func group(use, short string, subcommands ...*cobra.Command) *cobra.Command {
	cmd := &cobra.Command{Use: use, Short: short, SuggestionsMinimumDistance: 2}
	cmd.Args = func(*cobra.Command, []string) error { return nil }
	cmd.RunE = func(cmd *cobra.Command, args []string) error {
		if len(args) == 0 {
			return cmd.Help()
		}
		return unknownCommand(cmd, args[0])
	}
	cmd.AddCommand(subcommands...)
	return cmd
}

func unknownCommand(cmd *cobra.Command, name string) error {
	if similar := cmd.SuggestionsFor(name); len(similar) > 0 {
		return usagef("%s has no command %q; did you mean %q?", cmd.CommandPath(), name, similar[0])
	}
	return usagef("%s has no command %q; run %s --help", cmd.CommandPath(), name, cmd.CommandPath())
}

// exactly checks the number of arguments without repeating them: one could be a secret typed in the wrong place.
func exactly(names ...string) cobra.PositionalArgs {
	return func(cmd *cobra.Command, args []string) error {
		if len(args) == len(names) {
			return nil
		}
		return usagef("%s takes %s and was given %s; run %s --help",
			cmd.CommandPath(), argumentNames(names), count(len(args), "argument"), cmd.CommandPath())
	}
}

func argumentNames(names []string) string {
	if len(names) == 0 {
		return "no arguments"
	}
	return strings.Join(names, " ")
}

// count writes a number with its noun.
func count(n int, noun string) string {
	switch {
	case n == 1:
		return "1 " + noun
	case strings.HasSuffix(noun, "y") && !strings.HasSuffix(noun, "ey"):
		return fmt.Sprintf("%d %sies", n, strings.TrimSuffix(noun, "y"))
	default:
		return fmt.Sprintf("%d %ss", n, noun)
	}
}
