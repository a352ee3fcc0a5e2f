package upstream

import (
	"errors"
	"math"
	"net/http"
	"strings"
	"testing"
	"time"

	"github.com/rotatord/rotatord/internal/upstream/upstreamtest"
)

func newLiteLLM(t *testing.T, opts upstreamtest.Options) (*upstreamtest.LiteLLM, *LiteLLMAPI) {
	t.Helper()
	f := upstreamtest.New(opts)
	t.Cleanup(func() {
		f.Close()
		for _, u := range f.URLs() {
			if strings.Contains(u, "sk-") {
				t.Errorf("want no key in a URL, got %s", u)
			}
		}
	})
	c := NewClient(ClientConfig{Timeout: time.Second})
	t.Cleanup(c.Close)
	return f, &LiteLLMAPI{Client: c, BaseURL: f.URL, Credential: secret(f.MasterKey())}
}

func near(a, b float64) bool { return math.Abs(a-b) < 1e-9 }

func TestSpendByKey(t *testing.T) {
	for _, rows := range []int{0, 1, 100, 101, 250} {
		f, l := newLiteLLM(t, upstreamtest.Options{})
		f.AddKey(upstreamtest.Key{Value: fakeKey.Reveal(), MaxBudget: 10, Spend: 7.25, Rows: rows})
		got, err := l.SpendByKey(t.Context(), fakeKey)
		if err != nil || !near(got.SpendUSD, 7.25) || got.BudgetUSD != nil {
			t.Errorf("%d rows: want $7.25, got %+v, %v", rows, got, err)
		}
		if want := max(1, (rows+99)/100); f.Calls(upstreamtest.Activity, fakeKey.Reveal()) != want {
			t.Errorf("%d rows: want %d pages, got %d", rows, want, f.Calls(upstreamtest.Activity, fakeKey.Reveal()))
		}
	}
}

// Part of a sum is no sum.
func TestPagesThatFailFailTheReading(t *testing.T) {
	f, l := newLiteLLM(t, upstreamtest.Options{})
	f.AddKey(upstreamtest.Key{Value: fakeKey.Reveal(), MaxBudget: 10, Spend: 7.25, Rows: 250})
	f.Hook(func(c upstreamtest.Call) upstreamtest.Fault {
		if c.Number == 3 {
			return upstreamtest.Fault{Status: 500, Body: "oops"}
		}
		return upstreamtest.Fault{}
	})
	if got, err := l.SpendByKey(t.Context(), fakeKey); err == nil {
		t.Errorf("want an error, got %+v", got)
	}
}

func TestReadingsAreBounded(t *testing.T) {
	pages := 0
	l := &LiteLLMAPI{BaseURL: "https://host", Client: NewClient(ClientConfig{Transport: transport(func(*http.Request) (*http.Response, error) {
		pages++
		return answerOf(200, `{"results":[],"metadata":{"total_spend":1,"has_more":true}}`), nil
	})})}
	if _, err := l.SpendByKey(t.Context(), fakeKey); err == nil || !strings.Contains(err.Error(), "credential") || pages != maxPages {
		t.Errorf("want the way out after %d pages, got %v after %d", maxPages, err, pages)
	}
}

// Whether a total is the page's or that of all pages, it is counted once.
func TestTotalsOfAllPages(t *testing.T) {
	page := 0
	l := &LiteLLMAPI{BaseURL: "https://host", Client: NewClient(ClientConfig{Transport: transport(func(*http.Request) (*http.Response, error) {
		page++
		if page == 1 {
			return answerOf(200, `{"results":[{"metrics":{"spend":3}}],"metadata":{"total_spend":5,"total_pages":2}}`), nil
		}
		return answerOf(200, `{"results":[{"metrics":{"spend":2}}],"metadata":{"total_spend":5,"total_pages":2}}`), nil
	})})}
	if got, err := l.SpendByKey(t.Context(), fakeKey); err != nil || got.SpendUSD != 5 {
		t.Errorf("want $5, got %+v, %v", got, err)
	}
}

func TestAnswersThatAreNoReading(t *testing.T) {
	for _, body := range []string{``, `{}`, `[]`, `{"metadata":{"total_spend":-1}}`, `{"metadata":{"total_spend":"9"}}`, `{"info":{}}`, `{"info":{"spend":-1}}`, `{"info":{"spend":1,"max_budget":-1}}`} {
		l := &LiteLLMAPI{BaseURL: "https://host", Client: NewClient(ClientConfig{Transport: transport(func(*http.Request) (*http.Response, error) {
			return answerOf(200, body), nil
		})})}
		if got, err := l.SpendByKey(t.Context(), fakeKey); err == nil {
			t.Errorf("%s: want an error, got %+v", body, got)
		}
		if got, err := l.KeyInfo(t.Context(), fakeKey); err == nil {
			t.Errorf("%s: want an error, got %+v", body, got)
		}
	}
}

