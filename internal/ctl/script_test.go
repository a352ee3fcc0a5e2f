package ctl

import (
	"context"
	"flag"
	"os"
	"path/filepath"
	"strconv"
	"testing"
	"time"

	"github.com/rogpeppe/go-internal/testscript"
	"google.golang.org/grpc/codes"
	"google.golang.org/protobuf/types/known/timestamppb"

	pb "github.com/rotatord/rotatord/proto/rotator/v1"
)

func TestMain(m *testing.M) {
	testscript.Main(m, map[string]func(){"rotatorctl": func() {
		os.Exit(Run(context.Background(), os.Args[1:],
			System{In: os.Stdin, Out: os.Stdout, Err: os.Stderr, Getenv: os.Getenv, Now: time.Now}))
	}})
}

// A scriptServer is what one script talks to.
type scriptServer interface {
	serve(tb interface{ Fatal(...any) }) (addr string, stop func())
}

// TestScripts runs each script against a server of its own, whose address is in ROTATORCTL_SERVER.
func TestScripts(t *testing.T) {
	runScripts(t, "testdata/script", func() scriptServer { return newFake() }, map[string]func(*testscript.TestScript, bool, []string){
		"fail":     scriptFail,
		"exit":     scriptExit,
		"finding":  scriptFinding,
		"incident": scriptIncident, "phase": scriptPhase,
	})
}

type serverKey struct{}

var update = flag.Bool("update", false, "rewrite what scripts expect of cmp")

func runScripts(t *testing.T, dir string, server func() scriptServer, commands map[string]func(*testscript.TestScript, bool, []string)) {
	examples, err := filepath.Abs("../../examples")
	if err != nil {
		t.Fatal(err)
	}
	testscript.Run(t, testscript.Params{
		Dir:                 dir,
		RequireExplicitExec: true,
		UpdateScripts:       *update,
		Cmds:                commands,
		Setup: func(env *testscript.Env) error {
			s := server()
			addr, stop := s.serve(env.T().(interface{ Fatal(...any) }))
			env.Defer(stop)
			env.Setenv("ROTATORCTL_SERVER", addr)
			env.Setenv("EXAMPLES", examples)
			// Under the race detector every process would sleep a second before it ends.
			env.Setenv("GORACE", "atexit_sleep_ms=0")
			env.Values[serverKey{}] = s
			return nil
		},
	})
}

// scriptExit runs a command and wants its exit code: exit CODE PROGRAM ARGS...
func scriptExit(ts *testscript.TestScript, neg bool, args []string) {
	if neg || len(args) < 2 {
		ts.Fatalf("usage: exit CODE PROGRAM ARGS...")
	}
	err := ts.Exec(args[1], args[2:]...)
	got := 0
	if coded, ok := err.(interface{ ExitCode() int }); ok {
		got = coded.ExitCode()
	} else {
		ts.Check(err)
	}
	if want, _ := strconv.Atoi(args[0]); got != want {
		ts.Fatalf("exit code: want %d, got %d", want, got)
	}
}

var codesByName = map[string]codes.Code{
	"UNAVAILABLE": codes.Unavailable, "FAILED_PRECONDITION": codes.FailedPrecondition, "RESOURCE_EXHAUSTED": codes.ResourceExhausted,
	"DEADLINE_EXCEEDED": codes.DeadlineExceeded, "DATA_LOSS": codes.DataLoss,
}

// scriptFail makes the next calls fail: fail METHOD TIMES applied|lost CODE REASON.
func scriptFail(ts *testscript.TestScript, neg bool, args []string) {
	if neg || len(args) != 5 {
		ts.Fatalf("usage: fail METHOD TIMES applied|lost CODE REASON")
	}
	times, err := strconv.Atoi(args[1])
	ts.Check(err)
	ts.Value(serverKey{}).(*fake).fail(args[0], times, args[2] == "applied",
		refuse(codesByName[args[3]], args[4], "made to fail", retryIn(10*time.Millisecond)))
}

// scriptFinding adds what doctor finds: finding SEVERITY CHECK MESSAGE REMEDY.
func scriptFinding(ts *testscript.TestScript, neg bool, args []string) {
	if neg || len(args) != 4 {
		ts.Fatalf("usage: finding SEVERITY CHECK MESSAGE REMEDY")
	}
	f := ts.Value(serverKey{}).(*fake)
	f.mu.Lock()
	defer f.mu.Unlock()
	f.findings = append(f.findings, &pb.Finding{Severity: pb.Severity(pb.Severity_value["SEVERITY_"+args[0]]), Check: args[1],
		Subject: "pools/openhands", Message: args[2], Remedy: args[3]})
}

// scriptIncident puts a pool into an incident: incident POOL.
func scriptIncident(ts *testscript.TestScript, neg bool, args []string) {
	if neg || len(args) != 1 {
		ts.Fatalf("usage: incident POOL")
	}
	f := ts.Value(serverKey{}).(*fake)
	f.mu.Lock()
	defer f.mu.Unlock()
	f.pools[args[0]].Incident = &pb.Incident{Keys: 7, Since: longAgo, Until: timestamppb.New(time.Now().Add(time.Hour))}
}

// scriptPhase puts a key into preparation: phase POOL KEY PHASE PROBLEM.
func scriptPhase(ts *testscript.TestScript, neg bool, args []string) {
	if neg || len(args) != 4 {
		ts.Fatalf("usage: phase POOL KEY PHASE PROBLEM")
	}
	f := ts.Value(serverKey{}).(*fake)
	f.mu.Lock()
	defer f.mu.Unlock()
	k := f.keys[args[0]+"/"+args[1]]
	k.Home, k.Phase, k.Problem = pb.KeyHome_KEY_HOME_PREPARING, pb.KeyPhase(pb.KeyPhase_value["KEY_PHASE_"+args[2]]), args[3]
	k.NextTryAt = longAgo
}
