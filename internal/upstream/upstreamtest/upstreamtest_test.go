package upstreamtest

import (
	"io"
	"net/http"
	"strings"
	"testing"
	"time"
)

func post(t *testing.T, url, key, body string) (int, string) {
	t.Helper()
	req, err := http.NewRequestWithContext(t.Context(), http.MethodPost, url, strings.NewReader(body))
	if err != nil {
		t.Fatal(err)
	}
	req.Header.Set("Authorization", "Bearer "+key)
	resp, err := http.DefaultClient.Do(req)
	if err != nil {
		t.Fatal(err)
	}
	defer resp.Body.Close()
	text, err := io.ReadAll(resp.Body)
	if err != nil {
		t.Fatal(err)
	}
	return resp.StatusCode, string(text)
}

func TestChatCostsMoneyUntilTheBudgetIsSpent(t *testing.T) {
	now := time.Unix(1e9, 0)
	f := New(Options{ChatCost: 4, ExceededStatus: 429, Lag: 10 * time.Second, Now: func() time.Time { return now }})
	defer f.Close()
	f.AddKey(Key{Value: "sk-fake-1", MaxBudget: 10})
	for range 3 {
		if status, body := post(t, f.URL+"/v1/chat/completions", "sk-fake-1", "{}"); status != 200 {
			t.Fatalf("want an answer within the budget, got %d %s", status, body)
		}
	}
	status, body := post(t, f.URL+"/chat/completions", "sk-fake-1", "{}")
	if status != 429 || !strings.Contains(body, `"type":"budget_exceeded"`) || !strings.Contains(body, "Current cost: 12, Max budget: 10") {
		t.Errorf("want the budget exceeded, got %d %s", status, body)
	}
	if got := f.Calls(Chat, "sk-fake-1"); got != 4 || f.Calls(Chat, "") != 4 || f.Calls(Chat, "sk-fake-2") != 0 {
		t.Errorf("want 4 calls, got %d", got)
	}
	f.mu.Lock()
	defer f.mu.Unlock()
	if k := f.keys[Hash("sk-fake-1")]; f.spent(k, true) != 0 {
		t.Errorf("want nothing on record yet, got %v", f.spent(k, true))
	}
	now = now.Add(10 * time.Second)
	if k := f.keys[Hash("sk-fake-1")]; f.spent(k, true) != 12 {
		t.Errorf("want $12 on record after the lag, got %v", f.spent(k, true))
	}
}

func TestUnknownKeysAreRefused(t *testing.T) {
	f := New(Options{})
	defer f.Close()
	status, body := post(t, f.URL+"/chat/completions", "sk-fake-1", "{}")
	if status != 401 || !strings.Contains(body, "token_not_found_in_db") || strings.Contains(body, "sk-fake-1") {
		t.Errorf("want the key refused, got %d %s", status, body)
	}
}
