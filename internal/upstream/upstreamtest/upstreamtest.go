// Package upstreamtest is a LiteLLM for tests and the demo: an HTTP server on the loopback interface that answers as
// LiteLLM does about keys, their budgets and what they have spent, and can be told to fail.
//
// It promises the shapes of LiteLLM's answers as far as rotatord reads them, and to count every call. It does not promise
// anything else of LiteLLM: it knows no users, teams, models or time-limited budgets, and it keeps nothing.
//
// No binary that users run may import it.
package upstreamtest

import (
	"cmp"
	"crypto/sha256"
	"encoding/hex"
	"net/http"
	"net/http/httptest"
	"strings"
	"sync"
	"time"
)

// The endpoints, as they are counted and as hooks are told.
const (
	Activity = "GET /user/daily/activity"
	KeyInfo  = "GET /key/info"
	Generate = "POST /key/generate"
	Delete   = "POST /key/delete"
	Chat     = "POST /chat/completions"
)

// Options of a LiteLLM. All may be left zero.
type Options struct {
	MasterKey      string        // default: "sk-fake-master"
	OpenHands      bool          // every key has a user of its own, and refusals are about the user's budget
	ExceededStatus int           // of budget_exceeded, which has been 400, 401 and 429 over the years; default: 400
	ChatCost       float64       // dollars a chat completion costs; default: 0.25
	Lag            time.Duration // after which what was spent is on record; budgets are enforced at once
	Now            func() time.Time
}

// Key is a key to begin with.
type Key struct {
	Value     string
	Alias     string
	MaxBudget float64 // 0: none
	Spend     float64 // on record
	Rows      int     // among which the spend is divided, as activity shows it; default: 1
	Blocked   bool
}

// Call is one call, as hooks see it.
type Call struct {
	Endpoint string
	Key      string // hash of the key that the call is about
	Number   int    // 1 is the first of its endpoint and key
}

// Fault is what goes wrong with a call. The zero value is nothing.
type Fault struct {
	Delay  time.Duration // before anything happens
	Hang   bool          // there is no answer until the caller or the server goes away, and nothing is done
	Status int           // is answered in place of what was asked for, which is not done
	Body   string        // of that answer
	Drop   bool          // what was asked for is done, and the connection breaks before the answer
}

// Deed is a call that makes or deletes a key, with what became of it.
type Deed struct {
	Call
	Alias  string            // of a key to be made
	Value  string            // of a key to be made
	Meta   map[string]string // that came with it
	At     time.Time         // when it came
	Had    bool              // the key was there
	Has    bool              // it was there afterwards
	Looked bool              // it got as far as that: no fault came before
}

// LiteLLM is a running server. All methods are safe for concurrent use.
type LiteLLM struct {
	URL string

	opts    Options
	server  *httptest.Server
	closing chan struct{}
	once    sync.Once

	mu      sync.Mutex // protects the following fields
	keys    map[string]*key
	aliases map[string]string // hash of the key that has it
	calls   map[[2]string]int // by endpoint and hash; by endpoint alone with ""
	urls    []string
	hook    func(Call) Fault
	deeds   []Deed
}

// key is what is on record for a key.
type key struct {
	Key
	rows []row
}

type row struct {
	usd float64
	at  time.Time
}

// New starts a server; Close it.
func New(opts Options) *LiteLLM {
	opts.MasterKey = cmp.Or(opts.MasterKey, "sk-fake-master")
	opts.ExceededStatus = cmp.Or(opts.ExceededStatus, http.StatusBadRequest)
	opts.ChatCost = cmp.Or(opts.ChatCost, 0.25)
	if opts.Now == nil {
		opts.Now = time.Now
	}
	f := &LiteLLM{
		opts: opts, closing: make(chan struct{}), keys: make(map[string]*key), aliases: make(map[string]string),
		calls: make(map[[2]string]int), hook: func(Call) Fault { return Fault{} },
	}
	f.server = httptest.NewServer(f.handler())
	f.URL = f.server.URL
	return f
}

// Close stops the server; calls that hang end.
func (f *LiteLLM) Close() {
	f.once.Do(func() { close(f.closing) })
	f.server.CloseClientConnections()
	f.server.Close()
}

// MasterKey is the credential of the admin API.
func (f *LiteLLM) MasterKey() string { return f.opts.MasterKey }

