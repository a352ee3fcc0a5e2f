package ctl

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"io"
	"strings"
	"testing"
	"testing/iotest"
	"time"

	"github.com/google/go-cmp/cmp"
	"google.golang.org/genproto/googleapis/rpc/errdetails"
	"google.golang.org/grpc/codes"
	"google.golang.org/grpc/status"
	"google.golang.org/protobuf/types/known/timestamppb"

	pb "github.com/rotatord/rotatord/proto/rotator/v1"
)

var testNow = time.Date(2026, 1, 25, 12, 0, 0, 0, time.UTC)

// result is what a command line came to.
type result struct {
	Code     int
	Out, Err string
}

// runAt runs a command line against a server at a fixed time.
func runAt(t *testing.T, server, in string, args ...string) result {
	t.Helper()
	var out, errs bytes.Buffer
	code := Run(t.Context(), args, System{
		In: strings.NewReader(in), Out: &out, Err: &errs,
		Getenv: func(name string) string {
			if name == "ROTATORCTL_SERVER" {
				return server
			}
			return ""
		},
		Now: func() time.Time { return testNow },
	})
	return result{code, out.String(), errs.String()}
}

func TestKeyTable(t *testing.T) {
	f := newFake()
	f.pools["p"] = &pb.Pool{Name: "p"}
	add := func(k *pb.Key) {
		k.Pool, k.AddedAt, k.Secret = "p", timestamppb.New(testNow.Add(-90*time.Minute)), "canary"
		f.keys["p/"+k.GetId()] = k
	}
	spend, budget := 9.5, 10.0
	add(&pb.Key{Id: "k1", Home: pb.KeyHome_KEY_HOME_ACTIVE, Slot: "k1", Status: pb.KeyStatus_KEY_STATUS_HEALTHY, Generation: 7, Preview: "sk-a...0001", SpendUsd: &spend, BudgetUsd: &budget})
	add(&pb.Key{Id: "k2", Home: pb.KeyHome_KEY_HOME_ACTIVE, Slot: "k2", Status: pb.KeyStatus_KEY_STATUS_RATE_LIMITED, StatusUntil: timestamppb.New(testNow.Add(time.Minute)), Generation: 8})
	add(&pb.Key{Id: "k3", Home: pb.KeyHome_KEY_HOME_ACTIVE, Slot: "k3", Status: pb.KeyStatus_KEY_STATUS_ERROR, StatusUntil: timestamppb.New(testNow.Add(-time.Minute)), Generation: 9})
	add(&pb.Key{Id: "k4", Home: pb.KeyHome_KEY_HOME_ACTIVE, Slot: "k4", Status: pb.KeyStatus_KEY_STATUS_EXHAUSTED, Pending: true, Generation: 10})
	add(&pb.Key{Id: "k5", Home: pb.KeyHome_KEY_HOME_ACTIVE, Slot: "k5", Status: 77, Generation: 11})
	add(&pb.Key{Id: "b1", Home: pb.KeyHome_KEY_HOME_BACKUP, Preview: "evil\x1b[2J\nline"})
	want := strings.TrimPrefix(`
HOME    ID  SLOT  STATE                                    GENERATION  PREVIEW         SPEND                    AGE  REPLACES  REPLACED BY
active  k1  k1    healthy                                  7           sk-a...0001     9.50/10.00 [#########-]  1h
active  k2  k2    rate-limited 1m                          8                                                    1h
active  k3  k3    healthy                                  9                                                    1h
active  k4  k4    exhausted [PENDING: waits for a backup]  10                                                   1h
active  k5  k5    77                                       11                                                   1h
backup  b1                                                             evil [2J line                            1h
`, "\n")
	got := runAt(t, f.start(t), "", "key", "list", "p")
	// The widths of columns are tabwriter's business.
	if diff := cmp.Diff(result{0, squeeze(want), ""}, result{got.Code, squeeze(got.Out), got.Err}); diff != "" {
		t.Errorf("key list: -want +got\n%s", diff)
	}
}

func squeeze(text string) string {
	var out []string
	for line := range strings.Lines(text) {
		out = append(out, strings.Join(strings.Fields(line), " "))
	}
	return strings.Join(out, "\n")
}

