package pool

import (
	"fmt"
	"maps"
	"math"
	"net/url"
	"reflect"
	"slices"
	"strings"
	"time"
)

// Spec is the part of a pool that operators write. Zero values stand for the defaults, which the methods fill in.
type Spec struct {
	Description     string
	Labels          map[string]string
	Upstream        UpstreamSpec
	Bound           BoundSpec
	ConfirmReports  bool
	Incident        IncidentPolicy
	Spend           *SpendPolicy  // nil: spend is not watched
	Provider        *ProviderSpec // nil: nobody mints and revokes keys
	Stock           *StockPolicy  // nil: operators stock the pool
	Retirement      RetirementPolicy
	RecordRetention time.Duration // 0: DefaultRecordRetention
}

// UpstreamSpec says what a pool's keys are for.
type UpstreamSpec struct {
	Kind    UpstreamKind // "": generic
	BaseURL string       // "": the kind's own
}

// UpstreamKind is the sort of upstream that a pool's keys are for. What is known of each is in internal/upstream.
type UpstreamKind string

// The kinds of upstreams.
const (
	UpstreamOpenAI     UpstreamKind = "openai"
	UpstreamAnthropic  UpstreamKind = "anthropic"
	UpstreamLiteLLM    UpstreamKind = "litellm"
	UpstreamOpenHands  UpstreamKind = "openhands"
	UpstreamOpenRouter UpstreamKind = "openrouter"
	UpstreamGemini     UpstreamKind = "gemini"
	UpstreamFactory    UpstreamKind = "factory"
	UpstreamGeneric    UpstreamKind = "generic"
)

// UpstreamKinds lists them in the order of the documentation.
func UpstreamKinds() []UpstreamKind {
	return []UpstreamKind{
		UpstreamOpenAI, UpstreamAnthropic, UpstreamLiteLLM, UpstreamOpenHands, UpstreamOpenRouter, UpstreamGemini,
		UpstreamFactory, UpstreamGeneric,
	}
}

// Is is the kind, generic if none was given.
func (u UpstreamSpec) Is() UpstreamKind {
	if u.Kind == "" {
		return UpstreamGeneric
	}
	return u.Kind
}

// litellm reports whether the upstream has LiteLLM's API.
func (u UpstreamSpec) litellm() bool {
	return u.Kind == UpstreamLiteLLM || u.Kind == UpstreamOpenHands
}

// BoundSpec bounds the rotations of a pool.
type BoundSpec struct {
	Rotations *int          // nil: DefaultBound; 0: any number
	Window    time.Duration // 0: DefaultBoundWindow
}

// The defaults of a spec.
const (
	DefaultBound            = 20
	DefaultBoundWindow      = time.Minute
	DefaultIncidentShare    = 0.5
	DefaultIncidentKeys     = 3
	DefaultIncidentWindow   = time.Minute
	DefaultIncidentDuration = 5 * time.Minute
	DefaultBudgetUSD        = 10.0
	DefaultSpendThreshold   = 0.995
	DefaultRevokeAfter      = time.Hour
	DefaultSecretRetention  = 24 * time.Hour
	DefaultRecordRetention  = 30 * 24 * time.Hour
)

// Limit is how many rotations a window may have; 0: any number.
func (b BoundSpec) Limit() (rotations int, window time.Duration) {
	rotations, window = DefaultBound, orDefault(b.Window, DefaultBoundWindow)
	if b.Rotations != nil {
		rotations = *b.Rotations
	}
	return rotations, window
}

// IncidentPolicy says when bad reports are taken for the upstream's own outage.
type IncidentPolicy struct {
	Share    float64       // 0: DefaultIncidentShare
	MinKeys  int           // 0: DefaultIncidentKeys
	Window   time.Duration // 0: DefaultIncidentWindow
	Duration time.Duration // 0: DefaultIncidentDuration
	Disabled bool
}

// WithDefaults fills in what was not given.
func (p IncidentPolicy) WithDefaults() IncidentPolicy {
	p.Share = orDefault(p.Share, DefaultIncidentShare)
	p.MinKeys = orDefault(p.MinKeys, DefaultIncidentKeys)
	p.Window = orDefault(p.Window, DefaultIncidentWindow)
	p.Duration = orDefault(p.Duration, DefaultIncidentDuration)
	return p
}

// SpendPolicy says how the keys' spend is watched.
type SpendPolicy struct {
	BudgetUSD float64 // 0: DefaultBudgetUSD; what the upstream says goes before it
	Threshold float64 // 0: DefaultSpendThreshold
}

// WithDefaults fills in what was not given.
func (p SpendPolicy) WithDefaults() SpendPolicy {
	p.BudgetUSD = orDefault(p.BudgetUSD, DefaultBudgetUSD)
	p.Threshold = orDefault(p.Threshold, DefaultSpendThreshold)
	return p
}

// ProviderSpec says who mints and revokes a pool's keys. Exactly one is set.
type ProviderSpec struct {
	LiteLLM *LiteLLMProvider
	Exec    *ExecProvider
}

