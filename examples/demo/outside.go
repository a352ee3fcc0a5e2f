package main

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"time"

	clientv3 "go.etcd.io/etcd/client/v3"
	"go.uber.org/zap"

	"github.com/rotatord/rotatord/internal/recorder"
)

const prefix = "/rotator/"

// outside looks at etcd past the service: what is counted in the end is what is stored, not what replicas say.
type outside struct {
	client   *clientv3.Client
	recorder *recorder.Recorder
	etcdctl  string // "": etcd is read with the client
}

// lookFromOutside begins to record every revision from here on.
func (d *demo) lookFromOutside(ctx context.Context, endpoints []string) (*outside, error) {
	client, err := clientv3.New(clientv3.Config{Endpoints: endpoints, DialTimeout: 5 * time.Second, Logger: zap.NewNop()})
	if err != nil {
		return nil, err
	}
	o := &outside{client: client}
	if o.recorder, err = recorder.Start(ctx, client, prefix); err != nil {
		return nil, errors.Join(err, client.Close())
	}
	if path := filepath.Join(d.bin, "etcdctl"); isFile(path) {
		o.etcdctl = path
	}
	return o, nil
}

func isFile(path string) bool {
	info, err := os.Stat(path)
	return err == nil && info.Mode().IsRegular()
}

func (o *outside) close() { _ = o.client.Close() }

// reader names what state is read with.
func (o *outside) reader() string {
	if o.etcdctl != "" {
		return "etcdctl"
	}
	return "an etcd client"
}

// state is everything stored, by etcd key without the prefix.
type state map[string][]byte

// read reads everything at one revision. etcdctl's JSON has keys and values in base64, as Go decodes []byte.
func (o *outside) read(ctx context.Context) (state, error) {
	if o.etcdctl == "" {
		answer, err := o.client.Get(ctx, prefix, clientv3.WithPrefix())
		if err != nil {
			return nil, err
		}
		found := state{}
		for _, kv := range answer.Kvs {
			found.add(kv.Key, kv.Value)
		}
		return found, nil
	}
	cmd := exec.CommandContext(ctx, o.etcdctl, "--endpoints", strings.Join(o.client.Endpoints(), ","), "get", "--prefix", prefix, "-w", "json")
	cmd.Env, cmd.SysProcAttr = environ(), childAttributes()
	text, err := cmd.Output()
	if err != nil {
		return nil, fmt.Errorf("%s: %w", o.etcdctl, err)
	}
	var answer struct {
		KVs []struct{ Key, Value []byte } `json:"kvs"`
	}
	if err := json.Unmarshal(text, &answer); err != nil {
		return nil, fmt.Errorf("reading what %s says: %w", o.etcdctl, err)
	}
	found := state{}
	for _, kv := range answer.KVs {
		found.add(kv.Key, kv.Value)
	}
	return found, nil
}

func (s state) add(key, value []byte) { s[strings.TrimPrefix(string(key), prefix)] = value }

// counts is what a pool consists of.
type counts struct{ Active, Backups, Rotations, Dangling int }

func (s state) count(pool string) (c counts, err error) {
	held := map[string]bool{}
	for key, value := range s {
		if !strings.HasPrefix(key, "active/"+pool+"/") {
			continue
		}
		var record struct{ Slot string }
		if err := json.Unmarshal(value, &record); err != nil {
			return c, fmt.Errorf("%s%s: %w", prefix, key, err)
		}
		held[record.Slot] = true
		c.Active++
	}
	for key, value := range s {
		switch {
		case strings.HasPrefix(key, "backup/"+pool+"/"):
			c.Backups++
		case strings.HasPrefix(key, "rotations/"+pool+"/"):
			c.Rotations++
		case strings.HasPrefix(key, "bindings/"+pool+"/"):
			n, err := dangling(value, held)
			if err != nil {
				return c, fmt.Errorf("%s%s: %w", prefix, key, err)
			}
			c.Dangling += n
		}
	}
	return c, nil
}

// dangling is how many of a binding's slots hold no active key.
func dangling(binding []byte, held map[string]bool) (n int, err error) {
	var record struct{ Slots []struct{ Slot string } }
	err = json.Unmarshal(binding, &record)
	for _, s := range record.Slots {
		if !held[s.Slot] {
			n++
		}
	}
	return n, err
}

// verdict ends the recording once it has seen everything and returns what was wrong at any revision.
func (o *outside) verdict(ctx context.Context) (violations []string, revision int64, err error) {
	last, err := o.client.Get(ctx, prefix, append(clientv3.WithLastRev(), clientv3.WithPrefix())...)
	if err != nil {
		return nil, 0, err
	}
	for _, kv := range last.Kvs {
		revision = kv.ModRevision
	}
	violations, err = o.recorder.Stop(ctx, revision)
	return violations, revision, err
}
