package nemesis

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"time"

	"go.etcd.io/etcd/api/v3/etcdserverpb"
	"go.etcd.io/etcd/api/v3/v3rpc/rpctypes"
	clientv3 "go.etcd.io/etcd/client/v3"

	"github.com/rotatord/rotatord/faults/cluster"
)

// filler is outside what is recorded.
const filler = "/filler/"

// noSpace fills the members' quota with something else, and then does what an operator does about it.
func noSpace(r *run) error {
	r.hit("all")
	ctx, cancel := context.WithTimeout(context.Background(), 60*time.Second)
	defer cancel()
	used, err := r.used(ctx)
	if err != nil {
		return err
	}
	if err := r.fill(ctx); err != nil {
		return err
	}
	r.last(2*time.Second, 4*time.Second)
	return r.makeRoom(ctx, used)
}

// used is how large the members' data is: it grows with the run.
func (r *run) used(ctx context.Context) (most int64, err error) {
	for _, m := range r.c.Etcds {
		status, err := r.c.Client().Status(ctx, m.Direct())
		if err != nil {
			return 0, err
		}
		most = max(most, status.DbSizeInUse)
	}
	return most, nil
}

var errNotFull = errors.New("the quota was not reached")

func (r *run) fill(ctx context.Context) error {
	value := bytes.Repeat([]byte("0123456789abcdef"), 1<<16) // 1 MiB
	for i := range 4 * r.c.Quota >> 20 {
		_, err := r.c.Client().Put(ctx, fmt.Sprint(filler, i), string(value))
		switch {
		case errors.Is(err, rpctypes.ErrNoSpace):
			return nil
		case err != nil && ctx.Err() != nil:
			return fmt.Errorf("filling: %w", err)
		}
	}
	return errNotFull
}

// makeRoom deletes, compacts, defragments and disarms. used is how large the data was before.
func (r *run) makeRoom(ctx context.Context, used int64) error {
	if _, err := r.c.Client().Delete(ctx, filler, clientv3.WithPrefix()); err != nil {
		return fmt.Errorf("deleting the filler: %w", err)
	}
	if err := r.compact(); err != nil {
		return err
	}
	for _, m := range r.c.Etcds {
		if err := r.defragment(ctx, m, (used+r.c.Quota)/2); err != nil {
			return fmt.Errorf("defragmenting %s: %w", m.Name, err)
		}
	}
	return r.disarm(ctx)
}

// defragment shrinks a member's database below a size. Every member compacts at its own pace, and until then there is nothing
// to give back.
func (r *run) defragment(ctx context.Context, m *cluster.Member, below int64) error {
	for {
		if _, err := r.c.Client().Defragment(ctx, m.Direct()); err != nil {
			return err
		}
		status, err := r.c.Client().Status(ctx, m.Direct())
		if err != nil || status.DbSize < below {
			return err
		}
		r.sleep(ctx, 100*time.Millisecond)
	}
}

// disarm ends the alarm of every member. An alarm that is raised again meanwhile is disarmed too.
func (r *run) disarm(ctx context.Context) error {
	for range 50 {
		alarms, err := r.c.Client().AlarmList(ctx)
		if err != nil {
			return err
		}
		if len(alarms.Alarms) == 0 {
			return nil
		}
		for _, a := range alarms.Alarms {
			_, err := r.c.Client().AlarmDisarm(ctx, &clientv3.AlarmMember{MemberID: a.MemberID, Alarm: etcdserverpb.AlarmType_NOSPACE})
			if err != nil {
				return fmt.Errorf("disarming: %w", err)
			}
		}
		time.Sleep(100 * time.Millisecond)
	}
	return errors.New("the alarm is raised again and again")
}
