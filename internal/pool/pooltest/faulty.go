package pooltest

import (
	"context"
	"sync"

	"github.com/rotatord/rotatord/internal/pool"
)

// Call names a call on a Store.
type Call struct {
	N   int    // from 1, over all calls
	Op  string // the method: "Apply", "Read", "List", "Rotations", "Sweep" or "ReadAll"
	Txn *pool.Txn
}

// Fault is what happens to one call.
type Fault struct {
	Before func()            // runs before the call is made: a rival
	Err    error             // is answered instead of the result
	Made   bool              // with Err: the call is made all the same, and its answer lost
	Late   func(send func()) // with Err, of Apply: is given a function that makes the lost call later
}

// Faulty is a Store whose calls fail as Decide says; nil or a zero Fault lets a call through. It can wrap any Store.
type Faulty struct {
	pool.Store
	Decide func(Call) Fault

	mu    sync.Mutex // protects the following fields
	calls int
}

// Calls is how many calls were made.
func (f *Faulty) Calls() int {
	f.mu.Lock()
	defer f.mu.Unlock()
	return f.calls
}

func (f *Faulty) decide(op string, t *pool.Txn) Fault {
	f.mu.Lock()
	f.calls++
	call := Call{f.calls, op, t}
	f.mu.Unlock()
	if f.Decide == nil {
		return Fault{}
	}
	fault := f.Decide(call)
	if fault.Before != nil {
		fault.Before()
	}
	return fault
}

// Apply implements pool.Store.
func (f *Faulty) Apply(ctx context.Context, t *pool.Txn) (*pool.Result, error) {
	fault := f.decide("Apply", t)
	if fault.Err == nil {
		return f.Store.Apply(ctx, t)
	}
	if fault.Made {
		if _, err := f.Store.Apply(context.WithoutCancel(ctx), t); err != nil {
			return nil, err
		}
	}
	if fault.Late != nil {
		fault.Late(func() { _, _ = f.Store.Apply(context.WithoutCancel(ctx), t) })
	}
	return nil, fault.Err
}

// Read implements pool.Store.
func (f *Faulty) Read(ctx context.Context, refs ...pool.Ref) (*pool.State, error) {
	if fault := f.decide("Read", nil); fault.Err != nil {
		return nil, fault.Err
	}
	return f.Store.Read(ctx, refs...)
}

// List implements pool.Store.
func (f *Faulty) List(ctx context.Context, kind pool.Kind, name string, limit int) ([]pool.Record, int64, error) {
	if fault := f.decide("List", nil); fault.Err != nil {
		return nil, 0, fault.Err
	}
	return f.Store.List(ctx, kind, name, limit)
}

// Rotations implements pool.Store.
func (f *Faulty) Rotations(ctx context.Context, name, key string) ([]*pool.Rotation, int64, error) {
	if fault := f.decide("Rotations", nil); fault.Err != nil {
		return nil, 0, fault.Err
	}
	return f.Store.Rotations(ctx, name, key)
}

// Sweep implements pool.Store.
func (f *Faulty) Sweep(ctx context.Context, kind pool.Kind, p *pool.Pool) error {
	fault := f.decide("Sweep", nil)
	if fault.Err == nil {
		return f.Store.Sweep(ctx, kind, p)
	}
	if fault.Made {
		if err := f.Store.Sweep(context.WithoutCancel(ctx), kind, p); err != nil {
			return err
		}
	}
	return fault.Err
}

// ReadAll implements pool.Store.
func (f *Faulty) ReadAll(ctx context.Context) ([]pool.Record, int64, error) {
	if fault := f.decide("ReadAll", nil); fault.Err != nil {
		return nil, 0, fault.Err
	}
	return f.Store.ReadAll(ctx)
}
