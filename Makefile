# `make` builds, lints and tests. `make help` is the manual: it prints the `##` comments below.
# It needs Go, git and, for the race detector, a C compiler. Nothing but Go modules is downloaded.

SHELL := /bin/sh
.SHELLFLAGS := -ec
MAKEFLAGS += --no-print-directory
.DELETE_ON_ERROR:
.DEFAULT_GOAL := all

GO    := go
BIN   := bin
TOOLS := $(BIN)/tools
# Directories with Go code of ours: `gofmt .` would walk through data directories too.
DIRS  := $(wildcard cmd internal proto examples faults bench tools/phasecheck *.go)

# Empty without a tag; then the binaries show what the Go toolchain knows of the commit.
VERSION ?= $(shell git describe --tags --dirty 2>/dev/null)
LDFLAGS := $(if $(VERSION),-X github.com/rotatord/rotatord/internal/version.version=$(VERSION))
# Static binaries that do not depend on where they were built.
BUILD   := CGO_ENABLED=0 $(GO) build -trimpath

# How long the tests of one package may take. Raise it on slow machines: make test TIMEOUT=30m
TIMEOUT ?= 10m
# The tests of the admin's transitions that run a second time, on real etcd: those in which two callers meet.
ON_ETCD := StalledBind|TwoRemovals|MeetEachOther|ManyProxies|SetBinding|UpdatePool|ByTwo|FilledMeanwhile|AddKeysAnswers|InBulk|Claims|TakesOver|Overtaken
# What microbench runs and for how long: make microbench BENCH=Encode BENCHTIME=10s
BENCH     ?= .
BENCHTIME ?= 1s

.PHONY: all
all: build lint test ## build, lint and test (the default)

.PHONY: help
help: ## list the targets
	@awk -F ':.*## ' '/^[a-z-]+:.*## / { printf "  make %-16s %s\n", $$1, $$2 }' $(firstword $(MAKEFILE_LIST))

.PHONY: build
build: ## build bin/rotatord and bin/rotatorctl
	$(BUILD) -ldflags '$(LDFLAGS)' -o $(BIN)/rotatord ./cmd/rotatord
	$(BUILD) -ldflags '$(LDFLAGS)' -o $(BIN)/rotatorctl ./cmd/rotatorctl

.PHONY: etcd
etcd: $(BIN)/etcd $(BIN)/etcdctl $(BIN)/etcdutl ## build bin/etcd, bin/etcdctl and bin/etcdutl from their Go modules

.PHONY: run
run: build ## run rotatord with its defaults, the data in ./rotatord-data
	$(BIN)/rotatord

.PHONY: demo
demo: build ## the main job: three replicas, provider and pool racing, one rotation for each key
	$(GO) run ./examples/demo

.PHONY: test
test: build etcd ## run all tests with the race detector
	$(GO) test -race -timeout $(TIMEOUT) ./...
	$(GO) test -race -timeout $(TIMEOUT) ./internal/pool -etcd -run '$(ON_ETCD)'

.PHONY: lint
lint: $(TOOLS)/buf $(TOOLS)/staticcheck $(TOOLS)/phasecheck ## vet, staticcheck, our own rules, formatting, and the contract's rules and compatibility
	@unformatted=$$(gofmt -l $(DIRS)); test -z "$$unformatted" || { echo "not formatted, run gofmt -w on:" $$unformatted; exit 1; }
	$(GO) mod verify
	$(GO) vet ./...
	$(TOOLS)/staticcheck ./...
	$(GO) vet -C tools ./phasecheck/...
	$(GO) test -C tools ./phasecheck/...
	$(TOOLS)/phasecheck ./...
	$(TOOLS)/buf lint
	$(TOOLS)/buf format -d --exit-code
	$(TOOLS)/buf breaking --against proto/baseline.binpb

.PHONY: generate
generate: $(TOOLS)/buf $(TOOLS)/protoc-gen-go $(TOOLS)/protoc-gen-go-grpc ## generate Go from the contract
	$(TOOLS)/buf generate
	gofmt -w proto

