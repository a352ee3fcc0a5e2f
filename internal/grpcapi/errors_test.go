package grpcapi

import (
	"context"
	"errors"
	"fmt"
	"go/ast"
	"go/parser"
	"go/token"
	"os"
	"regexp"
	"strconv"
	"strings"
	"testing"
	"time"

	"google.golang.org/genproto/googleapis/rpc/errdetails"
	"google.golang.org/grpc/codes"
	"google.golang.org/grpc/status"

	"github.com/rotatord/rotatord/internal/pool"
	v1 "github.com/rotatord/rotatord/proto/rotator/v1"
)

// documented reads the code that the contract's comments give for each reason.
func documented(t *testing.T) map[string][]string {
	t.Helper()
	text, err := os.ReadFile("../../proto/rotator/v1/error_reason.proto")
	if err != nil {
		t.Fatal(err)
	}
	out := make(map[string][]string)
	value := regexp.MustCompile(`// [^\n]*Code ([A-Z_]+)(?: or ([A-Z_]+))?[^\n]*\n\s+(ERROR_REASON_[A-Z_]+) = \d+;`)
	for _, m := range value.FindAllStringSubmatch(string(text), -1) {
		out[m[3]] = append(out[m[3]], m[1], m[2])
	}
	return out
}

// codeNames are the canonical names of codes, as protocol documents write them.
func codeNames(t *testing.T) map[string]codes.Code {
	t.Helper()
	names := make(map[string]codes.Code)
	for _, name := range []string{
		"CANCELLED", "INVALID_ARGUMENT", "DEADLINE_EXCEEDED", "NOT_FOUND", "ALREADY_EXISTS", "RESOURCE_EXHAUSTED",
		"FAILED_PRECONDITION", "ABORTED", "INTERNAL", "UNAVAILABLE", "DATA_LOSS",
	} {
		var c codes.Code
		if err := c.UnmarshalJSON([]byte(strconv.Quote(name))); err != nil {
			t.Fatal(err)
		}
		names[name] = c
	}
	return names
}

func TestErrorTableIsTheContracts(t *testing.T) {
	docs, names := documented(t), codeNames(t)
	for number, name := range v1.ErrorReason_name {
		rule, there := rules[v1.ErrorReason(number)]
		if !there {
			t.Errorf("%s is not in the table", name)
			continue
		}
		doc := docs[name]
		if len(doc) == 0 {
			t.Errorf("%s: the contract does not say which code it has", name)
			continue
		}
		if want, known := names[doc[0]]; !known || rule.code != want {
			t.Errorf("%s has code %s, the contract says %s", name, rule.code, doc[0])
		}
	}
	for reason := range rules {
		if _, there := v1.ErrorReason_name[int32(reason)]; !there {
			t.Errorf("the table has %d, which is not in the contract", reason)
		}
	}
}

// TestErrorTableIsTheDesigns checks the rows of the design's table.
func TestErrorTableIsTheDesigns(t *testing.T) {
	for _, row := range []struct {
		what    string
		code    codes.Code
		retry   bool
		reasons []pool.Reason
	}{
		{"bad name, bad field", codes.InvalidArgument, false, []pool.Reason{pool.ReasonInvalidArgument}},
		{"unknown pool or key", codes.NotFound, false, []pool.Reason{pool.ReasonPoolNotFound, pool.ReasonKeyNotFound}},
		{"request id after the record's retention", codes.NotFound, false, []pool.Reason{pool.ReasonRotationNotFound}},
		{
			"in stock, disabled, paused, generation from the future", codes.FailedPrecondition, false,
			[]pool.Reason{pool.ReasonKeyInStock, pool.ReasonKeyDisabled, pool.ReasonPoolPaused, pool.ReasonGenerationInFuture},
		},
		{"surely not applied", codes.Unavailable, true, []pool.Reason{pool.ReasonNotApplied}},
		{"outcome not known in time", codes.Unavailable, true, []pool.Reason{pool.ReasonOutcomeUnknown}},
	} {
		for _, reason := range row.reasons {
			f := translate(context.Background(), write, pool.Refuse(reason, "no"))
			if f.status.Code() != row.code {
				t.Errorf("%s: %s has code %s, want %s", row.what, reason, f.status.Code(), row.code)
			}
			if retry := detail[*errdetails.RetryInfo](f); (retry != nil) != row.retry {
				t.Errorf("%s: %s has RetryInfo %v, want one: %t", row.what, reason, retry, row.retry)
			}
			if info := errorInfo(f); info.GetReason() != string(reason) || info.GetDomain() != "rotatord.dev" {
				t.Errorf("%s: %s has ErrorInfo %v", row.what, reason, info)
			}
		}
	}
}

// domainReasons reads the constants of type pool.Reason from the domain's source: Go cannot list them.
func domainReasons(t *testing.T) []string {
	t.Helper()
	file, err := parser.ParseFile(token.NewFileSet(), "../pool/errors.go", nil, 0)
	if err != nil {
		t.Fatal(err)
	}
	var reasons []string
	ast.Inspect(file, func(n ast.Node) bool {
		spec, ok := n.(*ast.ValueSpec)
		if !ok {
			return true
		}
		if typ, ok := spec.Type.(*ast.Ident); ok && typ.Name == "Reason" {
			text, err := strconv.Unquote(spec.Values[0].(*ast.BasicLit).Value)
			if err != nil {
				t.Fatal(err)
			}
			reasons = append(reasons, text)
		}
		return true
	})
	return reasons
}

