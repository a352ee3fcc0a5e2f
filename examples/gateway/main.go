// Command gateway shows how a gateway uses rotatord: it sends one request to an upstream with a key of its proxy, and
// when the upstream refuses the key it has it rotated and sends the request once more.
//
//	go run ./examples/gateway -pool openhands -proxy gateway-a https://upstream.example/v1/models
package main

import (
	"context"
	"errors"
	"flag"
	"fmt"
	"math/rand/v2"
	"net/http"
	"os"
	"time"

	"github.com/google/uuid"
	"google.golang.org/genproto/googleapis/rpc/errdetails"
	"google.golang.org/grpc"
	"google.golang.org/grpc/codes"
	"google.golang.org/grpc/credentials/insecure"
	_ "google.golang.org/grpc/health" // lets connections follow what a replica's health says
	"google.golang.org/grpc/status"

	rotatorv1 "github.com/rotatord/rotatord/proto/rotator/v1"
)

func main() {
	server := flag.String("server", "127.0.0.1:7070", "rotatord: host:port, or dns:///host:port of all replicas")
	pool := flag.String("pool", "openhands", "pool of keys")
	proxy := flag.String("proxy", "", "name of this gateway; its bindings choose the keys")
	flag.Parse()
	ctx, cancel := context.WithTimeout(context.Background(), time.Minute)
	defer cancel()
	if err := run(ctx, *server, *pool, *proxy, flag.Arg(0)); err != nil {
		fmt.Fprintln(os.Stderr, "gateway:", err)
		os.Exit(1)
	}
}

func run(ctx context.Context, server, pool, proxy, url string) error {
	if url == "" {
		return errors.New("give the upstream's URL as the only argument")
	}
	g, err := newGateway(server, pool, proxy)
	if err != nil {
		return err
	}
	defer g.close()
	answer, err := g.get(ctx, url)
	if err != nil {
		return err
	}
	fmt.Println("the upstream answers", answer)
	return nil
}

// gateway has a connection for each of the two services it uses, since each follows the health of its own: without a
// quorum replicas still serve keys, but no rotations.
type gateway struct {
	pool, proxy string
	conns       []*grpc.ClientConn
	keys        rotatorv1.KeyServiceClient
	rotations   rotatorv1.RotationServiceClient
}

func newGateway(server, pool, proxy string) (*gateway, error) {
	g := &gateway{pool: pool, proxy: proxy}
	for _, service := range []string{rotatorv1.KeyService_ServiceDesc.ServiceName, rotatorv1.RotationService_ServiceDesc.ServiceName} {
		conn, err := dial(server, service)
		if err != nil {
			return nil, errors.Join(err, g.close())
		}
		g.conns = append(g.conns, conn)
	}
	g.keys = rotatorv1.NewKeyServiceClient(g.conns[0])
	g.rotations = rotatorv1.NewRotationServiceClient(g.conns[1])
	return g, nil
}

func (g *gateway) close() error {
	var errs []error
	for _, conn := range g.conns {
		errs = append(errs, conn.Close())
	}
	return errors.Join(errs...)
}

// dial spreads calls over all replicas the name stands for and leaves out those whose service is not healthy.
func dial(server, service string) (*grpc.ClientConn, error) {
	return grpc.NewClient(server,
		grpc.WithTransportCredentials(insecure.NewCredentials()), // rotatord has no TLS yet: private networks only
		grpc.WithDefaultServiceConfig(fmt.Sprintf(
			`{"loadBalancingConfig": [{"round_robin": {}}], "healthCheckConfig": {"serviceName": %q}}`, service)))
}

// get sends a request, and once more with the successor if the upstream refused the key.
func (g *gateway) get(ctx context.Context, url string) (string, error) {
	// A real gateway keeps the keys it was given and asks again after a rotation; here one request asks once.
	answer, err := g.keys.GetKeys(ctx, &rotatorv1.GetKeysRequest{Pool: g.pool, ProxyId: g.proxy, IncludeSecret: true})
	if err != nil {
		return "", err
	}
	if len(answer.GetKeys()) == 0 {
		return "", fmt.Errorf("pool %s has no usable key", g.pool)
	}
	key := answer.GetKeys()[0].GetKey()
	text, dead, err := send(ctx, url, key)
	if err != nil || !dead {
		return text, err
	}
	if key, err = g.rotate(ctx, key, "upstream answered "+text); err != nil {
		return "", err
	}
	text, _, err = send(ctx, url, key)
	return text, err
}

