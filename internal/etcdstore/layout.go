package etcdstore

import (
	"fmt"
	"strconv"
	"strings"

	"github.com/rotatord/rotatord/internal/pool"

	clientv3 "go.etcd.io/etcd/client/v3"
)

// DefaultPrefix is where the state is unless an operator says otherwise.
const DefaultPrefix = pool.DefaultPrefix

// KindUnknown is the kind of what is under the prefix and is none of ours. The Ref's Name is the key without the prefix.
const KindUnknown pool.Kind = "unknown"

// kindLeader holds the candidates for roles. They belong to the election and are not records.
const kindLeader pool.Kind = "leaders"

// Layout maps records to etcd keys. Names never contain '/', so the mapping can be undone.
type Layout struct {
	Prefix string // starts and ends with '/'
}

// NewLayout checks the prefix; empty means DefaultPrefix.
func NewLayout(prefix string) (Layout, error) {
	if prefix == "" {
		prefix = DefaultPrefix
	}
	if !strings.HasPrefix(prefix, "/") || !strings.HasSuffix(prefix, "/") || prefix == "/" {
		return Layout{}, fmt.Errorf("etcd prefix %q must start and end with '/' and name something between, as %q does", prefix, DefaultPrefix)
	}
	return Layout{prefix}, nil
}

// Key is where the record is.
func (l Layout) Key(ref pool.Ref) string {
	var room [256]byte
	return string(l.appendKey(room[:0], ref))
}

func (l Layout) appendKey(b []byte, ref pool.Ref) []byte {
	b = append(b, l.Prefix...)
	if ref.Kind == KindUnknown {
		return append(b, ref.Name...)
	}
	b = append(append(b, ref.Kind...), '/')
	if ref.Kind == pool.KindPool {
		return append(b, ref.Pool...)
	}
	if ref.Kind != pool.KindReplica && ref.Kind != pool.KindRelay && ref.Pool != "" {
		b = append(append(b, ref.Pool...), '/')
	}
	b = append(b, ref.Name...)
	if ref.Kind == pool.KindRotation {
		b = strconv.AppendInt(append(b, '/'), ref.Generation, 10)
	}
	return b
}

// KindPrefix is where all records of a kind are.
func (l Layout) KindPrefix(kind pool.Kind) string { return l.Prefix + string(kind) + "/" }

// RolesPrefix is where the candidacies for roles are.
func (l Layout) RolesPrefix() string { return l.KindPrefix(kindLeader) }

// PoolPrefix is where all records of a kind in one pool are; for the kinds that do not belong to a pool, all of them.
func (l Layout) PoolPrefix(kind pool.Kind, poolName string) string {
	if poolName == "" || kind == pool.KindPool || kind == pool.KindReplica || kind == pool.KindRelay {
		return l.KindPrefix(kind)
	}
	return l.KindPrefix(kind) + poolName + "/"
}

// RotationsPrefix is where the rotations of one key are.
func (l Layout) RotationsPrefix(poolName, key string) string {
	return l.PoolPrefix(pool.KindRotation, poolName) + key + "/"
}

// Parse undoes Key; it reports false for a key that no record of ours can have.
func (l Layout) Parse(key string) (pool.Ref, bool) {
	rest, ours := strings.CutPrefix(key, l.Prefix)
	if !ours {
		return pool.Ref{}, false
	}
	kind, names, _ := strings.Cut(rest, "/")
	ref := pool.Ref{Kind: pool.Kind(kind)}
	ok := false
	switch ref.Kind {
	case pool.KindPool:
		ok = assign(names, &ref.Pool)
	case pool.KindReplica, pool.KindRelay:
		ok = assign(names, &ref.Name)
	case pool.KindRotation:
		var generation string
		ok = assign(names, &ref.Pool, &ref.Name, &generation) && parseGeneration(generation, &ref.Generation)
	case pool.KindSlot, pool.KindActive, pool.KindBackup, pool.KindRetired, pool.KindPending, pool.KindBinding,
		pool.KindFingerprint, pool.KindEvent, pool.KindLock, pool.KindPreparation, pool.KindToken, pool.KindHealth:
		ok = assign(names, &ref.Pool, &ref.Name)
	default:
		return pool.Ref{}, false
	}
	return ref, ok
}

// assign takes names, as many as there are fields, from a text in which a slash stands between them.
func assign(names string, fields ...*string) bool {
	for i, field := range fields {
		name, rest, more := strings.Cut(names, "/")
		if more != (i < len(fields)-1) || pool.CheckName(name) != "" {
			return false
		}
		*field, names = name, rest
	}
	return true
}

// parseGeneration takes only what Key writes: a second spelling of a number would be a second record of one life.
func parseGeneration(text string, g *int64) bool {
	n, err := strconv.ParseInt(text, 10, 64)
	*g = n
	return err == nil && n > 0 && strconv.FormatInt(n, 10) == text
}

// span is a range of etcd keys, the end excluded.
type span struct{ from, to string }

func prefixSpan(prefix string) span { return span{prefix, clientv3.GetPrefixRangeEnd(prefix)} }

// allBut is everything under the prefix but some kinds, in order. Leaving them out of the ranges and not only of the
// result matters: events may outnumber all else.
func (l Layout) allBut(kinds ...pool.Kind) []span {
	whole := prefixSpan(l.Prefix)
	var spans []span
	from := whole.from
	for _, kind := range kinds { // in the order of their names
		skip := prefixSpan(l.KindPrefix(kind))
		spans = append(spans, span{from, skip.from})
		from = skip.to
	}
	return append(spans, span{from, whole.to})
}
