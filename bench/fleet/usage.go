package fleet

import (
	"context"
	"fmt"
	"os"
	"strconv"
	"strings"
	"time"
)

// tick is the unit of the times in /proc/PID/stat, which Linux has fixed at a hundredth of a second.
const tick = 10 * time.Millisecond

// CPU is the processor time a process has used so far, its threads and the kernel's work for it included. It is read
// from /proc, so it is an error on other systems than Linux.
func CPU(pid int) (time.Duration, error) {
	text, err := os.ReadFile(fmt.Sprintf("/proc/%d/stat", pid))
	if err != nil {
		return 0, err
	}
	_, after, _ := strings.Cut(string(text), ") ") // the name before may contain anything
	fields := strings.Fields(after)
	const user, system = 11, 12
	if len(fields) <= system {
		return 0, fmt.Errorf("/proc/%d/stat has %d fields", pid, len(fields))
	}
	u, uerr := strconv.ParseInt(fields[user], 10, 64)
	s, serr := strconv.ParseInt(fields[system], 10, 64)
	if uerr != nil || serr != nil {
		return 0, fmt.Errorf("/proc/%d/stat cannot be read: %q", pid, text)
	}
	return time.Duration(u+s) * tick, nil
}

// Busy is the processor time that all processes have used so far, and what the machine's own host took, over all
// processors.
func Busy() (time.Duration, error) {
	text, err := os.ReadFile("/proc/stat")
	if err != nil {
		return 0, err
	}
	first, _, _ := strings.Cut(string(text), "\n")
	var busy int64
	for i, field := range strings.Fields(first) {
		const name, idle, iowait, steal = 0, 4, 5, 8
		if i == name || i == idle || i == iowait || i > steal { // what comes after is counted in others
			continue
		}
		n, err := strconv.ParseInt(field, 10, 64)
		if err != nil {
			return 0, fmt.Errorf("/proc/stat cannot be read: %q", first)
		}
		busy += n
	}
	return time.Duration(busy) * tick, nil
}

// Resident is how many bytes of memory a process has.
func Resident(pid int) (int64, error) {
	text, err := os.ReadFile(fmt.Sprintf("/proc/%d/status", pid))
	if err != nil {
		return 0, err
	}
	for line := range strings.Lines(string(text)) {
		if value, found := strings.CutPrefix(line, "VmRSS:"); found {
			kib, err := strconv.ParseInt(strings.TrimSuffix(strings.TrimSpace(value), " kB"), 10, 64)
			return kib << 10, err
		}
	}
	return 0, fmt.Errorf("/proc/%d/status has no VmRSS", pid)
}

// Metrics reads a Prometheus page: each series, as it is written there, with its value.
func Metrics(ctx context.Context, address string) (map[string]float64, error) {
	text, err := get(ctx, "http://"+address+"/metrics")
	if err != nil {
		return nil, fmt.Errorf("reading the metrics of %s: %w", address, err)
	}
	series := make(map[string]float64)
	for line := range strings.Lines(string(text)) {
		i := strings.LastIndexByte(line, ' ')
		if i < 0 || line[0] == '#' {
			continue
		}
		if value, err := strconv.ParseFloat(strings.TrimSpace(line[i:]), 64); err == nil {
			series[line[:i]] = value
		}
	}
	return series, nil
}

// Proposals is how many raft proposals the member at an address knows to be committed.
func Proposals(ctx context.Context, address string) (float64, error) {
	const name = "etcd_server_proposals_committed_total"
	metrics, err := Metrics(ctx, address)
	if err != nil {
		return 0, err
	}
	value, found := metrics[name]
	if !found {
		return 0, fmt.Errorf("etcd at %s has no metric %s", address, name)
	}
	return value, nil
}

// Profile writes a processor profile of the program that serves them at an address to a file. It blocks for the given
// time, in whole seconds and at least one.
func Profile(ctx context.Context, address, file string, d time.Duration) error {
	seconds := max(1, int(d.Seconds()))
	return fetch(ctx, fmt.Sprintf("http://%s/debug/pprof/profile?seconds=%d", address, seconds), file)
}

// Heap writes a profile of the memory in use, after a garbage collection.
func Heap(ctx context.Context, address, file string) error {
	return fetch(ctx, "http://"+address+"/debug/pprof/heap?gc=1", file)
}

func fetch(ctx context.Context, url, file string) error {
	text, err := get(ctx, url)
	if err != nil {
		return err
	}
	return os.WriteFile(file, text, 0o644)
}
