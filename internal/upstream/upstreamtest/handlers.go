package upstreamtest

import (
	"bytes"
	"encoding/json"
	"fmt"
	"io"
	"net/http"
	"slices"
	"strconv"
	"strings"
	"time"
)

// request is a call with what is needed of it.
type request struct {
	*http.Request
	auth string // hash of the key that was sent, or "master"
	at   time.Time
	body struct {
		Key       string            `json:"key"`
		KeyAlias  string            `json:"key_alias"`
		MaxBudget float64           `json:"max_budget"`
		Keys      []string          `json:"keys"`
		Aliases   []string          `json:"key_aliases"`
		Metadata  map[string]string `json:"metadata"`
	}
}

const master = "master"

// refusal is an error as LiteLLM answers it.
type refusal struct {
	status  int
	kind    string
	param   any
	message string
}

func (f *LiteLLM) handler() http.Handler {
	mux := http.NewServeMux()
	mux.HandleFunc(Activity, f.serve(Activity, f.activity))
	mux.HandleFunc(KeyInfo, f.serve(KeyInfo, f.info))
	mux.HandleFunc(Generate, f.serve(Generate, f.generate))
	mux.HandleFunc(Delete, f.serve(Delete, f.delete))
	mux.HandleFunc(Chat, f.serve(Chat, f.chat))
	mux.HandleFunc("POST /v1/chat/completions", f.serve(Chat, f.chat))
	mux.HandleFunc("/", func(w http.ResponseWriter, _ *http.Request) {
		write(w, http.StatusNotFound, map[string]string{"detail": "Not Found"})
	})
	return mux
}

// serve reads a call, counts it, lets it go wrong, and answers it. do is called with the lock held.
func (f *LiteLLM) serve(endpoint string, do func(*request) (any, *refusal)) http.HandlerFunc {
	return func(w http.ResponseWriter, hr *http.Request) {
		r := f.read(hr)
		fault := f.note(endpoint, r)
		if !f.delay(hr, fault) {
			f.deed(endpoint, r, false, nil)
			panic(http.ErrAbortHandler)
		}
		if fault.Status != 0 {
			f.deed(endpoint, r, false, nil)
			w.WriteHeader(fault.Status)
			_, _ = io.WriteString(w, fault.Body)
			return
		}
		var answer any
		var no *refusal
		f.deed(endpoint, r, true, func() {
			if no = f.admit(r); no == nil {
				answer, no = do(r)
			}
		})
		switch {
		case fault.Drop:
			panic(http.ErrAbortHandler)
		case no != nil:
			write(w, no.status, map[string]any{"error": map[string]any{
				"message": no.message, "type": no.kind, "param": no.param, "code": strconv.Itoa(no.status),
			}})
		default:
			write(w, http.StatusOK, answer)
		}
	}
}

func write(w http.ResponseWriter, status int, answer any) {
	w.Header().Set("Content-Type", "application/json")
	w.WriteHeader(status)
	_ = json.NewEncoder(w).Encode(answer)
}

func (f *LiteLLM) read(hr *http.Request) *request {
	r := &request{Request: hr, at: f.opts.Now()}
	value := hr.Header.Get("X-Litellm-Api-Key")
	if value == "" {
		value = strings.TrimPrefix(hr.Header.Get("Authorization"), "Bearer ")
	}
	if r.auth = Hash(value); value == f.opts.MasterKey {
		r.auth = master
	}
	text, _ := io.ReadAll(io.LimitReader(hr.Body, 1<<20))
	_ = json.NewDecoder(bytes.NewReader(text)).Decode(&r.body)
	return r
}

// about is the hash of the key that a call is about.
func (r *request) about(endpoint string) string {
	switch {
	case endpoint == Generate:
		return Hash(r.body.Key)
	case endpoint == Delete && len(r.body.Keys) > 0:
		return Hash(r.body.Keys[0])
	case endpoint == KeyInfo && r.URL.Query().Has("key"):
		return Hash(r.URL.Query().Get("key"))
	}
	return r.auth
}

func (f *LiteLLM) note(endpoint string, r *request) Fault {
	hash := r.about(endpoint)
	f.mu.Lock()
	f.calls[[2]string{endpoint, hash}]++
	if hash != "" {
		f.calls[[2]string{endpoint, ""}]++
	}
	f.urls = append(f.urls, r.URL.String())
	call, hook := Call{endpoint, hash, f.calls[[2]string{endpoint, hash}]}, f.hook
	f.mu.Unlock()
	return hook(call)
}

// delay waits as a fault says. It reports false if nobody waits for the answer any more.
func (f *LiteLLM) delay(hr *http.Request, fault Fault) bool {
	if fault.Delay == 0 && !fault.Hang {
		return true
	}
	var over <-chan time.Time
	if !fault.Hang {
		timer := time.NewTimer(fault.Delay)
		defer timer.Stop()
		over = timer.C
	}
	select {
	case <-over:
		return true
	case <-hr.Context().Done():
	case <-f.closing:
	}
	return false
}

// admit refuses a call by the key that was sent.
func (f *LiteLLM) admit(r *request) *refusal {
	if r.auth == master {
		return nil
	}
	k := f.keys[r.auth]
	switch {
	case k == nil:
		return &refusal{http.StatusUnauthorized, "token_not_found_in_db", "key", fmt.Sprintf(
			"Authentication Error, Invalid proxy server token passed. Received API Key = sk-..., Key Hash (Token) =%s. Unable to find token in cache or `LiteLLM_VerificationTokenTable`", r.auth)}
	case k.Blocked:
		return &refusal{http.StatusUnauthorized, "auth_error", nil, "Authentication Error, Key is blocked. Update via `/key/unblock` if you're admin."}
	case k.MaxBudget > 0 && f.spent(k, false) >= k.MaxBudget:
		return &refusal{f.opts.ExceededStatus, "budget_exceeded", nil, f.exceeded(r.auth, k)}
	}
	return nil
}

