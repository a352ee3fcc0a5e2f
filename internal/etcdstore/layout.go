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
	switch ref.Kind {
	case pool.KindPool:
		return l.KindPrefix(ref.Kind) + ref.Pool
	case pool.KindReplica, pool.KindRelay:
		return l.KindPrefix(ref.Kind) + ref.Name
	case pool.KindRotation:
		return l.RotationsPrefix(ref.Pool, ref.Name) + strconv.FormatInt(ref.Generation, 10)
	case KindUnknown:
		return l.Prefix + ref.Name
	default:
		return l.PoolPrefix(ref.Kind, ref.Pool) + ref.Name
	}
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
	parts := strings.Split(rest, "/")
	kind, names := pool.Kind(parts[0]), parts[1:]
	ref := pool.Ref{Kind: kind}
	switch kind {
	case pool.KindPool:
		return ref, assign(names, &ref.Pool)
	case pool.KindReplica, pool.KindRelay:
		return ref, assign(names, &ref.Name)
	case pool.KindRotation:
		var generation string
		ok := assign(names, &ref.Pool, &ref.Name, &generation) && parseGeneration(generation, &ref.Generation)
		return ref, ok
	case pool.KindSlot, pool.KindActive, pool.KindBackup, pool.KindRetired, pool.KindPending, pool.KindBinding,
		pool.KindFingerprint, pool.KindEvent, pool.KindLock, pool.KindPreparation, pool.KindToken, pool.KindHealth:
		return ref, assign(names, &ref.Pool, &ref.Name)
	}
	return pool.Ref{}, false
}

func assign(names []string, fields ...*string) bool {
	if len(names) != len(fields) {
		return false
	}
	for i, name := range names {
		if pool.CheckName(name) != "" {
			return false
		}
		*fields[i] = name
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
