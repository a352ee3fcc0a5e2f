package ctl

import (
	"cmp"
	"fmt"
	"io"
	"slices"

	"github.com/spf13/cobra"

	rotatorv1 "github.com/rotatord/rotatord/proto/rotator/v1"
)

func (c *cli) doctorCommand() *cobra.Command {
	return &cobra.Command{
		Use:   "doctor",
		Short: "Read everything, check the invariants, say what is wrong and what to do",
		Long: "Read everything at one revision, check the invariants, and say what is wrong and what to do, worst first.\n\n" +
			"The exit code is 1 if any finding is an error, and 0 with warnings and notices only.",
		Args: exactly(),
		RunE: func(cmd *cobra.Command, _ []string) error {
			answer, err := ask(cmd.Context(), c, c.admin, rotatorv1.AdminServiceClient.Diagnose, &rotatorv1.DiagnoseRequest{})
			if err != nil {
				return err
			}
			worstFirst(answer.GetFindings())
			if err := c.print(answer, func(w io.Writer) { describeFindings(w, answer) }); err != nil {
				return err
			}
			return verdict(answer.GetFindings())
		},
	}
}

func worstFirst(findings []*rotatorv1.Finding) {
	slices.SortStableFunc(findings, func(a, b *rotatorv1.Finding) int { return cmp.Compare(b.GetSeverity(), a.GetSeverity()) })
}

// verdict counts severities we do not know as errors if they rank above.
func verdict(findings []*rotatorv1.Finding) error {
	errors := 0
	for _, f := range findings {
		if f.GetSeverity() >= rotatorv1.Severity_SEVERITY_ERROR {
			errors++
		}
	}
	if errors == 0 {
		return nil
	}
	return &adviceError{failf(exitFailed, "%s found", count(errors, "error")), "follow the remedies, then run `rotatorctl doctor` again"}
}

func describeFindings(w io.Writer, a *rotatorv1.DiagnoseResponse) {
	for _, f := range a.GetFindings() {
		fmt.Fprintf(w, "%s  %s  %s\n", oneLine(severity(f.GetSeverity())), oneLine(f.GetCheck()), oneLine(f.GetSubject()))
		fmt.Fprintf(w, "    %s\n", oneLine(f.GetMessage()))
		if f.GetRemedy() != "" {
			fmt.Fprintf(w, "    remedy: %s\n", oneLine(f.GetRemedy()))
		}
	}
	read := fmt.Sprintf("%s with %s read at revision %d", count(int(a.GetPools()), "pool"), count(int(a.GetRecords()), "record"), a.GetRevision())
	if len(a.GetFindings()) == 0 {
		fmt.Fprintf(w, "all is well: %s\n", read)
		return
	}
	fmt.Fprintf(w, "%s; %s\n", countFindings(a.GetFindings()), read)
}

func countFindings(findings []*rotatorv1.Finding) string {
	by := map[rotatorv1.Severity]int{}
	for _, f := range findings {
		by[f.GetSeverity()]++
	}
	return fmt.Sprintf("%s (%s, %s, %s)", count(len(findings), "finding"),
		count(by[rotatorv1.Severity_SEVERITY_ERROR], "error"),
		count(by[rotatorv1.Severity_SEVERITY_WARNING], "warning"),
		count(by[rotatorv1.Severity_SEVERITY_NOTICE], "notice"))
}