// Hook has fn decide what goes wrong with each call from now on. It is called with no lock held; nil: nothing does.
func (f *LiteLLM) Hook(fn func(Call) Fault) {
	if fn == nil {
		fn = func(Call) Fault { return Fault{} }
	}
	f.mu.Lock()
	defer f.mu.Unlock()
	f.hook = fn
}

// AddKey puts a key on record, in place of one with the same value.
func (f *LiteLLM) AddKey(k Key) {
	f.mu.Lock()
	defer f.mu.Unlock()
	added := &key{Key: k}
	n := max(k.Rows, 1)
	for range n {
		added.rows = append(added.rows, row{k.Spend / float64(n), f.opts.Now().Add(-f.opts.Lag)})
	}
	f.keys[Hash(k.Value)] = added
	if k.Alias != "" {
		f.aliases[k.Alias] = Hash(k.Value)
	}
}

// RemoveKey takes a key off the record, as /key/delete does, without being a call.
func (f *LiteLLM) RemoveKey(value string) {
	f.mu.Lock()
	defer f.mu.Unlock()
	f.remove(Hash(value))
}

// Spend has a key spend an amount now, whatever its budget.
func (f *LiteLLM) Spend(value string, usd float64) {
	f.mu.Lock()
	defer f.mu.Unlock()
	if k := f.keys[Hash(value)]; k != nil {
		k.rows = append(k.rows, row{usd, f.opts.Now()})
	}
}

// SetSpend has a key have spent an amount in all.
func (f *LiteLLM) SetSpend(value string, usd float64) {
	f.mu.Lock()
	defer f.mu.Unlock()
	if k := f.keys[Hash(value)]; k != nil {
		k.rows = []row{{usd, f.opts.Now()}}
	}
}

// Has reports whether a key is on record.
func (f *LiteLLM) Has(value string) bool {
	f.mu.Lock()
	defer f.mu.Unlock()
	return f.keys[Hash(value)] != nil
}

// Keys is how many keys are on record.
func (f *LiteLLM) Keys() int {
	f.mu.Lock()
	defer f.mu.Unlock()
	return len(f.keys)
}

// Calls counts the calls of an endpoint about a key, by its value or hash; "" is all keys. Calls that went wrong count.
func (f *LiteLLM) Calls(endpoint, value string) int {
	f.mu.Lock()
	defer f.mu.Unlock()
	return f.calls[[2]string{endpoint, Hash(value)}]
}

// Deeds lists the calls that were to change something, in the order in which they did, or did not.
func (f *LiteLLM) Deeds() []Deed {
	f.mu.Lock()
	defer f.mu.Unlock()
	return append([]Deed(nil), f.deeds...)
}

// URLs lists the URLs of all calls: no secret may be in one.
func (f *LiteLLM) URLs() []string {
	f.mu.Lock()
	defer f.mu.Unlock()
	return append([]string(nil), f.urls...)
}

// Hash is how LiteLLM keeps a key. What is no key is returned as it is, as LiteLLM does with what is a hash already.
func Hash(value string) string {
	if !strings.HasPrefix(value, "sk-") {
		return value
	}
	sum := sha256.Sum256([]byte(value))
	return hex.EncodeToString(sum[:])
}

// deed does what a call asks for, with the lock held, and notes what became of it if that was to change something.
func (f *LiteLLM) deed(endpoint string, r *request, looked bool, do func()) {
	f.mu.Lock()
	defer f.mu.Unlock()
	hash := r.about(endpoint)
	d := Deed{
		Call: Call{Endpoint: endpoint, Key: hash}, Alias: r.body.KeyAlias, Value: r.body.Key, Meta: r.body.Metadata, At: r.at,
		Had: f.keys[hash] != nil, Looked: looked,
	}
	if do != nil {
		do()
	}
	d.Has = f.keys[hash] != nil
	if endpoint == Generate || endpoint == Delete {
		f.deeds = append(f.deeds, d)
	}
}

func (f *LiteLLM) remove(hash string) {
	if k := f.keys[hash]; k != nil {
		delete(f.keys, hash)
		delete(f.aliases, k.Alias)
	}
}

// spent is what a key has spent: all of it, or what is on record.
func (f *LiteLLM) spent(k *key, onRecord bool) (sum float64) {
	for _, r := range f.visible(k, onRecord) {
		sum += r.usd
	}
	return sum
}

func (f *LiteLLM) visible(k *key, onRecord bool) (rows []row) {
	for _, r := range k.rows {
		if !onRecord || f.opts.Now().Sub(r.at) >= f.opts.Lag {
			rows = append(rows, r)
		}
	}
	return rows
}
