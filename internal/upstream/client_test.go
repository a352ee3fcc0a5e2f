package upstream

import (
	"bytes"
	"context"
	"errors"
	"io"
	"net/http"
	"net/http/httptest"
	"strings"
	"sync"
	"sync/atomic"
	"testing"
	"testing/synctest"
	"time"
)

type secret string

func (s secret) Reveal() string { return string(s) }

const fakeKey = secret("sk-fake-canary-0123456789")

// transport answers calls without a network, so that time can be faked.
type transport func(*http.Request) (*http.Response, error)

func (f transport) RoundTrip(r *http.Request) (*http.Response, error) { return f(r) }

func answerOf(status int, body string) *http.Response {
	return &http.Response{StatusCode: status, Header: http.Header{}, Body: io.NopCloser(strings.NewReader(body))}
}

func get(base string) call {
	return call{kind: OpenAI, method: http.MethodGet, base: base, path: "/v1/models", header: bearer(fakeKey.Reveal()), secrets: []string{fakeKey.Reveal()}}
}

func TestEndpoint(t *testing.T) {
	for _, tt := range []struct{ base, path, want string }{
		{"https://api.openai.com", "/v1/models", "https://api.openai.com/v1/models"},
		{"https://api.openai.com/", "/v1/models", "https://api.openai.com/v1/models"},
		{"https://api.openai.com/v1/", "/v1/models", "https://api.openai.com/v1/models"},
		{"https://openrouter.ai/api/v1", "/api/v1/key", "https://openrouter.ai/api/v1/key"},
		{"http://host:4000/llm", "/key/info", "http://host:4000/llm/key/info"},
		{"http://host:4000/v1beta", "/v1/models", "http://host:4000/v1beta/v1/models"},
	} {
		u, err := endpoint(tt.base, tt.path, nil)
		if err != nil || u.String() != tt.want {
			t.Errorf("%s and %s: want %s, got %v, %v", tt.base, tt.path, tt.want, u, err)
		}
	}
	for _, base := range []string{"", "ftp://host", "https://user:pass@host", "host:4000", "https://"} {
		if u, err := endpoint(base, "/v1/models", nil); err == nil || strings.Contains(err.Error(), "pass") {
			t.Errorf("%q: want a refusal that does not repeat it, got %v, %v", base, u, err)
		}
	}
}

func TestRedirects(t *testing.T) {
	var leaked atomic.Int32
	other := httptest.NewServer(http.HandlerFunc(func(http.ResponseWriter, *http.Request) { leaked.Add(1) }))
	defer other.Close()
	mux := http.NewServeMux()
	mux.HandleFunc("/away/v1/models", func(w http.ResponseWriter, r *http.Request) {
		http.Redirect(w, r, other.URL+"/v1/models", http.StatusTemporaryRedirect)
	})
	mux.HandleFunc("/here/v1/models", func(w http.ResponseWriter, r *http.Request) {
		http.Redirect(w, r, "/there", http.StatusTemporaryRedirect)
	})
	mux.HandleFunc("/loop/v1/models", func(w http.ResponseWriter, r *http.Request) {
		http.Redirect(w, r, "/loop/v1/models", http.StatusTemporaryRedirect)
	})
	mux.HandleFunc("/there", func(w http.ResponseWriter, r *http.Request) {
		if r.Header.Get("Authorization") != "Bearer "+fakeKey.Reveal() {
			t.Error("want the key sent along to the same host, got none")
		}
		_, _ = io.WriteString(w, "{}")
	})
	server := httptest.NewServer(mux)
	defer server.Close()
	c := NewClient(ClientConfig{})
	for path, want := range map[string]int{"/away": 307, "/here": 200, "/loop": 307} {
		r, err := c.do(t.Context(), get(server.URL+path))
		if err != nil || r.Status != want {
			t.Errorf("%s: want status %d, got %d, %v", path, want, r.Status, err)
		}
	}
	post := get(server.URL + "/here")
	post.method = http.MethodPost
	if r, err := c.do(t.Context(), post); err != nil || r.Status != 307 {
		t.Errorf("want a call that changes something not made a second time, got %d, %v", r.Status, err)
	}
	if n := leaked.Load(); n != 0 {
		t.Errorf("want no call at the other host, it got %d", n)
	}
}

