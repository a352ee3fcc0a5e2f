package ctl

import (
	"context"
	"time"

	"google.golang.org/protobuf/proto"

	rotatorv1 "github.com/rotatord/rotatord/proto/rotator/v1"
)

// Limits of one AddKeys call. They are far below the contract's and gRPC's, so that a batch is written well within
// --timeout on a slow disk too, and progress can be seen.
const (
	batchKeys  = 100
	batchBytes = 1 << 20
)

// addKeys adds up to batchKeys keys. Adding may be repeated, so what is not known or was not tried is, until
// --timeout has passed; there is exactly one result for each key of the request.
func (c *cli) addKeys(ctx context.Context, request *rotatorv1.AddKeysRequest) (*rotatorv1.AddKeysResponse, error) {
	ctx, cancel := context.WithTimeout(ctx, c.timeout)
	defer cancel()
	answer, err := c.addOnce(ctx, request)
	for pause := firstPause; err == nil; pause = min(2*pause, maxPause) {
		again := undecided(answer)
		if len(again) == 0 || !sleep(ctx, pause) {
			return answer, nil
		}
		repeat := &rotatorv1.AddKeysRequest{Pool: request.GetPool(), Home: request.GetHome(), DryRun: request.GetDryRun()}
		for _, i := range again {
			repeat.Keys = append(repeat.Keys, request.GetKeys()[i])
		}
		more, err := c.addOnce(ctx, repeat)
		if err != nil {
			// What is known already is worth more than the error of the repeat.
			return answer, nil
		}
		for j, i := range again {
			answer.Results[i] = more.GetResults()[j]
		}
		answer.Revision = max(answer.GetRevision(), more.GetRevision())
	}
	return answer, err
}

func (c *cli) addOnce(ctx context.Context, request *rotatorv1.AddKeysRequest) (*rotatorv1.AddKeysResponse, error) {
	answer, err := askAgain(ctx, c, c.admin, rotatorv1.AdminServiceClient.AddKeys, request)
	if err != nil {
		return nil, err
	}
	if got, want := len(answer.GetResults()), len(request.GetKeys()); got != want {
		return nil, failf(exitFailed, "the server answered for %s and was asked for %d", count(got, "key"), want)
	}
	return answer, nil
}

// undecided returns the places of the keys that another try may add.
func undecided(answer *rotatorv1.AddKeysResponse) []int {
	var out []int
	for i, r := range answer.GetResults() {
		if r.GetResult() == rotatorv1.AddResult_ADD_RESULT_UNKNOWN || r.GetRefusal() == rotatorv1.KeyRefusal_KEY_REFUSAL_NOT_APPLIED {
			out = append(out, i)
		}
	}
	return out
}

// batches cuts keys into calls.
func batches(keys []*rotatorv1.NewKey) [][]*rotatorv1.NewKey {
	var out [][]*rotatorv1.NewKey
	start, size := 0, 0
	for i, key := range keys {
		n := proto.Size(key)
		if i > start && (i-start == batchKeys || size+n > batchBytes) {
			out = append(out, keys[start:i])
			start, size = i, 0
		}
		size += n
	}
	if start < len(keys) {
		out = append(out, keys[start:])
	}
	return out
}

// tally counts what became of keys.
type tally struct {
	New     int `json:"new"`
	Same    int `json:"same"`
	Refused int `json:"refused"`
	Unknown int `json:"unknown"`
}

func (t *tally) count(result *rotatorv1.AddedKey) {
	switch result.GetResult() {
	case rotatorv1.AddResult_ADD_RESULT_ADDED:
		t.New++
	case rotatorv1.AddResult_ADD_RESULT_SAME:
		t.Same++
	case rotatorv1.AddResult_ADD_RESULT_UNKNOWN:
		t.Unknown++
	default:
		t.Refused++
	}
}

// progressEvery is how often a line of progress is written.
const progressEvery = time.Second
