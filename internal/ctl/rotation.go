package ctl

import (
	"fmt"
	"io"

	"github.com/spf13/cobra"

	rotatorv1 "github.com/rotatord/rotatord/proto/rotator/v1"
)

func (c *cli) rotationCommand() *cobra.Command {
	return group("rotation", "Show the rotations that were made", c.rotationListCommand(), c.rotationGetCommand())
}

func (c *cli) rotationListCommand() *cobra.Command {
	var key string
	cmd := &cobra.Command{
		Use:   "list POOL",
		Short: "List a pool's rotations, oldest first",
		Args:  exactly("POOL"),
		RunE: func(cmd *cobra.Command, args []string) error {
			rotations, revision, err := allPages(0, func(token string, minRevision int64) (page[*rotatorv1.Rotation], error) {
				request := &rotatorv1.ListRotationsRequest{Pool: args[0], KeyId: key, PageSize: pageSize, PageToken: token, MinRevision: minRevision}
				a, err := ask(cmd.Context(), c, c.rotations, rotatorv1.RotationServiceClient.ListRotations, request)
				return page[*rotatorv1.Rotation]{a.GetRotations(), a.GetNextPageToken(), a.GetRevision()}, err
			})
			if err != nil {
				return err
			}
			answer := &rotatorv1.ListRotationsResponse{Rotations: rotations, Revision: revision}
			return c.print(answer, func(w io.Writer) { rotationTable(w, rotations) })
		},
		ValidArgsFunction: completeArgs(false, c.suggestPools),
	}
	cmd.Flags().StringVar(&key, "key", "", "only rotations of this key")
	return cmd
}

func rotationTable(w io.Writer, rotations []*rotatorv1.Rotation) {
	row(w, "COMMITTED", "OLD KEY", "GENERATION", "NEW KEY", "SLOT", "TRIGGER", "SOURCE", "HOLDER", "REASON")
	for _, r := range rotations {
		row(w, at(r.GetCommittedAt()), r.GetOldKeyId(), number(r.GetGeneration()), r.GetNewKeyId(), r.GetSlot(),
			trigger(r.GetTrigger()), r.GetSource(), r.GetHolder(), r.GetReason())
	}
}

func (c *cli) rotationGetCommand() *cobra.Command {
	var generation int64
	cmd := &cobra.Command{
		Use:   "get POOL KEY",
		Short: "Show the rotation that ended a life of a key",
		Args:  exactly("POOL", "KEY"),
		RunE: func(cmd *cobra.Command, args []string) error {
			request := &rotatorv1.GetRotationRequest{Pool: args[0], KeyId: args[1], Generation: generation}
			answer, err := ask(cmd.Context(), c, c.rotations, rotatorv1.RotationServiceClient.GetRotation, request)
			if err != nil {
				return err
			}
			return c.print(answer, func(w io.Writer) { c.describeRotation(w, answer.GetRotation()) })
		},
		ValidArgsFunction: completeArgs(false, c.suggestPools, c.suggestKeys(rotatorv1.KeyHome_KEY_HOME_RETIRED)),
	}
	cmd.Flags().Int64Var(&generation, "generation", 0, "the life, `N` (default: the latest that was rotated)")
	return cmd
}

func (c *cli) describeRotation(w io.Writer, r *rotatorv1.Rotation) {
	field(w, "Rotation:", r.GetId())
	field(w, "Pool:", r.GetPool())
	field(w, "Slot:", r.GetSlot())
	field(w, "Old key:", fmt.Sprintf("%s, generation %d", r.GetOldKeyId(), r.GetGeneration()))
	field(w, "New key:", fmt.Sprintf("%s, generation %d", r.GetNewKeyId(), r.GetRevision()))
	field(w, "Trigger:", trigger(r.GetTrigger()))
	field(w, "Source:", r.GetSource())
	field(w, "Reason:", r.GetReason())
	field(w, "Made for:", r.GetRequestId())
	field(w, "Proxy:", r.GetProxyId())
	field(w, "Committed:", at(r.GetCommittedAt()))
	field(w, "Revision:", number(r.GetRevision()))
	field(w, "Holder:", r.GetHolder())
}
