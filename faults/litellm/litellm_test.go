package litellm_test

import (
	"net/http"
	"strings"
	"testing"

	"github.com/google/go-cmp/cmp"
	"github.com/google/go-cmp/cmp/cmpopts"

	"github.com/rotatord/rotatord/faults/check"
	"github.com/rotatord/rotatord/faults/litellm"
	"github.com/rotatord/rotatord/internal/upstream/upstreamtest"
)

// post makes a call as the replicas do, and reports whether it was answered with a success.
func post(t *testing.T, u *litellm.Upstream, path, body string) bool {
	t.Helper()
	req, err := http.NewRequestWithContext(t.Context(), http.MethodPost, u.URL+path, strings.NewReader(body))
	if err != nil {
		t.Fatal(err)
	}
	req.Header.Set("Authorization", "Bearer "+u.MasterKey())
	resp, err := http.DefaultClient.Do(req)
	if err != nil {
		return false
	}
	return resp.Body.Close() == nil && resp.StatusCode == http.StatusOK
}

const (
	secret   = "sk-fake-litellm-not-a-real-key"
	generate = `{"key":"` + secret + `","key_alias":"rotatord-p-m0","metadata":{"rotatord_pool":"p","rotatord_key":"m0","rotatord_intent":"i1"}}`
)

func TestDeeds(t *testing.T) {
	u := litellm.New(1)
	defer u.Close()
	u.Heal()
	u.Register("p", "k0", "sk-fake-k0-not-a-real-key")
	if !post(t, u, "/key/generate", generate) || !post(t, u, "/key/delete", `{"keys":["`+upstreamtest.Hash(secret)+`"]}`) {
		t.Fatal("a healed upstream has failed")
	}
	if post(t, u, "/key/delete", `{"keys":["`+upstreamtest.Hash(secret)+`"]}`) {
		t.Error("a key was deleted twice")
	}
	want := []check.Deed{
		{Pool: "p", Key: "k0", Registered: true, Has: true},
		{Pool: "p", Key: "m0", Mint: true, Intent: "i1", Has: true},
		{Pool: "p", Key: "m0", Had: true},
		{Pool: "p", Key: "m0"},
	}
	got, secrets := u.Deeds()
	if diff := cmp.Diff(want, got, cmpopts.IgnoreFields(check.Deed{}, "At")); diff != "" {
		t.Errorf("deeds (-want +got):\n%s", diff)
	}
	if diff := cmp.Diff([]string{secret}, secrets); diff != "" {
		t.Errorf("secrets (-want +got):\n%s", diff)
	}
	if !u.Made("p", "m0", secret) || u.Made("p", "m1", secret) || u.Made("p", "m0", "sk-fake-other") {
		t.Error("the upstream does not know whose secret it is")
	}
}

// Until it is healed it fails, and what it did all the same is among its deeds.
func TestAnswersBadly(t *testing.T) {
	u := litellm.New(1)
	defer u.Close()
	const calls = 25
	failed, lost := 0, 0
	for range calls {
		if !post(t, u, "/key/generate", generate) {
			failed++
		}
		post(t, u, "/key/delete", `{"keys":["`+upstreamtest.Hash(secret)+`"]}`)
	}
	deeds, _ := u.Deeds()
	for i, d := range deeds {
		if d.Mint && d.Has && !d.Had && i > 0 {
			lost++
		}
	}
	if failed == 0 || lost <= calls-failed {
		t.Errorf("%d of %d calls failed, and %d were carried out", failed, calls, lost)
	}
	if len(deeds) != 2*calls {
		t.Errorf("%d deeds of %d calls", len(deeds), 2*calls)
	}
}
