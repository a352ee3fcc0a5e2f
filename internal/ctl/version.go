package ctl

import (
	"encoding/json"
	"fmt"
	"io"

	"github.com/spf13/cobra"

	"github.com/rotatord/rotatord/internal/version"
)

func (c *cli) versionCommand() *cobra.Command {
	return &cobra.Command{
		Use:   "version",
		Short: "Show the version of rotatorctl; replica list shows those of the servers",
		Args:  exactly(),
		RunE: func(*cobra.Command, []string) error {
			if c.output == "table" {
				return c.printTable(func(w io.Writer) { fmt.Fprintf(w, "rotatorctl %s\n", version.String()) })
			}
			text, err := json.Marshal(version.Get())
			if err != nil {
				return err
			}
			return c.printJSON(text)
		},
	}
}
