package upstream

import (
	"context"
	"crypto/sha256"
	"encoding/hex"
	"errors"
	"fmt"
	"net/http"
	"net/url"
	"regexp"
	"slices"
	"strconv"
	"strings"
	"time"
)

// LiteLLMAPI is the API of one LiteLLM, for keys of kind LiteLLM and OpenHands. Its calls block for two time-outs of the
// client at most, SpendByKey that long for each page. Their errors are of type *CallError and hold no secret.
type LiteLLMAPI struct {
	Client  *Client
	Kind    Kind // whose rules judge its answers; default: LiteLLM
	BaseURL string
	// Credential is a master key or one with an admin's rights. SpendByKey does without.
	Credential Secret
}

// ErrUnknownKey is in the error of KeyInfo for a key that LiteLLM does not have. It is not there if the key might be.
var ErrUnknownKey = errors.New("the upstream does not have this key")

// ErrAliasTaken is in the error of GenerateKey if LiteLLM has a key with that alias: perhaps this one, from an earlier call.
var ErrAliasTaken = errors.New("the upstream has a key with this alias")

// Spend is what a key has spent.
type Spend struct {
	SpendUSD  float64
	BudgetUSD *float64 // nil: the upstream does not say, or the key has none
}

// LiteLLMKey is what LiteLLM has on record for a key.
type LiteLLMKey struct {
	Spend
	Alias   string
	Blocked bool
	Expires time.Time // zero: never
}

const (
	activityPath = "/user/daily/activity"
	pageSize     = 100
	// maxPages bounds a reading: ten thousand rows, of one day, model and provider each.
	maxPages = 100
)

func litellmHeader(key string) map[string]string { return map[string]string{"X-Litellm-Api-Key": key} }

func today(now time.Time) url.Values {
	day := now.UTC().Format(time.DateOnly)
	return url.Values{"start_date": {day}, "end_date": {day}, "page": {"1"}, "page_size": {"1"}}
}

func (l *LiteLLMAPI) call(method, path string) call {
	k := call{kind: orDefault(l.Kind, LiteLLM), method: method, base: l.BaseURL, path: path}
	if l.Credential != nil {
		secret := l.Credential.Reveal()
		k.header, k.secrets = bearer(secret), []string{secret}
	}
	return k
}

// activity is one page of what a user's keys did.
type activity struct {
	Results []struct {
		Metrics *struct {
			Spend float64 `json:"spend"`
		} `json:"metrics"`
	} `json:"results"`
	Metadata *struct {
		TotalSpend float64 `json:"total_spend"`
		TotalPages int     `json:"total_pages"`
		HasMore    bool    `json:"has_more"`
	} `json:"metadata"`
}

// SpendByKey reads what the user of a key has spent, asked with the key itself; where every key has a user of its own, as
// at OpenHands, that is the key's spend. LiteLLM writes it with a delay of seconds.
//
// A page that fails fails the reading: part of a sum is no sum. If the key is refused because its budget is spent the
// error is a *BudgetError. Rows that come in between two pages may be counted twice.
func (l *LiteLLMAPI) SpendByKey(ctx context.Context, key Secret) (Spend, error) {
	var sum, highest float64
	for page := 1; page <= maxPages; page++ {
		a, err := l.activityPage(ctx, key.Reveal(), page)
		if err != nil {
			return Spend{}, err
		}
		sum += a.spend()
		highest = max(highest, a.Metadata.TotalSpend)
		if !a.Metadata.HasMore && page >= a.Metadata.TotalPages {
			// LiteLLM's total is of the page, whatever its name; a total of all would be the highest.
			return Spend{SpendUSD: max(sum, highest)}, nil
		}
	}
	return Spend{}, &CallError{Op: "GET " + activityPath, Reason: fmt.Sprintf(
		"the key's activity has more than %d pages: give the pool a credential, so that /key/info can be asked", maxPages)}
}

// spend is that of the page's rows, or of the page where rows do not say.
func (a *activity) spend() (sum float64) {
	for _, r := range a.Results {
		if r.Metrics == nil {
			return a.Metadata.TotalSpend
		}
		sum += r.Metrics.Spend
	}
	if len(a.Results) == 0 {
		return a.Metadata.TotalSpend
	}
	return sum
}

func (l *LiteLLMAPI) activityPage(ctx context.Context, secret string, page int) (*activity, error) {
	k := l.call(http.MethodGet, activityPath)
	k.header, k.secrets = litellmHeader(secret), []string{secret}
	k.query = url.Values{
		"start_date": {"2020-01-01"}, "end_date": {"2030-12-31"}, "page": {strconv.Itoa(page)}, "page_size": {strconv.Itoa(pageSize)},
	}
	var a activity
	r, err := l.Client.decode(ctx, k, &a)
	switch {
	case err != nil:
		return nil, budgetError(err, r)
	case a.Metadata == nil || !isAmount(a.Metadata.TotalSpend) || !isAmount(a.spend()):
		return nil, l.Client.strange(k, r)
	}
	return &a, nil
}

