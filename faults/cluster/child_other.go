//go:build !linux

package cluster

import "syscall"

// childAttributes keeps a Ctrl-C at the terminal from the children: the harness ends them.
func childAttributes() *syscall.SysProcAttr { return &syscall.SysProcAttr{Setpgid: true} }
