package main

import (
	"fmt"
	"io/fs"
	"os"
	"path/filepath"
	"slices"
	"time"

	"github.com/rotatord/rotatord/faults/check"
	"github.com/rotatord/rotatord/faults/history"
	"github.com/rotatord/rotatord/faults/nemesis"
)

// verify holds what was recorded against the promises and prints the figures.
func (p *part) verify() error {
	p.Figures = figure(p.history, p.Faults)
	input, err := p.input()
	if err != nil {
		return err
	}
	if err := p.keepInput(*input); err != nil {
		return err
	}
	report := check.Run(*input)
	p.Stats = report.Stats
	p.Figures.Rotations = report.Stats.Rotations
	fmt.Fprintln(p.out)
	p.Figures.print(p.out)
	fmt.Fprintln(p.out)
	report.Write(p.out)
	for _, v := range report.Violations {
		p.Violations = append(p.Violations, fmt.Sprintf("%s: %s %s/%s revision %d: %s", p.Mode, v.Invariant, v.Pool, v.Key, v.Revision, v.Text))
	}
	p.checkDelivery()
	p.checkTraffic()
	return p.save(report)
}

// longEnough is a part long enough for everything to have happened: a secret is kept for a minute at least.
const longEnough = 90 * time.Second

// checkTraffic: a run that saw too little of something has shown nothing of it. What a short one may miss by chance is left
// to longer ones.
func (p *part) checkTraffic() {
	s := p.Stats
	few := func(what string, n, least int) {
		if n < least {
			p.violate("too little traffic: %d %s, not %d", n, what, least)
		}
	}
	if p.Mode != modeCluster || p.duration < shortest {
		return
	}
	few("keys minted or asked for", s.Mints, 15)
	few("changes of phase", s.Phases, 50)
	few("keys revoked", s.Revoked, 5)
	few("reports that were to rotate", s.Verdicts[history.VerdictRotate], 10)
	few("rests", s.CoolDowns, 3)
	if p.duration < longEnough {
		return
	}
	few("secrets purged", s.Purged, 1)
	few("incidents", s.Incidents, 2)
	few("calls to try again what was given up", s.Requests[history.RetryKey], 1)
}

// shortest is a part of which anything is asked.
const shortest = 30 * time.Second

func (p *part) input() (*check.Input, error) {
	files, err := p.searched()
	in := &check.Input{
		Epoch: p.history.Epoch(), Ops: p.history.Ops(), Recording: p.recorder.History(), Recorder: p.recording,
		QuorumLoss: p.quorumLoss, Single: p.Mode == modeEmbedded, Healed: p.healed, Canaries: p.workload.Canaries(), Files: files, Locks: p.lock, SessionTTL: p.ttl, Slack: p.slack,
	}
	in.Upstream, in.Minted = p.upstream.Deeds()
	in.Ended = p.ended
	for _, e := range p.Faults {
		in.Faults = append(in.Faults, check.Fault{Kind: e.Kind, Target: e.Target, Start: e.Start, End: e.End, Served: e.Served})
		for _, h := range e.Holds {
			if slices.Contains(withLock, h.Step) {
				in.Held = append(in.Held, check.Hold{Replica: h.Replica, Pool: h.Pool, Key: h.Key, Generation: h.Generation, Start: h.Start, End: h.End})
			}
		}
	}
	return in, err
}

// withLock are the steps between taking the lock and giving it back.
var withLock = []string{"locked", "read", "send"}

// quorumLoss reports whether callers may be refused during a fault. One node has no other to take over.
func (p *part) quorumLoss(kind string) bool {
	return p.Mode == modeEmbedded || nemesis.QuorumLoss(kind)
}

// searched are the files that no secret may be in: logs, metrics, and what etcd writes.
func (p *part) searched() (files []string, err error) {
	own := []string{"history.jsonl", "revisions.jsonl", "check.json", inputFile}
	err = filepath.WalkDir(p.dir, func(path string, d fs.DirEntry, err error) error {
		if err == nil && d.Type().IsRegular() && !slices.Contains(own, d.Name()) {
			files = append(files, path)
		}
		return err
	})
	return files, err
}

// save keeps the report beside what it is about.
func (p *part) save(report *check.Report) error {
	f, err := os.Create(filepath.Join(p.dir, "check.json"))
	if err != nil {
		return err
	}
	if err := report.WriteJSON(f); err != nil {
		return err
	}
	return f.Close()
}