.PHONY: check-generated
check-generated: $(TOOLS)/buf $(TOOLS)/protoc-gen-go $(TOOLS)/protoc-gen-go-grpc ## fail if the generated Go is not what the contract gives
	@rm -rf $(BIN)/generated
	@$(TOOLS)/buf generate -o $(BIN)/generated
	@gofmt -w $(BIN)/generated
	@diff -r -q --exclude='*.proto' --exclude=baseline.binpb proto $(BIN)/generated/proto || { echo "the generated Go is stale: run make generate"; exit 1; }
	@rm -rf $(BIN)/generated
	@echo "the generated Go is current"

.PHONY: baseline
baseline: $(TOOLS)/buf ## accept the contract as the one that later changes must be compatible with
	$(TOOLS)/buf build --exclude-source-info -o proto/baseline.binpb

# The fault test: for how long, with which seed (empty: a random one) and which faults (empty: all). What else it can do
# says go run ./faults -h, and FAULTS_ARGS passes on: make faults FAULTS=answers,crash-* FAULTS_ARGS='-lock off'
DURATION    ?= 5m
SEED        ?=
FAULTS      ?=
FAULTS_ARGS ?=

.PHONY: faults
faults: etcd ## run real replicas and etcd members under faults and check what was promised (DURATION, SEED, FAULTS)
	$(GO) run ./faults -duration $(DURATION) $(if $(SEED),-seed $(SEED)) $(if $(FAULTS),-faults '$(FAULTS)') $(FAULTS_ARGS)

.PHONY: faults-mutants
faults-mutants: etcd ## build bugs into rotatord, one at a time, and fail unless the fault test catches each
	$(GO) run ./faults/mutants

# The performance test. All of it takes two hours; what else it can do says go run ./bench -h, and BENCH_ARGS passes on:
# make bench BENCH_JSON=figures.json BENCH_ARGS='-only rotate -etcd 1 -c 64'
BENCH_ARGS ?=
export BENCH_JSON

.PHONY: bench
bench: etcd ## measure rotatord beside raw etcd and empty gRPC calls (BENCH_ARGS, BENCH_JSON)
	$(GO) run ./bench $(BENCH_ARGS)

.PHONY: microbench
microbench: ## run the Go benchmarks of hot paths (BENCH, BENCHTIME)
	$(GO) test -run '^$$' -bench '$(BENCH)' -benchtime $(BENCHTIME) -benchmem ./...

.PHONY: clean
clean: ## remove what was built; data directories stay
	rm -rf $(BIN)

# Tools are built from the versions pinned in tools/go.mod, and again only when those change. A build that finds its
# result up to date may leave its time alone, hence the touch.

$(TOOLS)/buf:                PKG = github.com/bufbuild/buf/cmd/buf
$(TOOLS)/protoc-gen-go:      PKG = google.golang.org/protobuf/cmd/protoc-gen-go
$(TOOLS)/protoc-gen-go-grpc: PKG = google.golang.org/grpc/cmd/protoc-gen-go-grpc
$(TOOLS)/staticcheck:        PKG = honnef.co/go/tools/cmd/staticcheck
$(TOOLS)/phasecheck:         PKG = ./phasecheck
$(TOOLS)/phasecheck:         $(wildcard tools/phasecheck/*.go tools/phasecheck/phases/*.go)
$(BIN)/etcd:                 PKG = go.etcd.io/etcd/server/v3
$(BIN)/etcdctl:              PKG = go.etcd.io/etcd/etcdctl/v3
$(BIN)/etcdutl:              PKG = go.etcd.io/etcd/etcdutl/v3

$(addprefix $(TOOLS)/,buf protoc-gen-go protoc-gen-go-grpc staticcheck phasecheck) $(addprefix $(BIN)/,etcd etcdctl etcdutl): tools/go.mod tools/go.sum
	@echo "building $@"
	@CGO_ENABLED=0 $(GO) build -C tools -trimpath -o $(CURDIR)/$@ $(PKG)
	@touch $@
