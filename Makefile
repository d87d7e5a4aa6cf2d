# Lifeboat. `make demo` shows the main job, `make test` passes the tests; both
# install what they need (Debian packages, Go modules) and say so.

SHELL      := /bin/bash
GO         ?= go
BIN        := bin
TOOLS      := $(BIN)/tools
export CGO_ENABLED ?= 0

.PHONY: all build demo demo-vsphere test race lint fmt fuzz bench crash e2e clean help

all: build

help: ## what can be made
	@sed -n 's/^\([a-z0-9-]*\):.*## \(.*\)/  make \1	\2/p' $(MAKEFILE_LIST) | expand -t 22

build: ## bin/lifeboat, one static binary, and its helper for VMware's library
	$(GO) build -trimpath -o $(BIN)/lifeboat ./cmd/lifeboat
	$(GO) build -trimpath -o $(BIN)/lifeboat-vddk ./cmd/lifeboat-vddk
	$(GO) build -trimpath -ldflags="-s -w" -o $(BIN)/lifeboat-agent ./cmd/lifeboat-agent

demo: ## boot a VM from its backup, kill the server under it, move it while it runs
	tools/provision.sh demo
	$(MAKE) --no-print-directory build
	$(BIN)/lifeboat demo

demo-vsphere: ## the same with a VM that dies in a (simulated) vCenter
	tools/provision.sh demo
	$(MAKE) --no-print-directory build
	$(BIN)/lifeboat demo --vsphere

test: ## every test, the real boot included
	tools/provision.sh test
	$(MAKE) --no-print-directory build
	LIFEBOAT_E2E=1 tools/run-tests.sh ./...

race: $(TOOLS)/versitygw ## the tests under the race detector
	tools/provision.sh test
	CGO_ENABLED=1 $(GO) test -race -timeout 30m ./...

lint: $(TOOLS)/gofumpt $(TOOLS)/staticcheck $(TOOLS)/golangci-lint ## gofumpt, go vet, staticcheck, golangci-lint
	@out=$$($(TOOLS)/gofumpt -l $$(git ls-files '*.go')); \
	  if [ -n "$$out" ]; then echo "not formatted (run make fmt):"; echo "$$out"; exit 1; fi
	$(GO) vet ./...
	$(TOOLS)/staticcheck ./...
	$(TOOLS)/golangci-lint run ./...

fmt: $(TOOLS)/gofumpt ## format every Go file
	$(TOOLS)/gofumpt -w $$(git ls-files '*.go')

FUZZTIME ?= 30s
fuzz: ## every fuzz target for FUZZTIME each (default 30s)
	tools/run-fuzz.sh $(FUZZTIME)

bench: $(TOOLS)/versitygw ## speed against named peers, measured in the same run
	tools/provision.sh bench
	$(MAKE) --no-print-directory build
	$(GO) run ./internal/bench

crash: $(TOOLS)/versitygw ## hundreds of kill -9 and power cuts (CRASH_RUNS, default 200)
	tools/provision.sh test
	$(MAKE) --no-print-directory build
	LIFEBOAT_CRASH_RUNS=$${CRASH_RUNS:-200} $(GO) test -count=1 -timeout 3h -run 'Crash|Kill|PowerLoss' ./...

e2e: $(TOOLS)/versitygw ## only the tests that boot machines
	tools/provision.sh test
	$(MAKE) --no-print-directory build
	LIFEBOAT_E2E=1 $(GO) test -count=1 -timeout 30m -run 'Boot|KernelClient|EndToEnd|Script' ./cmd/... ./nfsserver/... ./internal/...

clean: ## what make built here (caches of disks stay; see lifeboat demo --help)
	rm -rf $(BIN)

$(TOOLS)/gofumpt: tools/format/go.sum
	cd tools/format && $(GO) build -o ../../$@ mvdan.cc/gofumpt
$(TOOLS)/staticcheck: tools/check/go.sum
	cd tools/check && $(GO) build -o ../../$@ honnef.co/go/tools/cmd/staticcheck
$(TOOLS)/gotestsum: tools/test/go.sum
	cd tools/test && $(GO) build -o ../../$@ gotest.tools/gotestsum
$(TOOLS)/golangci-lint: tools/lint/go.sum
	cd tools/lint && $(GO) build -o ../../$@ github.com/golangci/golangci-lint/v2/cmd/golangci-lint
$(TOOLS)/versitygw: tools/s3/go.sum
	cd tools/s3 && $(GO) build -o ../../$@ github.com/versity/versitygw/cmd/versitygw