// send reports the upstream's status, and whether it says that the key is dead.
func send(ctx context.Context, url string, key *rotatorv1.Key) (text string, dead bool, err error) {
	req, err := http.NewRequestWithContext(ctx, http.MethodGet, url, nil)
	if err != nil {
		return "", false, err
	}
	req.Header.Set("Authorization", "Bearer "+key.GetSecret())
	resp, err := http.DefaultClient.Do(req)
	if err != nil {
		return "", false, err
	}
	defer resp.Body.Close()
	switch resp.StatusCode {
	case http.StatusUnauthorized, http.StatusPaymentRequired, http.StatusForbidden:
		dead = true
	}
	return resp.Status, dead, nil
}

// rotate has a dead key replaced and returns the key to go on with. However many gateways call it for one key, there
// is one rotation, and all get its result. Where no rotation is possible now it returns another key of the proxy.
func (g *gateway) rotate(ctx context.Context, dead *rotatorv1.Key, reason string) (*rotatorv1.Key, error) {
	req := &rotatorv1.RotateKeyRequest{
		Pool:          g.pool,
		KeyId:         dead.GetId(),
		Generation:    dead.GetGeneration(), // a late call never touches a later life of this key
		Trigger:       rotatorv1.Trigger_TRIGGER_PROXY,
		Source:        "gateway",
		Reason:        reason,
		RequestId:     uuid.NewString(), // the same in every repeat
		ProxyId:       g.proxy,
		IncludeSecret: true,
	}
	for pause := 100 * time.Millisecond; ; pause = min(2*pause, 2*time.Second) {
		answer, err := g.ask(ctx, req)
		switch {
		case err == nil && answer.GetKey() == nil:
			return nil, fmt.Errorf("%s, and pool %s has no other key that can be used", answer.GetOutcome(), g.pool)
		case err == nil && answer.GetKey().GetSecret() == "":
			return nil, fmt.Errorf("%s, and the replica that says so cannot open key %s", answer.GetOutcome(), answer.GetKey().GetId())
		case err == nil:
			return answer.GetKey(), nil
		case status.Code(err) == codes.ResourceExhausted: // the pool is at its bound, or etcd is full: not now
			return g.another(ctx, dead, err)
		case !repeatable(err):
			return nil, err
		}
		select {
		case <-time.After(max(pause, retryDelay(err)) + rand.N(pause)):
		case <-ctx.Done():
			return nil, err
		}
	}
}

// another is a key to go on with while the dead one cannot be replaced; without one the error is why. A real gateway asks
// for the rotation again later: after retryDelay(why) at the bound, after some minutes if etcd is full.
func (g *gateway) another(ctx context.Context, dead *rotatorv1.Key, why error) (*rotatorv1.Key, error) {
	answer, err := g.keys.GetKeys(ctx, &rotatorv1.GetKeysRequest{Pool: g.pool, ProxyId: g.proxy, IncludeSecret: true})
	if err != nil {
		return nil, errors.Join(why, err)
	}
	for _, entry := range answer.GetKeys() {
		if entry.GetKey().GetId() != dead.GetId() {
			return entry.GetKey(), nil
		}
	}
	return nil, why
}

// ask makes one attempt. rotatord answers within two seconds; one that takes longer is asked at another replica.
func (g *gateway) ask(ctx context.Context, req *rotatorv1.RotateKeyRequest) (*rotatorv1.RotateKeyResponse, error) {
	ctx, cancel := context.WithTimeout(ctx, 3*time.Second)
	defer cancel()
	return g.rotations.RotateKey(ctx, req)
}

// repeatable: nothing was applied, or it is not known. With the same request_id a repeat is safe in both cases.
func repeatable(err error) bool {
	code := status.Code(err)
	return code == codes.Unavailable || code == codes.DeadlineExceeded || code == codes.Aborted
}

// retryDelay is how long the service asks to wait, 0 if it does not.
func retryDelay(err error) time.Duration {
	for _, detail := range status.Convert(err).Details() {
		if info, ok := detail.(*errdetails.RetryInfo); ok {
			return info.GetRetryDelay().AsDuration()
		}
	}
	return 0
}
