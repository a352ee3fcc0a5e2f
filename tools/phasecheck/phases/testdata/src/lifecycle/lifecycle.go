// Package lifecycle stands for the phases.
package lifecycle

import "pool"

type Move struct{ txn *pool.Txn }

func dispatch(r, other *pool.Record) Move {
	switch r.Phase {
	case pool.A:
		return checked(r)
	case pool.B:
		return unchecked(r)
	}
	if other != nil {
		return checksAnother(r, other)
	}
	return checksLate(r)
}

func checked(r *pool.Record) Move {
	if r.Work.Done(r.Phase) {
		return Move{}
	}
	return helper(r)
}

func unchecked(r *pool.Record) Move { // want "phase handler unchecked does not begin with the generation check"
	return helper(r)
}

func checksAnother(r, other *pool.Record) Move { // want "phase handler checksAnother does not begin"
	if other.Work.Done(r.Phase) {
		return Move{}
	}
	return helper(r)
}

func checksLate(r *pool.Record) Move { // want "phase handler checksLate does not begin"
	m := helper(r)
	if r.Work.Done(r.Phase) {
		return Move{}
	}
	return m
}

// helper is called by handlers only, and needs no check.
func helper(*pool.Record) Move {
	m := Move{txn: &pool.Txn{If: []pool.Guard{{}}, Put: []any{1}}}
	m.txn.Event = &pool.Event{Type: "moved"}
	return m
}

func tells(log func(*pool.Event)) {
	log(&pool.Event{Type: "told before it happened"}) // want "an event outside the transaction"
}
