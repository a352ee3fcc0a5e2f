package etcdstore

import "sync"

// maxLabelSets bounds what is remembered. Keys whose labels are all different cost what they did before.
const maxLabelSets = 1024

// sets has records with the same labels share one map: the keys of a pool mostly have the same, and a map of its own was
// a third of what a record takes in memory. Records are immutable, so nobody changes it.
type sets struct {
	mu     sync.RWMutex // protects the following field
	byText map[string]map[string]string
}

var labelSets sets

// get returns the labels that were read from the same text before, nil if there were none.
func (s *sets) get(text []byte) map[string]string {
	s.mu.RLock()
	defer s.mu.RUnlock()
	return s.byText[string(text)]
}

// add remembers labels and returns them.
func (s *sets) add(text []byte, labels map[string]string) map[string]string {
	s.mu.Lock()
	defer s.mu.Unlock()
	if s.byText == nil || len(s.byText) >= maxLabelSets {
		s.byText = make(map[string]map[string]string)
	}
	s.byText[string(text)] = labels
	return labels
}
