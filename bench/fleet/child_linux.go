package fleet

import "syscall"

// childAttributes has the kernel end a child with the benchmark, however that ends. A Ctrl-C goes to the benchmark alone.
func childAttributes() *syscall.SysProcAttr {
	return &syscall.SysProcAttr{Pdeathsig: syscall.SIGKILL, Setpgid: true}
}
