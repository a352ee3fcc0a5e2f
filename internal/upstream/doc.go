// Package upstream knows the upstream LLM APIs: what an answer of one means for the key it was given to (replace it, let it
// rest until a time, or leave it alone), and how to ask one about a key.
//
// It promises:
//   - What is known of answers is data: rules.yaml holds every rule with its reason and source. The first rule that matches
//     decides, and the verdict names it.
//   - What no rule knows is ignored. An upstream's outage, a caller's mistake and an answer nobody understands cost no key.
//   - Bodies are foreign: whatever they hold, of what size and type, classifying them ends soon and does not panic.
//   - A Reason never holds the secrets the caller named, nor what looks like a secret, and is bounded. So is what Scrub
//     returns, and what errors say.
//   - Calls are bounded in time, in size and in number, over all hosts and for each. A host that fails is left alone for a
//     while. Keys travel in headers and bodies and never in URLs, and to no other host than the one that was named.
//
// It does nothing about a verdict, sends no call twice by itself, and does not promise that upstreams go on answering as
// they do. It cannot know a secret that it was not told of and that looks like an ordinary word.
package upstream
