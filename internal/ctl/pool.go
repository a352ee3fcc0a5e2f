package ctl

import (
	"context"
	"fmt"
	"io"
	"time"

	"github.com/spf13/cobra"

	rotatorv1 "github.com/rotatord/rotatord/proto/rotator/v1"
)

func (c *cli) poolCommand() *cobra.Command {
	return group("pool", "Create, change, show, pause and delete pools",
		c.poolCreateCommand(), c.poolUpdateCommand(), c.poolGetCommand(), c.poolListCommand(),
		c.poolPauseCommand(), c.poolResumeCommand(), c.poolEndIncidentCommand(), c.poolCredentialCommand(), c.poolDeleteCommand())
}

func (c *cli) poolCreateCommand() *cobra.Command {
	var file string
	cmd := &cobra.Command{
		Use:   "create NAME",
		Short: "Create a pool; creating it again with an equal spec changes nothing",
		Args:  exactly("NAME"),
		RunE: func(cmd *cobra.Command, args []string) error {
			spec, err := c.readSpec(file)
			if err != nil {
				return err
			}
			request := &rotatorv1.CreatePoolRequest{Name: args[0], Spec: spec}
			answer, err := ask(cmd.Context(), c, c.admin, rotatorv1.AdminServiceClient.CreatePool, request)
			if err != nil {
				return err
			}
			return c.print(answer, func(w io.Writer) {
				row(w, fmt.Sprintf("pool %s is there, at revision %d", answer.GetPool().GetName(), answer.GetRevision()))
			})
		},
	}
	specFlag(cmd, &file)
	return cmd
}

func (c *cli) poolUpdateCommand() *cobra.Command {
	var file string
	var ifRevision int64
	cmd := &cobra.Command{
		Use:   "update NAME -f FILE",
		Short: "Replace a pool's whole spec",
		Args:  exactly("NAME"),
		RunE: func(cmd *cobra.Command, args []string) error {
			if file == "" {
				return usagef("pool update replaces the whole spec: give it with -f (fields: %s; what they are now is under spec in `rotatorctl pool get %s -o yaml`)",
					specFields(), quoted(args[0]))
			}
			spec, err := c.readSpec(file)
			if err != nil {
				return err
			}
			request := &rotatorv1.UpdatePoolRequest{Name: args[0], Spec: spec, IfRevision: ifRevision}
			answer, err := ask(cmd.Context(), c, c.admin, rotatorv1.AdminServiceClient.UpdatePool, request)
			if err != nil && ifRevision != 0 && reasonOf(err) == rotatorv1.ErrorReason_ERROR_REASON_CONFLICT {
				return &adviceError{err, c.fill("read it again with `rotatorctl pool get POOL`, and give its revision to --if-revision")}
			}
			if err != nil {
				return err
			}
			return c.print(answer, func(w io.Writer) {
				row(w, fmt.Sprintf("pool %s has the new spec, at revision %d", answer.GetPool().GetName(), answer.GetRevision()))
			})
		},
		ValidArgsFunction: completeArgs(false, c.suggestPools),
	}
	specFlag(cmd, &file)
	cmd.Flags().Int64Var(&ifRevision, "if-revision", 0, "update only if the pool's revision is still `N`")
	return cmd
}

func specFlag(cmd *cobra.Command, file *string) {
	cmd.Flags().StringVarP(file, "file", "f", "", "YAML or JSON `file` with the spec (fields: "+specFields()+"); - is standard input")
}

func (c *cli) poolGetCommand() *cobra.Command {
	return &cobra.Command{
		Use:   "get NAME",
		Short: "Show a pool with its counts",
		Args:  exactly("NAME"),
		RunE: func(cmd *cobra.Command, args []string) error {
			answer, err := ask(cmd.Context(), c, c.admin, rotatorv1.AdminServiceClient.GetPool, &rotatorv1.GetPoolRequest{Name: args[0]})
			if err != nil {
				return err
			}
			return c.print(answer, func(w io.Writer) { c.describePool(w, answer.GetPool()) })
		},
		ValidArgsFunction: completeArgs(false, c.suggestPools),
	}
}

func (c *cli) describePool(w io.Writer, p *rotatorv1.Pool) {
	n := p.GetCounts()
	field(w, "Name:", p.GetName())
	field(w, "State:", poolState(p))
	field(w, "Incident:", c.incident(p))
	field(w, "Description:", p.GetSpec().GetDescription())
	field(w, "Labels:", labels(p.GetSpec().GetLabels()))
	field(w, "Active keys:", fmt.Sprint(n.GetActive()))
	field(w, "Backup keys:", fmt.Sprint(n.GetBackup()))
	field(w, "Retired keys:", fmt.Sprint(n.GetRetired()))
	field(w, "Pending rotations:", fmt.Sprint(n.GetPending()))
	field(w, "Bindings:", fmt.Sprint(n.GetBindings()))
	field(w, "Rotation bound:", rotationBound(p))
	field(w, "Credential:", p.GetCredentialPreview())
	field(w, "Created:", at(p.GetCreatedAt()))
	field(w, "Revision:", number(p.GetRevision()))
}

