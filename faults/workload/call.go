package workload

import (
	"context"
	"strings"
	"time"

	"google.golang.org/genproto/googleapis/rpc/errdetails"
	"google.golang.org/grpc/codes"
	"google.golang.org/grpc/status"

	"github.com/rotatord/rotatord/faults/history"
)

const (
	firstPause = 50 * time.Millisecond
	maxPause   = time.Second
)

// request makes one request at a replica, and completes the operation from the answer.
type request func(ctx context.Context, r *replica, op *history.Op) error

// call makes a request and repeats it as the README advises, beginning at any replica. It returns the last operation.
// ctx does not end it: who has begun a call wants its outcome.
func (c *caller) call(ctx context.Context, op history.Op, do request) history.Op {
	return c.callFrom(ctx, c.rng.IntN(len(c.replicas)), op, do)
}

func (c *caller) callFrom(ctx context.Context, first int, op history.Op, do request) history.Op {
	patience, final := c.GiveUp, c.phase.Load() == history.Final
	if final { // and what is refused at the bound of a pool is possible soon
		patience = c.Bound
	}
	ctx, cancel := context.WithTimeout(context.WithoutCancel(ctx), patience)
	defer cancel()
	op.Call, op.Client = c.calls.Add(1), c.name
	for pause := firstPause; ; pause = min(2*pause, maxPause) {
		did, err := c.try(ctx, c.replicas[(first+op.Try)%len(c.replicas)], op, do)
		wait := max(pause, retryDelay(err)) + time.Duration(c.rng.Int64N(int64(pause)))
		deadline, _ := ctx.Deadline()
		did.Last = !repeatable(err) && !(final && did.Reason == "ROTATION_BOUND") || time.Until(deadline) < wait
		c.History.Add(did)
		if did.Last {
			if err == nil {
				c.succeeded.Add(1)
			}
			return did
		}
		time.Sleep(wait)
		op.Try++
	}
}

// try makes one request.
func (c *caller) try(ctx context.Context, r *replica, op history.Op, do request) (history.Op, error) {
	ctx, cancel := context.WithTimeout(ctx, c.Try)
	defer cancel()
	op.Replica, op.Phase = r.address, c.phase.Load().(string)
	op.Start = c.History.Now()
	err := do(ctx, r, &op)
	op.End = c.History.Now()
	op.Code, op.Reason, op.Message = describe(err)
	c.seen[op.Pool] = max(c.seen[op.Pool], op.Revision)
	return op, err
}

// repeatable reports whether the README advises to repeat.
func repeatable(err error) bool {
	switch status.Code(err) {
	case codes.Unavailable, codes.DeadlineExceeded, codes.Aborted:
		return true
	}
	return false
}

func retryDelay(err error) time.Duration {
	for _, d := range status.Convert(err).Details() {
		if info, ok := d.(*errdetails.RetryInfo); ok {
			return info.GetRetryDelay().AsDuration()
		}
	}
	return 0
}

// describe is an error as the history keeps it: the code in the spelling of the specification, the reason, the text.
func describe(err error) (code, reason, message string) {
	st := status.Convert(err)
	for _, d := range st.Details() {
		if info, ok := d.(*errdetails.ErrorInfo); ok {
			reason = info.GetReason()
		}
	}
	return codeNames[st.Code()], reason, st.Message()
}

var codeNames = func() map[codes.Code]string {
	names := map[codes.Code]string{codes.OK: history.OK}
	for c := codes.Canceled; c <= codes.Unauthenticated; c++ {
		var b strings.Builder
		for i, r := range c.String() {
			if i > 0 && r >= 'A' && r <= 'Z' {
				b.WriteByte('_')
			}
			b.WriteRune(r)
		}
		names[c] = strings.ToUpper(b.String())
	}
	return names
}()
