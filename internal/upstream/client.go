package upstream

import (
	"bytes"
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"net/http"
	"net/url"
	"regexp"
	"slices"
	"strings"
	"sync"
	"time"
)

// Secret is a credential of an upstream. Only this package's requests reveal it.
type Secret interface {
	Reveal() string
}

// ClientConfig bounds what a Client does. The zero value of each field stands for its default.
type ClientConfig struct {
	Timeout   time.Duration // of one call, after it has found room; default: 30 s
	MaxAnswer int64         // bytes read of an answer's body, the rest is dropped; default: 1 MiB
	AtOnce    int           // calls at once; default: 32
	PerHost   int           // of them to one host; default: 8
	// Transport makes the calls. Default: one of its own that goes by the environment's proxy settings (HTTPS_PROXY and the
	// like) and verifies TLS.
	Transport http.RoundTripper
	Now       func() time.Time // default: time.Now
}

// Client asks upstreams over HTTP. All methods are safe for concurrent use.
type Client struct {
	cfg  ClientConfig
	http *http.Client
	room chan struct{}

	mu    sync.Mutex // protects hosts
	hosts map[string]*host
}

// NewClient returns a Client.
func NewClient(cfg ClientConfig) *Client {
	cfg.Timeout = orDefault(cfg.Timeout, 30*time.Second)
	cfg.MaxAnswer = orDefault(cfg.MaxAnswer, 1<<20)
	cfg.AtOnce = orDefault(cfg.AtOnce, 32)
	cfg.PerHost = orDefault(cfg.PerHost, 8)
	if cfg.Transport == nil {
		cfg.Transport = newTransport()
	}
	if cfg.Now == nil {
		cfg.Now = time.Now
	}
	return &Client{
		cfg: cfg, room: make(chan struct{}, cfg.AtOnce), hosts: make(map[string]*host),
		http: &http.Client{Transport: cfg.Transport, CheckRedirect: sameHost},
	}
}

func orDefault[T comparable](given, otherwise T) T {
	var zero T
	if given == zero {
		return otherwise
	}
	return given
}

// newTransport is Go's own with fewer idle connections and small headers: it verifies TLS, speaks HTTP/2 and goes by the
// environment's proxy settings.
func newTransport() *http.Transport {
	t := http.DefaultTransport.(*http.Transport).Clone()
	t.Proxy = http.ProxyFromEnvironment
	t.MaxIdleConnsPerHost = 4
	t.MaxResponseHeaderBytes = 64 << 10
	return t
}

// Close ends idle connections.
func (c *Client) Close() { c.http.CloseIdleConnections() }

// maxRedirects is enough for a slash that was missing.
const maxRedirects = 3

// sameHost follows a redirect only to where the key was meant to go, and only of a call that changes nothing. Otherwise the
// redirect itself is the answer.
func sameHost(next *http.Request, via []*http.Request) error {
	first := via[0]
	if next.URL.Scheme != first.URL.Scheme || next.URL.Host != first.URL.Host || first.Method != http.MethodGet || len(via) > maxRedirects {
		return http.ErrUseLastResponse
	}
	return nil
}

// call is one request. Its base, path and query never hold a secret: they may be shown.
type call struct {
	kind    Kind
	method  string
	base    string
	path    string
	query   url.Values
	header  map[string]string
	body    any      // sent as JSON, unless nil
	secrets []string // that the answer and the errors must not show
}

// CallError says what became of a call that did not succeed. It never holds a secret.
type CallError struct {
	Op      string    // such as "GET litellm.example.org/key/info"
	Status  int       // of the answer; 0: there was none
	Reason  string    // for people: one line, at most MaxReason bytes
	Unsent  bool      // surely nothing reached the upstream
	Held    bool      // with Unsent: nothing is wrong with the call, but the host is left alone, or there was no room
	RetryAt time.Time // the host is left alone until then; zero: it may be asked
	Verdict Verdict   // what the answer means for the key that was sent with the call
	cause   error
}

// Error implements error.
func (e *CallError) Error() string { return e.Op + ": " + e.Reason }

// Unwrap returns what can be told from this error: ErrUnknownKey, ErrAliasTaken, a BudgetError, or a context's error.
func (e *CallError) Unwrap() error { return e.cause }

// NotApplied reports whether a call that changes something has surely changed nothing. A 400 is no proof of that: LiteLLM
// gives it also for what fails after the change.
func (e *CallError) NotApplied() bool {
	return e.Unsent || slices.Contains([]int{401, 403, 404, 405, 422}, e.Status) || errors.Is(e.cause, ErrAliasTaken)
}

// do makes a call, once. An answer of any status is no error, and its body may be cut short.
func (c *Client) do(ctx context.Context, k call) (Response, error) {
	u, err := endpoint(k.base, k.path, k.query)
	if err != nil {
		return Response{}, &CallError{Op: k.method + " " + k.path, Reason: err.Error(), Unsent: true}
	}
	req, err := k.request(u)
	if err != nil {
		return Response{}, k.failed(u, err, true)
	}
	h := c.host(u.Host)
	if e := c.leftAlone(h, k, u); e != nil {
		return Response{}, e
	}
	leave, err := c.enter(ctx, h)
	if err != nil {
		e := k.failed(u, err, true)
		e.Held = true
		return Response{}, e
	}
	defer leave()
	if e := c.leftAlone(h, k, u); e != nil { // since it waited for room
		return Response{}, e
	}
	began := c.cfg.Now()
	r, err := c.exchange(ctx, req)
	h.note(began, c.cfg.Now(), outcomeOf(ctx, k.kind, r, err), r)
	if err != nil {
		e := k.failed(u, err, false)
		e.RetryAt = h.leftAloneUntil(c.cfg.Now())
		return Response{}, e
	}
	return r, nil
}

