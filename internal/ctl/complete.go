package ctl

import (
	"context"
	"time"

	"github.com/spf13/cobra"

	rotatorv1 "github.com/rotatord/rotatord/proto/rotator/v1"
)

// completionPatience bounds what a press of the tab key may take.
const completionPatience = time.Second

// maxSuggestions bounds what is offered; more would not help.
const maxSuggestions = 200

// suggest lists candidates for one argument, given the ones before it.
type suggest func(ctx context.Context, before []string) ([]string, error)

// completeArgs suggests the first argument with the first function, and so on. The last also serves those that follow
// if more is set.
func completeArgs(more bool, by ...suggest) cobra.CompletionFunc {
	return func(cmd *cobra.Command, args []string, _ string) ([]string, cobra.ShellCompDirective) {
		i := len(args)
		if more {
			i = min(i, len(by)-1)
		}
		if i >= len(by) || by[i] == nil {
			return nil, cobra.ShellCompDirectiveNoFileComp
		}
		ctx, cancel := context.WithTimeout(cmd.Context(), completionPatience)
		defer cancel()
		found, err := by[i](ctx, args)
		if err != nil {
			return nil, cobra.ShellCompDirectiveError | cobra.ShellCompDirectiveNoFileComp
		}
		return found, cobra.ShellCompDirectiveNoFileComp
	}
}

func completeFlag(cmd *cobra.Command, name string, values ...string) {
	// It fails only for a flag that does not exist, which a test would show.
	if err := cmd.RegisterFlagCompletionFunc(name, cobra.FixedCompletions(values, cobra.ShellCompDirectiveNoFileComp)); err != nil {
		panic(err)
	}
}

func (c *cli) suggestPools(ctx context.Context, _ []string) ([]string, error) {
	answer, err := ask(ctx, c, c.admin, rotatorv1.AdminServiceClient.ListPools, &rotatorv1.ListPoolsRequest{PageSize: maxSuggestions})
	if err != nil {
		return nil, err
	}
	return names(answer.GetPools(), (*rotatorv1.Pool).GetName), nil
}

func (c *cli) suggestKeys(home rotatorv1.KeyHome) suggest {
	return func(ctx context.Context, before []string) ([]string, error) {
		keys, err := c.keysFor(ctx, before[0], home)
		return names(keys, (*rotatorv1.Key).GetId), err
	}
}

func (c *cli) suggestSlots(ctx context.Context, before []string) ([]string, error) {
	keys, err := c.keysFor(ctx, before[0], rotatorv1.KeyHome_KEY_HOME_ACTIVE)
	return names(keys, (*rotatorv1.Key).GetSlot), err
}

func (c *cli) keysFor(ctx context.Context, pool string, home rotatorv1.KeyHome) ([]*rotatorv1.Key, error) {
	request := &rotatorv1.ListKeysRequest{Pool: pool, Home: home, PageSize: maxSuggestions}
	answer, err := ask(ctx, c, c.admin, rotatorv1.AdminServiceClient.ListKeys, request)
	return answer.GetKeys(), err
}

func (c *cli) suggestProxies(ctx context.Context, before []string) ([]string, error) {
	request := &rotatorv1.ListBindingsRequest{Pool: before[0], PageSize: maxSuggestions}
	answer, err := ask(ctx, c, c.admin, rotatorv1.AdminServiceClient.ListBindings, request)
	return names(answer.GetBindings(), (*rotatorv1.Binding).GetProxyId), err
}

func names[T any](list []T, name func(T) string) []string {
	out := make([]string, len(list))
	for i, item := range list {
		out[i] = name(item)
	}
	return out
}
