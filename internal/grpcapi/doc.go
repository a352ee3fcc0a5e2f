// Package grpcapi serves the contract, rotator.v1, over gRPC: handlers, interceptors and the error table.
//
// It translates and nothing else: requests are checked and decided by the domain (package pool). What it adds to every
// call is a bound in time, a gate that fails writes at once while they cannot work, protection against panics, metrics,
// and an answer of a stated form for every error: a code, google.rpc.ErrorInfo, and where it helps RetryInfo or
// BadRequest.
//
// It promises that no text a caller gets shows the inside of the service, that nothing logs a request, and that a secret
// is only ever in Key.secret of a response whose request asked for it.
//
// It does not promise ErrorInfo on errors that gRPC itself makes before a handler is reached: unknown methods, messages
// that are too large or not protobuf.
package grpcapi