// The contract's defaults of a bound.
const (
	defaultBound       = 20
	defaultBoundWindow = time.Minute
)

// rotationBound says how many rotations a pool may have, and how many are left of them.
func rotationBound(p *rotatorv1.Pool) string {
	if p.RotationsLeft == nil {
		return "none: any number of rotations"
	}
	bound, limit, window := p.GetSpec().GetRotationBound(), int32(defaultBound), defaultBoundWindow
	if bound != nil && bound.Rotations != nil {
		limit = bound.GetRotations()
	}
	if bound.GetWindow() != nil {
		window = bound.GetWindow().AsDuration()
	}
	text := fmt.Sprintf("%d in %v, %d left", limit, window, p.GetRotationsLeft())
	if next := at(p.GetNextRotationAt()); next != "" {
		text += ", one more at " + next
	}
	return text
}

func poolState(p *rotatorv1.Pool) string {
	switch {
	case p.GetDeleting():
		return "DELETING"
	case p.GetPaused():
		return "PAUSED"
	default:
		return "open"
	}
}

// incident says that the pool is in one.
func (c *cli) incident(p *rotatorv1.Pool) string {
	i := p.GetIncident()
	if i == nil || !i.GetUntil().AsTime().After(c.sys.Now()) {
		return ""
	}
	return fmt.Sprintf("%d keys were reported bad at once, so the upstream itself must be at fault; reports change nothing until %s",
		i.GetKeys(), at(i.GetUntil()))
}

func (c *cli) poolListCommand() *cobra.Command {
	return &cobra.Command{
		Use:   "list",
		Short: "List the pools",
		Args:  exactly(),
		RunE: func(cmd *cobra.Command, _ []string) error {
			answer, err := c.listPools(cmd.Context())
			if err != nil {
				return err
			}
			return c.print(answer, func(w io.Writer) { c.poolTable(w, answer.GetPools()) })
		},
	}
}

func (c *cli) listPools(ctx context.Context) (*rotatorv1.ListPoolsResponse, error) {
	pools, revision, err := allPages(0, func(token string, minRevision int64) (page[*rotatorv1.Pool], error) {
		request := &rotatorv1.ListPoolsRequest{PageSize: pageSize, PageToken: token, MinRevision: minRevision}
		a, err := ask(ctx, c, c.admin, rotatorv1.AdminServiceClient.ListPools, request)
		return page[*rotatorv1.Pool]{a.GetPools(), a.GetNextPageToken(), a.GetRevision()}, err
	})
	return &rotatorv1.ListPoolsResponse{Pools: pools, Revision: revision}, err
}

func (c *cli) poolTable(w io.Writer, pools []*rotatorv1.Pool) {
	row(w, "NAME", "STATE", "ACTIVE", "BACKUP", "RETIRED", "PENDING", "BINDINGS", "AGE", "DESCRIPTION")
	for _, p := range pools {
		n := p.GetCounts()
		row(w, p.GetName(), poolState(p), fmt.Sprint(n.GetActive()), fmt.Sprint(n.GetBackup()), fmt.Sprint(n.GetRetired()),
			fmt.Sprint(n.GetPending()), fmt.Sprint(n.GetBindings()), c.age(p.GetCreatedAt()), p.GetSpec().GetDescription())
	}
}

func (c *cli) poolPauseCommand() *cobra.Command {
	return &cobra.Command{
		Use:   "pause NAME",
		Short: "Refuse all rotations of a pool until it is resumed",
		Args:  exactly("NAME"),
		RunE: func(cmd *cobra.Command, args []string) error {
			answer, err := ask(cmd.Context(), c, c.admin, rotatorv1.AdminServiceClient.PausePool, &rotatorv1.PausePoolRequest{Name: args[0]})
			if err != nil {
				return err
			}
			return c.print(answer, func(w io.Writer) {
				row(w, fmt.Sprintf("pool %s is paused, at revision %d", args[0], answer.GetRevision()))
			})
		},
		ValidArgsFunction: completeArgs(false, c.suggestPools),
	}
}

