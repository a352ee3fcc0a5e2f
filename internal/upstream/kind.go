package upstream

import "slices"

// Kind is the sort of upstream that a pool's keys are for. It chooses the rules.
type Kind string

// The kinds there are. Generic is for upstreams that nothing is known of.
const (
	OpenAI     Kind = "openai"
	Anthropic  Kind = "anthropic"
	LiteLLM    Kind = "litellm"
	OpenHands  Kind = "openhands"
	OpenRouter Kind = "openrouter"
	Gemini     Kind = "gemini"
	Factory    Kind = "factory"
	Generic    Kind = "generic"
)

// Kinds lists all kinds, in the order of the documentation.
func Kinds() []Kind {
	return []Kind{OpenAI, Anthropic, LiteLLM, OpenHands, OpenRouter, Gemini, Factory, Generic}
}

// Known says whether there are rules for the kind.
func (k Kind) Known() bool { return slices.Contains(Kinds(), k) }
