package main

import (
	"context"
	"fmt"
	"time"

	"github.com/google/uuid"
	"google.golang.org/grpc/codes"
	"google.golang.org/grpc/status"

	rotatorv1 "github.com/rotatord/rotatord/proto/rotator/v1"
)

// answer is what one caller got in the end.
type answer struct {
	target   *target
	response *rotatorv1.RotateKeyResponse // nil with err
	err      error
	calls    int // the first one included
	took     time.Duration
}

// fire has all callers report their keys. A key's callers go all at once; the next key's begin when half of these have
// their answer, so that there are always calls under way. In the middle of it a replica is killed: when the first caller
// of the middle key has its answer, and most of the others wait for theirs.
func (d *demo) fire(ctx context.Context) error {
	victim := d.replicas[len(d.replicas)-1]
	total := d.triggers * len(d.targets)
	d.say("reporting %d dead keys, each by %d callers at once: half of them the provider, half the pool, at all three replicas", len(d.targets), d.triggers)
	middle := d.targets[len(d.targets)/2]
	answers := make(chan answer, total)
	started := 0
	next := func() {
		d.report(ctx, d.targets[started], answers)
		started++
	}
	next()
	for range total {
		a := <-answers
		a.target.answers = append(a.target.answers, a)
		if a.target == middle && len(middle.answers) == 1 {
			d.strike(victim)
		}
		if latest := d.targets[started-1]; started < len(d.targets) && len(latest.answers) == (d.triggers+1)/2 {
			next()
		}
	}
	return ctx.Err()
}

// strike kills a replica without warning.
func (d *demo) strike(victim *replica) {
	underWay := victim.underWay.Load()
	victim.kill()
	fmt.Fprintf(d.out, "   killed %s with SIGKILL in the middle of it, with %d calls under way there\n", victim.name, underWay)
	fmt.Fprintln(d.out, "   its callers ask the next replica, with the same request_id")
}

// report starts the callers of one key.
func (d *demo) report(ctx context.Context, t *target, answers chan<- answer) {
	for i := range d.triggers {
		request := &rotatorv1.RotateKeyRequest{
			Pool: t.pool.name, KeyId: t.key.GetId(), Generation: t.key.GetGeneration(), RequestId: uuid.NewString(),
			Trigger: rotatorv1.Trigger_TRIGGER_PROVIDER, Source: t.pool.provider, Reason: "budget_exceeded",
		}
		if i/len(d.replicas)%2 == 1 {
			request.Trigger, request.Source, request.Reason = rotatorv1.Trigger_TRIGGER_POOL, t.pool.pool, "401 from the upstream"
		}
		go func() { answers <- d.call(ctx, t, request, i) }()
	}
}

const (
	attemptLimit = 3 * time.Second  // rotatord answers within two
	callerLimit  = 20 * time.Second // then the caller has no answer
	longestPause = 2 * time.Second
)

// call does what the README asks of callers: it repeats the same request, at the next replica, until it has an answer.
func (d *demo) call(ctx context.Context, t *target, request *rotatorv1.RotateKeyRequest, first int) answer {
	ctx, cancel := context.WithTimeout(ctx, callerLimit)
	defer cancel()
	a := answer{target: t}
	began := time.Now()
	for pause := 20 * time.Millisecond; ; pause = min(2*pause, longestPause) {
		a.response, a.err = attempt(ctx, d.replicas[(first+a.calls)%len(d.replicas)], request)
		a.calls++
		a.took = time.Since(began)
		if a.err == nil || !repeatable(a.err) {
			return a
		}
		select {
		case <-time.After(pause):
		case <-ctx.Done():
			return a
		}
	}
}

func attempt(ctx context.Context, r *replica, request *rotatorv1.RotateKeyRequest) (*rotatorv1.RotateKeyResponse, error) {
	ctx, cancel := context.WithTimeout(ctx, attemptLimit)
	defer cancel()
	r.underWay.Add(1)
	defer r.underWay.Add(-1)
	return r.rotate.RotateKey(ctx, request)
}

// repeatable: nothing was applied, or it is not known. Calls at a killed replica end with UNAVAILABLE.
func repeatable(err error) bool {
	switch status.Code(err) {
	case codes.Unavailable, codes.DeadlineExceeded, codes.Aborted:
		return true
	}
	return false
}