func TestAnswersAreBounded(t *testing.T) {
	server := httptest.NewServer(http.HandlerFunc(func(w http.ResponseWriter, _ *http.Request) {
		_, _ = w.Write(bytes.Repeat([]byte("x"), 1<<20))
	}))
	defer server.Close()
	r, err := NewClient(ClientConfig{MaxAnswer: 1000}).do(t.Context(), get(server.URL))
	if err != nil || len(r.Body) != 1000 {
		t.Errorf("want 1000 bytes of the answer, got %d, %v", len(r.Body), err)
	}
}

func TestCallsAreBoundedInTime(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		c := NewClient(ClientConfig{Timeout: 30 * time.Second, Transport: transport(func(r *http.Request) (*http.Response, error) {
			<-r.Context().Done()
			return nil, r.Context().Err()
		})})
		began := time.Now()
		_, err := c.do(t.Context(), get("https://host"))
		var e *CallError
		if took := time.Since(began); !errors.As(err, &e) || took != 30*time.Second || e.Unsent || e.NotApplied() {
			t.Errorf("want an unknown outcome after 30 s, got %v after %v", err, took)
		}
	})
}

func TestCallsAreBoundedInNumber(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		var now, most, atOne, mostAtOne atomic.Int32
		c := NewClient(ClientConfig{AtOnce: 5, PerHost: 3, Transport: transport(func(r *http.Request) (*http.Response, error) {
			defer now.Add(-1)
			most.Store(max(most.Load(), now.Add(1)))
			if r.URL.Host == "one" {
				defer atOne.Add(-1)
				mostAtOne.Store(max(mostAtOne.Load(), atOne.Add(1)))
			}
			time.Sleep(time.Second) // the fake clock's
			return answerOf(200, "{}"), nil
		})})
		var failed atomic.Int32
		for i := range 40 {
			go func() {
				if _, err := c.do(t.Context(), get([]string{"https://one", "https://two"}[i%2])); err != nil {
					failed.Add(1)
				}
			}()
			synctest.Wait()
		}
		time.Sleep(20 * time.Second)
		synctest.Wait()
		if most.Load() != 5 || mostAtOne.Load() != 3 || failed.Load() != 0 {
			t.Errorf("want 5 calls at once and 3 of them at one host, got %d and %d, %d failed", most.Load(), mostAtOne.Load(), failed.Load())
		}
	})
}

// A host that hangs keeps its own callers waiting, and nobody else.
func TestRoomIsAskedForAtTheHostFirst(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		c := NewClient(ClientConfig{AtOnce: 4, PerHost: 2, Transport: transport(func(r *http.Request) (*http.Response, error) {
			if r.URL.Host == "hangs" {
				<-r.Context().Done()
				return nil, r.Context().Err()
			}
			return answerOf(200, "{}"), nil
		})})
		unsent := make(chan bool, 8)
		for i := range cap(unsent) {
			patience := 5 * time.Second
			if i < 2 { // those that find room hold it for longer than the others wait
				patience = 6 * time.Second
			}
			synctest.Wait()
			go func() {
				ctx, cancel := context.WithTimeout(t.Context(), patience)
				defer cancel()
				_, err := c.do(ctx, get("https://hangs"))
				var e *CallError
				unsent <- errors.As(err, &e) && e.Unsent && e.Held
			}()
		}
		synctest.Wait()
		began := time.Now()
		if _, err := c.do(t.Context(), get("https://works")); err != nil || time.Since(began) != 0 {
			t.Errorf("want an answer at once from the host that works, got %v after %v", err, time.Since(began))
		}
		waited := 0
		for range cap(unsent) {
			if <-unsent {
				waited++
			}
		}
		if waited != 6 {
			t.Errorf("want 6 calls that were never sent, got %d", waited)
		}
	})
}

