//go:build unix

package provider

import (
	"os/exec"
	"syscall"
)

// ownGroup starts the command in a process group of its own, which is killed as a whole when its time is over.
func ownGroup(cmd *exec.Cmd) {
	cmd.SysProcAttr = &syscall.SysProcAttr{Setpgid: true}
	cmd.Cancel = func() error { killGroup(cmd); return nil }
}

// killGroup kills what is left of the command's group. The group's id is not given to others while one of it lives; if
// none does, nothing is killed.
func killGroup(cmd *exec.Cmd) { _ = syscall.Kill(-cmd.Process.Pid, syscall.SIGKILL) }
