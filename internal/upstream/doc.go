// Package upstream says what an answer of an upstream LLM API means for the key it was given to: replace it, let it rest
// until a time, or leave it alone.
//
// It promises:
//   - What is known is data: rules.yaml holds every rule with its reason and source. The first rule that matches decides,
//     and the verdict names it.
//   - What no rule knows is ignored. An upstream's outage, a caller's mistake and an answer nobody understands cost no key.
//   - Bodies are foreign: whatever they hold, of what size and type, classifying them ends soon and does not panic.
//   - A Reason never holds the secrets the caller named, nor what looks like a secret, and is bounded. So is what Scrub
//     returns.
//
// It does nothing about a verdict, asks no upstream, and does not promise that upstreams go on answering as they do. It
// cannot know a secret that it was not told of and that looks like an ordinary word.
package upstream
