//go:build !linux

package main

import "syscall"

// childAttributes is nothing special: a Ctrl-C at the terminal reaches the children too, and the demo ends them.
func childAttributes() *syscall.SysProcAttr { return nil }
