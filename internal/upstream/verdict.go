package upstream

import "time"

// Action is what to do about a key. The zero value is Ignore.
type Action int

const (
	// Ignore leaves the key as it is: another key would not have fared better, or nobody knows.
	Ignore Action = iota
	// CoolDown keeps the key from being used until a time, after which it is good again.
	CoolDown
	// Rotate replaces the key: it is dead, or has nothing left to spend.
	Rotate
)

// String returns the name that rules.yaml uses.
func (a Action) String() string {
	switch a {
	case CoolDown:
		return "cool_down"
	case Rotate:
		return "rotate"
	default:
		return "ignore"
	}
}

// Status is the condition that the key should get. It is empty where the key keeps the one it has.
type Status string

const (
	// Exhausted comes with Rotate: until it is replaced the key is out of service.
	Exhausted Status = "exhausted"
	// RateLimited comes with CoolDown: the upstream has asked for patience.
	RateLimited Status = "rate_limited"
	// Error comes with CoolDown: the key was refused for something that passes by itself.
	Error Status = "error"
)

// Scope says what the upstream refused. What is wider than a key is refused with every other key of it too, so a new one
// helps only if it belongs elsewhere.
type Scope string

// The scopes rules name. ScopeUnknown is for what an answer leaves open.
const (
	ScopeUnknown      Scope = ""
	ScopeKey          Scope = "key"
	ScopeUser         Scope = "user"
	ScopeEndUser      Scope = "end_user"
	ScopeTag          Scope = "tag"
	ScopeTeam         Scope = "team"
	ScopeProject      Scope = "project"
	ScopeWorkspace    Scope = "workspace"
	ScopeOrganisation Scope = "organisation"
	ScopeAccount      Scope = "account"
	ScopeRequest      Scope = "request"
	ScopeUpstream     Scope = "upstream"
)

// Bounds of what a verdict says. An upstream that asks for more, or for nothing that makes sense, is not followed.
const (
	// DefaultCoolDown is how long a key rests as RateLimited if the upstream does not say.
	DefaultCoolDown = 60 * time.Second
	// ErrorCoolDown is the same for Error.
	ErrorCoolDown = 30 * time.Second
	// MinCoolDown is the least: "Retry-After: 0" does not mean that the key was not refused.
	MinCoolDown = time.Second
	// MaxRetryAfter is the longest delay that is believed.
	MaxRetryAfter = 24 * time.Hour
	// MaxCoolDown is the longest rest of all, for a date that an upstream names: a monthly limit, and a day.
	MaxCoolDown = 32 * 24 * time.Hour
	// MaxReason is the most a Reason has, in bytes.
	MaxReason = 512
)

// Verdict is what an answer means for the key.
type Verdict struct {
	Action Action
	// Until is when a cool-down ends: from MinCoolDown to MaxCoolDown after the time of the report. Zero for other actions.
	Until time.Time
	// UntilFrom says where Until was found, such as "retry-after"; "default" if the upstream did not say.
	UntilFrom string
	// Status is what the key should get.
	Status Status
	// Rule is the stable id of the rule that decided, such as "litellm/budget-exceeded-key"; "<kind>/unknown" if none did.
	Rule  string
	Scope Scope
	// Confirm says that the upstream may refuse a key that is good for cheaper requests: it is worth while to ask about it
	// before rotating.
	Confirm bool
	// Own says that the budget or limit which is used up is the key's own, so that however many keys are refused for theirs,
	// nothing is wrong with the upstream.
	Own bool
	// Reason is what the upstream said, for people: one line of valid UTF-8 without secrets, at most MaxReason bytes.
	Reason string
	// Why says why the rule decides so. It holds nothing of the answer.
	Why string
}