func TestPagesAskForStateAtLeastAsNew(t *testing.T) {
	f := newFake()
	for i := range 8 {
		name := fmt.Sprintf("p%d", i)
		f.pools[name] = &pb.Pool{Name: name}
	}
	got := runAt(t, f.start(t), "", "pool", "list", "-o", "json")
	if got.Code != 0 || strings.Count(got.Out, `"name"`) != 8 {
		t.Fatalf("pool list: want 8 pools, got exit code %d and\n%s%s", got.Code, got.Out, got.Err)
	}
	var asked []string
	for _, q := range f.called("ListPools") {
		request := q.(*pb.ListPoolsRequest)
		asked = append(asked, fmt.Sprintf("%q at %d", request.GetPageToken(), request.GetMinRevision()))
	}
	if diff := cmp.Diff([]string{`"" at 0`, `"3" at 100`, `"6" at 100`}, asked); diff != "" {
		t.Errorf("pages: -want +got\n%s", diff)
	}
}

func TestRotateRepeatsTheSameRequest(t *testing.T) {
	for name, given := range map[string]string{"made up": "", "given": "mine"} {
		t.Run(name, func(t *testing.T) {
			f := newFake()
			f.pools["p"] = &pb.Pool{Name: "p"}
			f.keys["p/k1"] = &pb.Key{Pool: "p", Id: "k1", Home: pb.KeyHome_KEY_HOME_ACTIVE, Slot: "k1", Generation: 5}
			f.keys["p/b1"] = &pb.Key{Pool: "p", Id: "b1", Home: pb.KeyHome_KEY_HOME_BACKUP}
			f.fail("RotateKey", 1, true, refuse(codes.DeadlineExceeded, "OUTCOME_UNKNOWN", "lost"))
			f.fail("RotateKey", 1, false, refuse(codes.Unavailable, "NOT_APPLIED", "no quorum", retryIn(time.Millisecond)))
			args := []string{"rotate", "p", "k1", "--generation", "5", "--proxy", "gw", "-o", "json"}
			if given != "" {
				args = append(args, "--request-id", given)
			}
			got := runAt(t, f.start(t), "", args...)
			if got.Code != 0 || !strings.Contains(got.Out, `"OUTCOME_ROTATED"`) {
				t.Fatalf("rotate: want its own outcome, got exit code %d, %s%s", got.Code, got.Out, got.Err)
			}
			calls := f.called("RotateKey")
			first := calls[0].(*pb.RotateKeyRequest)
			if len(calls) != 3 || first.GetRequestId() == "" || given != "" && first.GetRequestId() != given {
				t.Fatalf("calls: want 3 with request id %q, got %d, the first %v", given, len(calls), first)
			}
			for _, again := range calls[1:] {
				if diff := cmp.Diff(first.String(), again.(*pb.RotateKeyRequest).String()); diff != "" {
					t.Errorf("the repeat differs: -first +repeat\n%s", diff)
				}
			}
		})
	}
}

// TestASecretThatDidNotCome: the answer is good without it, but somebody waits for it.
func TestASecretThatDidNotCome(t *testing.T) {
	f := newFake()
	f.pools["p"] = &pb.Pool{Name: "p"}
	f.keys["p/k1"] = &pb.Key{Pool: "p", Id: "k1", Home: pb.KeyHome_KEY_HOME_ACTIVE, Slot: "k1", Generation: 5}
	f.keys["p/b1"] = &pb.Key{Pool: "p", Id: "b1", Home: pb.KeyHome_KEY_HOME_BACKUP}
	server := f.start(t)
	for _, args := range [][]string{{"rotate", "p", "k1"}, {"report", "p", "b1", "--status", "500"}} {
		got := runAt(t, server, "", append(args, "--show-secret", "-o", "json")...)
		if got.Code != 0 || !strings.Contains(got.Err, "cannot open the secret of key b1") {
			t.Errorf("%s: want exit code 0 and a note, got %+v", args[0], got)
		}
		if got := runAt(t, server, "", args...); strings.Contains(got.Err, "secret") {
			t.Errorf("%s without --show-secret: want no note, got %+v", args[0], got)
		}
	}
}

func TestRotateDoesNotRepeatARefusal(t *testing.T) {
	for code, want := range map[codes.Code]exit{
		codes.FailedPrecondition: exitRefused, codes.NotFound: exitNotFound, codes.InvalidArgument: exitUsage,
		codes.ResourceExhausted: exitUnavailable, codes.Internal: exitFailed, codes.PermissionDenied: exitRefused,
	} {
		f := newFake()
		f.fail("RotateKey", 1, false, refuse(code, "POOL_PAUSED", "no"))
		got := runAt(t, f.start(t), "", "rotate", "p", "k1")
		if n := len(f.called("RotateKey")); got.Code != int(want) || n != 1 {
			t.Errorf("%s: want exit code %d after 1 call, got %d after %d", code, want, got.Code, n)
		}
	}
}