func (f *LiteLLM) exceeded(hash string, k *key) string {
	if f.opts.OpenHands {
		return fmt.Sprintf("ExceededBudget: User=%s over budget. Spend=%v, Budget=%v", hash[:8], f.spent(k, false), k.MaxBudget)
	}
	return fmt.Sprintf("Budget has been exceeded! Key=%s Current cost: %v, Max budget: %v", hash, f.spent(k, false), k.MaxBudget)
}

func admins(r *request) *refusal {
	if r.auth == master {
		return nil
	}
	return &refusal{http.StatusUnauthorized, "auth_error", nil, "Authentication Error, Only proxy admin can be used to generate, delete, update info for new keys/users/teams."}
}

// activity pages through the rows, newest first. Its totals are of the page, whatever their names, as at LiteLLM.
func (f *LiteLLM) activity(r *request) (any, *refusal) {
	k := f.keys[r.auth]
	if k == nil {
		return nil, &refusal{http.StatusForbidden, "auth_error", nil, "the master key has no user"}
	}
	page, size := atLeastOne(r.URL.Query().Get("page"), 1), atLeastOne(r.URL.Query().Get("page_size"), 50)
	rows := f.visible(k, true)
	slices.Reverse(rows)
	pages := (len(rows) + size - 1) / size
	type metrics struct {
		Spend float64 `json:"spend"`
	}
	type result struct {
		Date    string  `json:"date"`
		Metrics metrics `json:"metrics"`
	}
	results, total := []result{}, 0.0
	for _, one := range rows[min((page-1)*size, len(rows)):min(page*size, len(rows))] {
		total += one.usd
		results = append(results, result{one.at.UTC().Format(time.DateOnly), metrics{one.usd}})
	}
	return map[string]any{"results": results, "metadata": map[string]any{
		"total_spend": total, "page": page, "total_pages": pages, "has_more": page < pages,
	}}, nil
}

func atLeastOne(text string, otherwise int) int {
	if n, err := strconv.Atoi(text); err == nil && n > 0 {
		return n
	}
	return otherwise
}

func (f *LiteLLM) info(r *request) (any, *refusal) {
	hash := r.about(KeyInfo)
	if r.auth != master && hash != r.auth {
		return nil, &refusal{http.StatusForbidden, "auth_error", nil, "You are not allowed to access this key's info."}
	}
	k := f.keys[hash]
	if k == nil {
		return nil, &refusal{http.StatusNotFound, "not_found_error", "key", "Key not found in database"}
	}
	info := map[string]any{
		"key_name": "sk-...", "key_alias": nullIf(k.Alias), "spend": f.spent(k, true), "max_budget": nullIf(k.MaxBudget),
		"blocked": k.Blocked, "expires": nil, "budget_reset_at": nil,
	}
	return map[string]any{"key": hash, "info": info}, nil
}

func nullIf[T comparable](value T) any {
	var zero T
	if value == zero {
		return nil
	}
	return value
}

func (f *LiteLLM) generate(r *request) (any, *refusal) {
	if no := admins(r); no != nil {
		return nil, no
	}
	if !strings.HasPrefix(r.body.Key, "sk-") {
		return nil, &refusal{http.StatusBadRequest, "auth_error", nil, "Invalid key format. LiteLLM Virtual Key must start with 'sk-'."}
	}
	if f.aliases[r.body.KeyAlias] != "" {
		return nil, &refusal{http.StatusBadRequest, "bad_request_error", "key_alias", fmt.Sprintf(
			"Key with alias '%s' already exists. Unique key aliases across all keys are required.", r.body.KeyAlias)}
	}
	hash := Hash(r.body.Key)
	if f.keys[hash] == nil { // one that is there is left as it is
		f.keys[hash] = &key{Key: Key{Value: r.body.Key, Alias: r.body.KeyAlias, MaxBudget: r.body.MaxBudget}}
		if r.body.KeyAlias != "" {
			f.aliases[r.body.KeyAlias] = hash
		}
	}
	return map[string]any{"key": r.body.Key, "token": hash, "token_id": hash, "key_name": "sk-...", "key_alias": nullIf(r.body.KeyAlias), "expires": nil}, nil
}

func (f *LiteLLM) delete(r *request) (any, *refusal) {
	if no := admins(r); no != nil {
		return nil, no
	}
	var deleted []string
	for _, value := range r.body.Keys {
		if f.keys[Hash(value)] != nil {
			f.remove(Hash(value))
			deleted = append(deleted, value)
		}
	}
	for _, alias := range r.body.Aliases {
		if hash := f.aliases[alias]; hash != "" {
			f.remove(hash)
			deleted = append(deleted, alias)
		}
	}
	if len(deleted) == 0 {
		return nil, &refusal{http.StatusNotFound, "not_found_error", "keys", "No matching keys found."}
	}
	return map[string]any{"deleted_keys": deleted}, nil
}

func (f *LiteLLM) chat(r *request) (any, *refusal) {
	if k := f.keys[r.auth]; k != nil {
		k.rows = append(k.rows, row{f.opts.ChatCost, f.opts.Now()})
	}
	return map[string]any{
		"id": "chatcmpl-fake", "object": "chat.completion", "model": "fake",
		"choices": []any{map[string]any{"index": 0, "finish_reason": "stop", "message": map[string]string{"role": "assistant", "content": "Hello."}}},
	}, nil
}
