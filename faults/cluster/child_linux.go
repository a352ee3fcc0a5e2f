package cluster

import "syscall"

// childAttributes has the kernel end a child with the harness, however that ends. A Ctrl-C goes to the harness alone.
//
// The kernel ties the child to the thread that started it. The Go runtime ends threads only with goroutines that are
// locked to them, which the harness does not do.
func childAttributes() *syscall.SysProcAttr {
	return &syscall.SysProcAttr{Pdeathsig: syscall.SIGKILL, Setpgid: true}
}