// TestAddKeysSettlesWhatIsNotKnown has a server that writes one key of two at a time.
func TestAddKeysSettlesWhatIsNotKnown(t *testing.T) {
	f := newFake()
	f.pools["p"] = &pb.Pool{Name: "p"}
	slow := &slowAdder{fake: f}
	addr := slow.start(t)
	got := runAt(t, addr, "{\"id\":\"k1\",\"secret\":\"s1\"}\n{\"id\":\"k2\",\"secret\":\"s2\"}\n{\"id\":\"k3\",\"secret\":\"s3\"}\n", "key", "import", "p", "-")
	if want := (result{0, "3 keys into pool p as active: 3 new, 0 same, 0 refused\n", ""}); got != want {
		t.Errorf("key import: want %+v, got %+v", want, got)
	}
}

// TestImportAddsWhatItCouldRead: a line that is too long, or a disk that fails, does not take back what was read before.
func TestImportAddsWhatItCouldRead(t *testing.T) {
	good := "{\"id\":\"k1\",\"secret\":\"sk-canary-1\"}\n{\"id\":\"k2\",\"secret\":\"sk-canary-2\"}\n"
	for name, tt := range map[string]struct {
		in   io.Reader
		want string
	}{
		"a line too long":    {strings.NewReader(good + strings.Repeat("x", maxLine+1) + "\n{\"id\":\"k3\",\"secret\":\"sk-canary-3\"}\n"), "line 3 is longer than"},
		"reading that fails": {io.MultiReader(strings.NewReader(good), iotest.ErrReader(errors.New("bad disk"))), "reading the keys after line 2: bad disk"},
	} {
		t.Run(name, func(t *testing.T) {
			f := newFake()
			f.pools["p"] = &pb.Pool{Name: "p"}
			var out, errs bytes.Buffer
			code := Run(t.Context(), []string{"key", "import", "p", "-", "--server", f.start(t)}, System{
				In: tt.in, Out: &out, Err: &errs, Getenv: func(string) string { return "" }, Now: time.Now,
			})
			if want := "2 keys into pool p as active: 2 new, 0 same, 0 refused\n"; code != int(exitUsage) || out.String() != want || !strings.Contains(errs.String(), tt.want) {
				t.Errorf("key import: want exit code %d, %q and on stderr %q, got %d, %q and\n%s", exitUsage, want, tt.want, code, &out, &errs)
			}
		})
	}
}

// slowAdder adds one key of each call and leaves the others open.
type slowAdder struct{ *fake }

func (s *slowAdder) start(t *testing.T) string {
	addr, stop := s.serveAs(t, s)
	t.Cleanup(stop)
	return addr
}

func (s *slowAdder) AddKeys(ctx context.Context, q *pb.AddKeysRequest) (*pb.AddKeysResponse, error) {
	all := q.GetKeys()
	q.Keys = all[:1]
	answer, err := s.fake.AddKeys(ctx, q)
	for i, k := range all[1:] {
		open := &pb.AddedKey{Id: k.GetId(), Result: pb.AddResult_ADD_RESULT_UNKNOWN}
		if i%2 == 1 {
			open = &pb.AddedKey{Id: k.GetId(), Result: pb.AddResult_ADD_RESULT_REFUSED, Refusal: pb.KeyRefusal_KEY_REFUSAL_NOT_APPLIED}
		}
		answer.Results = append(answer.Results, open)
	}
	return answer, err
}

func TestBatches(t *testing.T) {
	var many, large []*pb.NewKey
	for range 2*batchKeys + 1 {
		many = append(many, &pb.NewKey{Id: "k", Secret: "s"})
	}
	for range 3 {
		large = append(large, &pb.NewKey{Id: "k", Secret: strings.Repeat("s", batchBytes/2)})
	}
	for name, tt := range map[string]struct {
		keys []*pb.NewKey
		want []int
	}{"none": {nil, nil}, "one": {many[:1], []int{1}}, "many": {many, []int{batchKeys, batchKeys, 1}}, "large": {large, []int{1, 1, 1}}} {
		var got []int
		for _, b := range batches(tt.keys) {
			got = append(got, len(b))
		}
		if diff := cmp.Diff(tt.want, got); diff != "" {
			t.Errorf("%s: -want +got\n%s", name, diff)
		}
	}
}