func TestBudgetExceededWhenAsked(t *testing.T) {
	for _, opts := range []upstreamtest.Options{{}, {ExceededStatus: 401}, {ExceededStatus: 429}, {OpenHands: true}, {OpenHands: true, ExceededStatus: 429}} {
		f, l := newLiteLLM(t, opts)
		if opts.OpenHands {
			l.Kind = OpenHands
		}
		f.AddKey(upstreamtest.Key{Value: fakeKey.Reveal(), MaxBudget: 10, Spend: 10.02})
		_, err := l.SpendByKey(t.Context(), fakeKey)
		var b *BudgetError
		if !errors.As(err, &b) || b.SpendUSD == nil || *b.SpendUSD != 10.02 || b.BudgetUSD == nil || *b.BudgetUSD != 10 {
			t.Errorf("%+v: want budget exceeded at $10.02 of $10, got %v", opts, err)
		}
		// The master key is told as before.
		if got, err := l.KeyInfo(t.Context(), fakeKey); err != nil || got.SpendUSD != 10.02 || *got.BudgetUSD != 10 {
			t.Errorf("%+v: want $10.02 of $10, got %+v, %v", opts, got, err)
		}
		if got := l.Client.Probe(t.Context(), orDefault(l.Kind, LiteLLM), f.URL, fakeKey); got.Health != Dead {
			t.Errorf("%+v: want the key dead, got %+v", opts, got)
		}
	}
}

func TestKeyInfo(t *testing.T) {
	f, l := newLiteLLM(t, upstreamtest.Options{})
	f.AddKey(upstreamtest.Key{Value: fakeKey.Reveal(), Alias: "a", Spend: 3})
	if got, err := l.KeyInfo(t.Context(), fakeKey); err != nil || got.SpendUSD != 3 || got.BudgetUSD != nil || got.Alias != "a" {
		t.Errorf("want $3 without budget, got %+v, %v", got, err)
	}
	if _, err := l.KeyInfo(t.Context(), secret("sk-fake-other")); !errors.Is(err, ErrUnknownKey) {
		t.Errorf("want an unknown key, got %v", err)
	}
	l.Credential = secret("sk-fake-no-master")
	if _, err := l.KeyInfo(t.Context(), fakeKey); err == nil || errors.Is(err, ErrUnknownKey) {
		t.Errorf("want the credential refused and nothing said of the key, got %v", err)
	}
	l.BaseURL += "/elsewhere"
	if _, err := l.KeyInfo(t.Context(), fakeKey); err == nil || errors.Is(err, ErrUnknownKey) {
		t.Errorf("want nothing said of the key by a wrong path, got %v", err)
	}
}

// Only LiteLLM's own 404 says that a key is gone: another's may repeat the path that was asked for.
func TestNotFoundByOthers(t *testing.T) {
	for _, tt := range []struct {
		body string
		gone bool
	}{
		{`{"error":{"message":"{'error': 'No keys found'}","type":"internal_server_error","param":"None","code":"404"}}`, true},
		{`{"error":{"message":"No matching keys found.","type":"not_found_error","param":"keys","code":"404"}}`, true},
		{`{"error":{"message":"Key not found in database","type":"not_found_error","param":"key","code":"404"}}`, true},
		{`{"detail":{"message":"No keys found"}}`, true},
		{`{"detail":{"error":"Key=0a1b not found in DB"}}`, true},
		{`{"detail":"Not Found"}`, false},
		{`{"statusCode":404,"message":"Cannot POST /key/delete","error":"Not Found"}`, false},
		{`{"statusCode":404,"message":"Cannot GET /key/info?key=0a1b","error":"Not Found"}`, false},
		{`{"status":404,"error":"Not Found","path":"/key/delete"}`, false},
		{`{"message":"Route POST:/key/delete not found","error":"Not Found","statusCode":404}`, false},
		{`{"message":"No route was found for POST /litellm/key/delete"}`, false},
		{`{"message":"the route key/delete was not found at keys.example.org"}`, false},
		{`{"message":"keys.example.org/key/delete: not found"}`, false},
		{`{"message":"GET /key/info?key=0a1b not found"}`, false},
		{`{"message":"keys.example.org was not found"}`, false},
		{`<html>Key not found</html>`, false},
	} {
		l := &LiteLLMAPI{BaseURL: "https://host", Client: NewClient(ClientConfig{Transport: transport(func(*http.Request) (*http.Response, error) {
			return answerOf(404, tt.body), nil
		})})}
		if err := l.DeleteKey(t.Context(), fakeKey); (err == nil) != tt.gone {
			t.Errorf("%s: deleting: got %v, want it gone: %t", tt.body, err, tt.gone)
		}
		if _, err := l.KeyInfo(t.Context(), fakeKey); errors.Is(err, ErrUnknownKey) != tt.gone {
			t.Errorf("%s: looking: got %v, want it unknown: %t", tt.body, err, tt.gone)
		}
	}
}

