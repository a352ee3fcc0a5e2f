package pool

import "sync"

// maxBegun bounds what is kept of lives that the mirror is about to show.
const maxBegun = 1024

// begunLives are the lives that this replica's own commits began, until the mirror shows them. A new key may fail as soon
// as a caller has it; its rotation then needs neither to wait for the watch nor to ask the store. What is known of a life
// here may be old, as what is in the mirror, and serves for the same: to begin a rotation whose transactions compare it.
type begunLives struct {
	mu    sync.Mutex // protects the following field
	lives map[Life]begun
}

// begun is a key as its commit put it, and the pool as that commit compared it.
type begun struct {
	pool   *Pool
	active *Active
}

// add remembers a life. shown is how far the mirror is.
func (b *begunLives) add(p *Pool, a *Active, shown int64) {
	b.mu.Lock()
	defer b.mu.Unlock()
	if b.lives == nil {
		b.lives = make(map[Life]begun)
	}
	if len(b.lives) >= maxBegun {
		for l := range b.lives {
			if l.Generation <= shown {
				delete(b.lives, l)
			}
		}
	}
	if len(b.lives) < maxBegun {
		b.lives[a.Life()] = begun{p, a}
	}
}

// get returns a life that is newer than what is shown.
func (b *begunLives) get(l Life, shown int64) (life begun, found bool) {
	if l.Generation <= shown {
		return life, false
	}
	b.mu.Lock()
	defer b.mu.Unlock()
	life, found = b.lives[l]
	return life, found
}

// state is the state at the life's beginning of what a campaign asks for.
func (b begun) state() *State {
	l := b.active.Life()
	st := newStateOf(l, l.Generation)
	st.Records[b.pool.Ref()], st.Records[b.active.Ref()] = b.pool, b.active
	return st
}
