package ctl

import (
	"fmt"
	"io"

	"github.com/spf13/cobra"

	rotatorv1 "github.com/rotatord/rotatord/proto/rotator/v1"
)

func (c *cli) replicaCommand() *cobra.Command {
	return group("replica", "Show the replicas of rotatord", c.replicaListCommand())
}

func (c *cli) replicaListCommand() *cobra.Command {
	return &cobra.Command{
		Use:   "list",
		Short: "List the replicas that have a session now",
		Args:  exactly(),
		RunE: func(cmd *cobra.Command, _ []string) error {
			answer, err := ask(cmd.Context(), c, c.admin, rotatorv1.AdminServiceClient.ListReplicas, &rotatorv1.ListReplicasRequest{})
			if err != nil {
				return err
			}
			return c.print(answer, func(w io.Writer) { c.replicaTable(w, answer.GetReplicas()) })
		},
	}
}

func (c *cli) replicaTable(w io.Writer, replicas []*rotatorv1.Replica) {
	row(w, "NAME", "ADDRESS", "VERSION", "SCHEMA", "STARTED", "AGE", "LEASE")
	for _, r := range replicas {
		row(w, r.GetName(), r.GetAddress(), r.GetVersion(), fmt.Sprint(r.GetSchema()), at(r.GetStartedAt()), c.age(r.GetStartedAt()), r.GetLease())
	}
}
