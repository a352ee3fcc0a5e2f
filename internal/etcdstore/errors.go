package etcdstore

import (
	"errors"
	"fmt"

	"go.etcd.io/etcd/api/v3/v3rpc/rpctypes"

	"github.com/rotatord/rotatord/internal/etcdwire"
	"github.com/rotatord/rotatord/internal/pool"
)

// hopeless turns err into one that says what to do, if repeating the call cannot help; else it returns nil.
func hopeless(err error) error {
	if advice, refused := etcdwire.Refused(err); refused {
		return fmt.Errorf("etcd refused the call: %w; %s", rpctypes.Error(err), advice)
	}
	return nil
}

// writeError says what the error of a write means. Whatever is not known to say "not applied" is an unknown outcome.
func writeError(err error) error {
	if final := hopeless(err); final != nil {
		return final
	}
	if etcdwire.NotNow(err) {
		return notApplied(err)
	}
	return pool.Refuse(pool.ReasonOutcomeUnknown, "the store did not say whether the write was applied").Because(rpctypes.Error(err))
}

func notApplied(cause error) error {
	return pool.Refuse(pool.ReasonNotApplied, "the store cannot be written now").Because(rpctypes.Error(cause))
}

func notRead(cause error) error {
	return pool.Refuse(pool.ReasonNotApplied, "the store cannot be read now; try again").Because(rpctypes.Error(cause))
}

// IsNoSpace reports whether etcd said that its quota is used up. The write it answered may have been applied.
func IsNoSpace(err error) bool { return errors.Is(err, rpctypes.ErrNoSpace) }
