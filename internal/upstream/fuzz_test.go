package upstream

import (
	"net/http"
	"slices"
	"testing"
	"time"
)

func FuzzClassify(f *testing.F) {
	for i, r := range rows {
		f.Add(uint8(slices.Index(Kinds(), r.kind)), r.status, []byte(r.body), r.header.Get("Retry-After"), int64(i), "canary")
	}
	f.Add(uint8(0), 429, []byte(`{"error":{"message":"key \u0063anary","code":"\\u0063anary"}}`), "1e400", int64(1<<40), "canary")
	f.Add(uint8(1), 400, []byte(`[{"error":[[[{"type":{}}]]]}`), "Sun, 25 Jan 2099 11:00:00 GMT", int64(-1), "[redacted]")
	f.Fuzz(func(t *testing.T, kind uint8, status int, body []byte, retryAfter string, unix int64, secret string) {
		k := Kinds()[int(kind)%len(Kinds())]
		r := Response{Status: status, Header: http.Header{"Retry-After": {retryAfter}}, Body: body}
		now := time.Unix(unix%(1<<36), 0)
		v := Classify(k, r, now, secret)
		checkScrubbed(t, v.Reason, MaxReason, secret)
		checkVerdict(t, k, v, now)
		if again := Classify(k, r, now, secret); again != v {
			t.Errorf("want the same verdict again, got %+v and %+v", v, again)
		}
	})
}

func checkVerdict(t *testing.T, k Kind, v Verdict, now time.Time) {
	t.Helper()
	i := slices.IndexFunc(rulesOf(k).Rules, func(r rule) bool { return r.ID == v.Rule })
	if i < 0 && (v.Rule != string(k)+"/unknown" || v.Action != Ignore) {
		t.Errorf("want what no rule knows ignored, got %+v", v)
	}
	if i >= 0 && rulesOf(k).Rules[i].Verdict != v.Action.String() {
		t.Errorf("want what the rule says, got %+v", v)
	}
	if wait := v.Until.Sub(now); v.Action == CoolDown && (wait < MinCoolDown || wait > MaxCoolDown) {
		t.Errorf("want a cool-down of %s to %s, got %s", MinCoolDown, MaxCoolDown, wait)
	}
	if v.Action != CoolDown && !v.Until.IsZero() {
		t.Errorf("want no time without a cool-down, got %+v", v)
	}
	if want := map[Action][]Status{Ignore: {""}, CoolDown: {RateLimited, Error}, Rotate: {Exhausted}}[v.Action]; !slices.Contains(want, v.Status) {
		t.Errorf("status: want one of %q with %s, got %q", want, v.Action, v.Status)
	}
}
