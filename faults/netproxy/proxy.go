package netproxy

import (
	"errors"
	"io"
	"net"
	"sync"
	"sync/atomic"
	"time"
)

// Proxy is one listening address in front of one server.
type Proxy struct {
	Net    *Network
	Listen string // host:port
	Target string // host:port
	// From and To name the ends. From may be empty: then Identify finds it in what the client sends first.
	From, To string
	Identify func(first []byte) string
	// Calls turns on the reading of HTTP/2, which spoiling needs.
	Calls bool

	listener net.Listener
	mu       sync.Mutex // protects the following fields
	open     map[*conn]struct{}
	closed   bool
}

// Start listens and serves until Close.
func (p *Proxy) Start() (err error) {
	p.open = make(map[*conn]struct{})
	if p.listener, err = net.Listen("tcp", p.Listen); err != nil {
		return err
	}
	go p.accept()
	return nil
}

// Close breaks all connections.
func (p *Proxy) Close() {
	p.mu.Lock()
	p.closed = true
	open := p.open
	p.open = make(map[*conn]struct{})
	p.mu.Unlock()
	_ = p.listener.Close()
	for c := range open {
		c.close()
	}
}

// Break resets all connections there are.
func (p *Proxy) Break() {
	p.mu.Lock()
	open := make([]*conn, 0, len(p.open))
	for c := range p.open {
		open = append(open, c)
	}
	p.mu.Unlock()
	for _, c := range open {
		c.reset()
	}
}

func (p *Proxy) accept() {
	for {
		client, err := p.listener.Accept()
		if errors.Is(err, net.ErrClosed) {
			return
		}
		if err == nil {
			go p.serve(client)
		}
	}
}

func (p *Proxy) serve(client net.Conn) {
	c := &conn{proxy: p, client: client, from: p.From, done: make(chan struct{}), up: make(chan chunk, 4096), down: make(chan chunk, 4096)}
	if !p.add(c) {
		c.close()
		return
	}
	defer p.remove(c)
	defer c.close()
	c.run()
}

func (p *Proxy) add(c *conn) bool {
	p.mu.Lock()
	defer p.mu.Unlock()
	if !p.closed {
		p.open[c] = struct{}{}
	}
	return !p.closed
}

func (p *Proxy) remove(c *conn) {
	p.mu.Lock()
	defer p.mu.Unlock()
	delete(p.open, c)
}

// chunk is what one end sent. Data of an end that stopped sending is nil.
type chunk struct {
	data []byte
	at   time.Time
}

// conn is one connection through a proxy: per direction a reader, a queue and a writer.
type conn struct {
	proxy          *Proxy
	from           string
	client, server net.Conn
	up, down       chan chunk // to the server, to the client
	calls          *calls

	mu sync.Mutex // orders setting server and closing

	heldSince atomic.Int64 // when a cut began to hold what the client sent, in Unix nanoseconds; 0: it does not
	done      chan struct{}
	closing   sync.Once
}

func (c *conn) close() {
	c.closing.Do(func() {
		c.mu.Lock()
		defer c.mu.Unlock()
		close(c.done)
		_ = c.client.Close()
		if c.server != nil {
			_ = c.server.Close()
		}
	})
}

// reset closes such that both ends see an error.
func (c *conn) reset() {
	c.mu.Lock()
	server := c.server
	c.mu.Unlock()
	for _, end := range []net.Conn{c.client, server} {
		if tcp, ok := end.(*net.TCPConn); ok {
			_ = tcp.SetLinger(0)
		}
	}
	c.close()
}

// run reads the first bytes, which may say who the client is, before anything is sent on.
func (c *conn) run() {
	first := make([]byte, 16<<10)
	n, err := c.client.Read(first)
	if err != nil {
		return
	}
	if c.from == "" {
		c.from = c.proxy.Identify(first[:n])
	}
	if !c.pass(Way{c.from, c.proxy.To}, time.Now()) || !c.dial() {
		return
	}
	if c.proxy.Calls {
		c.calls = newCalls(c)
	}
	var work sync.WaitGroup
	work.Go(func() { c.read(c.client, c.up, first[:n], c.calls.fromClient) })
	work.Go(func() { c.read(c.server, c.down, nil, c.calls.fromServer) })
	work.Go(func() { c.write(c.server, c.up, Way{c.from, c.proxy.To}) })
	work.Go(func() { c.write(c.client, c.down, Way{c.proxy.To, c.from}) })
	work.Wait()
}

// dial closes the client's connection if there is no server: the client shall see that.
func (c *conn) dial() bool {
	server, err := net.DialTimeout("tcp", c.proxy.Target, time.Second)
	if err != nil {
		c.reset()
		return false
	}
	c.mu.Lock()
	defer c.mu.Unlock()
	select {
	case <-c.done: // close came first and did not see it
		_ = server.Close()
		return false
	default:
		c.server = server
		return true
	}
}

// read queues what an end sends, by way of the reader of calls if there is one.
func (c *conn) read(end net.Conn, queue chan<- chunk, first []byte, through func([]byte) ([]byte, error)) {
	take := func(data []byte) bool {
		if c.calls != nil {
			var err error
			if data, err = through(data); err != nil {
				c.reset()
				return false
			}
		}
		return c.queue(queue, data)
	}
	if len(first) > 0 && !take(first) {
		return
	}
	buffer := make([]byte, 32<<10)
	for {
		n, err := end.Read(buffer)
		if n > 0 && !take(append([]byte(nil), buffer[:n]...)) {
			return
		}
		switch {
		case errors.Is(err, io.EOF):
			c.queueEnd(queue)
			return
		case err != nil:
			c.reset()
			return
		}
	}
}

func (c *conn) queue(queue chan<- chunk, data []byte) bool {
	if len(data) == 0 {
		return true
	}
	select {
	case queue <- chunk{data, time.Now()}:
		return true
	case <-c.done:
		return false
	}
}

func (c *conn) queueEnd(queue chan<- chunk) {
	select {
	case queue <- chunk{nil, time.Now()}:
	case <-c.done:
	}
}

// write delivers what is queued as the rules have it.
func (c *conn) write(end net.Conn, queue <-chan chunk, w Way) {
	defer c.close()
	for {
		select {
		case next := <-queue:
			if !c.pass(w, next.at) || next.data == nil {
				return
			}
			if _, err := end.Write(next.data); err != nil {
				c.reset()
				return
			}
		case <-c.done:
			return
		}
	}
}

// pass waits until the rules let something pass that was sent at a time. It reports false if the connection ended.
func (c *conn) pass(w Way, sent time.Time) bool {
	for {
		rule, changed := c.proxy.Net.rule(w)
		wait := time.Until(sent.Add(rule.Delay))
		switch {
		case !rule.Cut && wait <= 0:
			return true
		case rule.Cut:
			if !c.hold(changed) {
				return false
			}
		default:
			select {
			case <-time.After(wait):
			case <-c.done:
				return false
			}
		}
	}
}

// hold waits for a change of the rules while a cut holds data, and breaks the connection when that takes too long: either
// the data or their acknowledgement does not arrive.
func (c *conn) hold(changed <-chan struct{}) bool {
	limit := c.proxy.Net.UserTimeout
	if limit == 0 || !c.proxy.Calls {
		limit = time.Hour
	}
	began := time.Now().UnixNano()
	if !c.heldSince.CompareAndSwap(0, began) {
		began = c.heldSince.Load()
	}
	select {
	case <-changed:
		c.heldSince.Store(0)
		return true
	case <-time.After(time.Until(time.Unix(0, began).Add(limit))):
		c.reset()
		return false
	case <-c.done:
		return false
	}
}