func TestIsLocal(t *testing.T) {
	for target, want := range map[string]bool{
		"127.0.0.1:7070": true, "localhost:7070": true, "LOCALHOST:1": true, "[::1]:7070": true, "::1": true, "127.9.9.9": true,
		"dns:///localhost:7070": true, "passthrough:///127.0.0.1:1": true, "unix:///run/rotatord.sock": true, "[::ffff:127.0.0.1]:1": true,
		"10.0.0.1:7070": false, "rotatord:7070": false, "localhost.example:7070": false, "127.0.0.1.example:1": false,
		"dns://1.1.1.1/localhost:7070": false, "0.0.0.0:7070": false, "": false, "xds:///localhost": false,
	} {
		if got := isLocal(target); got != want {
			t.Errorf("isLocal(%q): want %t, got %t", target, want, got)
		}
	}
}

// TestEveryReasonHasAdvice walks the contract's enum.
func TestEveryReasonHasAdvice(t *testing.T) {
	for number, name := range pb.ErrorReason_name {
		reason := pb.ErrorReason(number)
		if reason == pb.ErrorReason_ERROR_REASON_UNSPECIFIED {
			continue
		}
		if adviceByReason[reason] == "" {
			t.Errorf("%s: want advice, got none", name)
		}
		wire := strings.TrimPrefix(name, "ERROR_REASON_")
		if got := reasonOf(refuse(codes.Unknown, wire, "x")); got != reason {
			t.Errorf("reason %q on the wire: want %s, got %s", wire, reason, got)
		}
	}
}

func TestExplain(t *testing.T) {
	c := &cli{server: "here:1", timeout: time.Second}
	foreign, _ := status.New(codes.Unavailable, "proxy says no").WithDetails(&errdetails.ErrorInfo{Reason: "POOL_PAUSED", Domain: "elsewhere"})
	tests := []struct {
		name string
		err  error
		code exit
		want string
	}{
		{"fields", refuse(codes.InvalidArgument, "INVALID_ARGUMENT", "bad request", &errdetails.BadRequest{FieldViolations: []*errdetails.BadRequest_FieldViolation{
			{Field: "pool", Description: "is empty"}, {Field: "keys[1].id", Description: "is too\nlong"}}}), exitUsage,
			"rotatorctl: the request is not valid (INVALID_ARGUMENT)\n  pool: is empty\n  keys[1].id: is too long\n  next: correct the fields named above; nothing was changed\n"},
		{"retry", refuse(codes.ResourceExhausted, "A_NEW_REASON", "too many rotations", retryIn(12*time.Second)), exitUnavailable,
			"rotatorctl: too many rotations (A_NEW_REASON)\n  next: not before 12s from now\n"},
		{"wrapped", fmt.Errorf("adding keys: %w", refuse(codes.Aborted, "CONFLICT", "again and again")), exitUnavailable,
			"rotatorctl: again and again (CONFLICT)\n  next: run the command again\n"},
		{"another domain", foreign.Err(), exitUnavailable,
			"rotatorctl: cannot reach rotatord at here:1: proxy says no\n  next: start rotatord there, or name another replica with --server or ROTATORCTL_SERVER\n"},
		{"no answer", status.Error(codes.DeadlineExceeded, "context deadline exceeded"), exitUnavailable,
			"rotatorctl: no answer from here:1 within 1s\n  next: a write may have been applied: look before you repeat it, or allow more time with --timeout\n"},
		{"interrupted", status.Error(codes.Canceled, "context canceled"), exitFailed, "rotatorctl: interrupted\n"},
		{"old server", status.Error(codes.Unimplemented, "unknown method"), exitFailed,
			"rotatorctl: unknown method (Unimplemented)\n  next: the server does not know this call: see whether it is rotatord; if it is, compare `rotatorctl version` with `rotatorctl replica list`\n"},
		{"too large", status.Error(codes.ResourceExhausted, "grpc: received message larger than max (9 vs. 8)"), exitUsage,
			"rotatorctl: too large for one call: grpc: received message larger than max (9 vs. 8)\n  next: split what you send, or make it smaller: the same again would be refused again\n"},
		{"a proxy's bound", status.Error(codes.ResourceExhausted, "too many requests"), exitUnavailable,
			"rotatorctl: too many requests (ResourceExhausted)\n"},
		{"own", failf(exitRefused, "no"), exitRefused, "rotatorctl: no\n"},
		{"plain", errors.New("disk full"), exitFailed, "rotatorctl: disk full\n"},
	}
	for _, tt := range tests {
		t.Run(tt.name, func(t *testing.T) {
			if got := exitCode(tt.err); got != tt.code {
				t.Errorf("exit code: want %d, got %d", tt.code, got)
			}
			if diff := cmp.Diff(tt.want, c.explain(tt.err)); diff != "" {
				t.Errorf("explain: -want +got\n%s", diff)
			}
		})
	}
}

