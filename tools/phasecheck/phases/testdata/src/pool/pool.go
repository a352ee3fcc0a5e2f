// Package pool stands for the domain.
package pool

type Phase int

const (
	A Phase = iota
	B
)

type Work struct{ Generation int64 }

func (w *Work) Done(Phase) bool { return false }

type Record struct {
	Phase Phase
	Work  *Work
}

type Event struct{ Type string }

type Guard struct{}

type Txn struct {
	If     []Guard
	Put    []any
	Delete []string
	Event  *Event
}

func newEvent(kind string) *Event { return &Event{Type: kind} }

func good() *Txn {
	return &Txn{If: []Guard{{}}, Put: []any{1}, Event: newEvent("good")}
}

func later() *Txn {
	t := &Txn{If: []Guard{{}}, Event: &Event{Type: "later"}}
	t.Delete = []string{"x"}
	t.Event.Type = "changed"
	return t
}

func assigned(t *Txn) {
	t.Event = newEvent("assigned")
}

func maker(e *Event) (*Txn, error) {
	return &Txn{If: []Guard{{}}, Put: []any{1}, Event: e}, nil
}

func made() (*Txn, error) { return maker(&Event{Type: "made"}) }

func handedOn() *Txn {
	t := &Txn{If: []Guard{{}}, Event: newEvent("handed on")}
	fill(t)
	return t
}

func fill(t *Txn) { t.Put = append(t.Put, 1) }

func unguarded() *Txn {
	return &Txn{Put: []any{1}, Event: newEvent("unguarded")} // want "compares nothing"
}

func alone() *Txn {
	return &Txn{If: []Guard{{}}, Event: newEvent("alone")} // want "an event without a change"
}

func kept() {
	e := newEvent("kept") // want "an event outside the transaction"
	write(e)
}

func written() {
	write(&Event{Type: "written"}) // want "an event outside the transaction"
}

func write(*Event) {}
