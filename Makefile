# Each target installs what is missing first. `make help` lists them.
.DEFAULT_GOAL := help
.PHONY: help run check test full e2e demo faults fmt bench bench-operator install-deps

install-deps:
	@hack/install-deps

run: install-deps ## Run a pipeline on this machine, with a Redis and a Postgres of its own (Ctrl-C ends it)
	cargo build --locked --release --package millrace
	target/release/millrace dev --pipeline $(or $(PIPELINE),examples/records/pipeline.yaml)

check: install-deps ## Check what needs no server: formatting, lints, words, lengths, docs, pure unit tests
	hack/check

test: install-deps ## Run every test, after the checks
	hack/test

full: test e2e faults ## Run everything: the tests, a cluster, half an hour of faults, and what takes long
	MILLRACE_SERVERS=newest MILLRACE_RETENTION_PARTITIONS=30 hack/with-servers cargo test --locked --package millrace \
	  --features millrace/fault-points --test it -- retention::

e2e: install-deps ## Run everything on a Kubernetes of its own, with real pods (Linux, as root)
	hack/e2e

demo: install-deps ## Send 336,776 real flights through a pipeline and check every total
	hack/demo

faults: install-deps ## Break everything that a pipeline stands on for half an hour, and check every count (MINUTES, SEED, FAULTS)
	hack/faults-run --minutes $(or $(MINUTES),30) --seed $(or $(SEED),1) $(FAULTS)

bench: install-deps ## Measure this checkout, also beside another revision (BASE), by setting (SWEEPS=1), or beside others (PEERS=1)
	hack/bench $(if $(BASE),--base $(BASE)) $(if $(SWEEPS),--sweeps $(patsubst 1,all,$(SWEEPS))) $(if $(PEERS),--peers) $(BENCH)

bench-operator: install-deps ## Measure the operator with 1,000 pipelines on a real API server (10 minutes at rest)
	hack/bench-operator

fmt: ## Format the code
	cargo fmt --all

help: ## Show this
	@awk -F ':.*## ' '/^[a-z0-9-]+:.*## /{printf "  make %-14s %s\n", $$1, $$2}' $(MAKEFILE_LIST)
