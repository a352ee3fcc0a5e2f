package ctl

import (
	"cmp"
	"fmt"
	"maps"
	"slices"
	"strings"
	"time"

	"google.golang.org/protobuf/types/known/timestamppb"

	"github.com/rotatord/rotatord/internal/ctl/mongoexport"
	rotatorv1 "github.com/rotatord/rotatord/proto/rotator/v1"
)

// plannedKey is a key to add, with the line it comes from.
type plannedKey struct {
	key  *rotatorv1.NewKey
	line int
}

func newKeys(planned []plannedKey) []*rotatorv1.NewKey {
	out := make([]*rotatorv1.NewKey, len(planned))
	for i, p := range planned {
		out[i] = p.key
	}
	return out
}

// seen finds duplicates within one list of keys.
type seen struct {
	bySecret map[string]mongoPlace
	byID     map[string]mongoPlace
}

// mongoPlace is a key that came before.
type mongoPlace struct {
	id, secret string
	line       int
}

func newSeen() seen { return seen{map[string]mongoPlace{}, map[string]mongoPlace{}} }

func (s seen) add(id, secret string, line int) {
	place := mongoPlace{id, secret, line}
	s.byID[id], s.bySecret[secret] = place, place
}

// objection says why a key cannot be added for itself alone, as the service would.
func objection(id, secret string) string {
	switch {
	case !nameRule.MatchString(id):
		return "the id cannot be used: " + nameRuleText
	case len(secret) > maxSecret:
		return fmt.Sprintf("apiKey is longer than %d bytes", maxSecret)
	case strings.TrimSpace(secret) != secret:
		return "apiKey has white space at its ends"
	default:
		return ""
	}
}

// planKeys decides which documents become active keys, and with which status.
func planKeys(docs []mongoexport.Key, now time.Time, report *mongoReport) []plannedKey {
	var out []plannedKey
	before := newSeen()
	for _, doc := range docs {
		secret := doc.Secret.Reveal()
		if result, message := before.judge(doc.ID, secret); result != "" {
			report.drop(&report.Keys, doc.Line, doc.ID, result, message)
			continue
		}
		before.add(doc.ID, secret, doc.Line)
		key := &rotatorv1.NewKey{Id: doc.ID, Secret: secret, SpendUsd: doc.TotalSpend, Labels: map[string]string{}}
		label(key, "origin-created-at", written(doc.CreatedAt))
		label(key, "origin-replaced-key", doc.ReplacedKey)
		if note := setStatus(key, doc, now); note != "" {
			report.item(&report.Keys, doc.Line, doc.ID, resultNote, note)
		}
		out = append(out, plannedKey{key, doc.Line})
	}
	return out
}

// judge returns what becomes of a key that cannot be added, and why; nothing if it can.
func (s seen) judge(id, secret string) (result, message string) {
	if message := objection(id, secret); message != "" {
		return resultRefused, message
	}
	if twin, ok := s.byID[id]; ok {
		if twin.secret == secret {
			return resultSkipped, fmt.Sprintf("duplicate: repeats line %d", twin.line)
		}
		return resultRefused, fmt.Sprintf("duplicate: line %d has the same id with another secret", twin.line)
	}
	if twin, ok := s.bySecret[secret]; ok {
		return resultRefused, fmt.Sprintf("duplicate: %s (line %d) has the same secret", twin.id, twin.line)
	}
	return "", ""
}

// setStatus translates the status and returns what had to be changed.
func setStatus(key *rotatorv1.NewKey, doc mongoexport.Key, now time.Time) string {
	switch doc.Status {
	case "healthy":
		key.Status = rotatorv1.KeyStatus_KEY_STATUS_HEALTHY
	case "":
		key.Status = rotatorv1.KeyStatus_KEY_STATUS_HEALTHY
		return "it has no status; imported as healthy"
	case "exhausted":
		key.Status = rotatorv1.KeyStatus_KEY_STATUS_EXHAUSTED
	case "rate_limited":
		return coolDown(key, doc, rotatorv1.KeyStatus_KEY_STATUS_RATE_LIMITED, now)
	case "error":
		return coolDown(key, doc, rotatorv1.KeyStatus_KEY_STATUS_ERROR, now)
	default:
		// A status without a counterpart must not come into service by itself.
		key.Status = rotatorv1.KeyStatus_KEY_STATUS_DISABLED
		label(key, "origin-status", doc.Status)
		return fmt.Sprintf("status %s; imported as disabled, put it into service with `rotatorctl key enable`", shorten(doc.Status))
	}
	return ""
}

func coolDown(key *rotatorv1.NewKey, doc mongoexport.Key, status rotatorv1.KeyStatus, now time.Time) string {
	switch {
	case doc.CooldownUntil.IsZero():
		key.Status = rotatorv1.KeyStatus_KEY_STATUS_HEALTHY
		return doc.Status + " without cooldownUntil; imported as healthy"
	case !doc.CooldownUntil.After(now):
		key.Status = rotatorv1.KeyStatus_KEY_STATUS_HEALTHY
		return doc.Status + " ended " + written(doc.CooldownUntil) + "; imported as healthy"
	default:
		key.Status = status
		key.StatusUntil = timestamppb.New(doc.CooldownUntil)
		return ""
	}
}