// leftAlone is the error of a call to a host that is not to be asked now.
func (c *Client) leftAlone(h *host, k call, u *url.URL) error {
	until := h.leftAloneUntil(c.cfg.Now())
	if until.IsZero() {
		return nil
	}
	e := k.failed(u, errLeftAlone, true)
	e.Held, e.RetryAt = true, until
	return e
}

var (
	errLeftAlone = errors.New("the host has failed and is left alone for a while")
	errNoRoom    = errors.New("too many calls are under way")
	errBadKey    = errors.New("the credential has characters that cannot be sent in a header")
)

// request puts the call together.
func (k *call) request(u *url.URL) (*http.Request, error) {
	var body io.Reader
	if k.body != nil {
		text, err := json.Marshal(k.body)
		if err != nil {
			return nil, err
		}
		body = bytes.NewReader(text)
	}
	req, err := http.NewRequest(k.method, u.String(), body)
	if err != nil {
		return nil, err
	}
	req.Header.Set("User-Agent", "rotatord")
	req.Header.Set("Accept", "application/json")
	if k.body != nil {
		req.Header.Set("Content-Type", "application/json")
	}
	for name, value := range k.header {
		if strings.ContainsFunc(value, func(r rune) bool { return r < ' ' || r == 0x7f }) {
			return nil, errBadKey // net/http would say so too, but only after a connection that counts against the host
		}
		req.Header.Set(name, value)
	}
	return req, nil
}

// exchange sends the request and reads the answer, in bounded time and size.
func (c *Client) exchange(ctx context.Context, req *http.Request) (Response, error) {
	ctx, cancel := context.WithTimeoutCause(ctx, c.cfg.Timeout, errTooSlow)
	defer cancel()
	resp, err := c.http.Do(req.WithContext(ctx))
	if err != nil {
		return Response{}, toldWhy(ctx, err)
	}
	defer resp.Body.Close()
	body, err := io.ReadAll(io.LimitReader(resp.Body, c.cfg.MaxAnswer))
	if err != nil {
		return Response{}, toldWhy(ctx, err)
	}
	return Response{Status: resp.StatusCode, Header: resp.Header, Body: body}, nil
}

var errTooSlow = errors.New("no answer in time")

// toldWhy names our own bound where that ended the call.
func toldWhy(ctx context.Context, err error) error {
	if errors.Is(context.Cause(ctx), errTooSlow) {
		return errTooSlow
	}
	return err
}

// failed describes a call that brought no answer. Of net/http's errors the part with the URL is left out, and so are
// credentials of a proxy.
func (k *call) failed(u *url.URL, err error, unsent bool) *CallError {
	var wrapped *url.Error
	if errors.As(err, &wrapped) {
		err = wrapped.Err
	}
	e := &CallError{Op: k.op(u), Unsent: unsent, Reason: Scrub(userinfo.ReplaceAllString(err.Error(), "//"+redacted+"@"), MaxReason, k.secrets...)}
	for _, known := range []error{context.Canceled, context.DeadlineExceeded} {
		if errors.Is(err, known) {
			e.cause = known
		}
	}
	return e
}

var userinfo = regexp.MustCompile(`//[^/@\s]*@`)

func (k *call) op(u *url.URL) string { return k.method + " " + u.Host + u.Path }

// refused describes an answer that is no success.
func (k *call) refused(r Response, now time.Time) *CallError {
	v := Classify(k.kind, r, now, k.secrets...)
	op := k.method + " " + k.path
	if u, err := endpoint(k.base, k.path, nil); err == nil {
		op = k.op(u)
	}
	return &CallError{Op: op, Status: r.Status, Reason: v.Reason, Verdict: v}
}

// decode makes a call and decodes the answer to it into out, unless that is nil. What is no success is an *CallError; the
// response is what was answered, if anything was.
func (c *Client) decode(ctx context.Context, k call, out any) (Response, error) {
	r, err := c.do(ctx, k)
	switch {
	case err != nil:
		return r, err
	case r.Status/100 != 2:
		return r, k.refused(r, c.cfg.Now())
	case out != nil && json.Unmarshal(r.Body, out) != nil: // its error may hold a piece of the body
		return r, c.strange(k, r)
	}
	return r, nil
}

// strange is the error for a success that does not look like the API's.
func (c *Client) strange(k call, r Response) *CallError {
	e := k.refused(r, c.cfg.Now())
	e.Reason = fmt.Sprintf("HTTP %d: the answer is not what this API answers", r.Status)
	return e
}

// endpoint joins a base URL and a path. What the base ends with and the path begins with is there once, so that
// https://api.openai.com and https://api.openai.com/v1 both do.
func endpoint(base, path string, query url.Values) (*url.URL, error) {
	u, err := url.Parse(base)
	if err != nil || u.Host == "" || u.Scheme != "http" && u.Scheme != "https" || u.User != nil {
		return nil, errors.New("the base URL must be http or https, and without credentials") // not repeated: it may hold some
	}
	at := strings.TrimRight(u.Path, "/")
	for cut := len(path); cut > 0; cut = strings.LastIndexByte(path[:cut], '/') {
		if strings.HasSuffix(at, path[:cut]) {
			path = path[cut:]
			break
		}
	}
	return &url.URL{Scheme: u.Scheme, Host: u.Host, Path: at + path, RawQuery: query.Encode()}, nil
}
