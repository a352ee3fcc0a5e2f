package fleet

// Server is any other program that serves at an address.
type Server struct {
	*Process
	Address string
}

// StartServer starts a program and does not wait for it. Its last argument is the address to serve at.
func StartServer(dir, name string, command ...string) (*Server, error) {
	s := &Server{}
	if err := addresses(&s.Address); err != nil {
		return nil, err
	}
	s.Process = &Process{Name: name, dir: dir, command: append(command, s.Address)}
	return s, s.start()
}
