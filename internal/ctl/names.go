package ctl

import "regexp"

// nameRule is the one rule for names of pools, keys, slots and proxies; the service checks it too, but a dry run
// against a pool that does not exist has only this.
var nameRule = regexp.MustCompile(`^[A-Za-z0-9][A-Za-z0-9._:@-]{0,127}$`)

const nameRuleText = "a name has 1 to 128 letters, digits or . _ : @ - and starts with a letter or digit"

// plainWord needs no quotes in a shell.
var plainWord = regexp.MustCompile(`^[A-Za-z0-9._:@/-]+$`)