// TestJSONIsStable: protojson alone puts spaces in at random, by the binary.
func TestJSONIsStable(t *testing.T) {
	var out bytes.Buffer
	c := &cli{output: "json", sys: System{Out: &out}}
	answer := &pb.GetPoolResponse{Pool: &pb.Pool{Name: "p", Spec: &pb.PoolSpec{Labels: map[string]string{"b": "2", "a": "1"}}}, Revision: 1 << 60}
	if err := c.print(answer, func(io.Writer) {}); err != nil {
		t.Fatal(err)
	}
	want := "{\n  \"pool\": {\n    \"name\": \"p\",\n    \"spec\": {\n      \"labels\": {\n        \"a\": \"1\",\n        \"b\": \"2\"\n      }\n    }\n  },\n  \"revision\": \"1152921504606846976\"\n}\n"
	if diff := cmp.Diff(want, out.String()); diff != "" {
		t.Errorf("JSON: -want +got\n%s", diff)
	}
}

// TestInterruptedRead: input that never comes must not hold the program.
func TestInterruptedRead(t *testing.T) {
	never, _ := io.Pipe()
	ctx, cancel := context.WithCancel(t.Context())
	cancel()
	var out, errs bytes.Buffer
	code := Run(ctx, []string{"key", "add", "p", "k"}, System{In: never, Out: &out, Err: &errs, Getenv: func(string) string { return "" }, Now: time.Now})
	if code != int(exitFailed) || errs.String() != "rotatorctl: interrupted\n" {
		t.Errorf("key add: want exit code 1 and \"interrupted\", got %d and %q", code, errs.String())
	}
}

func TestHelpOfEveryCommand(t *testing.T) {
	c := &cli{sys: System{Getenv: func(string) string { return "" }}}
	commands := c.rootCommand().Commands()
	for len(commands) > 0 {
		cmd := commands[0]
		commands = append(commands[1:], cmd.Commands()...)
		if cmd.Short == "" || strings.HasSuffix(cmd.Short, ".") {
			t.Errorf("%s: want a short line without a full stop, got %q", cmd.CommandPath(), cmd.Short)
		}
		if cmd.Args == nil || cmd.RunE == nil {
			t.Errorf("%s: want checked arguments and a RunE", cmd.CommandPath())
		}
	}
}

func TestDialError(t *testing.T) {
	for message, want := range map[string]string{
		`connection error: desc = "transport: Error while dialing: dial tcp 127.0.0.1:1: connect: connection refused"`: "connect: connection refused",
		`last connection error: desc = "transport: authentication handshake failed: EOF"`:                              "authentication handshake failed: EOF",
		"name resolver error: produced zero addresses":                                                                 "this name has no address",
		"error reading from server: EOF":                                                                               "error reading from server: EOF",
	} {
		if got := dialError(message); got != want {
			t.Errorf("dialError(%q): want %q, got %q", message, want, got)
		}
	}
}

func TestCheckServer(t *testing.T) {
	for server, ok := range map[string]bool{
		"127.0.0.1:7070": true, "[::1]:7070": true, "rotatord:7070": true, "unix:/run/r.sock": true, "dns:///rotatord:7070": true,
		"": false, "rotatord": false, "127.0.0.1": false, ":7070": false, "rotatord:": false, "rotatord:grpc": false, "rotatord:0": false, "http://rotatord:7070": false,
	} {
		if err := checkServer(server); (err == nil) != ok {
			t.Errorf("--server %q: want it accepted: %t, got %v", server, ok, err)
		}
	}
}

// TestHintsNameWhatTheCommandIsAbout: a hint can be pasted.
func TestHintsNameWhatTheCommandIsAbout(t *testing.T) {
	f := newFake()
	f.pools["p"] = &pb.Pool{Name: "p"}
	server := f.start(t)
	for _, tt := range []struct {
		args []string
		want string
	}{
		{[]string{"key", "get", "p", "k 1"}, "`rotatorctl key list p`"},
		{[]string{"pool", "get", "it's"}, `rotatorctl pool create 'it'\''s'`},
		{[]string{"key", "get", "KEY", "POOL"}, "`rotatorctl pool list`, or make one with `rotatorctl pool create KEY`"},
	} {
		if got := runAt(t, server, "", tt.args...); !strings.Contains(got.Err, tt.want) {
			t.Errorf("%q: want a hint with %s, got\n%s", tt.args, tt.want, got.Err)
		}
	}
}