func TestHostsThatFailAreLeftAlone(t *testing.T) {
	for _, tt := range []struct {
		name   string
		answer func() (*http.Response, error)
		least  time.Duration // after the first failure
		most   time.Duration
	}{
		{"no connection", func() (*http.Response, error) { return nil, errors.New("connection refused") }, firstPause / 2, firstPause},
		{"503", func() (*http.Response, error) { return answerOf(503, ""), nil }, firstPause / 2, firstPause},
		{"429", func() (*http.Response, error) { return answerOf(429, ""), nil }, firstPause / 2, firstPause},
		{"429 that says for how long", func() (*http.Response, error) {
			r := answerOf(429, "")
			r.Header.Set("Retry-After", "20")
			return r, nil
		}, 20 * time.Second, 20 * time.Second},
		{"429 that says too much", func() (*http.Response, error) {
			r := answerOf(429, "")
			r.Header.Set("Retry-After", "86400")
			return r, nil
		}, maxPause, maxPause},
	} {
		t.Run(tt.name, func(t *testing.T) {
			synctest.Test(t, func(t *testing.T) {
				calls := 0
				works := false
				c := NewClient(ClientConfig{Transport: transport(func(*http.Request) (*http.Response, error) {
					if calls++; works {
						return answerOf(200, "{}"), nil
					}
					return tt.answer()
				})})
				_, _ = c.do(t.Context(), get("https://host"))
				_, err := c.do(t.Context(), get("https://host"))
				var e *CallError
				if !errors.As(err, &e) || !e.Unsent || !e.Held || calls != 1 {
					t.Fatalf("want the host left alone after a failure, got %v after %d calls", err, calls)
				}
				if rest := time.Until(e.RetryAt); rest < tt.least || rest > tt.most {
					t.Errorf("want it left alone for %v to %v, got %v", tt.least, tt.most, rest)
				}
				works = true
				if _, err := c.do(t.Context(), get("https://other")); err != nil {
					t.Errorf("want another host asked, got %v", err)
				}
				time.Sleep(time.Until(e.RetryAt))
				for range 2 { // success ends it
					if _, err := c.do(t.Context(), get("https://host")); err != nil {
						t.Errorf("want the host asked again, got %v", err)
					}
				}
			})
		})
	}
}

// What began before a failure says nothing of how the host is after it, and who waited for room does not ask a host that has
// failed meanwhile.
func TestSuccessFromBeforeAFailure(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		calls := 0
		c := NewClient(ClientConfig{AtOnce: 5, PerHost: 2, Transport: transport(func(r *http.Request) (*http.Response, error) {
			if calls++; strings.HasPrefix(r.URL.Path, "/slow") {
				time.Sleep(3 * time.Second)
				return answerOf(200, "{}"), nil
			}
			time.Sleep(time.Second)
			limited := answerOf(429, "")
			limited.Header.Set("Retry-After", "60")
			return limited, nil
		})})
		var wg sync.WaitGroup
		for _, u := range []string{"https://host/slow", "https://host/limited", "https://host/late"} {
			wg.Go(func() { _, _ = c.do(t.Context(), get(u)) })
			synctest.Wait()
		}
		wg.Wait()
		_, err := c.do(t.Context(), get("https://host"))
		var e *CallError
		if !errors.As(err, &e) || time.Until(e.RetryAt) < 50*time.Second || calls != 2 {
			t.Errorf("want the host left alone for a minute and asked twice, got %v after %d calls", err, calls)
		}
	})
}

func TestPausesGrow(t *testing.T) {
	for failures, most := range []time.Duration{1, 2, 4, 8, 16, 32, 64, 120, 120, 120} {
		most *= time.Second
		if d := pause(failures); d < most/2 || d > most {
			t.Errorf("after %d failures want %v to %v, got %v", failures, most/2, most, d)
		}
	}
}

