package ctl

import (
	"context"
	"fmt"
	"io"
	"strconv"
	"strings"

	"github.com/spf13/cobra"

	rotatorv1 "github.com/rotatord/rotatord/proto/rotator/v1"
)

func (c *cli) bindingCommand() *cobra.Command {
	return group("binding", "Bind proxies to slots", c.bindingSetCommand(), c.bindingListCommand(), c.bindingRemoveCommand())
}

func (c *cli) bindingSetCommand() *cobra.Command {
	return &cobra.Command{
		Use:   "set POOL PROXY SLOT[=PRIORITY]...",
		Short: "Bind a proxy to slots, replacing what it was bound to; priority 1 is primary and the default",
		Args: func(cmd *cobra.Command, args []string) error {
			if len(args) < 3 {
				return usagef("binding set takes POOL PROXY and at least one SLOT[=PRIORITY]; to unbind a proxy use binding remove")
			}
			return nil
		},
		RunE: func(cmd *cobra.Command, args []string) error {
			list, err := parseSlots(args[2:])
			if err != nil {
				return err
			}
			request := &rotatorv1.SetBindingRequest{Pool: args[0], ProxyId: args[1], Slots: list}
			answer, err := ask(cmd.Context(), c, c.admin, rotatorv1.AdminServiceClient.SetBinding, request)
			if err != nil {
				return err
			}
			return c.print(answer, func(w io.Writer) {
				row(w, fmt.Sprintf("proxy %s of pool %s is bound to %s, at revision %d", args[1], args[0],
					slots(answer.GetBinding().GetSlots()), answer.GetRevision()))
			})
		},
		ValidArgsFunction: completeArgs(true, c.suggestPools, c.suggestProxies, c.suggestSlots),
	}
}

func parseSlots(args []string) ([]*rotatorv1.SlotPriority, error) {
	var out []*rotatorv1.SlotPriority
	for _, arg := range args {
		slot, text, given := strings.Cut(arg, "=")
		priority := 1
		if given {
			var err error
			if priority, err = strconv.Atoi(text); err != nil || priority < 1 || priority > 100 {
				return nil, usagef("%q: the priority must be a number from 1 (primary) to 100", arg)
			}
		}
		out = append(out, &rotatorv1.SlotPriority{Slot: slot, Priority: int32(priority)})
	}
	return out, nil
}

func (c *cli) bindingListCommand() *cobra.Command {
	var slot string
	cmd := &cobra.Command{
		Use:   "list POOL",
		Short: "List a pool's bindings",
		Args:  exactly("POOL"),
		RunE: func(cmd *cobra.Command, args []string) error {
			answer, err := c.listBindings(cmd.Context(), args[0], slot)
			if err != nil {
				return err
			}
			return c.print(answer, func(w io.Writer) { c.bindingTable(w, answer.GetBindings()) })
		},
		ValidArgsFunction: completeArgs(false, c.suggestPools),
	}
	cmd.Flags().StringVar(&slot, "slot", "", "only bindings that name this slot")
	return cmd
}

func (c *cli) listBindings(ctx context.Context, pool, slot string) (*rotatorv1.ListBindingsResponse, error) {
	return c.listBindingsSince(ctx, 0, pool, slot)
}

func (c *cli) listBindingsSince(ctx context.Context, since int64, pool, slot string) (*rotatorv1.ListBindingsResponse, error) {
	bindings, revision, err := allPages(since, func(token string, minRevision int64) (page[*rotatorv1.Binding], error) {
		request := &rotatorv1.ListBindingsRequest{Pool: pool, Slot: slot, PageSize: pageSize, PageToken: token, MinRevision: minRevision}
		a, err := ask(ctx, c, c.admin, rotatorv1.AdminServiceClient.ListBindings, request)
		return page[*rotatorv1.Binding]{a.GetBindings(), a.GetNextPageToken(), a.GetRevision()}, err
	})
	return &rotatorv1.ListBindingsResponse{Bindings: bindings, Revision: revision}, err
}

func (c *cli) bindingTable(w io.Writer, bindings []*rotatorv1.Binding) {
	row(w, "PROXY", "SLOT=PRIORITY", "AGE")
	for _, b := range bindings {
		row(w, b.GetProxyId(), slots(b.GetSlots()), c.age(b.GetUpdatedAt()))
	}
}

func (c *cli) bindingRemoveCommand() *cobra.Command {
	return &cobra.Command{
		Use:   "remove POOL PROXY",
		Short: "Unbind a proxy; without a binding it may use the whole pool",
		Args:  exactly("POOL", "PROXY"),
		RunE: func(cmd *cobra.Command, args []string) error {
			request := &rotatorv1.RemoveBindingRequest{Pool: args[0], ProxyId: args[1]}
			answer, err := ask(cmd.Context(), c, c.admin, rotatorv1.AdminServiceClient.RemoveBinding, request)
			if err != nil {
				return err
			}
			return c.print(answer, func(w io.Writer) {
				row(w, fmt.Sprintf("proxy %s of pool %s is unbound, at revision %d", args[1], args[0], answer.GetRevision()))
			})
		},
		ValidArgsFunction: completeArgs(false, c.suggestPools, c.suggestProxies),
	}
}
