package app

import (
	"github.com/rotatord/rotatord/internal/lifecycle"
	"github.com/rotatord/rotatord/internal/pool"
	"github.com/rotatord/rotatord/internal/provider"
	"github.com/rotatord/rotatord/internal/telemetry"
)

// newPhases makes the worker that stocks, revokes and purges.
func (r *Replica) newPhases(store pool.Store, held *locks, known *upstreams, seams Seams) *lifecycle.Worker {
	commands := make(map[string][]string)
	for _, text := range r.cfg.ExecProviders {
		name, command, _ := provider.ParseCommand(text) // checked with the configuration
		commands[name] = command
	}
	cfg := lifecycle.Config{
		Store: store, Locks: held, Mirror: r.mirror, Sealer: r.keys, Replica: r.cfg.Name, Ready: r.Writable,
		Providers: &provider.Registry{Client: known.client, Sealer: r.keys, Commands: commands},
		Observer:  phaseObserver{r.telemetry, r.suspectFull},
	}
	if seams.Phases != nil {
		seams.Phases(&cfg)
	}
	return lifecycle.New(cfg)
}

// phaseObserver looks at what etcd answers, as observer does.
type phaseObserver struct {
	*telemetry.Telemetry
	suspect func(error)
}

var _ lifecycle.Observer = phaseObserver{}

// OutcomeUnknown implements lifecycle.Observer.
func (o phaseObserver) OutcomeUnknown(poolName, subject string, attempt int, err error) {
	o.suspect(err)
	o.Telemetry.OutcomeUnknown(poolName, subject, attempt, err)
}
