package main

import (
	"context"
	"net"
	"net/http"
	"net/http/httptest"
	"sync"
	"testing"

	"google.golang.org/genproto/googleapis/rpc/errdetails"
	"google.golang.org/grpc"
	"google.golang.org/grpc/codes"
	"google.golang.org/grpc/health"
	healthv1 "google.golang.org/grpc/health/grpc_health_v1"
	"google.golang.org/grpc/status"
	"google.golang.org/protobuf/types/known/durationpb"

	rotatorv1 "github.com/rotatord/rotatord/proto/rotator/v1"
)

// fakeRotatord loses the answer to the first calls of RotateKey, or refuses them, and then answers with the key "new".
type fakeRotatord struct {
	rotatorv1.UnimplementedKeyServiceServer
	rotatorv1.UnimplementedRotationServiceServer
	lose int
	with codes.Code
	more []*rotatorv1.KeyEntry // keys of the proxy besides "old"

	mu       sync.Mutex // protects the following field
	requests []*rotatorv1.RotateKeyRequest
}

func (f *fakeRotatord) GetKeys(context.Context, *rotatorv1.GetKeysRequest) (*rotatorv1.GetKeysResponse, error) {
	return &rotatorv1.GetKeysResponse{Keys: append([]*rotatorv1.KeyEntry{
		{Key: &rotatorv1.Key{Id: "old", Generation: 7, Secret: "dead"}, Priority: 1},
	}, f.more...)}, nil
}

func (f *fakeRotatord) RotateKey(_ context.Context, req *rotatorv1.RotateKeyRequest) (*rotatorv1.RotateKeyResponse, error) {
	f.mu.Lock()
	defer f.mu.Unlock()
	f.requests = append(f.requests, req)
	if len(f.requests) <= f.lose {
		st, err := status.New(f.with, "outcome unknown").WithDetails(&errdetails.RetryInfo{RetryDelay: durationpb.New(1)})
		if err != nil {
			return nil, err
		}
		return nil, st.Err()
	}
	return &rotatorv1.RotateKeyResponse{
		Outcome: rotatorv1.Outcome_OUTCOME_ROTATED,
		Key:     &rotatorv1.Key{Id: "new", Generation: 9, Secret: "good"},
	}, nil
}

// serve serves the fake with the health that a replica has.
func (f *fakeRotatord) serve(t *testing.T) (address string) {
	l, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	s := grpc.NewServer()
	rotatorv1.RegisterKeyServiceServer(s, f)
	rotatorv1.RegisterRotationServiceServer(s, f)
	h := health.NewServer()
	for service := range s.GetServiceInfo() {
		h.SetServingStatus(service, healthv1.HealthCheckResponse_SERVING)
	}
	healthv1.RegisterHealthServer(s, h)
	go s.Serve(l)
	t.Cleanup(s.Stop)
	return l.Addr().String()
}

// upstream accepts the key "good" only.
func upstream(t *testing.T) (url string) {
	s := httptest.NewServer(http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		if r.Header.Get("Authorization") != "Bearer good" {
			w.WriteHeader(http.StatusUnauthorized)
		}
	}))
	t.Cleanup(s.Close)
	return s.URL
}

func TestDeadKeyIsRotatedAndTheRequestSentAgain(t *testing.T) {
	for _, lost := range []codes.Code{codes.Unavailable, codes.DeadlineExceeded, codes.Aborted} {
		f := &fakeRotatord{lose: 2, with: lost}
		g, err := newGateway(f.serve(t), "openhands", "gateway-a")
		if err != nil {
			t.Fatal(err)
		}
		defer g.close()
		got, err := g.get(t.Context(), upstream(t))
		if err != nil || got != "200 OK" {
			t.Errorf("%v: get = %q, %v; want 200 OK", lost, got, err)
		}
		if len(f.requests) != 3 {
			t.Fatalf("%v: RotateKey was called %d times; want 3, of which two answers are lost", lost, len(f.requests))
		}
		for _, req := range f.requests {
			if req.GetRequestId() == "" || req.GetRequestId() != f.requests[0].GetRequestId() || req.GetGeneration() != 7 || req.GetKeyId() != "old" {
				t.Errorf("%v: a call asks for key %q, generation %d with request_id %q; want old, 7 and always the same id (%q)",
					lost, req.GetKeyId(), req.GetGeneration(), req.GetRequestId(), f.requests[0].GetRequestId())
			}
		}
	}
}

func TestRefusalIsNotRepeated(t *testing.T) {
	f := &fakeRotatord{lose: 1, with: codes.FailedPrecondition}
	g, err := newGateway(f.serve(t), "openhands", "gateway-a")
	if err != nil {
		t.Fatal(err)
	}
	defer g.close()
	if got, err := g.get(t.Context(), upstream(t)); status.Code(err) != codes.FailedPrecondition {
		t.Errorf("get = %q, %v; want FailedPrecondition", got, err)
	}
	if len(f.requests) != 1 {
		t.Errorf("RotateKey was called %d times; want 1", len(f.requests))
	}
}

// At the bound, or while etcd is full, the key cannot be replaced: the request is sent with another key of the proxy.
func TestAnotherKeyIsUsedWhereNoneCanBeRotated(t *testing.T) {
	for _, test := range []struct {
		name string
		more []*rotatorv1.KeyEntry
		want string
		code codes.Code
	}{
		{"another key", []*rotatorv1.KeyEntry{{Key: &rotatorv1.Key{Id: "other", Generation: 8, Secret: "good"}, Priority: 2}}, "200 OK", codes.OK},
		{"no other key", nil, "", codes.ResourceExhausted},
	} {
		t.Run(test.name, func(t *testing.T) {
			f := &fakeRotatord{lose: 1, with: codes.ResourceExhausted, more: test.more}
			g, err := newGateway(f.serve(t), "openhands", "gateway-a")
			if err != nil {
				t.Fatal(err)
			}
			defer g.close()
			if got, err := g.get(t.Context(), upstream(t)); got != test.want || status.Code(err) != test.code {
				t.Errorf("get = %q, %v; want %q and code %v", got, err, test.want, test.code)
			}
			if len(f.requests) != 1 {
				t.Errorf("RotateKey was called %d times; want 1", len(f.requests))
			}
		})
	}
}
