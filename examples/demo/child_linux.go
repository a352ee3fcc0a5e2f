package main

import "syscall"

// childAttributes has the kernel end a child with the demo, however that ends. A Ctrl-C goes to the demo alone, which
// then ends its children itself.
func childAttributes() *syscall.SysProcAttr {
	return &syscall.SysProcAttr{Pdeathsig: syscall.SIGKILL, Setpgid: true}
}
