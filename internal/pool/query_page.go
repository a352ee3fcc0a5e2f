package pool

import (
	"cmp"
	"encoding/base64"
	"fmt"
	"slices"
	"strconv"
	"strings"
)

// Page sizes.
const (
	DefaultPageSize = 100
	MaxPageSize     = 1000
)

// PageRequest asks for a part of a list. A list that changes between two pages is not repeated: the next page starts
// after the last record of the one before, wherever that is now.
type PageRequest struct {
	Size        int    // 1 to MaxPageSize; 0 is DefaultPageSize
	Token       string // Page.Next of the page before; empty from the start
	MinRevision int64  // answer only from state at least this new
}

// Page is a part of a list, as of one revision.
type Page[T any] struct {
	Items    []T
	Next     string // for PageRequest.Token; empty: this was the last
	Revision int64
}

// place is where a record stands in a list: by number and then name. Which number that is depends on the list.
type place struct {
	number int64
	name   string
}

func (p place) compare(other place) int {
	return cmp.Or(cmp.Compare(p.number, other.number), cmp.Compare(p.name, other.name))
}

// token hides a place in a list, so that callers do not build on its form. list keeps the token of one list from being
// understood by another.
func (p place) token(list string) string {
	return base64.RawURLEncoding.EncodeToString(fmt.Appendf(nil, "%s/%d/%s", list, p.number, p.name))
}

func parseToken(list, token string) (at place, ok bool) {
	text, err := base64.RawURLEncoding.DecodeString(token)
	if err != nil {
		return place{}, false
	}
	parts := strings.SplitN(string(text), "/", 3)
	if len(parts) != 3 || parts[0] != list || CheckName(parts[2]) != "" {
		return place{}, false
	}
	number, err := strconv.ParseInt(parts[1], 10, 64)
	return place{number, parts[2]}, err == nil && number >= 0
}

// pager picks the records of one page out of records offered in any order. It never holds more than twice the page, so
// a page of a large list costs one pass and a little sorting.
type pager[T any] struct {
	list  string
	size  int
	after place
	first bool
	best  []placed[T]
	worst place // once best was cut: nothing from here on can be in the page
	cut   bool
}

type placed[T any] struct {
	at  place
	rec T
}

// newPager checks req into f. The pager must not be used if f has violations.
func newPager[T any](list string, req PageRequest, f *violations) *pager[T] {
	p := &pager[T]{list: list, size: cmp.Or(req.Size, DefaultPageSize), first: req.Token == ""}
	if req.Size < 0 || req.Size > MaxPageSize {
		f.add("page_size", fmt.Sprintf("is %d, must be 1 to %d, or 0 for %d", req.Size, MaxPageSize, DefaultPageSize))
	}
	if !p.first {
		var ok bool
		if p.after, ok = parseToken(list, req.Token); !ok {
			f.add("page_token", "is not a next_page_token of this list")
		}
	}
	f.notNegative("min_revision", req.MinRevision)
	return p
}

func (p *pager[T]) offer(at place, rec T) {
	if !p.first && at.compare(p.after) <= 0 || p.cut && at.compare(p.worst) >= 0 {
		return
	}
	p.best = append(p.best, placed[T]{at, rec})
	if len(p.best) > 2*p.size+1 {
		p.trim()
	}
}

// trim keeps one record more than the page, which tells that there is another page.
func (p *pager[T]) trim() {
	slices.SortFunc(p.best, func(a, b placed[T]) int { return a.at.compare(b.at) })
	if len(p.best) <= p.size {
		return
	}
	clear(p.best[p.size+1:])
	p.best = p.best[:p.size+1]
	p.worst, p.cut = p.best[p.size].at, true
}

// pageOf makes the answer of what was picked.
func pageOf[T, U any](p *pager[T], revision int64, convert func(T) U) *Page[U] {
	p.trim()
	page := &Page[U]{Revision: revision}
	picked := p.best
	if len(picked) > p.size {
		picked = picked[:p.size]
		page.Next = picked[p.size-1].at.token(p.list)
	}
	page.Items = make([]U, len(picked))
	for i, e := range picked {
		page.Items[i] = convert(e.rec)
	}
	return page
}

func itself[T any](rec T) T { return rec }