// KeyInfo reads what LiteLLM has on record for a key, with the credential. The URL names the key by its hash.
func (l *LiteLLMAPI) KeyInfo(ctx context.Context, key Secret) (*LiteLLMKey, error) {
	k := l.call(http.MethodGet, "/key/info")
	k.query = url.Values{"key": {HashedToken(key)}}
	k.secrets = append(k.secrets, key.Reveal())
	type budget struct {
		MaxBudget *float64 `json:"max_budget"`
	}
	var out struct {
		Info *struct {
			Spend     *float64 `json:"spend"`
			MaxBudget *float64 `json:"max_budget"`
			Table     *budget  `json:"litellm_budget_table"`
			Alias     string   `json:"key_alias"`
			Blocked   bool     `json:"blocked"`
			Expires   string   `json:"expires"`
		} `json:"info"`
	}
	r, err := l.Client.decode(ctx, k, &out)
	switch {
	case r.Status == http.StatusNotFound && knowsItsKeys(r):
		return nil, because(err, ErrUnknownKey)
	case err != nil:
		return nil, err
	case out.Info == nil || out.Info.Spend == nil || !isAmount(*out.Info.Spend):
		return nil, l.Client.strange(k, r)
	}
	in := out.Info
	if in.MaxBudget == nil && in.Table != nil {
		in.MaxBudget = in.Table.MaxBudget
	}
	if in.MaxBudget != nil && !isAmount(*in.MaxBudget) {
		return nil, l.Client.strange(k, r)
	}
	expires, _ := time.Parse(time.RFC3339, in.Expires) // LiteLLM also writes times without a zone: then it is not said
	return &LiteLLMKey{Spend: Spend{*in.Spend, in.MaxBudget}, Alias: in.Alias, Blocked: in.Blocked, Expires: expires}, nil
}

// knowsItsKeys tells LiteLLM's own 404, which says that a key was not found ("Key not found in database", "No keys found"),
// from that of a proxy in between or of a wrong path, also if that repeats the path, which has "key" in it.
func knowsItsKeys(r Response) bool {
	a := newAnswer(r)
	return a.tree != nil && keyNotFound.MatchString(a.text)
}

var keyNotFound = regexp.MustCompile(`(?im)(?:^|[^\w/.?&-])keys?\b[^\n/.]*\bfound\b`)

// NewLiteLLMKey is a key to make.
type NewLiteLLMKey struct {
	Key            Secret // chosen by the caller; must begin with "sk-"
	Alias          string
	MaxBudgetUSD   float64  // 0: none
	BudgetDuration string   // such as "30d"; "": the budget is never reset
	Models         []string // empty: all
	Metadata       map[string]string
}

// GenerateKey makes a key of the caller's choice, with the credential. The caller has written the key down before, so an
// error that leaves open what happened (see CallError.NotApplied) is followed by KeyInfo, or by the same call.
func (l *LiteLLMAPI) GenerateKey(ctx context.Context, n NewLiteLLMKey) error {
	k := l.call(http.MethodPost, "/key/generate")
	k.secrets = append(k.secrets, n.Key.Reveal())
	k.body = struct {
		Key            string            `json:"key"`
		Alias          string            `json:"key_alias,omitempty"`
		MaxBudget      float64           `json:"max_budget,omitempty"`
		BudgetDuration string            `json:"budget_duration,omitempty"`
		Models         []string          `json:"models,omitempty"`
		Metadata       map[string]string `json:"metadata,omitempty"`
	}{n.Key.Reveal(), n.Alias, n.MaxBudgetUSD, n.BudgetDuration, n.Models, n.Metadata}
	var out struct {
		Key string `json:"key"`
	}
	r, err := l.Client.decode(ctx, k, &out)
	switch {
	case r.Status == http.StatusBadRequest && strings.Contains(newAnswer(r).text, "already exists"):
		return because(err, ErrAliasTaken)
	case err != nil:
		return err
	case out.Key != n.Key.Reveal():
		e := l.Client.strange(k, r)
		e.Reason = "the upstream made another key than it was asked for; its own is not known here"
		return e
	}
	return nil
}

// DeleteKey deletes a key, with the credential. That it is gone already is a success. An answer that does not name the key
// as deleted leaves open what happened: a login page in between may answer 200 to anything.
func (l *LiteLLMAPI) DeleteKey(ctx context.Context, key Secret) error {
	k := l.call(http.MethodPost, "/key/delete")
	k.secrets = append(k.secrets, key.Reveal())
	hash := HashedToken(key)
	k.body = map[string][]string{"keys": {hash}}
	var out struct {
		Deleted []string `json:"deleted_keys"`
	}
	r, err := l.Client.decode(ctx, k, &out)
	switch {
	case r.Status == http.StatusNotFound && knowsItsKeys(r):
		return nil
	case err != nil:
		return err
	case !slices.Contains(out.Deleted, hash):
		return l.Client.strange(k, r)
	}
	return nil
}

// HashedToken is how LiteLLM keeps a key, and a name for it that is no secret: it takes the hash wherever it takes the key
// itself, but not as a credential.
func HashedToken(key Secret) string {
	sum := sha256.Sum256([]byte(key.Reveal()))
	return hex.EncodeToString(sum[:])
}

func because(err, cause error) error {
	var e *CallError
	if errors.As(err, &e) {
		e.cause = cause
	}
	return err
}
