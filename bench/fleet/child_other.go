//go:build !linux

package fleet

import "syscall"

// childAttributes keeps a Ctrl-C at the terminal from the children: the benchmark ends them.
func childAttributes() *syscall.SysProcAttr { return &syscall.SysProcAttr{Setpgid: true} }