// LiteLLMProvider mints and revokes keys at the pool's upstream, with the pool's credential.
type LiteLLMProvider struct {
	MaxBudgetUSD   float64
	BudgetDuration string
	Models         []string
}

// ExecProvider is a command that the replicas know by a name.
type ExecProvider struct{ Name string }

// StockPolicy keeps a pool's stock between two numbers.
type StockPolicy struct {
	Min int
	Max int // 0: Min
}

// Target is how many backups minting stops at.
func (p StockPolicy) Target() int { return max(p.Min, p.Max) }

// RetirementPolicy says what happens to retired keys.
type RetirementPolicy struct {
	RevokeAfter     *time.Duration // nil: DefaultRevokeAfter
	KeepAtUpstream  bool
	SecretRetention time.Duration // 0: DefaultSecretRetention
}

// Grace is how long after its retirement a key is revoked.
func (p RetirementPolicy) Grace() time.Duration {
	if p.RevokeAfter == nil {
		return DefaultRevokeAfter
	}
	return *p.RevokeAfter
}

// SecretsFor is how long the sealed secret of a retired key is kept.
func (p RetirementPolicy) SecretsFor() time.Duration {
	return orDefault(p.SecretRetention, DefaultSecretRetention)
}

// Revokes reports whether retired keys are to be revoked at the upstream.
func (s Spec) Revokes() bool { return s.Provider != nil && !s.Retirement.KeepAtUpstream }

// RecordsFor is how long rotations, events and purged keys are kept.
func (s Spec) RecordsFor() time.Duration { return orDefault(s.RecordRetention, DefaultRecordRetention) }

func orDefault[T comparable](given, otherwise T) T {
	var zero T
	if given == zero {
		return otherwise
	}
	return given
}

// Equal reports whether two specs say the same.
func (s Spec) Equal(other Spec) bool {
	if !maps.Equal(s.Labels, other.Labels) {
		return false
	}
	s.Labels, other.Labels = nil, nil
	return reflect.DeepEqual(s, other)
}

// movesTo reports whether next has another upstream than s, or another provider. Saying for the first time what a pool's keys
// are for, or who mints and revokes them, is no such change: it is about the keys that are there.
func (s Spec) movesTo(next Spec) bool {
	was, is := s.Upstream, next.Upstream
	return was != (UpstreamSpec{}) && (was.Is() != is.Is() || was.BaseURL != is.BaseURL) ||
		s.Provider != nil && s.Provider.name() != next.Provider.name()
}

// name tells providers apart. What they are to make is not in it.
func (p *ProviderSpec) name() string {
	switch {
	case p == nil:
		return ""
	case p.Exec != nil:
		return "exec " + p.Exec.Name
	}
	return "litellm"
}

// Limits of a spec.
const (
	MaxBaseURL        = 512 // bytes
	MaxBound          = 1000
	MaxIncidentKeys   = 1000
	MaxStock          = 1000
	MaxModels         = 64
	MaxBudgetDuration = 16 // bytes
	maxWindow         = 24 * time.Hour
	maxRetention      = 10 * 365 * 24 * time.Hour
)

func (f *violations) spec(s Spec) {
	f.add("spec.description", CheckText(s.Description, MaxDescription))
	f.add("spec.labels", CheckLabels(s.Labels))
	f.upstream(s.Upstream)
	f.bound(s.Bound)
	f.incident(s.Incident)
	if s.ConfirmReports {
		f.askable(s.Upstream)
	}
	if s.Spend != nil {
		f.spend(s)
	}
	f.provider(s)
	f.stock(s)
	f.retirement(s.Retirement)
	f.within("spec.record_retention", s.RecordRetention, time.Hour, maxRetention)
}

// within refuses a duration that is given and out of bounds.
func (f *violations) within(field string, d, least, most time.Duration) {
	if d != 0 && (d < least || d > most) {
		f.add(field, fmt.Sprintf("must be from %v to %v", least, most))
	}
}

func (f *violations) upstream(u UpstreamSpec) {
	if u.Kind != "" && !slices.Contains(UpstreamKinds(), u.Kind) {
		names := make([]string, len(UpstreamKinds()))
		for i, k := range UpstreamKinds() {
			names[i] = string(k)
		}
		f.add("spec.upstream.kind", "must be one of "+strings.Join(names, ", "))
	}
	f.add("spec.upstream.base_url", checkBaseURL(u.BaseURL))
}

// checkBaseURL keeps out what could hold a secret, or send one somewhere else than it reads. It does not repeat the URL.
func checkBaseURL(text string) string {
	if text == "" {
		return ""
	}
	u, err := url.Parse(text)
	switch {
	case len(text) > MaxBaseURL:
		return fmt.Sprintf("has %d bytes, at most %d are allowed", len(text), MaxBaseURL)
	case err != nil || u.Scheme != "http" && u.Scheme != "https" || u.Host == "" || u.Opaque != "":
		return "must be an http or https URL such as https://litellm.example.org"
	case u.User != nil:
		return "must not hold credentials: set them with SetPoolCredential (rotatorctl pool credential)"
	case u.RawQuery != "" || u.ForceQuery || u.Fragment != "":
		return "must not have a query or a fragment"
	}
	return ""
}

