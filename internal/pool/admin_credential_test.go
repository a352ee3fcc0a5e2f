package pool_test

import (
	"fmt"
	"strings"
	"testing"

	"github.com/rotatord/rotatord/internal/pool"
	"github.com/rotatord/rotatord/internal/pool/pooltest"
)

const masterKey = "sk-fake-master-key-0000-not-real"

func (r *adminRig) credential() string {
	r.t.Helper()
	p := read[*pool.Pool](r, pool.PoolRef("p"))
	if p.Credential.IsZero() {
		return ""
	}
	secret, err := pooltest.FakeSealer{}.Open("p", pool.CredentialID, p.Credential)
	r.must(err)
	return secret.Reveal()
}

func TestSetPoolCredential(t *testing.T) {
	r := newAdminRig(t).fill()
	set := func(secret string) (int64, error) {
		_, rev, err := r.admin.SetPoolCredential(r.ctx, "p", pool.NewSecret(secret))
		return rev, err
	}
	p, first, err := r.admin.SetPoolCredential(r.ctx, "p", pool.NewSecret(masterKey))
	r.must(err)
	if r.credential() != masterKey || p.Credential.Preview == "" || strings.Contains(fmt.Sprintf("%+v", p), masterKey) {
		t.Errorf("the pool has a credential that is not what was set, or shows it: %+v", p.Credential.Preview)
	}
	if again, err := set(masterKey); err != nil || again != first {
		t.Errorf("set again: %d, %v; want %d without a write", again, err, first)
	}
	r.must(errOf(r.admin.PausePool(r.ctx, "p")))
	r.must(errOf(r.admin.ResumePool(r.ctx, "p")))
	r.must(errOf(r.admin.UpdatePool(r.ctx, "p", pool.Spec{Description: "new"}, 0)))
	if got := r.credential(); got != masterKey {
		t.Errorf("after other changes of the pool the credential is %q", got)
	}
	second, err := set("sk-fake-another-0000000000000000")
	r.must(err)
	if r.credential() == masterKey || second <= first {
		t.Error("the credential was not replaced")
	}
	removed, err := set("")
	r.must(err)
	if again, err := set(""); err != nil || again < removed || r.credential() != "" {
		t.Errorf("removed twice: %d, %v, credential %q; want none", again, err, r.credential())
	}
	if n := r.eventCounts()[pool.EventPoolCredential]; n != 3 {
		t.Errorf("%d events, want one for each change: 3", n)
	}
	r.sound("after it")
}

// Its write is lost, before or after it was made.
func TestSetPoolCredentialLost(t *testing.T) {
	for _, made := range []bool{true, false} {
		inTime(t, func(t *testing.T) {
			r := newAdminRig(t).fill()
			lost := false
			r.faulty.Decide = func(c pooltest.Call) (f pooltest.Fault) {
				if c.Op == "Apply" && !lost {
					lost, f = true, pooltest.Fault{Err: errLost, Made: made}
				}
				return f
			}
			r.must(errOf(r.admin.SetPoolCredential(r.ctx, "p", pool.NewSecret(masterKey))))
			if r.credential() != masterKey || r.eventCounts()[pool.EventPoolCredential] != 1 {
				t.Errorf("made=%v: the pool has credential %q after %d events", made, r.credential(), r.eventCounts()[pool.EventPoolCredential])
			}
		})
	}
}

// A credential that this keyset does not open is found, and no refusal shows one.
func TestPoolCredentialIsLookedAfter(t *testing.T) {
	r := newAdminRig(t).healthy()
	for name, secret := range map[string]string{
		"white space": " " + masterKey, "control characters": masterKey + "\x01", "oversize": strings.Repeat(masterKey, 200),
	} {
		_, _, err := r.admin.SetPoolCredential(r.ctx, "p", pool.NewSecret(secret))
		if pool.ReasonOf(err) != pool.ReasonInvalidArgument || strings.Contains(err.Error(), masterKey) {
			t.Errorf("%s: got %v, want it refused without showing it", name, err)
		}
	}
	p := get[pool.Pool](r, pool.PoolRef("p"))
	p.Credential, _ = pooltest.FakeSealer{Keyset: "other"}.Seal("p", pool.CredentialID, pool.NewSecret(masterKey))
	r.edit().Put(p)
	report, err := r.admin.Diagnose(r.ctx)
	r.must(err)
	if len(report.Findings) != 1 || report.Findings[0].Check != "secret-unreadable" || strings.Contains(fmt.Sprint(report.Findings), masterKey) {
		t.Errorf("found %+v, want a secret that cannot be opened", report.Findings)
	}
}