// planBackups decides which documents become stock. Used ones do not: the origin copied them into the active keys.
func planBackups(docs []mongoexport.Backup, keys []plannedKey, inPool map[string]string, report *mongoReport) []plannedKey {
	var out []plannedKey
	active, before := newSeen(), newSeen()
	for _, planned := range keys {
		active.add(planned.key.GetId(), planned.key.GetSecret(), planned.line)
	}
	for _, doc := range docs {
		if doc.Used {
			planUsed(doc, active, inPool, report)
			continue
		}
		secret := doc.Secret.Reveal()
		result, message := active.judgeBackup(doc.ID, secret)
		if result == "" {
			result, message = before.judge(doc.ID, secret)
		}
		if result != "" {
			report.drop(&report.Backups, doc.Line, doc.ID, result, message)
			continue
		}
		before.add(doc.ID, secret, doc.Line)
		if doc.Activated {
			report.item(&report.Backups, doc.Line, doc.ID, resultNote, "marked activated but not used; imported as stock")
		}
		key := &rotatorv1.NewKey{Id: doc.ID, Secret: secret, Labels: map[string]string{}}
		label(key, "origin-created-at", written(doc.CreatedAt))
		out = append(out, plannedKey{key, doc.Line})
	}
	return out
}

func planUsed(doc mongoexport.Backup, active seen, inPool map[string]string, report *mongoReport) {
	twin, inFile := active.byID[doc.ID]
	if _, there := inPool[doc.ID]; inFile || there {
		report.Backups.Skipped++
		report.UsedActive++
		if inFile && twin.secret != doc.Secret.Reveal() {
			report.item(&report.Backups, doc.Line, doc.ID, resultSkipped,
				fmt.Sprintf("used, but the active key of its id (line %d of the keys) has another secret", twin.line))
		}
		return
	}
	report.UsedGone++
	message := "used and gone"
	if doc.UsedFor != "" {
		message += ": it replaced " + shorten(doc.UsedFor) + " and is not among the active keys"
	}
	report.drop(&report.Backups, doc.Line, doc.ID, resultSkipped, message)
}

// judgeBackup compares an unused backup with the active keys.
func (s seen) judgeBackup(id, secret string) (result, message string) {
	if twin, ok := s.byID[id]; ok {
		if twin.secret == secret {
			return resultSkipped, fmt.Sprintf("duplicate: active already (line %d of the keys), though not marked used", twin.line)
		}
		return resultRefused, fmt.Sprintf("duplicate: an active key (line %d of the keys) has the same id with another secret", twin.line)
	}
	if twin, ok := s.bySecret[secret]; ok {
		return resultRefused, fmt.Sprintf("duplicate: repeats the secret of the active key %s (line %d of the keys)", twin.id, twin.line)
	}
	return "", ""
}

func label(key *rotatorv1.NewKey, name, value string) {
	// 256 bytes is the contract's limit; a longer value is none that the origin writes.
	if value != "" && len(value) <= 256 {
		key.Labels[name] = value
	}
}

func written(at time.Time) string {
	if at.IsZero() {
		return ""
	}
	return at.UTC().Format(time.RFC3339)
}

// shorten makes a foreign value fit for a message.
func shorten(text string) string {
	if len(text) > 64 {
		text = strings.ToValidUTF8(text[:64], "") + "..."
	}
	return oneLine(text)
}

// plannedProxy is everything one proxy was bound to.
type plannedProxy struct {
	id   string
	keys []plannedBinding // by priority, then line
}

type plannedBinding struct {
	id       string
	priority int
	line     int
}

// planBindings joins the bindings of each proxy.
func planBindings(docs []mongoexport.Binding, report *mongoReport) []plannedProxy {
	byProxy := map[string][]plannedBinding{}
	for _, doc := range docs {
		switch {
		case !doc.Active:
			report.Bindings.Skipped++
			report.Inactive++
		case !nameRule.MatchString(doc.ProxyID):
			report.drop(&report.Bindings, doc.Line, doc.ProxyID, resultRefused, "proxyId cannot be used: "+nameRuleText)
		default:
			byProxy[doc.ProxyID] = append(byProxy[doc.ProxyID], plannedBinding{doc.KeyID, doc.Priority, doc.Line})
		}
	}
	var out []plannedProxy
	for _, id := range slices.Sorted(maps.Keys(byProxy)) {
		keys := byProxy[id]
		slices.SortStableFunc(keys, func(a, b plannedBinding) int {
			return cmp.Or(cmp.Compare(a.priority, b.priority), cmp.Compare(a.line, b.line))
		})
		out = append(out, plannedProxy{id, keys})
	}
	return out
}

func sortSlots(list []*rotatorv1.SlotPriority) {
	slices.SortFunc(list, func(a, b *rotatorv1.SlotPriority) int {
		return cmp.Or(cmp.Compare(a.GetPriority(), b.GetPriority()), cmp.Compare(a.GetSlot(), b.GetSlot()))
	})
}

// sameSlots compares without regard to order.
func sameSlots(a, b []*rotatorv1.SlotPriority) bool {
	a, b = slices.Clone(a), slices.Clone(b)
	sortSlots(a)
	sortSlots(b)
	return slices.EqualFunc(a, b, func(x, y *rotatorv1.SlotPriority) bool {
		return x.GetSlot() == y.GetSlot() && x.GetPriority() == y.GetPriority()
	})
}