func TestDomainReasonsAreTheContracts(t *testing.T) {
	reasons := domainReasons(t)
	if len(reasons) < 20 {
		t.Fatalf("found only %d reasons in the domain's source: %v", len(reasons), reasons)
	}
	known := map[string]bool{string(reasonInternal): true, string(reasonCancelled): true, string(reasonDeadlineExceeded): true}
	for _, r := range reasons {
		known[r] = true
		if _, there := v1.ErrorReason_value[reasonPrefix+r]; !there {
			t.Errorf("the domain's reason %s is not in the contract", r)
		}
	}
	for name := range v1.ErrorReason_value {
		if !known[strings.TrimPrefix(name, reasonPrefix)] {
			t.Errorf("the contract's %s is not one of the domain's reasons, nor one of the transport's", name)
		}
	}
}

func TestTranslate(t *testing.T) {
	background := context.Background()
	canceled, cancel := context.WithCancel(background)
	cancel()
	late, cancel := context.WithDeadline(background, time.Unix(0, 0))
	defer cancel()
	for _, tc := range []struct {
		name   string
		caller context.Context
		method method
		err    error
		code   codes.Code
		reason pool.Reason
	}{
		{"refusal", background, read, pool.Refuse(pool.ReasonKeyNotFound, "no"), codes.NotFound, pool.ReasonKeyNotFound},
		{"wrapped refusal", background, read, fmt.Errorf("x: %w", pool.ErrConflict), codes.Aborted, pool.ReasonConflict},
		{"refusal because of a context", background, write, pool.Refuse(pool.ReasonNotApplied, "no").Because(context.DeadlineExceeded), codes.Unavailable, pool.ReasonNotApplied},
		{"read, our bound", background, read, fmt.Errorf("x: %w", context.DeadlineExceeded), codes.DeadlineExceeded, reasonDeadlineExceeded},
		{"read, the caller's deadline", late, read, context.DeadlineExceeded, codes.DeadlineExceeded, reasonDeadlineExceeded},
		{"long read", background, longRead, context.DeadlineExceeded, codes.DeadlineExceeded, reasonDeadlineExceeded},
		{"write, our bound", background, write, context.DeadlineExceeded, codes.Unavailable, pool.ReasonOutcomeUnknown},
		{"write, the caller's deadline", late, write, context.DeadlineExceeded, codes.DeadlineExceeded, pool.ReasonOutcomeUnknown},
		{"unknown, the caller's deadline", late, write, pool.ErrOutcomeUnknown, codes.DeadlineExceeded, pool.ReasonOutcomeUnknown},
		{"not applied, the caller's deadline", late, write, pool.ErrNotApplied, codes.Unavailable, pool.ReasonNotApplied},
		{"the caller went away", canceled, write, context.Canceled, codes.Canceled, reasonCancelled},
		{"read cancelled by us", background, read, context.Canceled, codes.Unavailable, pool.ReasonNotApplied},
		{"write cancelled by us", background, write, context.Canceled, codes.Unavailable, pool.ReasonOutcomeUnknown},
		{"unexpected", background, write, errors.New("etcdserver: disk on fire"), codes.Internal, reasonInternal},
		{"a status of somebody else", background, read, status.Error(codes.NotFound, "etcd says"), codes.Internal, reasonInternal},
		{"a reason nobody knows", background, read, pool.Refuse("NEW", "no"), codes.Internal, reasonInternal},
	} {
		f := translate(tc.caller, tc.method, tc.err)
		if f.status.Code() != tc.code || f.reason != tc.reason || errorInfo(f).GetReason() != string(tc.reason) {
			t.Errorf("%s: code %s, reason %s, ErrorInfo %v; want %s, %s", tc.name, f.status.Code(), f.reason, errorInfo(f), tc.code, tc.reason)
		}
		if f.cause != tc.err {
			t.Errorf("%s: the log gets %v, want %v", tc.name, f.cause, tc.err)
		}
	}
}

func TestCallersAreNotToldTheCause(t *testing.T) {
	const inside = "dial tcp 10.0.0.7:2379"
	for _, err := range []error{
		errors.New(inside),
		pool.Refuse(pool.ReasonNotApplied, "try again").Because(errors.New(inside)),
		(&pool.Refusal{Reason: pool.ReasonInvalidArgument, Fields: []pool.Violation{{Field: "a", Problem: "is bad"}}}).Because(errors.New(inside)),
		fmt.Errorf(inside+": %w", context.DeadlineExceeded),
		&panicked{inside},
	} {
		f := translate(context.Background(), read, err)
		if all := f.status.Proto().String() + f.Error(); strings.Contains(all, inside) {
			t.Errorf("for %v the caller is told %s", err, all)
		}
	}
}

func TestViolationsAreBounded(t *testing.T) {
	r := &pool.Refusal{Reason: pool.ReasonInvalidArgument}
	for i := range 1000 {
		r.Fields = append(r.Fields, pool.Violation{Field: fmt.Sprintf("keys[%d].id", i), Problem: "must match [A-Za-z0-9][A-Za-z0-9._:@-]{0,127}"})
	}
	f := translate(context.Background(), write, r)
	fields := violated(f)
	if len(fields) != maxViolations+1 || fields[0] != "keys[0].id" || fields[maxViolations] != "..." {
		t.Errorf("%d violations told, the last is %q; want %d and then how many more", len(fields), fields[len(fields)-1], maxViolations)
	}
	if n := len(f.status.Message()); n > maxText+100 {
		t.Errorf("the text has %d bytes, want about %d", n, maxText)
	}
}