// What is said of a key says nothing of the host.
func TestRefusedKeysAreNoFailureOfTheHost(t *testing.T) {
	bodies := map[string]struct {
		kind   Kind
		status int
	}{
		`{"error":{"code":"invalid_api_key"}}`:                                                                     {OpenAI, 401},
		`{"error":{"type":"insufficient_quota"}}`:                                                                  {OpenAI, 429},
		`{"error":{"message":"Budget has been exceeded! Key=x Current cost: 1","type":"budget_exceeded"}}`:         {LiteLLM, 429},
		`{"error":{"message":"Budget has been exceeded! Team=x Current cost: 1","type":"budget_exceeded"}}`:        {LiteLLM, 429},
		`{"error":{"message":"ExceededBudget: User=x over budget. Spend=10.02, Budget=10.0","type":"auth_error"}}`: {OpenHands, 429},
	}
	for body, tt := range bodies {
		c := NewClient(ClientConfig{Transport: transport(func(*http.Request) (*http.Response, error) { return answerOf(tt.status, body), nil })})
		k := get("https://host")
		k.kind = tt.kind
		for range 2 {
			if r, err := c.do(t.Context(), k); err != nil || r.Status != tt.status {
				t.Errorf("%s: want the answer each time, got %d, %v", body, r.Status, err)
			}
		}
	}
}

// A caller who goes away says nothing of the host either.
func TestCallersWhoGoAwayAreNoFailureOfTheHost(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		hang := true
		c := NewClient(ClientConfig{Transport: transport(func(r *http.Request) (*http.Response, error) {
			if hang {
				<-r.Context().Done()
				return nil, r.Context().Err()
			}
			return answerOf(200, "{}"), nil
		})})
		ctx, cancel := context.WithCancel(t.Context())
		go func() { time.Sleep(time.Second); cancel() }()
		if _, err := c.do(ctx, get("https://host")); !errors.Is(err, context.Canceled) {
			t.Errorf("want the caller's own end, got %v", err)
		}
		hang = false
		if _, err := c.do(t.Context(), get("https://host")); err != nil {
			t.Errorf("want the host asked, got %v", err)
		}
	})
}

func TestErrorsHoldNoSecret(t *testing.T) {
	echo := func(r *http.Request) string {
		return r.Header.Get("Authorization") + " " + r.URL.String() + " " + fakeKey.Reveal()
	}
	for name, answer := range map[string]transport{
		"transport error": func(r *http.Request) (*http.Response, error) { return nil, errors.New("broken: " + echo(r)) },
		"proxy": func(*http.Request) (*http.Response, error) {
			return nil, errors.New("bad proxy http://me:hunter2@proxy:3128/")
		},
		"echo":        func(r *http.Request) (*http.Response, error) { return answerOf(400, `{"error":"`+echo(r)+`"}`), nil },
		"not the API": func(r *http.Request) (*http.Response, error) { return answerOf(200, echo(r)), nil },
		"body breaks": func(r *http.Request) (*http.Response, error) {
			resp := answerOf(200, "")
			resp.Body = io.NopCloser(io.MultiReader(strings.NewReader(`{"`), &broken{errors.New(echo(r))}))
			return resp, nil
		},
	} {
		c := NewClient(ClientConfig{Transport: answer})
		var out struct{}
		_, err := c.decode(t.Context(), get("https://host"), &out)
		if err == nil || strings.Contains(err.Error(), "canary") || strings.Contains(err.Error(), "hunter2") {
			t.Errorf("%s: want an error without secrets, got %v", name, err)
		}
		if got := c.Probe(t.Context(), OpenAI, "https://other", fakeKey); strings.Contains(got.Reason, "canary") || strings.Contains(got.Reason, "hunter2") || got.Health != Unreachable {
			t.Errorf("%s: want unreachable without secrets, got %+v", name, got)
		}
	}
	c := NewClient(ClientConfig{})
	for range 2 {
		got := c.Probe(t.Context(), OpenAI, "https://host.invalid", secret("sk-fake-canary\nX-Evil: 1"))
		if strings.Contains(got.Reason, "canary") || !strings.Contains(got.Reason, "characters") {
			t.Errorf("want a key that is no header refused without repeating it, and no harm to the host, got %+v", got)
		}
	}
}

type broken struct{ err error }

func (b *broken) Read([]byte) (int, error) { return 0, b.err }
