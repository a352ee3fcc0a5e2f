package etcdstore

import (
	"os"
	"strings"
	"testing"
)

// What operators are shown is what is written.
func TestDocumentedRecordsAreReal(t *testing.T) {
	doc, err := os.ReadFile("../../docs/etcd.md")
	if err != nil {
		t.Fatal(err)
	}
	golden, err := os.ReadFile(goldenFile)
	if err != nil {
		t.Fatal(err)
	}
	shown := 0
	for line := range strings.Lines(string(doc)) {
		if line = strings.TrimSpace(line); !strings.HasPrefix(line, `{"schema":`) {
			continue
		}
		shown++
		if !strings.Contains(string(golden), line+"\n") {
			t.Errorf("docs/etcd.md shows a record that is not in %s:\n%s", goldenFile, line)
		}
	}
	if shown == 0 {
		t.Error("docs/etcd.md shows no record")
	}
}