func TestGenerateAndDelete(t *testing.T) {
	f, l := newLiteLLM(t, upstreamtest.Options{})
	n := NewLiteLLMKey{Key: fakeKey, Alias: "rotatord-p-1", MaxBudgetUSD: 10, BudgetDuration: "30d", Models: []string{"m"}, Metadata: map[string]string{"pool": "p"}}
	if err := l.GenerateKey(t.Context(), n); err != nil {
		t.Fatal(err)
	}
	if got, err := l.KeyInfo(t.Context(), fakeKey); err != nil || got.Alias != n.Alias || *got.BudgetUSD != 10 {
		t.Errorf("want the key as it was asked for, got %+v, %v", got, err)
	}
	if got := l.Client.Probe(t.Context(), LiteLLM, f.URL, fakeKey); got.Health != Alive {
		t.Errorf("want the key alive, got %+v", got)
	}
	var e *CallError
	if err := l.GenerateKey(t.Context(), n); !errors.Is(err, ErrAliasTaken) || !errors.As(err, &e) || !e.NotApplied() {
		t.Errorf("want the alias taken, got %v", err)
	}
	if err := l.GenerateKey(t.Context(), NewLiteLLMKey{Key: secret("fake"), Alias: "b"}); err == nil || errors.Is(err, ErrAliasTaken) {
		t.Errorf("want a key without sk- refused, got %v", err)
	}
	for range 2 { // gone already is gone
		if err := l.DeleteKey(t.Context(), fakeKey); err != nil || f.Has(fakeKey.Reveal()) {
			t.Errorf("want the key gone, got %v", err)
		}
	}
	if got := l.Client.Probe(t.Context(), LiteLLM, f.URL, fakeKey); got.Health != Dead {
		t.Errorf("want the key dead, got %+v", got)
	}
	l.Credential = secret("sk-fake-no-master")
	if err := l.DeleteKey(t.Context(), fakeKey); err == nil {
		t.Error("want the credential refused, got success")
	}
}

// A success that does not name the key as deleted is another's, such as a login page: it says nothing of the key.
func TestSuccessesThatDeleteNothing(t *testing.T) {
	for _, body := range []string{
		`<!DOCTYPE html><html><title>Sign in</title></html>`, ``, `{}`, `[]`, `{"status":"ok"}`, `{"deleted_keys":null}`, `{"deleted_keys":[]}`,
		`{"deleted_keys":["` + HashedToken(secret("sk-fake-other")) + `"]}`, `{"deleted_keys":"` + HashedToken(fakeKey) + `"}`,
	} {
		l := &LiteLLMAPI{BaseURL: "https://host", Client: NewClient(ClientConfig{Transport: transport(func(*http.Request) (*http.Response, error) {
			return answerOf(200, body), nil
		})})}
		var e *CallError
		if err := l.DeleteKey(t.Context(), fakeKey); !errors.As(err, &e) || e.NotApplied() {
			t.Errorf("%s: want an outcome that is not known, got %v", body, err)
		}
	}
}

// What was applied and never answered looks like what was not; asking tells.
func TestAnswersThatAreLost(t *testing.T) {
	f, l := newLiteLLM(t, upstreamtest.Options{})
	f.Hook(func(c upstreamtest.Call) upstreamtest.Fault {
		return upstreamtest.Fault{Drop: c.Endpoint == upstreamtest.Generate}
	})
	var e *CallError
	if err := l.GenerateKey(t.Context(), NewLiteLLMKey{Key: fakeKey}); !errors.As(err, &e) || e.NotApplied() || e.RetryAt.IsZero() {
		t.Errorf("want an outcome that is not known, got %v", err)
	}
	l.Client = NewClient(ClientConfig{}) // that does not rest
	if _, err := l.KeyInfo(t.Context(), fakeKey); err != nil {
		t.Errorf("want the key there, got %v", err)
	}
	f.Hook(func(upstreamtest.Call) upstreamtest.Fault { return upstreamtest.Fault{Hang: true} })
	l.Client = NewClient(ClientConfig{Timeout: 50 * time.Millisecond})
	if err := l.DeleteKey(t.Context(), fakeKey); !errors.As(err, &e) || e.NotApplied() || !f.Has(fakeKey.Reveal()) {
		t.Errorf("want an outcome that is not known, got %v", err)
	}
}