// askable refuses an upstream that cannot be asked about a key: reports of its keys would change nothing.
func (f *violations) askable(u UpstreamSpec) {
	switch {
	case u.Is() == UpstreamGeneric:
		f.add("spec.confirm_reports", "needs an upstream that can be asked: give spec.upstream.kind")
	case u.Is() == UpstreamFactory:
		f.add("spec.confirm_reports", "needs an upstream that can be asked, and factory has no call for that")
	case u.litellm() && u.BaseURL == "":
		f.add("spec.confirm_reports", "needs spec.upstream.base_url: where the LiteLLM is that can be asked")
	}
}

func (f *violations) bound(b BoundSpec) {
	if n := b.Rotations; n != nil && (*n < 0 || *n > MaxBound) {
		f.add("spec.rotation_bound.rotations", fmt.Sprintf("must be from 0 (any number) to %d", MaxBound))
	}
	f.within("spec.rotation_bound.window", b.Window, time.Second, maxWindow)
}

func (f *violations) incident(p IncidentPolicy) {
	if p.Share != 0 && !(p.Share > 0 && p.Share <= 1) {
		f.add("spec.incident.share", "must be above 0 and up to 1")
	}
	if p.MinKeys != 0 && (p.MinKeys < 2 || p.MinKeys > MaxIncidentKeys) {
		f.add("spec.incident.min_keys", fmt.Sprintf("must be from 2 to %d", MaxIncidentKeys))
	}
	f.within("spec.incident.window", p.Window, time.Second, time.Hour)
	f.within("spec.incident.duration", p.Duration, time.Second, maxWindow)
}

func (f *violations) spend(s Spec) {
	p := s.Spend
	if !s.Upstream.litellm() || s.Upstream.BaseURL == "" {
		f.add("spec.spend", "needs spec.upstream of kind litellm or openhands with a base_url")
	}
	if p.BudgetUSD != 0 && !(p.BudgetUSD > 0 && !math.IsInf(p.BudgetUSD, 1)) {
		f.add("spec.spend.budget_usd", "must be a number above 0")
	}
	if p.Threshold != 0 && !(p.Threshold > 0 && p.Threshold <= 1) {
		f.add("spec.spend.threshold", "must be above 0 and up to 1")
	}
}

func (f *violations) provider(s Spec) {
	p := s.Provider
	switch {
	case p == nil:
	case (p.LiteLLM == nil) == (p.Exec == nil):
		f.add("spec.provider", "must have exactly one of litellm and exec")
	case p.Exec != nil:
		f.name("spec.provider.exec.name", p.Exec.Name)
	default:
		f.litellm(s)
	}
}

func (f *violations) litellm(s Spec) {
	p := s.Provider.LiteLLM
	if !s.Upstream.litellm() || s.Upstream.BaseURL == "" {
		f.add("spec.provider.litellm", "needs spec.upstream of kind litellm or openhands with a base_url")
	}
	if !(p.MaxBudgetUSD >= 0) || math.IsInf(p.MaxBudgetUSD, 1) {
		f.add("spec.provider.litellm.max_budget_usd", "must be a number that is not negative")
	}
	f.add("spec.provider.litellm.budget_duration", CheckText(p.BudgetDuration, MaxBudgetDuration))
	if len(p.Models) > MaxModels {
		f.add("spec.provider.litellm.models", fmt.Sprintf("has %d models, at most %d are allowed", len(p.Models), MaxModels))
	}
	for i, m := range p.Models {
		f.add(fmt.Sprintf("spec.provider.litellm.models[%d]", i), CheckText(m, MaxLabelValue))
	}
}

func (f *violations) stock(s Spec) {
	p := s.Stock
	switch {
	case p == nil:
		return
	case s.Provider == nil:
		f.add("spec.stock", "needs a provider that mints keys: give spec.provider")
	}
	if p.Min < 1 || p.Min > MaxStock {
		f.add("spec.stock.min", fmt.Sprintf("must be from 1 to %d", MaxStock))
	}
	if p.Max != 0 && (p.Max < max(p.Min, 1) || p.Max > MaxStock) {
		f.add("spec.stock.max", fmt.Sprintf("must be from min (%d) to %d", p.Min, MaxStock))
	}
}

func (f *violations) retirement(p RetirementPolicy) {
	if d := p.RevokeAfter; d != nil && (*d < 0 || *d > 30*24*time.Hour) {
		f.add("spec.retirement.revoke_after", "must be from 0s to 720h")
	}
	f.within("spec.retirement.secret_retention", p.SecretRetention, time.Minute, 365*24*time.Hour)
}