func (c *cli) poolResumeCommand() *cobra.Command {
	return &cobra.Command{
		Use:   "resume NAME",
		Short: "Allow rotations of a pool again; those that wait for stock go on",
		Args:  exactly("NAME"),
		RunE: func(cmd *cobra.Command, args []string) error {
			answer, err := ask(cmd.Context(), c, c.admin, rotatorv1.AdminServiceClient.ResumePool, &rotatorv1.ResumePoolRequest{Name: args[0]})
			if err != nil {
				return err
			}
			return c.print(answer, func(w io.Writer) {
				row(w, fmt.Sprintf("pool %s is open, at revision %d", args[0], answer.GetRevision()))
			})
		},
		ValidArgsFunction: completeArgs(false, c.suggestPools),
	}
}

func (c *cli) poolEndIncidentCommand() *cobra.Command {
	return &cobra.Command{
		Use:   "end-incident NAME",
		Short: "End a pool's incident before its time: reports rotate keys again",
		Args:  exactly("NAME"),
		RunE: func(cmd *cobra.Command, args []string) error {
			request := &rotatorv1.EndIncidentRequest{Name: args[0]}
			answer, err := ask(cmd.Context(), c, c.admin, rotatorv1.AdminServiceClient.EndIncident, request)
			if err != nil {
				return err
			}
			return c.print(answer, func(w io.Writer) {
				row(w, fmt.Sprintf("pool %s is in no incident, at revision %d", args[0], answer.GetRevision()))
			})
		},
		ValidArgsFunction: completeArgs(false, c.suggestPools),
	}
}

func (c *cli) poolCredentialCommand() *cobra.Command {
	var secretFile string
	var remove bool
	cmd := &cobra.Command{
		Use:   "credential NAME",
		Short: "Set or remove a pool's own credential for its upstream's admin API; it comes from standard input",
		Long: "Set or remove a pool's own credential for its upstream's admin API, such as LiteLLM's master key.\n\n" +
			"It is read from standard input or --secret-file, without one newline at its end, and never taken from the\n" +
			"command line. It is kept sealed, and no answer ever holds it.",
		Example: "  rotatorctl pool credential openhands --secret-file master.txt\n" +
			"  rotatorctl pool credential openhands --remove",
		Args: credentiallessArgs,
		RunE: func(cmd *cobra.Command, args []string) error {
			request := &rotatorv1.SetPoolCredentialRequest{Name: args[0]}
			if remove && secretFile != "" {
				return usagef("--remove and --secret-file are given: the credential is either removed or set")
			}
			if !remove {
				if err := c.guardSecret(); err != nil {
					return err
				}
				var err error
				if request.Credential, err = c.readSecret(secretFile); err != nil {
					return err
				}
			}
			answer, err := askAgain(cmd.Context(), c, c.admin, rotatorv1.AdminServiceClient.SetPoolCredential, request)
			if err != nil {
				return err
			}
			return c.print(answer, func(w io.Writer) { row(w, credentialNow(answer)) })
		},
		ValidArgsFunction: completeArgs(false, c.suggestPools),
	}
	cmd.Flags().StringVar(&secretFile, "secret-file", "", "read the credential from this `file` instead of standard input")
	cmd.Flags().BoolVar(&remove, "remove", false, "remove it")
	return cmd
}

func credentiallessArgs(cmd *cobra.Command, args []string) error {
	if len(args) > 1 {
		return usagef("pool credential takes NAME; the credential comes from standard input or --secret-file, never from the command line, " +
			"where other processes and the shell's history see it")
	}
	return exactly("NAME")(cmd, args)
}

func credentialNow(answer *rotatorv1.SetPoolCredentialResponse) string {
	p := answer.GetPool()
	if p.GetCredentialPreview() == "" {
		return fmt.Sprintf("pool %s has no credential, at revision %d", p.GetName(), answer.GetRevision())
	}
	return fmt.Sprintf("pool %s has credential %s, at revision %d", p.GetName(), p.GetCredentialPreview(), answer.GetRevision())
}

func (c *cli) poolDeleteCommand() *cobra.Command {
	var force bool
	cmd := &cobra.Command{
		Use:   "delete NAME",
		Short: "Delete an empty pool, or with --force a pool and everything in it",
		Args:  exactly("NAME"),
		RunE: func(cmd *cobra.Command, args []string) error {
			request := &rotatorv1.DeletePoolRequest{Name: args[0], Force: force}
			answer, err := ask(cmd.Context(), c, c.admin, rotatorv1.AdminServiceClient.DeletePool, request)
			if err != nil {
				return err
			}
			return c.print(answer, func(w io.Writer) {
				row(w, fmt.Sprintf("pool %s is gone, at revision %d", args[0], answer.GetRevision()))
			})
		},
		ValidArgsFunction: completeArgs(false, c.suggestPools),
	}
	cmd.Flags().BoolVar(&force, "force", false, "delete it although it has keys or bindings; their secrets are lost")
	return cmd
}
